//! A store whose type is not known: what users' types hold.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use crate::{Backend, BackendError, Capabilities, Claim, Key, Occupancy, Renewal, Standing};

/// A call under way. `'static`, so that it can be handed to somebody else who polls it to its end.
pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Any store, shared. It is a [`Backend`] itself, so clients can share a store, and stores can be made of stores.
#[derive(Clone)]
pub struct AnyBackend(Arc<dyn DynBackend>);

impl AnyBackend {
    /// Hides the type of a store.
    pub fn new(backend: impl Backend) -> Self {
        Self(Arc::new(backend))
    }

    pub(crate) fn start_acquire(&self, claim: Claim) -> BoxFuture<Result<Standing, BackendError>> {
        Arc::clone(&self.0).acquire_dyn(claim)
    }

    pub(crate) fn start_renew(
        &self,
        renewals: Vec<Renewal>,
    ) -> BoxFuture<Vec<Result<Standing, BackendError>>> {
        Arc::clone(&self.0).renew_dyn(renewals)
    }

    pub(crate) fn start_release(&self, claim: Claim) -> BoxFuture<Result<bool, BackendError>> {
        Arc::clone(&self.0).release_dyn(claim)
    }
}

impl fmt::Debug for AnyBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Backend for AnyBackend {
    fn name(&self) -> &'static str {
        self.0.name_dyn()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities_dyn()
    }

    async fn acquire(&self, claim: &Claim) -> Result<Standing, BackendError> {
        self.start_acquire(claim.clone()).await
    }

    async fn renew(&self, renewals: &[Renewal]) -> Vec<Result<Standing, BackendError>> {
        self.start_renew(renewals.to_vec()).await
    }

    async fn release(&self, claim: &Claim) -> Result<bool, BackendError> {
        self.start_release(claim.clone()).await
    }

    async fn inspect(&self, key: &Key) -> Result<Occupancy, BackendError> {
        Arc::clone(&self.0).inspect_dyn(key.clone()).await
    }
}

/// The object-safe twin of [`Backend`]. Its futures own what they need.
trait DynBackend: fmt::Debug + Send + Sync {
    fn name_dyn(&self) -> &'static str;
    fn capabilities_dyn(&self) -> Capabilities;
    fn acquire_dyn(self: Arc<Self>, claim: Claim) -> BoxFuture<Result<Standing, BackendError>>;
    fn renew_dyn(
        self: Arc<Self>,
        renewals: Vec<Renewal>,
    ) -> BoxFuture<Vec<Result<Standing, BackendError>>>;
    fn release_dyn(self: Arc<Self>, claim: Claim) -> BoxFuture<Result<bool, BackendError>>;
    fn inspect_dyn(self: Arc<Self>, key: Key) -> BoxFuture<Result<Occupancy, BackendError>>;
}

impl<B: Backend> DynBackend for B {
    fn name_dyn(&self) -> &'static str {
        self.name()
    }

    fn capabilities_dyn(&self) -> Capabilities {
        self.capabilities()
    }

    fn acquire_dyn(self: Arc<Self>, claim: Claim) -> BoxFuture<Result<Standing, BackendError>> {
        Box::pin(async move { self.acquire(&claim).await })
    }

    fn renew_dyn(
        self: Arc<Self>,
        renewals: Vec<Renewal>,
    ) -> BoxFuture<Vec<Result<Standing, BackendError>>> {
        Box::pin(async move { self.renew(&renewals).await })
    }

    fn release_dyn(self: Arc<Self>, claim: Claim) -> BoxFuture<Result<bool, BackendError>> {
        Box::pin(async move { self.release(&claim).await })
    }

    fn inspect_dyn(self: Arc<Self>, key: Key) -> BoxFuture<Result<Occupancy, BackendError>> {
        Box::pin(async move { self.inspect(&key).await })
    }
}
