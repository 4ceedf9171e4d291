//! A lock by name: what a user asks of it, and the ways to take it.

use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    Backend as _, Error, Exponential, FencingToken, Guard, Key, Mode, Owner, RetryStrategy,
    client::{Defaults, Inner},
    contender::{Ask, Contender},
    limits,
    patience::Patience,
    tenure::Policy,
};

/// A lock by name, with what is asked of it. Cheap to clone and to keep; made by [`Client::mutex`](crate::Client::mutex).
///
/// Two mutexes of the same name are the same lock, in this process and in all others that use the store.
#[derive(Clone)]
#[must_use = "a mutex does nothing until it is locked"]
pub struct Mutex {
    pub(crate) client: Arc<Inner>,
    /// Not checked yet.
    pub(crate) key: Key,
    pub(crate) ask: Ask,
    pub(crate) retry: Option<Arc<dyn RetryStrategy>>,
    pub(crate) start_jitter: Option<(Duration, Duration)>,
}

/// What [`Mutex::run`] gives back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Report<T> {
    /// What the work gave back.
    pub value: T,
    /// How long the lock was held for it.
    pub held: Duration,
}

impl Mutex {
    pub(crate) fn new(client: Arc<Inner>, name: Arc<str>, defaults: &Defaults) -> Self {
        Self {
            client,
            key: Key::unchecked(name),
            ask: Ask {
                mode: Mode::Exclusive,
                owner: None,
                ttl: defaults.ttl,
                metadata: Arc::clone(&defaults.nothing),
                policy: Policy {
                    renew_at: defaults.renew_at,
                    max_hold: None,
                    min_hold: Duration::ZERO,
                },
            },
            retry: defaults.retry.clone(),
            start_jitter: None,
        }
    }

    /// The length of the lease: for how long the store keeps the lock without hearing of us. Default: the client's, 30 s.
    ///
    /// At least the store's [resolution](crate::Capabilities::resolution) and above 5 ms, the margin for clocks; at most 24 days.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.ask.ttl = ttl;
        self
    }

    /// How often, and how long, to ask for a lock that somebody else holds. Default: the client's, which is to wait for ever.
    ///
    /// With a strategy, a transient failure of the store is borne too, as long as its delays last; without one it is returned at once.
    pub fn retry(mut self, strategy: impl RetryStrategy + 'static) -> Self {
        self.retry = Some(Arc::new(strategy));
        self
    }

    /// Words for those who [`inspect`](crate::Client::inspect) the lock, at most 4 KiB. Default: none.
    pub fn metadata(mut self, metadata: impl Into<Arc<str>>) -> Self {
        self.ask.metadata = metadata.into();
        self
    }

    /// The guard is lost, and the lock given back, when it was held for so long, however faithfully it was renewed. Default: no limit.
    pub const fn max_hold(mut self, max_hold: Duration) -> Self {
        self.ask.policy.max_hold = Some(max_hold);
        self
    }

    /// The lock stays taken for at least so long: a guard that is released earlier leaves the rest of it to the store, and does not wait.
    ///
    /// So a job that is done in no time does not run twice on machines whose clocks differ. Below the ttl unless renewed. Default: none.
    pub const fn min_hold(mut self, min_hold: Duration) -> Self {
        self.ask.policy.min_hold = min_hold;
        self
    }

    /// After what fraction of the ttl it is renewed, above 0 and below 1. Default: the client's, a third.
    pub const fn renew_at(mut self, fraction: f64) -> Self {
        self.ask.policy.renew_at = Some(fraction);
        self
    }

    /// The lock ends at its ttl.
    pub const fn no_renewal(mut self) -> Self {
        self.ask.policy.renew_at = None;
        self
    }

    /// Lets a random time of this range pass before the first attempt, so that those who start together do not ask together. Default: none.
    pub const fn start_jitter(mut self, range: RangeInclusive<Duration>) -> Self {
        self.start_jitter = Some((*range.start(), *range.end()));
        self
    }

    /// An owner id of one's own, to resume a lock after a restart, or to hand it to another process. Default: a new random one each time.
    ///
    /// Whoever asks with the id of the holder *is* the holder. Use an id for one acquisition at a time, and another one after a loss, or a release that
    /// failed: what the store may still have of it is given back in the background, again and again, which would end what was taken with the same id
    /// since. So may a release that a broken connection made the store repeat, should the first one be carried out late.
    pub const fn owner(mut self, owner: Owner) -> Self {
        self.ask.owner = Some(owner);
        self
    }

    /// The full name of the lock, with the client's prefix.
    #[must_use]
    pub fn key(&self) -> &str {
        self.key.as_str()
    }

    /// Waits for the lock.
    ///
    /// Waits for ever without a [retry strategy](Self::retry). Waiters of a process are served in the order of their arrival; those of different
    /// processes too, where the store is [fair](crate::Capabilities::fair).
    ///
    /// # Errors
    /// [`Error::RetriesExhausted`] when the strategy's delays are over; [`Error::Backend`] when the store fails (a transient failure: at once without a strategy,
    /// or after 30 s for one who already stood in line); [`Error::Closed`], [`Error::Overloaded`], [`Error::Invalid`].
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the line. A grant on its way is given back in the background.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), distlock_core::Error> {
    /// # let client = distlock_core::Client::new(distlock_memory::MemoryBackend::new());
    /// let guard = client.mutex("invoice/42").lock().await?;
    /// assert!(guard.is_held());
    /// # Ok(()) }
    /// ```
    pub async fn lock(&self) -> Result<Guard, Error> {
        let mut contender = self.contender(None)?;
        contender.lock().await
    }

    /// Waits for the lock, at most for `limit`. With a limit of zero, asks once.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it stayed taken; else as [`lock`](Self::lock).
    ///
    /// # Cancel safety
    /// As [`lock`](Self::lock).
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), distlock_core::Error> {
    /// # let client = distlock_core::Client::new(distlock_memory::MemoryBackend::new());
    /// use std::time::Duration;
    ///
    /// let mutex = client.mutex("invoice/42");
    /// let _guard = mutex.lock().await?;
    /// let error = mutex.lock_timeout(Duration::from_secs(3)).await.unwrap_err();
    /// assert!(matches!(error, distlock_core::Error::Timeout { .. }));
    /// # Ok(()) }
    /// ```
    pub async fn lock_timeout(&self, limit: Duration) -> Result<Guard, Error> {
        let mut contender = self.contender(Some(limit))?;
        contender.lock().await
    }

    /// Takes the lock if nobody holds it: `None` when somebody else does, or waits for it in this process.
    ///
    /// # Errors
    /// As [`lock`](Self::lock), save that a strategy is consulted for failures of the store only.
    ///
    /// # Cancel safety
    /// A lock that was taken in the meantime is given back in the background.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), distlock_core::Error> {
    /// # let client = distlock_core::Client::new(distlock_memory::MemoryBackend::new());
    /// let mutex = client.mutex("invoice/42");
    /// let guard = mutex.try_lock().await?.expect("nobody has it");
    /// assert!(mutex.try_lock().await?.is_none());
    /// # Ok(()) }
    /// ```
    pub async fn try_lock(&self) -> Result<Option<Guard>, Error> {
        let mut contender = self.contender(None)?;
        contender.try_lock().await
    }

    /// Waits for the lock, does the work, and releases. The work is dropped when the lock is lost.
    ///
    /// # Errors
    /// [`Error::Lost`] when the lock was lost before the work was done; else as [`lock`](Self::lock).
    ///
    /// # Cancel safety
    /// Dropping the future drops the work and releases in the background.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), distlock_core::Error> {
    /// # let client = distlock_core::Client::new(distlock_memory::MemoryBackend::new());
    /// let report = client.mutex("report").run(async |guard| guard.fencing_token().as_u64() * 2).await?;
    /// println!("{} after {:?}", report.value, report.held);
    /// # Ok(()) }
    /// ```
    #[allow(
        clippy::future_not_send,
        reason = "it is Send when the work is, which stable Rust cannot state here"
    )]
    pub async fn run<T, F>(&self, work: F) -> Result<Report<T>, Error>
    where
        F: AsyncFnOnce(&Guard) -> T,
    {
        let guard = self.lock().await?;
        guard.run(work).await
    }

    /// Does the work if nobody holds the lock: `None`, when somebody else does. What a cron job on five machines wants.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), distlock_core::Error> {
    /// # let client = distlock_core::Client::new(distlock_memory::MemoryBackend::new());
    /// let mutex = client.mutex("nightly").min_hold(std::time::Duration::from_secs(10));
    /// assert!(mutex.try_run(async |_| ()).await?.is_some());
    /// assert!(mutex.try_run(async |_| ()).await?.is_none(), "it stays taken for the rest of ten seconds");
    /// # Ok(()) }
    /// ```
    #[allow(
        clippy::future_not_send,
        reason = "it is Send when the work is, which stable Rust cannot state here"
    )]
    pub async fn try_run<T, F>(&self, work: F) -> Result<Option<Report<T>>, Error>
    where
        F: AsyncFnOnce(&Guard) -> T,
    {
        match self.try_lock().await? {
            Some(guard) => guard.run(work).await.map(Some),
            None => Ok(None),
        }
    }

    /// Waits until nobody holds the lock, or somebody else does than at first, without taking it.
    ///
    /// Asks the store again and again, after 16 to 512 ms. Those of one process who hand the lock on among themselves are one holder here: the store hears
    /// nothing of it.
    ///
    /// # Errors
    /// [`Error::Timeout`] when the same holder was there all the time; [`Error::Backend`], [`Error::Closed`], [`Error::Invalid`].
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), distlock_core::Error> {
    /// # let client = distlock_core::Client::new(distlock_memory::MemoryBackend::new());
    /// client.mutex("migration").wait_released(std::time::Duration::from_secs(5)).await?;
    /// # Ok(()) }
    /// ```
    pub async fn wait_released(&self, timeout: Duration) -> Result<(), Error> {
        let started = Instant::now();
        let key = self.checked_key()?;
        self.client.check_open()?;
        let strategy =
            Exponential::new(Duration::from_millis(16), Duration::from_millis(512)).jitter();
        let strategy: Arc<dyn RetryStrategy> = Arc::new(strategy);
        let until = started.checked_add(timeout);
        let mut patience = Patience::new(Some(&strategy), started, until, &self.client.closing);
        let mut first: Option<Vec<(Option<Owner>, Option<FencingToken>)>> = None;
        loop {
            let holders = patience.bound(self.client.backend.inspect(&key)).await??.holders;
            let names: Vec<_> = holders.iter().map(|holder| (holder.owner, holder.token)).collect();
            let before = first.get_or_insert_with(|| names.clone());
            if !before.iter().any(|name| names.contains(name)) {
                return Ok(());
            }
            let hint = holders.iter().filter_map(|holder| holder.expires_in).min();
            patience.pause(hint).await?;
        }
    }

    /// In another mode than exclusive, which nothing of the public interface asks for yet.
    #[cfg(feature = "_simulation")]
    pub(crate) const fn in_mode(mut self, mode: Mode) -> Self {
        self.ask.mode = mode;
        self
    }

    pub(crate) fn checked_key(&self) -> Result<Key, Error> {
        self.key.check()?;
        Ok(self.key.clone())
    }

    fn contender(&self, limit: Option<Duration>) -> Result<Contender<'_>, Error> {
        self.key.check()?;
        self.client.check_open()?;
        self.client.check_mode(self.ask.mode)?;
        limits::check_ttl(self.ask.ttl, &self.client.capabilities)?;
        limits::check_metadata(&self.ask.metadata)?;
        limits::check_policy(&self.ask.policy, self.ask.ttl)?;
        let started = Instant::now();
        let until = limit.and_then(|limit| started.checked_add(limit));
        let patience = Patience::new(self.retry.as_ref(), started, until, &self.client.closing);
        Contender::new(self, patience)
    }
}

impl fmt::Debug for Mutex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex")
            .field("key", &self.key)
            .field("ttl", &self.ask.ttl)
            .finish_non_exhaustive()
    }
}
