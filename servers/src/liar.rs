//! Proxies that lie: what the server says arrives bent, cut, doubled or replaced by something that no server says.
//!
//! They stand before a real server, so that a client comes far enough to hear a lie at every place. What they make of an answer is decided by a
//! seed and by how often they lie; a client must take any of it without a panic and without a hang.

mod grpc;
mod resp;

use std::{
    env, fmt,
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

use crate::proxy::Background;

/// Has this done with a seed for each run, a dozen at a time: 12 runs, or as many as the variable `DISTLOCK_TEST_SEEDS` says.
///
/// # Panics
/// If a run does, or if the variable is not a number.
pub async fn runs<F>(run: impl Fn(u64) -> F) -> Vec<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    const DOZEN: u64 = 12;
    let given = env::var("DISTLOCK_TEST_SEEDS").ok();
    let count =
        given.map_or(DOZEN, |given| given.parse().expect("DISTLOCK_TEST_SEEDS is a number"));
    let mut told = Vec::new();
    for first in (0..count).step_by(DOZEN as usize) {
        let some: Vec<_> =
            (first..count.min(first + DOZEN)).map(|seed| tokio::spawn(run(seed))).collect();
        for one in some {
            told.push(one.await.expect("no run panics"));
        }
    }
    told
}

/// What became of runs among lies.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// How many there were.
    pub runs: usize,
    /// Locks that a client believed to have.
    pub grants: usize,
    /// Calls that ended with an error.
    pub errors: usize,
    /// Answers that were bent.
    pub lies: usize,
}

impl Tally {
    /// Whether enough happened for the runs to prove something.
    #[must_use]
    pub const fn is_enough(&self) -> bool {
        10 * self.runs < self.lies && self.runs < self.grants && self.runs < self.errors
    }
}

/// [`runs`] until enough has happened, five times at most: a machine that is busy has few grants within the limits of clients.
///
/// # Panics
/// As [`runs`].
pub async fn tally<F>(run: impl Fn(u64) -> F + Send + Sync) -> Tally
where
    F: Future<Output = Tally> + Send + 'static,
{
    let mut all = Tally::default();
    for _ in 0..5 {
        let told = runs(&run).await;
        all.runs = told.len();
        for one in told {
            all.grants += one.grants;
            all.errors += one.errors;
            all.lies += one.lies;
        }
        if all.is_enough() {
            break;
        }
    }
    all
}

/// A server that cannot be trusted.
pub struct Liar {
    shared: Arc<Shared>,
    background: Background,
}

impl Liar {
    /// One in front of an etcd server: bends the messages of gRPC.
    ///
    /// # Errors
    /// If there is no port or no thread.
    pub fn etcd(upstream_port: u16, seed: u64) -> io::Result<Self> {
        Self::start(upstream_port, seed, grpc::serve)
    }

    /// One in front of a Redis server: bends replies and pushes.
    ///
    /// # Errors
    /// If there is no port or no thread.
    pub fn redis(upstream_port: u16, seed: u64) -> io::Result<Self> {
        Self::start(upstream_port, seed, resp::serve)
    }

    fn start<F: Future<Output = ()> + Send + 'static>(
        upstream_port: u16,
        seed: u64,
        serve: impl Fn(TcpStream, TcpStream, Arc<Shared>) -> F + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            chance: Mutex::new(Chance(seed)),
            share: AtomicU64::new(0),
            silent: AtomicBool::new(false),
            hollow: AtomicBool::new(false),
            lies: AtomicUsize::new(0),
            connections: Mutex::default(),
        });
        let upstream = SocketAddr::from(([127, 0, 0, 1], upstream_port));
        let background = Background::start({
            let shared = Arc::clone(&shared);
            move |listener| accept(listener, upstream, shared, serve)
        })?;
        Ok(Self { shared, background })
    }

    /// How many of a thousand answers are bent in the run with this seed: from few to most.
    #[must_use]
    pub const fn share(seed: u64) -> u64 {
        [10, 30, 150, 700][(seed % 4) as usize]
    }

    /// The port to connect to, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.background.port()
    }

    /// How many of a thousand answers are lies from now on; none at first.
    pub fn lie(&self, per_mille: u64) {
        self.shared.share.store(per_mille, Ordering::Relaxed);
    }

    /// Whether the answers to transactions of etcd have parts of no kind from now on.
    pub fn hollow(&self, on: bool) {
        self.shared.hollow.store(on, Ordering::Relaxed);
    }

    /// Ends all connections and takes no more of them.
    pub fn hush(&self) {
        self.shared.silent.store(true, Ordering::Relaxed);
        self.cut();
    }

    /// Tells nothing but the truth from now on, on new connections.
    pub fn repent(&self) {
        self.lie(0);
        self.cut();
        self.shared.silent.store(false, Ordering::Relaxed);
    }

    /// How many lies were told.
    #[must_use]
    pub fn lies(&self) -> usize {
        self.shared.lies.load(Ordering::Relaxed)
    }

    fn cut(&self) {
        for connection in self.shared.connections().drain(..) {
            connection.abort();
        }
    }
}

impl fmt::Debug for Liar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Liar").field("port", &self.port()).finish_non_exhaustive()
    }
}

/// What panics in this process, in whatever task, and whoever catches it.
#[derive(Clone, Debug, Default)]
pub struct Panics {
    seen: Arc<Mutex<Vec<String>>>,
}

impl Panics {
    /// Looks from now on.
    #[must_use]
    pub fn watch() -> Self {
        let panics = Self::default();
        let (seen, before) = (Arc::clone(&panics.seen), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(panic.to_string());
            before(panic);
        }));
        panics
    }

    /// What they said, and where.
    #[must_use]
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Shared {
    chance: Mutex<Chance>,
    share: AtomicU64,
    silent: AtomicBool,
    hollow: AtomicBool,
    lies: AtomicUsize,
    connections: Mutex<Vec<AbortHandle>>,
}

impl Shared {
    /// Whether this answer is to be a lie, and if so by which chance.
    fn lie(&self) -> Option<MutexGuard<'_, Chance>> {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        if chance.below(1000) < self.share.load(Ordering::Relaxed) {
            self.lies.fetch_add(1, Ordering::Relaxed);
            return Some(chance);
        }
        None
    }

    fn connections(&self) -> MutexGuard<'_, Vec<AbortHandle>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    upstream: SocketAddr,
    shared: Arc<Shared>,
    serve: impl Fn(TcpStream, TcpStream, Arc<Shared>) -> F,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        if shared.silent.load(Ordering::Relaxed) {
            continue;
        }
        let Ok(server) = TcpStream::connect(upstream).await else { continue };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let task = tokio::spawn(serve(client, server, Arc::clone(&shared)));
        let mut connections = shared.connections();
        connections.retain(|connection| !connection.is_finished());
        connections.push(task.abort_handle());
    }
}

/// Random numbers of a seed (splitmix64).
struct Chance(u64);

impl Chance {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit.max(1)
    }

    /// A place in something so long.
    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    fn one_of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.index(all.len())]
    }

    /// Bytes of any kind, text or not.
    fn bytes(&mut self, limit: usize) -> Vec<u8> {
        (0..self.index(limit + 1)).map(|_| self.roll().to_le_bytes()[0]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_are_those_of_the_seed() {
        let (mut one, mut same, mut other) = (Chance(7), Chance(7), Chance(8));
        assert_eq!(one.roll(), same.roll());
        assert_ne!(one.roll(), other.roll());
        assert!((0..100).all(|_| one.index(3) < 3 && one.bytes(2).len() <= 2));
        assert_eq!((one.index(0), one.below(0)), (0, 0));
    }
}
