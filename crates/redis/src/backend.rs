//! The backend: how it connects, and the contract.

use std::{fmt, sync::Arc, time::Duration};

use distlock_core::{
    Backend, BackendError, Capabilities, Claim, Key, Occupancy, Owner, Renewal, Standing,
};
use fred::clients::Client;
use tokio::runtime::Handle;

use crate::{
    RedisConfig,
    clock::Clock,
    error::at_connect,
    eviction::{self, Eviction},
    keys::CHANNEL,
    link::{Link, LinkConfig, LinkError},
    places::Places,
    script::{ACQUIRE, RELEASE, array, int},
    store::Store,
    together::Together,
};

/// The store's name in errors.
pub(crate) const NAME: &str = "redis";

/// Locks in Redis. Clones share their connections.
///
/// A lock is the plain string key of its name, so that it excludes, and is excluded by, every client that locks by `SET key value NX PX ttl`. Those who
/// wait stand in a line in Redis; whoever releases a lock grants it to the next in the same script and tells its process.
///
/// # Examples
/// ```no_run
/// use distlock_core::Client;
/// use distlock_redis::RedisBackend;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::new(RedisBackend::connect("redis://127.0.0.1:6379").await?);
/// let guard = client.mutex("invoice/42").lock().await?;
/// guard.release().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisBackend {
    store: Arc<Store>,
    eviction: Option<Arc<Eviction>>,
}

impl RedisBackend {
    /// Connects to the deployment that a URL names: see [`RedisConfig::from_url`].
    ///
    /// # Errors
    /// A permanent [`BackendError`] when the URL, the password or the rights are wrong, a transient one when the server cannot be reached or is not
    /// ready. Nothing is tried twice.
    ///
    /// # Cancel safety
    /// Dropping the future closes what it opened.
    pub async fn connect(url: &str) -> Result<Self, BackendError> {
        Self::connect_with(RedisConfig::from_url(url)?).await
    }

    /// Connects as configured.
    ///
    /// # Errors
    /// As [`RedisBackend::connect`].
    ///
    /// # Cancel safety
    /// Dropping the future closes what it opened.
    pub async fn connect_with(config: RedisConfig) -> Result<Self, BackendError> {
        Self::start(&config, async |link, places| Link::connect(link, places).await).await
    }

    /// Uses a client that is connected already, for its commands; a second connection with the same settings receives the pushes.
    ///
    /// Its reconnection policy and its time limits are yours: without a policy, a lost connection stays lost. It is not closed by
    /// [`close`](Self::close).
    ///
    /// # Errors
    /// A transient one when the client is not connected.
    ///
    /// # Cancel safety
    /// Dropping the future closes what it opened.
    pub async fn from_client(client: Client) -> Result<Self, BackendError> {
        // The place does not matter: the client knows its own.
        let config = RedisConfig::new("127.0.0.1", 6379);
        Self::start(&config, async |link, places| Link::from_client(client, link, places).await)
            .await
    }

    async fn start(
        config: &RedisConfig,
        connect: impl AsyncFnOnce(LinkConfig, Arc<Places>) -> Result<Link, LinkError>,
    ) -> Result<Self, BackendError> {
        let id = Owner::random().map_err(|error| {
            BackendError::permanent(NAME, "the operating system gives no random numbers")
                .with_source(error)
        })?;
        let process = id.to_string();
        let places =
            Arc::new(Places::new(id.as_u128() as u64, config.place_ttl, config.confirm_pushes));
        let link = connect(config.link(format!("{CHANNEL}{process}")), Arc::clone(&places))
            .await
            .map_err(|error| at_connect(error, config.tls))?;
        let clock = Clock::new(if link.is_cluster() { 16_384 } else { 1 });
        if let Ok(time) = link.command("TIME", &[]).await
            && let Ok([seconds, micros]) = array(&time)
            && let (Some(seconds), Some(micros)) = (int(seconds), int(micros))
        {
            clock.sample(0, seconds.saturating_mul(1_000_000).saturating_add(micros));
        }
        let eviction = eviction::look(&link).await;
        // Who is subscribed keeps its turn from the first lock on. Who is not is told, or may not be: the line works all the same.
        let _ = link.subscribed().await;
        let runtime = Handle::current();
        let patience = config.request_timeout;
        let together = |script| Together::new(link.clone(), runtime.clone(), script, patience);
        let store = Arc::new(Store {
            acquires: together(&*ACQUIRE),
            releases: together(&*RELEASE),
            link,
            places: Arc::clone(&places),
            clock,
            process,
            request_timeout: config.request_timeout,
            place_ttl: config.place_ttl,
            runtime,
            background: Store::background(),
        });
        places.serve(Arc::downgrade(&store));
        let backend = Self { store, eviction: eviction.map(Arc::new) };
        #[cfg(feature = "tracing")]
        for warning in backend.warnings() {
            tracing::warn!(target: "distlock", "{warning}");
        }
        Ok(backend)
    }

    /// The server's eviction policy, if it could be asked for at connecting. Where nodes differ, one that can evict locks.
    #[must_use]
    pub fn eviction_policy(&self) -> Option<&str> {
        self.eviction.as_ref().map(|eviction| eviction.policy.as_str())
    }

    /// What was found at connecting that puts locks at risk, in words.
    pub fn warnings(&self) -> impl Iterator<Item = String> + '_ {
        self.eviction.as_deref().and_then(Eviction::warning).into_iter()
    }

    /// Closes the connections, in bounded time. What is held stays locked until its ttl is over: call
    /// [`Client::shutdown`](distlock_core::Client::shutdown) first.
    ///
    /// # Cancel safety
    /// Dropped, it may leave connections open until the last clone of the backend is dropped.
    pub async fn close(&self) {
        self.store.link.close().await;
    }
}

impl Backend for RedisBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::exclusive(Duration::from_millis(10));
        capabilities.fair = true;
        capabilities.fencing = true;
        capabilities.push = true;
        capabilities
    }

    async fn acquire(&self, claim: &Claim) -> Result<Standing, BackendError> {
        self.store.acquire(claim).await
    }

    async fn renew(&self, renewals: &[Renewal]) -> Vec<Result<Standing, BackendError>> {
        self.store.renew(renewals).await
    }

    async fn release(&self, claim: &Claim) -> Result<bool, BackendError> {
        self.store.release(claim).await
    }

    async fn inspect(&self, key: &Key) -> Result<Occupancy, BackendError> {
        self.store.inspect(key).await
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend").field("link", &self.store.link).finish_non_exhaustive()
    }
}
