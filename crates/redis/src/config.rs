//! How to connect.

use std::{fmt, path::PathBuf, time::Duration};

use distlock_core::BackendError;

use crate::{
    link::{Endpoint, LinkConfig, TlsSettings, Topology},
    url,
};

/// No time limit is shorter: none at all would be for ever.
const SHORTEST: Duration = Duration::from_millis(1);

/// Nor longer: there is no time of the clock that is `Duration::MAX` from now.
const LONGEST: Duration = Duration::from_secs(86_400);

/// How to reach a Redis deployment, and how long to wait for it.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use distlock_redis::RedisConfig;
///
/// let config = RedisConfig::new("10.0.0.1", 6379).user("locks").password("secret").request_timeout(Duration::from_millis(500));
/// assert!(!format!("{config:?}").contains("secret"));
/// let config = RedisConfig::from_url("redis-sentinel://10.0.0.1,10.0.0.2/?master=main")?;
/// # Ok::<(), distlock_core::BackendError>(())
/// ```
#[derive(Clone)]
#[must_use = "a configuration does nothing until it is connected with"]
pub struct RedisConfig {
    pub(crate) topology: Topology,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) database: Option<u8>,
    pub(crate) tls: bool,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) request_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) place_ttl: Duration,
    pub(crate) confirm_pushes: bool,
}

impl RedisConfig {
    /// One server.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self::with(Topology::Standalone(Endpoint::new(host, port)))
    }

    /// One server, by the path of its socket.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::with(Topology::Unix(path.into()))
    }

    /// A cluster, found by any of its nodes.
    pub fn cluster<H: Into<String>>(nodes: impl IntoIterator<Item = (H, u16)>) -> Self {
        Self::with(Topology::Cluster { seeds: endpoints(nodes) })
    }

    /// The primary that the sentinels call by this name.
    pub fn sentinel<H: Into<String>>(
        sentinels: impl IntoIterator<Item = (H, u16)>,
        master: impl Into<String>,
    ) -> Self {
        Self::with(Topology::Sentinel {
            sentinels: endpoints(sentinels),
            master: master.into(),
            username: None,
            password: None,
        })
    }

    /// What a URL says:
    ///
    /// - `redis://[user[:password]@]host[:port][/database]`
    /// - `redis-cluster://[user[:password]@]host[:port],host[:port]`
    /// - `redis-sentinel://[user[:password]@]host[:port],host[:port][/database]?master=name`
    /// - `redis+unix:///path/of/socket` or `unix:///path/of/socket`
    ///
    /// With `rediss` in the place of `redis` the connections are encrypted, which needs the feature `tls`. Options, after a `?` and separated by `&`:
    /// `timeout` and `connect_timeout` (`500ms`, `2s`), `ca` (a file with the certificates to trust), `user`, `password`, `db`, and for sentinels `master`,
    /// `sentinel_user`, `sentinel_password`. Reserved characters in a user, a password or a path are written with `%`.
    ///
    /// # Errors
    /// A permanent [`BackendError`] that says what is wrong. It never has the password in it.
    pub fn from_url(url: &str) -> Result<Self, BackendError> {
        url::parse(url)
    }

    pub(crate) fn with(topology: Topology) -> Self {
        Self {
            topology,
            user: None,
            password: None,
            database: None,
            tls: false,
            ca_file: None,
            request_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(5),
            place_ttl: Duration::from_secs(15),
            confirm_pushes: false,
        }
    }

    /// As which user to log in; without one, as the default user.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// The password.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// With what to log in to the sentinels, which have users of their own.
    pub fn sentinel_login(mut self, user: Option<String>, password: Option<String>) -> Self {
        if let Topology::Sentinel { username, password: secret, .. } = &mut self.topology {
            (*username, *secret) = (user, password);
        }
        self
    }

    /// Which of the server's databases; a cluster has only the first.
    pub fn database(mut self, database: u8) -> Self {
        self.database = Some(database);
        self
    }

    /// Encrypts the connections, trusting the certificates of the system.
    #[cfg(feature = "tls")]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Encrypts the connections, trusting the certificates in a file in PEM format only.
    #[cfg(feature = "tls")]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls = true;
        self.ca_file = Some(path.into());
        self
    }

    /// How long a request may take, one second if nothing is said, a day at most. Less than a third of the shortest ttl leaves room for a second attempt.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout.clamp(SHORTEST, LONGEST);
        self
    }

    /// How long connecting may take, five seconds if nothing is said, a day at most.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout.clamp(SHORTEST, LONGEST);
        self
    }

    /// How long a place in a line is kept for a process that is not heard of any more, 15 seconds if nothing is said, a minute at most. Places are
    /// looked after three times as often.
    pub fn place_ttl(mut self, ttl: Duration) -> Self {
        self.place_ttl = ttl.clamp(Duration::from_millis(100), Duration::from_secs(60));
        self
    }

    /// Asks the server about every grant that it pushes, before it is believed.
    ///
    /// Without that, the deadline of a pushed grant is reckoned from the server's clock, which must not be set forward while somebody waits:
    /// see `docs/guarantees.md`. It costs a round trip at each hand-over between processes.
    pub fn confirm_pushes(mut self) -> Self {
        self.confirm_pushes = true;
        self
    }

    pub(crate) fn link(&self, channel: String) -> LinkConfig {
        let mut link = LinkConfig::new(self.topology.clone(), channel);
        link.username = self.user.clone();
        link.password = self.password.clone();
        link.database = self.database;
        link.tls = self.tls.then(|| TlsSettings { ca_file: self.ca_file.clone() });
        link.request_timeout = self.request_timeout;
        link.connect_timeout = self.connect_timeout;
        link
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("topology", &self.topology)
            // Without a password it may be one: `redis://password@host` is a common slip.
            .field(
                "user",
                &self.user.as_deref().map(|user| self.password.as_ref().map_or("…", |_| user)),
            )
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("database", &self.database)
            .field("tls", &self.tls)
            .field("ca_file", &self.ca_file)
            .field("request_timeout", &self.request_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("place_ttl", &self.place_ttl)
            .field("confirm_pushes", &self.confirm_pushes)
            .finish()
    }
}

fn endpoints<H: Into<String>>(all: impl IntoIterator<Item = (H, u16)>) -> Vec<Endpoint> {
    all.into_iter().map(|(host, port)| Endpoint::new(host, port)).collect()
}
