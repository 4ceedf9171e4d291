//! How to connect.

use std::{fmt, time::Duration};

#[cfg(feature = "tls")]
use std::path::PathBuf;

use distlock_core::BackendError;

use crate::url;

/// No time limit is shorter: none at all would be for ever.
const SHORTEST: Duration = Duration::from_millis(10);

/// Nor longer: there is no time of the clock that is `Duration::MAX` from now.
const LONGEST: Duration = Duration::from_secs(86_400);

/// How to reach the members of an etcd cluster, and how long to wait for them.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use distlock_etcd::EtcdConfig;
///
/// let config = EtcdConfig::new(["10.0.0.1:2379", "10.0.0.2:2379", "10.0.0.3:2379"])
///     .login("locks", "secret")
///     .prefix("locks/")
///     .request_timeout(Duration::from_millis(500));
/// assert!(!format!("{config:?}").contains("secret"));
/// let config = EtcdConfig::from_url("etcd://10.0.0.1,10.0.0.2:2379/?prefix=locks/")?;
/// # Ok::<(), distlock_core::BackendError>(())
/// ```
#[derive(Clone)]
#[must_use = "a configuration does nothing until it is connected with"]
pub struct EtcdConfig {
    /// `host:port`, without a scheme.
    pub(crate) endpoints: Vec<String>,
    pub(crate) login: Option<(String, String)>,
    pub(crate) prefix: String,
    pub(crate) request_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Tls>,
}

/// Where the certificates are, in files in PEM format.
#[cfg(feature = "tls")]
#[derive(Clone, Debug, Default)]
pub(crate) struct Tls {
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) certificate: Option<(PathBuf, PathBuf)>,
    pub(crate) server_name: Option<String>,
}

impl EtcdConfig {
    /// The members of a cluster, or some of them, each as `host:port`.
    ///
    /// One of them is used for as long as it answers. When it does not, the next is.
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            login: None,
            prefix: String::new(),
            request_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(2),
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// What a URL says: `etcd://[user[:password]@]host[:port][,host[:port]…][/][?option=value&…]`, the port being 2379 if there is none.
    ///
    /// With `etcds` in the place of `etcd` the connections are encrypted, which needs the feature `tls`. Options: `timeout` and `connect_timeout`
    /// (`500ms`, `2s`), `prefix`, `user`, `password`, and with TLS `ca`, `cert`, `key` (files in PEM format) and `server_name`. Reserved characters in a user,
    /// a password or an option are written with `%`.
    ///
    /// # Errors
    /// A permanent [`BackendError`] that says what is wrong. It never has the password in it.
    pub fn from_url(url: &str) -> Result<Self, BackendError> {
        url::parse(url)
    }

    /// As which user to log in, where the cluster has authentication switched on.
    pub fn login(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.login = Some((user.into(), password.into()));
        self
    }

    /// Stands before the names of all locks, in etcd. Nothing if nothing is said: then a lock is where `etcdctl lock` looks for it.
    ///
    /// Like the prefix of a client it is simply put before the name. A role needs `readwrite` on what begins with it.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long one member may take to answer, one second if nothing is said, a day at most, before the next one is asked. Less than a third of the
    /// shortest ttl leaves room for a second attempt.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout.clamp(SHORTEST, LONGEST);
        self
    }

    /// How long connecting to one member may take, two seconds if nothing is said, a day at most.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout.clamp(SHORTEST, LONGEST);
        self
    }

    /// Encrypts the connections, trusting the certificates of the system.
    #[cfg(feature = "tls")]
    pub fn tls(mut self) -> Self {
        self.tls.get_or_insert_default();
        self
    }

    /// Encrypts the connections, trusting the certificates in a file in PEM format only.
    #[cfg(feature = "tls")]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls.get_or_insert_default().ca_file = Some(path.into());
        self
    }

    /// Encrypts the connections, and shows the members a certificate of our own; it and its key in files in PEM format.
    #[cfg(feature = "tls")]
    pub fn certificate(mut self, path: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls.get_or_insert_default().certificate = Some((path.into(), key.into()));
        self
    }

    /// Encrypts the connections, and expects this name in the certificates of the members, not that of the endpoint.
    #[cfg(feature = "tls")]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.tls.get_or_insert_default().server_name = Some(name.into());
        self
    }

    /// What a member may want that closes a connection without a word.
    pub(crate) const fn missing(&self) -> &'static str {
        #[cfg(feature = "tls")]
        match &self.tls {
            Some(Tls { certificate: Some(_), .. }) => return "it may not trust our certificate",
            Some(_) => return "it may want a certificate of ours (`cert` and `key`)",
            None => {}
        }
        "it may want an encrypted connection (`etcds`)"
    }

    pub(crate) const fn is_encrypted(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }
}

fn shown<'a>(user: &'a str, password: &str) -> &'a str {
    if password.is_empty() { "…" } else { user }
}

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("EtcdConfig");
        debug
            .field("endpoints", &self.endpoints)
            // Without a password it may be one: `etcd://password@host` is a common slip.
            .field("user", &self.login.as_ref().map(|(user, password)| shown(user, password)))
            .field("password", &self.login.as_ref().map(|_| "…"))
            .field("prefix", &self.prefix)
            .field("request_timeout", &self.request_timeout)
            .field("connect_timeout", &self.connect_timeout);
        #[cfg(feature = "tls")]
        debug.field("tls", &self.tls);
        debug.finish()
    }
}
