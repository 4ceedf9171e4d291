//! What the link and its tasks share: the client and what is known about it.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use fred::{
    clients::{Client, WithOptions},
    error::Error,
    interfaces::{ClientLike, ServerInterface},
    types::{
        Resp3Frame,
        config::{Options, Server},
    },
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};

use super::{Attempts, LinkConfig, LinkError, Reply, client::differ, script::Command};

/// So many timeouts in a row make the connection suspect.
const SUSPECT: u32 = 2;

/// So long a sentinel may not have heard what another one announced: they tell each other every two
/// seconds.
const NEWS: Duration = Duration::from_secs(5);

/// The command connection, as far as the keeper knows.
#[derive(Clone, Debug)]
pub(super) enum Health {
    Closed,
    /// Connecting failed, with this; it goes on being tried.
    Down(LinkError),
    /// The first attempt to connect again is being made.
    Starting,
    Up,
}

pub(super) struct Core {
    pub(super) client: Client,
    /// The client with the options of every command.
    sender: WithOptions<Client>,
    pub(super) clustered: bool,
    pub(super) request_timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) backlog: usize,
    /// `health` is `Up`, for the hot path.
    up: AtomicBool,
    pub(super) health: watch::Sender<Health>,
    /// `Err(Timeout)` until the first attempt has been decided.
    pub(super) subscription: watch::Sender<Result<(), LinkError>>,
    /// Since the last reply.
    timeouts: AtomicU32,
    /// The server is not the primary, so there is another one to be found.
    demoted: AtomicBool,
    /// Wakes the keeper: one of the two above.
    pub(super) wake: Notify,
    /// Counts what the sentinels say about new primaries.
    pub(super) switches: watch::Sender<u64>,
    /// The primary that was announced last, and when.
    announced: Mutex<Option<(Server, Instant)>>,
}

impl Core {
    pub(super) fn new(client: Client, config: &LinkConfig) -> Self {
        let options = Options {
            // Each of these also repeats or follows nothing in a client that the user configured.
            fail_fast: true,
            max_attempts: Some(1),
            // fred's own: a future dropped by a timeout from outside leaves its command queued.
            timeout: Some(config.request_timeout),
            ..Options::default()
        };
        Self {
            sender: client.with_options(&options),
            clustered: client.is_clustered(),
            client,
            request_timeout: config.request_timeout,
            connect_timeout: config.connect_timeout,
            backlog: config.backlog,
            up: AtomicBool::new(true),
            health: watch::Sender::new(Health::Up),
            subscription: watch::Sender::new(Err(LinkError::Timeout)),
            timeouts: AtomicU32::new(0),
            demoted: AtomicBool::new(false),
            wake: Notify::new(),
            switches: watch::Sender::new(0),
            announced: Mutex::new(None),
        }
    }

    /// Sends a command once and waits for its reply, at most for the request timeout.
    pub(super) async fn exchange(&self, command: Command) -> Result<Reply, LinkError> {
        if !self.up.load(Ordering::Relaxed) {
            return Err(self.health_error());
        }
        self.settle(self.sender.custom_raw(command.name, command.args).await)
    }

    /// As [`exchange`](Self::exchange) with a time limit of its own.
    pub(super) async fn exchange_within(
        &self,
        command: Command,
        limit: Duration,
    ) -> Result<Reply, LinkError> {
        let options = Options { timeout: Some(limit), ..self.sender.options().clone() };
        self.exchange_with(&options, command).await
    }

    /// As [`exchange`](Self::exchange), with one node of the cluster.
    pub(super) async fn exchange_at(
        &self,
        node: Server,
        command: Command,
    ) -> Result<Reply, LinkError> {
        let options = Options { cluster_node: Some(node), ..self.sender.options().clone() };
        self.exchange_with(&options, command).await
    }

    async fn exchange_with(&self, options: &Options, command: Command) -> Result<Reply, LinkError> {
        if !self.up.load(Ordering::Relaxed) {
            return Err(self.health_error());
        }
        let sender = self.client.with_options(options);
        self.settle(sender.custom_raw(command.name, command.args).await)
    }

    /// Counts timeouts on the way, and notices a server that is not the primary.
    fn settle(&self, result: Result<Resp3Frame, Error>) -> Result<Reply, LinkError> {
        let error = match result {
            Ok(frame) => {
                if self.timeouts.load(Ordering::Relaxed) != 0 {
                    self.timeouts.store(0, Ordering::Relaxed);
                }
                let reply = Reply::from_frame(frame);
                if matches!(&reply, Err(LinkError::Server(text)) if text.starts_with("READONLY")) {
                    self.demote();
                }
                return reply;
            }
            Err(error) => LinkError::in_exchange(error),
        };
        if error == LinkError::Timeout
            && SUSPECT <= self.timeouts.fetch_add(1, Ordering::Relaxed).saturating_add(1)
        {
            self.wake.notify_one();
        }
        Err(error)
    }

    /// Waits for the connection until the deadline. While the server cannot be reached, that is
    /// worth it for what must get through only.
    ///
    /// # Errors
    /// What stands in the way.
    pub(super) async fn wait_up(
        &self,
        deadline: Instant,
        attempts: Attempts,
    ) -> Result<(), LinkError> {
        let mut watch = self.health.subscribe();
        let decided = watch.wait_for(|health| match health {
            Health::Closed | Health::Up => true,
            Health::Down(_) => attempts == Attempts::AtMostOnce,
            Health::Starting => false,
        });
        let decided = timeout_at(deadline, decided).await;
        match decided {
            Ok(Ok(health)) if matches!(*health, Health::Up) => Ok(()),
            _ => {
                drop(decided);
                Err(self.health_error())
            }
        }
    }

    /// Changes the health, unless the link is closed.
    pub(super) fn set_health(&self, health: Health) {
        self.health.send_if_modified(|now| {
            if matches!(now, Health::Closed) {
                return false;
            }
            self.timeouts.store(0, Ordering::Relaxed);
            self.demoted.store(false, Ordering::Relaxed);
            self.up.store(matches!(health, Health::Up), Ordering::Relaxed);
            *now = health;
            true
        });
    }

    /// Refuses everything from now on; says whether there was a connection.
    pub(super) fn set_closed(&self) -> bool {
        let was = self.health.send_replace(Health::Closed);
        self.up.store(false, Ordering::Relaxed);
        self.subscription.send_modify(|state| *state = Err(LinkError::Closed));
        matches!(was, Health::Up)
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(*self.health.borrow(), Health::Closed)
    }

    /// There is another primary: whatever is being connected to, or was, is not it. If a sentinel has
    /// only just learned of it, this one is expected.
    pub(super) fn announce(&self, news: Option<Server>) {
        if let Some(primary) = news {
            let news = Some((primary, Instant::now()));
            *self.announced.lock().unwrap_or_else(PoisonError::into_inner) = news;
        }
        // First the count: whoever connects meanwhile forgets the other, and looks at it.
        self.switches.send_modify(|count| *count += 1);
        self.demote();
    }

    /// Whether a sentinel that has not heard the news sent us to another server than the primary.
    pub(super) fn is_misled(&self) -> bool {
        let announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((primary, heard)) = &*announced else { return false };
        let at = self.client.sentinel_primary();
        heard.elapsed() < NEWS && at.is_some_and(|at| differ(primary, &at))
    }

    /// Has the keeper look for the primary.
    pub(super) fn demote(&self) {
        self.demoted.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    pub(super) fn is_demoted(&self) -> bool {
        self.demoted.load(Ordering::Relaxed)
    }

    pub(super) fn is_suspect(&self) -> bool {
        SUSPECT <= self.timeouts.load(Ordering::Relaxed)
    }

    fn health_error(&self) -> LinkError {
        match &*self.health.borrow() {
            Health::Closed => LinkError::Closed,
            Health::Down(error) => error.clone().unsent(),
            Health::Starting | Health::Up => {
                LinkError::Disconnected { reason: "the connection was lost".into(), sent: false }
            }
        }
    }
}
