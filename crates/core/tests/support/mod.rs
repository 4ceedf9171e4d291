//! A store in memory whose answers a test bends: late, lost, wrong or never.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::{
    fmt,
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use distlock_core::{
    Backend, BackendError, Capabilities, Claim, Key, Occupancy, Renewal, Standing,
};
use distlock_memory::MemoryBackend;

pub(crate) type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Bend<I, O> = Arc<dyn Fn(MemoryBackend, I, usize) -> Answer<O> + Send + Sync>;
type Asked = Result<Standing, BackendError>;

/// A store in memory; each bent call is given the store, what was asked, and how many calls of its kind came before.
#[derive(Clone)]
pub(crate) struct Bent {
    pub(crate) store: MemoryBackend,
    pub(crate) capabilities: Capabilities,
    acquire: Option<Bend<Claim, Asked>>,
    renew: Option<Bend<Vec<Renewal>, Vec<Asked>>>,
    release: Option<Bend<Claim, Result<bool, BackendError>>>,
    inspect: Option<Bend<Key, Result<Occupancy, BackendError>>>,
    calls: Arc<[AtomicUsize; 3]>,
}

impl Bent {
    pub(crate) fn new() -> Self {
        let store = MemoryBackend::new();
        Self {
            capabilities: store.capabilities(),
            store,
            acquire: None,
            renew: None,
            release: None,
            inspect: None,
            calls: Arc::default(),
        }
    }

    pub(crate) fn acquire<F: Future<Output = Asked> + Send + 'static>(
        mut self,
        bend: impl Fn(MemoryBackend, Claim, usize) -> F + Send + Sync + 'static,
    ) -> Self {
        self.acquire = Some(Arc::new(move |store, claim, nth| Box::pin(bend(store, claim, nth))));
        self
    }

    pub(crate) fn renew<F: Future<Output = Vec<Asked>> + Send + 'static>(
        mut self,
        bend: impl Fn(MemoryBackend, Vec<Renewal>, usize) -> F + Send + Sync + 'static,
    ) -> Self {
        self.renew = Some(Arc::new(move |store, claims, nth| Box::pin(bend(store, claims, nth))));
        self
    }

    pub(crate) fn release<F: Future<Output = Result<bool, BackendError>> + Send + 'static>(
        mut self,
        bend: impl Fn(MemoryBackend, Claim, usize) -> F + Send + Sync + 'static,
    ) -> Self {
        self.release = Some(Arc::new(move |store, claim, nth| Box::pin(bend(store, claim, nth))));
        self
    }

    pub(crate) fn inspect<F: Future<Output = Result<Occupancy, BackendError>> + Send + 'static>(
        mut self,
        bend: impl Fn(MemoryBackend, Key, usize) -> F + Send + Sync + 'static,
    ) -> Self {
        self.inspect = Some(Arc::new(move |store, key, nth| Box::pin(bend(store, key, nth))));
        self
    }

    /// How often each was called: acquire, renew, release.
    pub(crate) fn calls(&self) -> [usize; 3] {
        [0, 1, 2].map(|kind| self.calls[kind].load(Ordering::SeqCst))
    }

    /// How many others have this store.
    pub(crate) fn owners(&self) -> usize {
        Arc::strong_count(&self.calls)
    }

    fn count(&self, kind: usize) -> usize {
        self.calls[kind].fetch_add(1, Ordering::SeqCst)
    }
}

impl fmt::Debug for Bent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bent")
    }
}

impl Backend for Bent {
    fn name(&self) -> &'static str {
        "bent"
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn acquire(&self, claim: &Claim) -> Asked {
        let nth = self.count(0);
        match &self.acquire {
            Some(bend) => bend(self.store.clone(), claim.clone(), nth).await,
            None => self.store.acquire(claim).await,
        }
    }

    async fn renew(&self, renewals: &[Renewal]) -> Vec<Asked> {
        let nth = self.count(1);
        match &self.renew {
            Some(bend) => bend(self.store.clone(), renewals.to_vec(), nth).await,
            None => self.store.renew(renewals).await,
        }
    }

    async fn release(&self, claim: &Claim) -> Result<bool, BackendError> {
        let nth = self.count(2);
        match &self.release {
            Some(bend) => bend(self.store.clone(), claim.clone(), nth).await,
            None => self.store.release(claim).await,
        }
    }

    async fn inspect(&self, key: &Key) -> Result<Occupancy, BackendError> {
        match &self.inspect {
            Some(bend) => bend(self.store.clone(), key.clone(), 0).await,
            None => self.store.inspect(key).await,
        }
    }
}

/// A call that is never answered.
pub(crate) async fn never<T>() -> T {
    pending().await
}

/// The store is away.
pub(crate) fn away() -> BackendError {
    BackendError::transient("bent", "is away")
}
