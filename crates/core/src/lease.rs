//! A grant, as a store words it.

use std::time::Duration;

use tokio::time::Instant;

use crate::FencingToken;

/// A grant of a store.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Lease {
    token: FencingToken,
    spare: u32,
    since: Option<Instant>,
    ttl: Option<Duration>,
}

impl Lease {
    /// A grant with a token that names it: a later renewal that finds another token finds another grant.
    pub const fn new(token: FencingToken) -> Self {
        Self { token, spare: 0, since: None, ttl: None }
    }

    /// A grant of a store without tokens.
    pub const fn unfenced() -> Self {
        Self::new(FencingToken::NONE)
    }

    /// The `spare` tokens after this one are reserved too, for hand-overs inside the process. Without any there are none.
    pub const fn with_spare(mut self, spare: u32) -> Self {
        self.spare = spare;
        self
    }

    /// The ttl runs from this time of our own clock, not from when the request was made (or the push arrived). Never later than the truth.
    pub const fn with_since(mut self, since: Instant) -> Self {
        self.since = Some(since);
        self
    }

    /// The store keeps it for so long, not for the ttl of the claim. The shorter of both counts.
    pub const fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// The token.
    #[must_use]
    pub const fn token(&self) -> FencingToken {
        self.token
    }

    /// How many tokens after it are reserved.
    #[must_use]
    pub const fn spare(&self) -> u32 {
        self.spare
    }

    /// From when the ttl runs, where the store says so.
    #[must_use]
    pub const fn since(&self) -> Option<Instant> {
        self.since
    }

    /// For how long the store keeps it, where it says so.
    #[must_use]
    pub const fn ttl(&self) -> Option<Duration> {
        self.ttl
    }
}

/// What two clocks may differ by over a ttl, and a timer be late: 1 %, at least 5 ms.
///
/// The rate is Redlock's drift factor; the floor is what tokio's timers were measured late, doubled.
pub(crate) fn margin(ttl: Duration) -> Duration {
    (ttl / 100).max(Duration::from_millis(5))
}

/// Until when a grant of `ttl` is certain that was asked for at `since`.
pub(crate) fn deadline(since: Instant, ttl: Duration) -> Instant {
    since + certain(ttl)
}

/// For how long a grant of `ttl` is certain.
pub(crate) fn certain(ttl: Duration) -> Duration {
    ttl.saturating_sub(margin(ttl))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_margin_is_a_hundredth_and_five_milliseconds_at_least() {
        let since = Instant::now();
        for (ttl, certain) in [(30_000, 29_700), (500, 495), (100, 95), (10, 5), (3, 0)] {
            assert_eq!(
                deadline(since, Duration::from_millis(ttl)) - since,
                Duration::from_millis(certain)
            );
        }
    }
}
