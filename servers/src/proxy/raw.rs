//! A network that fails on command, for protocols that the proxy does not understand.
//!
//! It forwards bytes and knows only which way they go, so it can stand between a gRPC client and
//! etcd, with TLS too, and leaves tests to wait for what it has seen:
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use distlock_servers::{
//!     etcd::EtcdServer,
//!     proxy::{Direction, RawProxy},
//! };
//!
//! let server = EtcdServer::start(&[])?;
//! let proxy = RawProxy::start(server.port())?;
//! // … connect to `proxy.port()` …
//! let seen = proxy.bytes(Direction::ToServer);
//! proxy.hold(Direction::ToClient, true);
//! // … send a request: it arrives, and its answer does not …
//! proxy.wait_bytes(Direction::ToServer, seen + 1).await?;
//! proxy.hold(Direction::ToClient, false);
//! # Ok(()) }
//! ```

mod connection;

use std::{
    collections::HashMap,
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

use super::{Direction, PATIENCE, background::Background, wire::End};

/// A proxy in front of one port of 127.0.0.1 that knows nothing of what passes.
pub struct RawProxy {
    shared: Arc<Shared>,
    background: Background,
}

impl RawProxy {
    /// Starts a proxy on a free port.
    ///
    /// # Errors
    /// If there is no port or no thread.
    pub fn start(upstream_port: u16) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let upstream = SocketAddr::from(([127, 0, 0, 1], upstream_port));
        let background = Background::start({
            let shared = Arc::clone(&shared);
            move |listener| connection::serve(listener, upstream, shared)
        })?;
        Ok(Self { shared, background })
    }

    /// The port to connect to, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.background.port()
    }

    /// Everything takes this much longer on its way, from now on.
    pub fn delay(&self, direction: Direction, duration: Duration) {
        *direction.of_mut(&mut self.shared.state().delay) = duration;
    }

    /// Everything is written in slices of so many bytes from now on, or as it comes again with 0.
    pub fn slice(&self, bytes: usize) {
        self.shared.state().slice = bytes;
    }

    /// Nothing passes on any connection in this direction, until this is switched off again; then
    /// what was sent meanwhile arrives, and the news of a connection that ended meanwhile.
    ///
    /// While the way to the server is held, new connections are not passed on either.
    pub fn hold(&self, direction: Direction, on: bool) {
        self.shared.held.send_modify(|held| *direction.of_mut(held) = on);
    }

    /// As [`hold`](Self::hold), in both directions at once. New connections succeed, as far as the
    /// client can see.
    pub fn blackhole(&self, on: bool) {
        self.shared.held.send_replace(Ways { to_client: on, to_server: on });
    }

    /// What is sent in this direction from now on never arrives, on the connections that are open
    /// now. They stay open; when one end closes its side, the other is still told.
    pub fn silence(&self, direction: Direction) {
        for connection in self.shared.state().connections.values() {
            direction.of(&connection.silent).store(true, Ordering::SeqCst);
        }
    }

    /// Connections from now on end as soon as they are made, or no longer do.
    pub fn refuse(&self, on: bool) {
        self.shared.state().refuse = on;
    }

    /// Ends all connections.
    pub fn cut(&self) {
        self.shared.end(End::Cut);
    }

    /// Ends all connections with a reset (RST), so that both ends get an error at once.
    pub fn reset(&self) {
        self.shared.end(End::Reset);
    }

    /// After `bytes` more have arrived in this direction, on whatever connection, the one that
    /// brought the last of them ends, once.
    ///
    /// Less than nine cut into the next frame of HTTP/2 if none is under way.
    pub fn cut_after(&self, direction: Direction, bytes: usize) {
        self.shared.state().cuts.push(Cut { direction, left: bytes });
    }

    /// How many connections are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.state().connections.len()
    }

    /// How many connections have been made since the start, refused ones included.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.shared.state().accepted
    }

    /// How many bytes that go this way arrived at the proxy, delivered or not.
    #[must_use]
    pub fn bytes(&self, direction: Direction) -> usize {
        *direction.of(&self.shared.state().bytes)
    }

    /// Waits until `n` connections have been made since the start.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] after a minute.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn wait_accepted(&self, n: usize) -> io::Result<()> {
        self.wait("connections made", n, |state| state.accepted).await
    }

    /// Waits until `n` bytes that go this way have arrived at the proxy since its start.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] after a minute.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn wait_bytes(&self, direction: Direction, n: usize) -> io::Result<()> {
        self.wait("bytes seen", n, |state| *direction.of(&state.bytes)).await
    }

    /// Waits until no connection is open.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] after a minute.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn wait_closed(&self) -> io::Result<()> {
        self.wait("no connection", 1, |state| usize::from(state.connections.is_empty())).await
    }

    async fn wait(
        &self,
        what: &str,
        n: usize,
        count: impl Fn(&State) -> usize + Send + Sync,
    ) -> io::Result<()> {
        let count = || count(&self.shared.state());
        let mut seen = self.shared.seen.subscribe();
        let enough = seen.wait_for(|()| n <= count());
        match timeout(PATIENCE, enough).await {
            Ok(Ok(_)) => Ok(()),
            _ => {
                let message = format!("{what}: {} of {n}", count());
                Err(io::Error::new(io::ErrorKind::TimedOut, message))
            }
        }
    }
}

impl fmt::Debug for RawProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawProxy").field("port", &self.port()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    held: watch::Sender<Ways<bool>>,
    /// Changes with whatever is counted.
    seen: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    accepted: usize,
    bytes: Ways<usize>,
    connections: HashMap<u64, Connection>,
    cuts: Vec<Cut>,
    delay: Ways<Duration>,
    refuse: bool,
    slice: usize,
}

/// What can be done to an open connection.
struct Connection {
    end: Option<oneshot::Sender<End>>,
    silent: Arc<Ways<AtomicBool>>,
}

/// One thing for each direction.
#[derive(Clone, Copy, Default)]
struct Ways<T> {
    to_client: T,
    to_server: T,
}

struct Cut {
    direction: Direction,
    left: usize,
}

impl Direction {
    fn of<T>(self, ways: &Ways<T>) -> &T {
        match self {
            Self::ToClient => &ways.to_client,
            Self::ToServer => &ways.to_server,
        }
    }

    fn of_mut<T>(self, ways: &mut Ways<T>) -> &mut T {
        match self {
            Self::ToClient => &mut ways.to_client,
            Self::ToServer => &mut ways.to_server,
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is counted, and tells those who wait for that.
    fn note<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.seen.send_replace(());
        result
    }

    fn end(&self, how: End) {
        for connection in self.state().connections.values_mut() {
            if let Some(end) = connection.end.take() {
                // Who does not listen has ended.
                let _ = end.send(how);
            }
        }
    }

    /// Of `bytes` that are about to be delivered, how many may be before the connection is cut.
    fn cut(&self, direction: Direction, bytes: usize) -> Option<usize> {
        let mut first: Option<usize> = None;
        self.state().cuts.retain_mut(|cut| {
            if cut.direction != direction {
                return true;
            }
            if cut.left <= bytes {
                first = Some(first.map_or(cut.left, |first| first.min(cut.left)));
                return false;
            }
            cut.left -= bytes;
            true
        });
        first
    }

    async fn open(&self, direction: Direction) {
        // It cannot fail: we own the sender.
        let _ = self.held.subscribe().wait_for(|held| !*direction.of(held)).await;
    }
}
