//! Where a case plays: a store, keys of its own, and whoever else it needs.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use distlock_core::{
    AnyBackend, Backend, Capabilities, Claim, Client, ClientBuilder, Key, Mode, Occupancy, Owner,
};

use crate::{Faulty, tools};

/// A store to test, or the reason why there is none.
#[derive(Debug)]
#[allow(clippy::exhaustive_enums, reason = "a store is there or it is not")]
pub enum Setup<B> {
    /// The store is there.
    Ready(B),
    /// It is not; says what to do about it.
    Absent(&'static str),
}

/// A store, and keys that no other case has.
pub struct Stage {
    backend: AnyBackend,
    setup: Connector,
    prefix: String,
    names: Mutex<Vec<String>>,
    leaves: Mutex<bool>,
}

/// Makes further connections to the store.
#[derive(Clone)]
pub(crate) struct Connector(Arc<dyn Again>);

type Connecting<'a> = Pin<Box<dyn Future<Output = Setup<AnyBackend>> + Send + 'a>>;

trait Again: Send + Sync {
    fn again(&self) -> Connecting<'_>;
}

impl<S, F, B> Again for S
where
    S: Fn() -> F + Send + Sync,
    F: Future<Output = Setup<B>> + Send,
    B: Backend,
{
    fn again(&self) -> Connecting<'_> {
        Box::pin(async move {
            match self().await {
                Setup::Ready(backend) => Setup::Ready(AnyBackend::new(backend)),
                Setup::Absent(reason) => Setup::Absent(reason),
            }
        })
    }
}

impl Stage {
    /// The name of the lock that most cases are about.
    pub const NAME: &'static str = "key";

    pub(crate) async fn open<S, F, B>(setup: S) -> Result<Self, &'static str>
    where
        S: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Setup<B>> + Send,
        B: Backend,
    {
        let setup = Connector(Arc::new(setup));
        let backend = match setup.0.again().await {
            Setup::Ready(backend) => backend,
            Setup::Absent(reason) => return Err(reason),
        };
        let id = Owner::random().expect("random bytes").to_string();
        let prefix = format!("t{}-", &id[..12]);
        let names = Mutex::new(vec![Self::NAME.to_owned()]);
        Ok(Self { backend, setup, prefix, names, leaves: Mutex::new(false) })
    }

    /// The store.
    #[must_use]
    pub fn backend(&self) -> AnyBackend {
        self.backend.clone()
    }

    /// The store, by another connection, as another process has it.
    pub async fn other(&self) -> AnyBackend {
        self.setup.connect().await
    }

    /// What makes further connections, on another runtime too.
    pub(crate) fn connector(&self) -> Connector {
        self.setup.clone()
    }

    /// The store, with faults on demand.
    #[must_use]
    pub fn faulty(&self) -> Faulty<AnyBackend> {
        Faulty::new(self.backend())
    }

    /// What the store can do.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    /// Whether the store can do it; if not, says so.
    #[must_use]
    pub fn can(&self, it: bool, what: &str) -> bool {
        if !it {
            eprintln!("nothing to test: {} has no {what}", self.backend.name());
        }
        it
    }

    /// A ttl whose end a case can wait for, and that is long enough for a busy machine.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(500).max(self.capabilities().resolution * 2)
    }

    /// A ttl within which a machine that is busy with other things comes to what is to be done before its end, and that a case can outlive.
    pub(crate) fn lasting_ttl(&self) -> Duration {
        self.ttl().max(Duration::from_millis(1500))
    }

    /// A client of [`Stage::lasting_ttl`] that renews it early.
    pub(crate) fn eager(&self) -> ClientBuilder {
        self.builder().ttl(self.lasting_ttl()).renew_at(0.1)
    }

    /// The key of [`Stage::NAME`].
    #[must_use]
    pub fn key(&self) -> Key {
        self.key_of(Self::NAME)
    }

    /// The key of a name. It is looked at when the case is over.
    #[must_use]
    pub fn key_of(&self, name: &str) -> Key {
        self.uses(name);
        Key::new(format!("{}{name}", self.prefix)).expect("a short name")
    }

    /// What stands before every name.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// An exclusive claim of its own to the key, for [`Stage::ttl`].
    #[must_use]
    pub fn claim(&self) -> Claim {
        self.claim_as(Mode::Exclusive)
    }

    /// A claim of its own to the key, for [`Stage::ttl`].
    #[must_use]
    pub fn claim_as(&self, mode: Mode) -> Claim {
        Claim::new(self.key(), owner(), mode, self.ttl())
    }

    /// An exclusive claim of its own to the key, for so long that nobody waits for its end.
    #[must_use]
    pub fn long_claim(&self) -> Claim {
        Claim::new(self.key(), owner(), Mode::Exclusive, tools::LONG)
    }

    /// A client of the store, with the prefix, and with a ttl so long that no case waits for it.
    pub fn builder(&self) -> ClientBuilder {
        self.builder_of(self.backend())
    }

    /// A client of another one.
    pub fn builder_of(&self, backend: impl Backend) -> ClientBuilder {
        Client::builder(backend).prefix(&*self.prefix).ttl(tools::LONG)
    }

    /// A client of the store.
    #[must_use]
    pub fn client(&self) -> Client {
        self.builder().build().expect("a builder of ours")
    }

    /// A client of another one.
    #[must_use]
    pub fn client_of(&self, backend: impl Backend) -> Client {
        self.builder_of(backend).build().expect("a builder of ours")
    }

    /// A client by another connection, as another process has it.
    pub async fn other_client(&self) -> Client {
        self.client_of(self.other().await)
    }

    /// Who has the key.
    pub async fn inspect(&self) -> Occupancy {
        self.backend.inspect(&self.key()).await.expect("the store answers")
    }

    /// A name is looked at when the case is over: nobody must have it then.
    pub fn uses(&self, name: &str) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }

    /// The case leaves locks behind, on purpose, that end by themselves.
    pub fn leaves_locks(&self) {
        *self.leaves.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Nobody has or awaits a lock of the case any more, or will not soon.
    pub(crate) async fn check_left(&self) {
        if *self.leaves.lock().unwrap_or_else(PoisonError::into_inner) {
            return self.clean_up().await;
        }
        for key in self.keys() {
            tools::eventually(&format!("`{key}` is free after the case"), async || {
                let occupancy = self.backend.inspect(&key).await.expect("the store answers");
                occupancy.holders.is_empty() && occupancy.waiting.unwrap_or(0) == 0
            })
            .await;
        }
    }

    /// Takes back whatever is left, so that a case that failed does not fill the store.
    pub(crate) async fn clean_up(&self) {
        for key in self.keys() {
            let Ok(occupancy) = self.backend.inspect(&key).await else { return };
            for holder in occupancy.holders {
                if let Some(owner) = holder.owner {
                    let claim = Claim::new(key.clone(), owner, holder.mode, tools::LONG);
                    let _ = self.backend.release(&claim).await;
                }
            }
        }
    }

    fn keys(&self) -> Vec<Key> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner).clone();
        names.iter().map(|name| self.key_of(name)).collect()
    }
}

impl Connector {
    pub(crate) async fn connect(&self) -> AnyBackend {
        match self.0.again().await {
            Setup::Ready(backend) => backend,
            Setup::Absent(reason) => panic!("the store was there a moment ago: {reason}"),
        }
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Stage");
        debug.field("backend", &self.backend).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// A random owner id.
pub(crate) fn owner() -> Owner {
    Owner::random().expect("random bytes")
}
