//! Which member of the cluster is asked, and what happens when it does not answer.
//!
//! The driver spreads requests over its endpoints and never leaves a dead one. So each member has a client of its own here, one of them is used for as
//! long as it answers, and the next one at once when it does not.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use distlock_core::BackendError;
use etcd_client::{Client, ConnectOptions};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};

use crate::{
    EtcdConfig,
    backend::NAME,
    error::{Failure, Remedy},
};

/// How often a silent connection is tested. A server closes those that are tested more often than every five seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(6);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// When all members refuse at once, as while a leader is elected, they are asked again after this time.
const PAUSE: Duration = Duration::from_millis(50);

/// The members, and the one that is used.
pub(crate) struct Members {
    seats: Vec<Seat>,
    /// Counts the changes of member; the seat is its rest.
    turn: AtomicUsize,
    options: ConnectOptions,
    request_timeout: Duration,
    connect_timeout: Duration,
    /// The connections are our own to make.
    reconnects: bool,
}

struct Seat {
    endpoint: String,
    connection: Mutex<Connection>,
}

/// The connection to a member, if there is one.
#[derive(Default)]
struct Connection {
    client: Option<Arc<Client>>,
    /// When it could not be made the last time, and why.
    failed: Option<(Instant, Failure)>,
}

/// A connection to the member that is used.
pub(crate) struct Link {
    /// A clone of a whole client costs as much as half a request: only what is needed of it is cloned.
    pub(crate) client: Arc<Client>,
    turn: usize,
}

/// An answer, and whether an earlier attempt may have been, or may yet be, carried out too.
#[derive(Debug)]
pub(crate) struct Answered<T> {
    pub(crate) answer: T,
    pub(crate) ambiguous: bool,
}

impl Members {
    pub(crate) fn new(config: &EtcdConfig) -> Result<Self, BackendError> {
        if config.endpoints.is_empty() {
            return Err(BackendError::permanent(NAME, "the configuration names no endpoint"));
        }
        let scheme = if config.is_encrypted() { "https://" } else { "http://" };
        let seat = |endpoint: &String| Seat {
            endpoint: format!("{scheme}{endpoint}"),
            connection: Mutex::default(),
        };
        Ok(Self {
            seats: config.endpoints.iter().map(seat).collect(),
            turn: AtomicUsize::new(0),
            options: options(config)?,
            request_timeout: config.request_timeout,
            connect_timeout: config.connect_timeout,
            reconnects: true,
        })
    }

    /// A client of the user's own: all there is.
    pub(crate) fn of(client: Client, config: &EtcdConfig) -> Self {
        let connection = Connection { client: Some(Arc::new(client)), failed: None };
        let seat = Seat { endpoint: "a client".to_owned(), connection: Mutex::new(connection) };
        Self {
            seats: vec![seat],
            turn: AtomicUsize::new(0),
            options: ConnectOptions::new(),
            request_timeout: config.request_timeout,
            connect_timeout: config.connect_timeout,
            reconnects: false,
        }
    }

    pub(crate) const fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// The member that is used. Connects to it, if that was not done yet; whom it cannot reach it leaves.
    pub(crate) async fn link(&self) -> Result<Link, Failure> {
        let came = Instant::now();
        let (turn, mut connection) = loop {
            let turn = self.turn();
            let connection = self.seats[turn % self.seats.len()].connection.lock().await;
            if turn == self.turn() {
                break (turn, connection);
            }
            // Whoever was here before may have found that it cannot be reached: nor would we, and others wait behind us.
            if let Some((_, failure)) = connection.failed.as_ref().filter(|(at, _)| came < *at) {
                return Err(failure.clone());
            }
        };
        if let Some(client) = &connection.client {
            return Ok(Link { client: Arc::clone(client), turn });
        }
        let endpoint = &*self.seats[turn % self.seats.len()].endpoint;
        let connecting = Client::connect([endpoint], Some(self.options.clone()));
        let connected = match timeout(self.connect_timeout, connecting).await {
            Ok(Ok(connected)) => Ok(connected),
            // Nothing but the login was sent.
            Ok(Err(error)) => Err(Failure::new(&error).harmless()),
            Err(_) => Err(Failure::timeout().harmless()),
        };
        match connected {
            Ok(connected) => {
                let connected = Arc::new(connected);
                *connection = Connection { client: Some(Arc::clone(&connected)), failed: None };
                Ok(Link { client: connected, turn })
            }
            Err(failure) => {
                connection.failed = Some((Instant::now(), failure.clone()));
                self.leave(turn);
                Err(failure)
            }
        }
    }

    /// How often the member was changed.
    pub(crate) fn turn(&self) -> usize {
        self.turn.load(Ordering::Acquire)
    }

    /// The member did not do its duty: from now on the next one is used, unless that was said before.
    pub(crate) fn leave(&self, turn: usize) {
        let next = turn.wrapping_add(1);
        // Somebody else left it at the same time, or already before.
        let _ = self.turn.compare_exchange(turn, next, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// The member did not answer at all. It may be its connection that is dead, so whoever comes back to it makes a new one.
    pub(crate) async fn hang_up(&self, turn: usize) {
        let mut connection = self.seats[turn % self.seats.len()].connection.lock().await;
        if turn == self.turn() && self.reconnects {
            connection.client = None;
        }
        self.leave(turn);
    }

    /// What to do after a failure, before the next attempt.
    pub(crate) async fn mend(&self, link: &Link, failure: &Failure) {
        match failure.remedy {
            Remedy::Login => {
                let login = timeout(self.request_timeout, link.client.refresh_token()).await;
                match login {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => self.leave(link.turn),
                    Err(_) => self.hang_up(link.turn).await,
                }
            }
            Remedy::Move { .. } if failure.silent => self.hang_up(link.turn).await,
            Remedy::Move { .. } => self.leave(link.turn),
            Remedy::Pause => sleep(PAUSE).await,
            Remedy::Fail(_) | Remedy::Lease => {}
        }
    }

    /// Makes a request of the member that is used, then of others, until one answers or all had their chance.
    ///
    /// The request must be one that may be carried out twice.
    pub(crate) async fn call<T, F>(
        &self,
        request: impl Fn(Arc<Client>) -> F,
    ) -> Result<Answered<T>, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let started = Instant::now();
        let mut ambiguous = false;
        for attempt in 1.. {
            let failure = match self.link().await {
                Ok(link) => {
                    let answer =
                        timeout(self.request_timeout, request(Arc::clone(&link.client))).await;
                    let failure = match answer {
                        Ok(Ok(answer)) => return Ok(Answered { answer, ambiguous }),
                        Ok(Err(error)) => Failure::new(&error),
                        Err(_) => Failure::timeout(),
                    };
                    self.mend(&link, &failure).await;
                    failure
                }
                Err(failure) => failure,
            };
            ambiguous |= failure.ambiguous;
            let hopeless = matches!(failure.remedy, Remedy::Fail(_) | Remedy::Lease);
            let all_asked = self.seats.len() < attempt;
            if hopeless || all_asked && self.request_timeout * 2 <= started.elapsed() {
                return Err(failure.after(ambiguous));
            }
            if all_asked {
                sleep(PAUSE).await;
            }
        }
        Err(Failure::closed())
    }
}

impl Link {
    /// Which of the changes of member brought us here.
    pub(crate) const fn turn(&self) -> usize {
        self.turn
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.seats.iter().map(|seat| &seat.endpoint)).finish()
    }
}

fn options(config: &EtcdConfig) -> Result<ConnectOptions, BackendError> {
    let mut options = ConnectOptions::new()
        .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_TIMEOUT)
        .with_keep_alive_while_idle(true)
        .with_connect_timeout(config.connect_timeout)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some((user, password)) = &config.login {
        options = options.with_user(user, password);
    }
    #[cfg(feature = "tls")]
    if let Some(tls) = &config.tls {
        options = options.with_tls(tls_options(tls)?);
    }
    Ok(options)
}

#[cfg(feature = "tls")]
fn tls_options(tls: &crate::config::Tls) -> Result<etcd_client::TlsOptions, BackendError> {
    use etcd_client::{Certificate, Identity, TlsOptions};
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|error| {
            BackendError::permanent(NAME, format!("cannot read the file {}", path.display()))
                .with_source(error)
        })
    };
    let mut options = TlsOptions::new();
    options = match &tls.ca_file {
        Some(path) => options.ca_certificate(Certificate::from_pem(read(path)?)),
        None => options.with_enabled_roots(),
    };
    if let Some((certificate, key)) = &tls.certificate {
        options = options.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    if let Some(name) = &tls.server_name {
        options = options.domain_name(name);
    }
    Ok(options)
}
