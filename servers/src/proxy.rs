//! A network between a client and a Redis server that fails on command.
//!
//! The proxy understands requests and replies, so a test can lose exactly the reply of the second
//! EVALSHA, and can wait for what it has seen instead of sleeping:
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use distlock_servers::{proxy::Proxy, redis::RedisServer};
//!
//! let server = RedisServer::start(&[])?;
//! let proxy = Proxy::start(server.port())?;
//! proxy.drop_reply(1, "EVALSHA");
//! // … connect to `proxy.port()` and run a script …
//! proxy.wait_count("EVALSHA", 1).await?;
//! # Ok(()) }
//! ```
//!
//! It runs on a thread and a runtime of its own, so it works for tests that block and for tests
//! whose clock stands still. For other protocols there is [`RawProxy`], which knows only bytes.

mod background;
mod connection;
mod frame;
mod raw;
mod wire;

use std::{
    collections::HashMap,
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout},
};

use self::wire::End;

pub(crate) use self::background::Background;

pub use self::raw::RawProxy;

/// Where servers listen.
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Waiting for longer than this is a hung test.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes and when they may arrive.
type Parcel = (Instant, Vec<u8>);

/// A proxy in front of one port of 127.0.0.1.
pub struct Proxy {
    shared: Arc<Shared>,
    background: Background,
}

/// Which requests are meant; made from a command's name, or from words that the request contains.
#[derive(Clone)]
pub struct Matcher {
    test: Arc<Test>,
}

type Test = dyn Fn(&[Vec<u8>]) -> bool + Send + Sync;

/// A way of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Direction {
    /// Replies and pushes.
    ToClient,
    /// Requests.
    ToServer,
}

impl Proxy {
    /// Starts a proxy on a free port.
    ///
    /// # Errors
    /// If there is no port or no thread.
    pub fn start(upstream_port: u16) -> io::Result<Self> {
        Self::launch((LOCALHOST, 0).into(), upstream_port, None)
    }

    /// Starts a proxy on the port of the server, on another address of this machine, such as
    /// 127.0.0.2. In what the server says, 127.0.0.1 becomes that address.
    ///
    /// So where each server of a group has such a proxy, who comes by this address is led to the
    /// proxies alone, by MOVED, by CLUSTER SLOTS and by Sentinels, as if behind a router that
    /// translates addresses. The servers go on talking to each other without proxies.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if the address is not as long as 127.0.0.1, as text. Others
    /// if it cannot be listened on: Linux has all addresses from 127.0.0.1 on, other systems have
    /// to be told.
    pub fn start_at(address: Ipv4Addr, port: u16) -> io::Result<Self> {
        let alias = address.to_string().into_bytes();
        if alias.len() != LOCALHOST.to_string().len() {
            let message = format!("{address} would not fit in the place of {LOCALHOST}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Self::launch((address, port).into(), port, Some(alias))
    }

    fn launch(at: SocketAddr, upstream_port: u16, alias: Option<Vec<u8>>) -> io::Result<Self> {
        let shared = Arc::new(Shared { alias, ..Shared::default() });
        let upstream = SocketAddr::from((LOCALHOST, upstream_port));
        let background = Background::start_at(at, {
            let shared = Arc::clone(&shared);
            move |listener| connection::serve(listener, upstream, shared)
        })?;
        Ok(Self { shared, background })
    }

    /// The port to connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.background.port()
    }

    /// The `nth` request from now on that matches is executed, but its connection ends instead of
    /// delivering the reply. The first one has number 1.
    pub fn drop_reply(&self, nth: usize, matcher: impl Into<Matcher>) {
        self.rule(nth, matcher, Fate::CutAfter);
    }

    /// The `nth` request from now on that matches does not arrive: its connection ends first.
    pub fn drop_request(&self, nth: usize, matcher: impl Into<Matcher>) {
        self.rule(nth, matcher, Fate::CutBefore);
    }

    /// The `nth` request from now on that matches is executed; its reply and all that would follow
    /// on this connection, in both directions, never arrives. The connection stays open.
    pub fn silence_reply(&self, nth: usize, matcher: impl Into<Matcher>) {
        self.rule(nth, matcher, Fate::SilenceAfter);
    }

    /// The reply of the `nth` request from now on that matches takes this much longer, and with it
    /// all that follows on this connection.
    pub fn late_reply(&self, nth: usize, matcher: impl Into<Matcher>, duration: Duration) {
        self.rule(nth, matcher, Fate::Late(duration));
    }

    /// The `nth` request from now on that matches, and all that would follow on this connection, in
    /// both directions, never arrives. The connection stays open.
    pub fn silence_request(&self, nth: usize, matcher: impl Into<Matcher>) {
        self.rule(nth, matcher, Fate::SilenceBefore);
    }

    /// The `nth` request from now on that matches arrives twice; the second reply is thrown away.
    pub fn duplicate(&self, nth: usize, matcher: impl Into<Matcher>) {
        self.rule(nth, matcher, Fate::Twice);
    }

    /// The `nth` request from now on that matches is executed, and its connection ends after the
    /// first `bytes` of the reply, in the middle of it if it is longer.
    pub fn cut_reply(&self, nth: usize, matcher: impl Into<Matcher>, bytes: usize) {
        self.rule(nth, matcher, Fate::CutReply(bytes));
    }

    /// The connection of the `nth` request from now on that matches ends after its first `bytes`,
    /// in the middle of it if it is longer.
    pub fn cut_request(&self, nth: usize, matcher: impl Into<Matcher>, bytes: usize) {
        self.rule(nth, matcher, Fate::CutRequest(bytes));
    }

    /// Messages of subscriptions disappear, or no longer do.
    pub fn drop_messages(&self, on: bool) {
        self.shared.state().drop_messages = on;
    }

    /// Everything takes this much longer on its way, from now on.
    pub fn delay(&self, direction: Direction, duration: Duration) {
        let mut state = self.shared.state();
        match direction {
            Direction::ToClient => state.delay_to_client = duration,
            Direction::ToServer => state.delay_to_server = duration,
        }
    }

    /// Everything is written in slices of so many bytes from now on, or whole again with 0.
    pub fn slice(&self, bytes: usize) {
        self.shared.state().slice = bytes;
    }

    /// Nothing passes on any connection, in both directions, until this is switched off again; then
    /// what was sent meanwhile arrives. New connections succeed, as far as the client can see.
    pub fn blackhole(&self, on: bool) {
        self.shared.blackhole.send_replace(on);
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

    /// Ends the connections on which a request that matches was seen, and says how many these were.
    ///
    /// `cut_where("SUBSCRIBE")` ends the subscribers.
    pub fn cut_where(&self, matcher: impl Into<Matcher>) -> usize {
        let matcher = matcher.into();
        let mut state = self.shared.state();
        let State { requests, connections, .. } = &mut *state;
        let mut ended = 0;
        for (connection, request) in requests.iter() {
            if matcher.matches(request)
                && let Some(end) = connections.get_mut(connection).and_then(Option::take)
            {
                // Who does not listen has ended.
                ended += usize::from(end.send(End::Cut).is_ok());
            }
        }
        ended
    }

    /// How many connections are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.state().connections.len()
    }

    /// Nothing of what was ordered happens any more: no losses, delays and refusals, no black hole. Open connections stay as they are.
    pub fn heal(&self) {
        let mut state = self.shared.state();
        state.rules.clear();
        (state.delay_to_client, state.delay_to_server) = (Duration::ZERO, Duration::ZERO);
        (state.drop_messages, state.refuse, state.slice) = (false, false, 0);
        drop(state);
        self.blackhole(false);
    }

    /// Forgets the requests seen so far: they are kept for [`count`](Self::count) and the like, and a long run has many.
    pub fn forget(&self) {
        self.shared.state().requests.clear();
    }

    /// How many requests that match arrived at the proxy, delivered or not.
    #[must_use]
    pub fn count(&self, matcher: impl Into<Matcher>) -> usize {
        self.shared.count(&matcher.into())
    }

    /// Waits until `n` requests that match have arrived at the proxy since its start.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] after a minute.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn wait_count(&self, matcher: impl Into<Matcher>, n: usize) -> io::Result<()> {
        let matcher = matcher.into();
        let mut seen = self.shared.seen.subscribe();
        let enough = seen.wait_for(|_| n <= self.shared.count(&matcher));
        match timeout(PATIENCE, enough).await {
            Ok(Ok(_)) => Ok(()),
            _ => {
                let message = format!("{} of {n} requests seen", self.shared.count(&matcher));
                Err(io::Error::new(io::ErrorKind::TimedOut, message))
            }
        }
    }

    fn rule(&self, nth: usize, matcher: impl Into<Matcher>, fate: Fate) {
        let rule = Rule { left: nth.max(1), matcher: matcher.into(), fate };
        self.shared.state().rules.push(rule);
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("port", &self.port()).finish_non_exhaustive()
    }
}

impl Matcher {
    /// Every request.
    #[must_use]
    pub fn any() -> Self {
        Self::new(|_| true)
    }

    /// The requests that begin with these words, in capitals or not: `CLIENT KILL` for instance.
    #[must_use]
    pub fn command(words: &str) -> Self {
        let words: Vec<Vec<u8>> = words.split(' ').map(|word| word.as_bytes().to_vec()).collect();
        Self::new(move |request| {
            words.len() <= request.len()
                && words.iter().zip(request).all(|(word, arg)| word.eq_ignore_ascii_case(arg))
        })
    }

    /// The requests that have these bytes in one of their arguments.
    #[must_use]
    pub fn containing(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::new(move |request| {
            request.iter().any(|arg| {
                bytes.is_empty() || arg.windows(bytes.len()).any(|window| window == bytes)
            })
        })
    }

    /// The requests for which the closure, given the arguments, returns true.
    pub fn new(test: impl Fn(&[Vec<u8>]) -> bool + Send + Sync + 'static) -> Self {
        Self { test: Arc::new(test) }
    }

    /// Those that match this and the other.
    #[must_use]
    pub fn and(self, other: impl Into<Self>) -> Self {
        let other = other.into();
        Self::new(move |request| self.matches(request) && other.matches(request))
    }

    fn matches(&self, request: &[Vec<u8>]) -> bool {
        (self.test)(request)
    }
}

/// As [`Matcher::command`].
impl From<&str> for Matcher {
    fn from(words: &str) -> Self {
        Self::command(words)
    }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matcher").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Shared {
    /// What the server calls 127.0.0.1 is this to the client.
    alias: Option<Vec<u8>>,
    state: Mutex<State>,
    blackhole: watch::Sender<bool>,
    /// Changes with each request.
    seen: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    /// Each with its connection.
    requests: Vec<(u64, Vec<Vec<u8>>)>,
    /// What ends them, until it has been used.
    connections: HashMap<u64, Option<oneshot::Sender<End>>>,
    delay_to_client: Duration,
    delay_to_server: Duration,
    drop_messages: bool,
    refuse: bool,
    slice: usize,
}

struct Rule {
    left: usize,
    matcher: Matcher,
    fate: Fate,
}

/// What becomes of a request and its reply.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    CutAfter,
    CutBefore,
    CutReply(usize),
    CutRequest(usize),
    Late(Duration),
    Pass,
    SilenceAfter,
    SilenceBefore,
    Twice,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, how: End) {
        for end in self.state().connections.values_mut().filter_map(Option::take) {
            // Who does not listen has ended.
            let _ = end.send(how);
        }
    }

    /// Calls the servers what the client calls them.
    fn translate(&self, frame: &mut [u8]) {
        let Some(alias) = &self.alias else { return };
        let own = LOCALHOST.to_string();
        let mut at = 0;
        while let Some(window) = frame.get_mut(at..at + own.len()) {
            if window == own.as_bytes() {
                window.copy_from_slice(alias);
            }
            at += 1;
        }
    }

    fn count(&self, matcher: &Matcher) -> usize {
        self.state().requests.iter().filter(|(_, request)| matcher.matches(request)).count()
    }

    /// Takes note of a request and decides what becomes of it.
    fn judge(&self, connection: u64, request: Vec<Vec<u8>>) -> Fate {
        let mut state = self.state();
        let mut fate = Fate::Pass;
        state.rules.retain_mut(|rule| {
            if !rule.matcher.matches(&request) {
                return true;
            }
            rule.left = rule.left.saturating_sub(1);
            // Of several that are due at once, one acts and the others wait for the next request.
            if rule.left == 0 && fate == Fate::Pass {
                fate = rule.fate;
                return false;
            }
            true
        });
        state.requests.push((connection, request));
        drop(state);
        self.seen.send_replace(());
        fate
    }
}
