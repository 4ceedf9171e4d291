//! The client: one store, one keeper, and the lines of this process.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use crate::{
    AnyBackend, Backend, BackendError, Capabilities, Claim, Error, Key, Mode, Mutex, Observer,
    Occupancy, RetryStrategy, claim::Terms, closing::Closing, contender::Ask, keeper::Keeper,
    limits, line::Lines, owner::OwnerPool,
};

/// A client of a store of locks. Cheap to clone; all clones share one keeper, which renews what they hold, and one line per key.
///
/// # Runtimes
/// It needs a tokio runtime with its timer enabled. The keeper is a task in the runtime in which the first lock was asked for: that one has to run while
/// locks are held, also by others. When it ends, the next call of any other runtime starts the keeper anew there. Nothing is renewed in between, and a
/// guard that outlasts it is lost by its deadline.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), distlock_core::Error> {
/// # use distlock_memory::MemoryBackend;
/// use distlock_core::Client;
///
/// let client = Client::new(MemoryBackend::new());
/// let guard = client.mutex("invoice/42").lock().await?;
/// // Nobody else has the lock now, and whatever is written with this token is later than all before.
/// println!("token {}", guard.fencing_token());
/// guard.release().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    defaults: Defaults,
}

/// What a mutex has without asking.
#[derive(Clone)]
pub(crate) struct Defaults {
    pub(crate) prefix: Arc<str>,
    /// Empty metadata, shared.
    pub(crate) nothing: Arc<str>,
    pub(crate) ttl: Duration,
    pub(crate) retry: Option<Arc<dyn RetryStrategy>>,
    pub(crate) renew_at: Option<f64>,
}

/// What all clones of a client share.
pub(crate) struct Inner {
    pub(crate) backend: AnyBackend,
    pub(crate) capabilities: Capabilities,
    pub(crate) keeper: Keeper,
    pub(crate) lines: Lines,
    pub(crate) cohort_limit: u32,
    owners: OwnerPool,
    pub(crate) closing: Arc<Closing>,
    max_locks: usize,
}

static GLOBAL: OnceLock<Client> = OnceLock::new();

impl Client {
    /// A client with the defaults: no prefix, a ttl of 30 s, renewal after a third of it, waiting for ever.
    pub fn new(backend: impl Backend) -> Self {
        ClientBuilder::of(AnyBackend::new(backend)).assemble()
    }

    /// A client with settings of its own.
    pub fn builder(backend: impl Backend) -> ClientBuilder {
        ClientBuilder::of(AnyBackend::new(backend))
    }

    /// A mutex of this name. Cheap, no I/O, and nothing is checked before it is used.
    pub fn mutex(&self, name: impl AsRef<str>) -> Mutex {
        let name: Arc<str> = match &*self.defaults.prefix {
            "" => name.as_ref().into(),
            prefix => format!("{prefix}{}", name.as_ref()).into(),
        };
        Mutex::new(Arc::clone(&self.inner), name, &self.defaults)
    }

    /// Who holds the lock of this name, with what words and token and for how long yet, and how many wait.
    ///
    /// # Errors
    /// [`Error::Backend`] when the store cannot tell, [`Error::Invalid`] for a name outside the limits, [`Error::Closed`] after
    /// [`shutdown`](Self::shutdown).
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), distlock_core::Error> {
    /// # let client = distlock_core::Client::new(distlock_memory::MemoryBackend::new());
    /// let _guard = client.mutex("report").metadata("worker-7").lock().await?;
    /// assert_eq!(client.inspect("report").await?.holders[0].metadata, "worker-7");
    /// # Ok(()) }
    /// ```
    pub async fn inspect(&self, name: impl AsRef<str>) -> Result<Occupancy, Error> {
        self.inner.check_open()?;
        let key = self.mutex(name).checked_key()?;
        Ok(self.inner.backend.inspect(&key).await?)
    }

    /// Takes the lock of this name away from whoever holds it; `false`: nobody did.
    ///
    /// The holder is told as soon as the store can, at its next renewal at the latest. Until then it goes on: its writes are
    /// refused only where the fencing token is checked.
    ///
    /// # Errors
    /// [`Error::Backend`] when the store fails, with [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) when the lock was taken by another library and so
    /// has no owner id to release; [`Error::Invalid`] for a name outside the limits.
    ///
    /// # Cancel safety
    /// Dropping the future may or may not have released the lock.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), distlock_core::Error> {
    /// # let client = distlock_core::Client::new(distlock_memory::MemoryBackend::new());
    /// let guard = client.mutex("stuck").lock().await?;
    /// assert!(client.force_release("stuck").await?);
    /// assert!(!guard.is_held());
    /// # Ok(()) }
    /// ```
    pub async fn force_release(&self, name: impl AsRef<str>) -> Result<bool, Error> {
        self.inner.check_open()?;
        let key = self.mutex(name).checked_key()?;
        let backend = &self.inner.backend;
        let mut released = false;
        for holder in backend.inspect(&key).await?.holders {
            let Some(owner) = holder.owner else {
                let problem = format!("lock `{key}` is held without an owner id of ours");
                return Err(BackendError::conflict(backend.name(), problem).into());
            };
            let claim = Claim::new(key.clone(), owner, holder.mode, self.defaults.ttl);
            released |= backend.release(&claim).await?;
        }
        Ok(released)
    }

    /// Gives back everything that is still held, ends every waiter with [`Error::Closed`], and waits until the store was told.
    ///
    /// A store that does not answer is waited for until what it was not told of ends by itself. Calls that are asking the store are waited for until they
    /// have given up, for a second at most where their task does not run. Without any runtime, the client's or the caller's, nobody can be told: what
    /// is held ends by its ttl.
    ///
    /// Guards that are still there are lost, with [`LossReason::Shutdown`](crate::LossReason::Shutdown). The client cannot be used again.
    ///
    /// # Cancel safety
    /// Dropping the future lets the releases finish in the background.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), distlock_core::Error> {
    /// # let client = distlock_core::Client::new(distlock_memory::MemoryBackend::new());
    /// let guard = client.mutex("invoice/42").lock().await?;
    /// client.shutdown().await;
    /// assert!(!guard.is_held(), "somebody else may have it by now");
    /// assert!(client.mutex("invoice/42").lock().await.is_err());
    /// # Ok(()) }
    /// ```
    pub async fn shutdown(&self) {
        self.inner.closing.close();
        self.inner.lines.close();
        self.inner.keeper.end_all();
        // Waiters that are woken now give up their places before the store is waited for. In another thread that takes longer.
        tokio::task::yield_now().await;
        self.inner.keeper.see_off(&self.inner.closing);
        self.inner.keeper.finish().await;
    }

    /// The process-wide client, if [`set_global`](Self::set_global) was called.
    #[must_use]
    pub fn global() -> Option<&'static Self> {
        GLOBAL.get()
    }

    /// Makes this client the process-wide one. Once only.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is one already.
    pub fn set_global(self) -> Result<(), Error> {
        GLOBAL.set(self).map_err(|_| Error::invalid("global client", "is set already"))
    }

    /// What the store can do.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    #[cfg(test)]
    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("backend", &self.inner.backend).finish_non_exhaustive()
    }
}

impl Inner {
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        self.closing.check()
    }

    /// A new claim for what is asked. `block` tokens when others of this process wait behind it.
    pub(crate) fn claim(
        &self,
        key: &Key,
        ask: &Ask,
        queue: bool,
        in_line: bool,
        block: u32,
    ) -> Result<Claim, Error> {
        let owner = ask.owner.map_or_else(|| self.owners.draw(), Ok)?;
        let mut terms = Terms::new(ask.ttl, Arc::clone(&ask.metadata));
        terms.renews = ask.policy.renew_at.is_some();
        terms.new_owner = ask.owner.is_none();
        if in_line && self.lines.awaited(key) {
            terms.block = block;
        }
        Ok(Claim::build(key.clone(), owner, ask.mode, queue, terms, Some(self.keeper.clone())))
    }

    /// Counts one more of the locks that the client may have or wait for at a time.
    pub(crate) fn take_seat(&self) -> Result<(), Error> {
        self.closing.take_seat(self.max_locks)
    }

    pub(crate) fn check_mode(&self, mode: Mode) -> Result<(), Error> {
        if self.capabilities.supports(mode) {
            return Ok(());
        }
        Err(Error::invalid(
            "mode",
            format!("{mode:?} is not supported by the store {}", self.backend.name()),
        ))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.keeper.stop();
    }
}

/// Settings of a client. See `docs/defaults.md` for the reason of each default.
#[must_use = "a builder does nothing until `build` is called"]
pub struct ClientBuilder {
    backend: AnyBackend,
    defaults: Defaults,
    observer: Option<Arc<dyn Observer>>,
    cohort_limit: u32,
    max_waiters: usize,
    max_locks: usize,
}

impl ClientBuilder {
    fn of(backend: AnyBackend) -> Self {
        let defaults = Defaults {
            prefix: "".into(),
            nothing: "".into(),
            ttl: Duration::from_secs(30),
            retry: None,
            renew_at: Some(1.0 / 3.0),
        };
        Self {
            backend,
            defaults,
            observer: default_observer(),
            cohort_limit: 32,
            max_waiters: 100_000,
            max_locks: 1_000_000,
        }
    }

    /// Stands before every name. Default: nothing.
    ///
    /// Prefix and name together are the key: choose prefixes of which none begins with another.
    pub fn prefix(mut self, prefix: impl Into<Arc<str>>) -> Self {
        self.defaults.prefix = prefix.into();
        self
    }

    /// The ttl of a mutex that does not say otherwise. Default: 30 s.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.defaults.ttl = ttl;
        self
    }

    /// The retry strategy of a mutex that does not say otherwise. Default: none, which waits for ever, and returns a failure of the store at once.
    pub fn retry(mut self, strategy: impl RetryStrategy + 'static) -> Self {
        self.defaults.retry = Some(Arc::new(strategy));
        self
    }

    /// After what fraction of the ttl a held lock is renewed. Default: a third, so that two renewals may fail.
    pub const fn renew_at(mut self, fraction: f64) -> Self {
        self.defaults.renew_at = Some(fraction);
        self
    }

    /// Locks end at their ttl. Default: they are renewed.
    pub const fn no_renewal(mut self) -> Self {
        self.defaults.renew_at = None;
        self
    }

    /// Is told what happens to the locks. Default: nobody, or with the feature `tracing` that.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// How often a lock is handed on inside this process while another process waits for it. Default: 32.
    ///
    /// It counts from when this process knows that another one waits, which the store says as soon as it can; and from the grant, where another one
    /// was known to wait within the last second. Until the first news the tokens of the grant are the limit:
    /// 255 hand-overs on Redis, 65,535 on etcd; in memory the news takes no time.
    ///
    /// 0: every waiter has a place of its own in the store's line, which is the strict order of arrival across processes and costs commands
    /// for every hand-over.
    pub const fn cohort_limit(mut self, limit: u32) -> Self {
        self.cohort_limit = limit;
        self
    }

    /// How many calls may wait in this process, for all locks; more are [`Error::Overloaded`]. Default: 100,000.
    pub const fn max_waiters(mut self, limit: usize) -> Self {
        self.max_waiters = limit;
        self
    }

    /// How many locks may be held or waited for at a time; more are [`Error::Overloaded`]. Default: 1,000,000.
    pub const fn max_locks(mut self, limit: usize) -> Self {
        self.max_locks = limit;
        self
    }

    /// The client. No I/O.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a setting is outside its limits.
    pub fn build(self) -> Result<Client, Error> {
        limits::check_ttl(self.defaults.ttl, &self.backend.capabilities())?;
        limits::check_renewal(self.defaults.renew_at)?;
        if self.defaults.prefix.len() >= Key::MAX_LEN {
            let problem = format!(
                "has {} bytes, the limit is {}",
                self.defaults.prefix.len(),
                Key::MAX_LEN - 1
            );
            return Err(Error::invalid("prefix", problem));
        }
        Ok(self.assemble())
    }

    fn assemble(self) -> Client {
        let inner = Inner {
            capabilities: self.backend.capabilities(),
            keeper: Keeper::new(self.backend.clone(), self.observer),
            backend: self.backend,
            lines: Lines::new(self.max_waiters),
            cohort_limit: self.cohort_limit,
            owners: OwnerPool::default(),
            closing: Arc::default(),
            max_locks: self.max_locks,
        };
        Client { inner: Arc::new(inner), defaults: self.defaults }
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder").field("backend", &self.backend).finish_non_exhaustive()
    }
}

fn default_observer() -> Option<Arc<dyn Observer>> {
    #[cfg(feature = "tracing")]
    return Some(Arc::new(crate::TracingObserver));
    #[cfg(not(feature = "tracing"))]
    None
}
