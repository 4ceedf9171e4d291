//! How often, and how long, a lock is asked for that somebody else holds.

use std::{fmt, iter, sync::Arc, time::Duration};

use crate::entropy;

/// A recipe for delays between attempts. Every `lock()` starts it anew, so sharing one is safe.
///
/// With a store that pushes, the store says when it is our turn and the strategy says how long we wait: as long as its delays last. Any `Fn() -> impl IntoIterator<Item = Duration>`
/// is a strategy too.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use distlock_core::{Exponential, RetryStrategy as _};
///
/// let recipe = Exponential::new(Duration::from_millis(16), Duration::from_millis(64)).limit(5);
/// let delays: Vec<_> = recipe.delays().map(|delay| delay.as_millis()).collect();
/// assert_eq!(delays, [16, 16, 16, 32, 64]);
///
/// let own = || [Duration::from_millis(5), Duration::from_millis(50)];
/// assert_eq!(own.delays().count(), 2);
/// ```
pub trait RetryStrategy: Send + Sync {
    /// The delays, from the first on. When they end, so does the patience.
    fn delays(&self) -> Box<dyn Iterator<Item = Duration> + Send>;

    /// At most so many of them.
    fn limit(self, retries: usize) -> Limit<Self>
    where
        Self: Sized,
    {
        Limit { strategy: self, retries }
    }

    /// Each of them replaced by a random one between half of it and all of it, so that those who began together do not go on together.
    fn jitter(self) -> Jitter<Self>
    where
        Self: Sized,
    {
        Jitter { strategy: self }
    }
}

impl<F, I> RetryStrategy for F
where
    F: Fn() -> I + Send + Sync,
    I: IntoIterator<Item = Duration>,
    I::IntoIter: Send + 'static,
{
    fn delays(&self) -> Box<dyn Iterator<Item = Duration> + Send> {
        Box::new(self().into_iter())
    }
}

impl RetryStrategy for Arc<dyn RetryStrategy> {
    fn delays(&self) -> Box<dyn Iterator<Item = Duration> + Send> {
        (**self).delays()
    }
}

/// One attempt.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "there is nothing to add to no retry")]
pub struct NoRetry;

impl RetryStrategy for NoRetry {
    fn delays(&self) -> Box<dyn Iterator<Item = Duration> + Send> {
        Box::new(iter::empty())
    }
}

/// The same delay, for ever.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    delay: Duration,
}

impl Linear {
    /// Waits for this long between attempts.
    #[must_use]
    pub const fn new(delay: Duration) -> Self {
        Self { delay }
    }
}

impl RetryStrategy for Linear {
    fn delays(&self) -> Box<dyn Iterator<Item = Duration> + Send> {
        Box::new(iter::repeat(self.delay))
    }
}

/// 4, 8, 16, 32 … milliseconds, kept between two bounds, for ever.
///
/// The n-th delay is 2^(n+1) ms; the lower bound should be 16 ms or more, so that the first attempts do not come all at once.
#[derive(Clone, Copy, Debug)]
pub struct Exponential {
    min: Duration,
    max: Duration,
}

impl Exponential {
    /// Between these two. A `max` below `min` counts as `min`.
    #[must_use]
    pub const fn new(min: Duration, max: Duration) -> Self {
        Self { min, max }
    }
}

impl RetryStrategy for Exponential {
    fn delays(&self) -> Box<dyn Iterator<Item = Duration> + Send> {
        let Self { min, max } = *self;
        let powers =
            (2..).map(|n| 1_u64.checked_shl(n).map_or(Duration::MAX, Duration::from_millis));
        Box::new(powers.map(move |delay| delay.min(max).max(min)))
    }
}

/// See [`RetryStrategy::limit`].
#[derive(Clone, Copy, Debug)]
pub struct Limit<S> {
    strategy: S,
    retries: usize,
}

impl<S: RetryStrategy> RetryStrategy for Limit<S> {
    fn delays(&self) -> Box<dyn Iterator<Item = Duration> + Send> {
        Box::new(self.strategy.delays().take(self.retries))
    }
}

/// See [`RetryStrategy::jitter`].
#[derive(Clone, Copy, Debug)]
pub struct Jitter<S> {
    strategy: S,
}

impl<S: RetryStrategy> RetryStrategy for Jitter<S> {
    fn delays(&self) -> Box<dyn Iterator<Item = Duration> + Send> {
        Box::new(self.strategy.delays().map(|delay| random_between(delay / 2, delay)))
    }
}

/// What is asked for without a strategy, of a store that cannot push.
pub(crate) fn polling() -> impl RetryStrategy {
    Exponential::new(Duration::from_millis(16), Duration::from_millis(512)).jitter()
}

/// Somewhere between two durations; the upper one where the operating system gives no random number.
pub(crate) fn random_between(low: Duration, high: Duration) -> Duration {
    let Some(random) = entropy::number() else { return high };
    let span = high.saturating_sub(low).as_secs_f64() * f64::from(random) / f64::from(u32::MAX);
    Duration::try_from_secs_f64(span).map_or(high, |span| low.saturating_add(span).min(high))
}

impl fmt::Debug for dyn RetryStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RetryStrategy")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(strategy: &impl RetryStrategy, count: usize) -> Vec<u128> {
        strategy.delays().take(count).map(|delay| delay.as_millis()).collect()
    }

    #[test]
    fn no_retry_gives_nothing() {
        assert_eq!(NoRetry.delays().count(), 0);
    }

    #[test]
    fn linear_stays() {
        assert_eq!(millis(&Linear::new(Duration::from_millis(7)), 3), [7, 7, 7]);
    }

    #[test]
    fn exponential_doubles_between_its_bounds() {
        let strategy = Exponential::new(Duration::from_millis(10), Duration::from_millis(300));
        assert_eq!(millis(&strategy, 9), [10, 10, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(strategy.delays().nth(200).unwrap(), Duration::from_millis(300));
    }

    #[test]
    fn a_limit_counts_anew_for_everyone() {
        let strategy = Linear::new(Duration::from_millis(1)).limit(2);
        assert_eq!(strategy.delays().count(), 2);
        assert_eq!(strategy.delays().count(), 2);
    }

    #[test]
    fn what_gives_delays_is_a_strategy_and_a_shared_one_is_too() {
        let own = || [Duration::from_millis(5), Duration::from_millis(50)];
        assert_eq!(millis(&own, 3), [5, 50]);
        let shared: Arc<dyn RetryStrategy> = Arc::new(own);
        assert_eq!(millis(&shared, 3), [5, 50]);
        assert_eq!(format!("{:?}", &*shared), "RetryStrategy");
    }

    #[test]
    fn a_store_that_cannot_push_is_asked_after_16_to_512_milliseconds() {
        let delays = millis(&polling(), 20);
        assert!((8..=16).contains(&delays[0]), "{delays:?}");
        assert!(delays[10..].iter().all(|delay| (256..=512).contains(delay)), "{delays:?}");
    }

    #[test]
    fn the_longest_delay_can_be_jittered() {
        let strategy = Linear::new(Duration::MAX).jitter();
        assert!(strategy.delays().take(200).all(|delay| Duration::MAX / 2 <= delay));
        assert!(random_between(Duration::MAX, Duration::MAX) == Duration::MAX);
    }

    #[test]
    fn jitter_stays_in_the_upper_half() {
        let strategy = Linear::new(Duration::from_millis(100)).jitter();
        let delays: Vec<_> = strategy.delays().take(200).collect();
        assert!(delays.iter().all(|delay| (50..=100).contains(&delay.as_millis())));
        // Each part of it gets some: one of them gets none once in 10 to the 19 runs.
        for part in [50..60, 60..70, 70..80, 80..90, 90..100] {
            assert!(delays.iter().any(|delay| part.contains(&delay.as_millis())), "{part:?}");
        }
    }
}
