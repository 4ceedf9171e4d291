//! The store as a backend.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use distlock_core::{
    Backend, BackendError, Capabilities, Claim, Key, Occupancy, Renewal, Standing,
};

use crate::store::Store;

static NAMED: LazyLock<Mutex<HashMap<Arc<str>, MemoryBackend>>> = LazyLock::new(Mutex::default);

/// Locks in the memory of this process. Clones share them.
///
/// Exclusion, the order of arrival and fencing tokens are exact, for as long as the process lives; other processes see nothing of it.
///
/// # Examples
/// ```
/// use distlock_core::Client;
/// use distlock_memory::MemoryBackend;
///
/// let client = Client::new(MemoryBackend::new());
/// let another_one = Client::new(MemoryBackend::named("jobs"));
/// ```
#[derive(Clone, Default)]
pub struct MemoryBackend {
    store: Arc<Store>,
    name: Option<Arc<str>>,
}

impl MemoryBackend {
    /// A store of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The store of this name, the same one in the whole process, for as long as it runs.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = named.get(name) {
            return store.clone();
        }
        let name: Arc<str> = name.into();
        let store = Self { store: Arc::default(), name: Some(Arc::clone(&name)) };
        named.insert(name, store.clone());
        store
    }

    /// How many keys somebody holds or waits for. Looks at each of them: for tests.
    #[must_use]
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Whether nobody holds or waits for anything. See [`len`](Self::len).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("MemoryBackend");
        if let Some(name) = &self.name {
            debug.field("name", name);
        }
        debug.finish_non_exhaustive()
    }
}

impl Backend for MemoryBackend {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::exclusive(Duration::from_millis(1));
        capabilities.fair = true;
        capabilities.fencing = true;
        capabilities.permits = true;
        capabilities.push = true;
        capabilities.shared = true;
        capabilities
    }

    async fn acquire(&self, claim: &Claim) -> Result<Standing, BackendError> {
        Ok(self.store.acquire(claim))
    }

    async fn renew(&self, renewals: &[Renewal]) -> Vec<Result<Standing, BackendError>> {
        self.store.renew(renewals).into_iter().map(Ok).collect()
    }

    async fn release(&self, claim: &Claim) -> Result<bool, BackendError> {
        Ok(self.store.release(claim))
    }

    async fn inspect(&self, key: &Key) -> Result<Occupancy, BackendError> {
        Ok(self.store.inspect(key))
    }
}
