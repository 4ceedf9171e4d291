//! The backend: how it connects, and the contract.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use distlock_core::{
    Backend, BackendError, Capabilities, Claim, Guard, Key, Mode, Occupancy, Renewal, Standing,
};
use etcd_client::{Client, GetOptions};
use futures_util::future::join_all;

use crate::{
    EtcdConfig, Fence, hub, layout, lease::Lease, members::Members, settle, store::Store, upkeep,
    version,
};

/// The store's name in errors.
pub(crate) const NAME: &str = "etcd";

/// Locks in etcd. Clones share their connections, leases and watches.
///
/// Each contender has a key of its own under the lock's name; the order of their create revisions is the line, in which Go's
/// `clientv3/concurrency` and `etcdctl lock` stand too. The server's own Lock service is not used.
///
/// # Examples
/// ```no_run
/// use distlock_core::Client;
/// use distlock_etcd::EtcdBackend;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::new(EtcdBackend::connect("etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379").await?);
/// let guard = client.mutex("invoice/42").lock().await?;
/// guard.release().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct EtcdBackend {
    store: Arc<Store>,
    version: Option<Arc<str>>,
    /// The last of them ends what goes on in the background.
    _alive: Arc<Alive>,
}

impl EtcdBackend {
    /// Connects to the cluster that a URL names: see [`EtcdConfig::from_url`].
    ///
    /// # Errors
    /// A permanent [`BackendError`] when the URL, the login or the rights are wrong, a transient one when no member answers, or none that has a leader.
    ///
    /// # Cancel safety
    /// Dropping the future closes what it opened.
    pub async fn connect(url: &str) -> Result<Self, BackendError> {
        Self::connect_with(EtcdConfig::from_url(url)?).await
    }

    /// Connects as configured.
    ///
    /// # Errors
    /// As [`EtcdBackend::connect`].
    ///
    /// # Cancel safety
    /// Dropping the future closes what it opened.
    pub async fn connect_with(config: EtcdConfig) -> Result<Self, BackendError> {
        let (members, missing) = (Members::new(&config)?, config.missing());
        Self::start(members, config.prefix, missing).await
    }

    /// Uses a client that is connected already.
    ///
    /// Its endpoints and time limits are yours. One with several endpoints spreads requests over them, dead members included: better is one for each
    /// member, which is what [`connect`](Self::connect) makes.
    ///
    /// # Errors
    /// As [`EtcdBackend::connect`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn from_client(client: Client) -> Result<Self, BackendError> {
        Self::from_client_with(client, EtcdConfig::new::<String>([])).await
    }

    /// Uses a client that is connected already, with the prefix and the request timeout of a configuration.
    ///
    /// # Errors
    /// As [`EtcdBackend::connect`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn from_client_with(
        client: Client,
        config: EtcdConfig,
    ) -> Result<Self, BackendError> {
        Self::start(Members::of(client, &config), config.prefix, "its configuration is yours").await
    }

    async fn start(members: Members, prefix: String, missing: &str) -> Result<Self, BackendError> {
        // A read that goes through the leader, with the rights that locks need.
        let probe = format!("{prefix}distlock");
        members
            .call(|client| {
                let probe = probe.clone();
                async move {
                    client.kv_client().get(probe, Some(GetOptions::new().with_count_only())).await
                }
            })
            .await
            .map_err(|failure| failure.wanting(missing))?;
        let version = version::ask(&members).await;
        let store = Store::new(members, prefix);
        let wake = Arc::clone(&store.hub);
        store.runtime.spawn(hub::run(Arc::downgrade(&store), wake));
        store.runtime.spawn(upkeep::run(Arc::downgrade(&store), store.upkeep.wake()));
        let alive = Arc::new(Alive(Arc::clone(&store)));
        let backend = Self { store, version: version.map(Into::into), _alive: alive };
        #[cfg(feature = "tracing")]
        for warning in backend.warnings() {
            tracing::warn!(target: "distlock", "{warning}");
        }
        Ok(backend)
    }

    /// The version of the member that was connected to, if it told.
    #[must_use]
    pub fn server_version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// What was found at connecting that puts locks at risk, in words: a version of etcd with known bugs, see `docs/guarantees.md`.
    pub fn warnings(&self) -> impl Iterator<Item = String> + '_ {
        self.version.as_deref().and_then(version::warning).into_iter()
    }

    /// What is true in etcd for as long as this guard's lock is held: the condition for a transaction of your own. See [`Fence::compare`].
    ///
    /// The guard must be of a client of this backend, or of one with the same prefix. A lock that was handed on inside the process keeps its key:
    /// between guards of one process the fencing token tells.
    #[must_use]
    pub fn fence(&self, guard: &Guard) -> Fence {
        let line = layout::line(&self.store.prefix, guard.key());
        let own = line + &layout::nonce(Mode::Exclusive, guard.owner());
        Fence::new(own, settle::created(guard.fencing_token()))
    }

    /// Gives all leases back, and with them every key that is left; the backend cannot be used again. In bounded time.
    ///
    /// A client is not told: call [`Client::shutdown`](distlock_core::Client::shutdown) first. When the last clone of a backend is dropped, the leases that nobody uses are given back
    /// in the background; a key that is left ends with its ttl.
    ///
    /// # Cancel safety
    /// Dropped, it may leave leases to end by themselves.
    pub async fn close(&self) {
        self.store.close().await;
    }
}

impl Store {
    async fn close(&self) {
        let in_use = self.table().leases();
        self.end(self.leases.drain().into_iter().chain(in_use).collect()).await;
    }

    /// Ends what goes on in the background, and gives these leases back.
    async fn end(&self, leases: Vec<Arc<Lease>>) {
        self.closed.store(true, Ordering::Release);
        self.hub.notify_one();
        self.upkeep.wake().notify_one();
        join_all(leases.iter().map(|lease| self.leases.revoke(lease))).await;
    }
}

/// What ends with the last clone of a backend.
struct Alive(Arc<Store>);

impl Drop for Alive {
    fn drop(&mut self) {
        let store = Arc::clone(&self.0);
        // A runtime that has ended drops it at once; the leases end by themselves.
        self.0.runtime.spawn(async move {
            let leases = store.leases.drain().into_iter();
            store.end(leases.filter(|lease| lease.idle_since().is_some()).collect()).await;
        });
    }
}

impl Backend for EtcdBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::exclusive(Duration::from_secs(1));
        capabilities.fair = true;
        capabilities.fencing = true;
        capabilities.permits = true;
        capabilities.push = true;
        capabilities.shared = true;
        capabilities
    }

    async fn acquire(&self, claim: &Claim) -> Result<Standing, BackendError> {
        Ok(self.store.acquire(claim).await?)
    }

    async fn renew(&self, renewals: &[Renewal]) -> Vec<Result<Standing, BackendError>> {
        self.store.renew(renewals).await
    }

    async fn release(&self, claim: &Claim) -> Result<bool, BackendError> {
        Ok(self.store.release(claim).await?)
    }

    async fn inspect(&self, key: &Key) -> Result<Occupancy, BackendError> {
        Ok(self.store.inspect(key).await?)
    }
}

impl fmt::Debug for EtcdBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdBackend").field("members", &self.store.members).finish_non_exhaustive()
    }
}
