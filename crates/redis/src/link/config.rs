//! What a link needs to know.

use std::{fmt, path::PathBuf, time::Duration};

use fred::types::config::{ClusterDiscoveryPolicy, Config, Server, ServerConfig};

use super::LinkError;

/// A host and its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Where the data is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Topology {
    /// A cluster; any of its nodes will do to find the others.
    Cluster { seeds: Vec<Endpoint> },
    /// The primary that the sentinels name, who may want credentials of their own.
    Sentinel {
        sentinels: Vec<Endpoint>,
        master: String,
        username: Option<String>,
        password: Option<String>,
    },
    /// One server.
    Standalone(Endpoint),
    /// One server, by its socket.
    Unix(PathBuf),
}

/// How to encrypt. The system's certificates are trusted unless there is a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsSettings {
    /// Certificates of the authorities to trust, in PEM.
    pub(crate) ca_file: Option<PathBuf>,
}

/// Everything about a link but its listener.
#[derive(Clone)]
pub(crate) struct LinkConfig {
    pub(crate) topology: Topology,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) database: Option<u8>,
    pub(crate) tls: Option<TlsSettings>,
    /// For one call, all its sends together.
    pub(crate) request_timeout: Duration,
    /// For connecting, everything together.
    pub(crate) connect_timeout: Duration,
    /// How often the subscriber asks its silent server whether it is still there.
    pub(crate) ping_interval: Duration,
    /// Messages that may wait for the listener; more are lost, which it is told.
    pub(crate) backlog: usize,
    /// The channel of this process.
    pub(crate) channel: String,
}

impl LinkConfig {
    pub(crate) fn new(topology: Topology, channel: impl Into<String>) -> Self {
        Self {
            topology,
            username: None,
            password: None,
            database: None,
            tls: None,
            request_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(5),
            backlog: 4096,
            channel: channel.into(),
        }
    }

    pub(super) fn to_fred(&self) -> Result<Config, LinkError> {
        if self.channel.starts_with("__key") {
            // fred takes `__keyspace@` and `__keyevent@` for something else.
            return Err(LinkError::Config("a channel must not begin with `__key`".to_owned()));
        }
        let mut config = Config {
            username: self.username.clone(),
            password: self.password.clone(),
            database: self.database,
            server: self.topology.to_fred()?,
            ..Config::default()
        };
        self.encrypt(&mut config)?;
        Ok(config)
    }

    #[cfg(feature = "tls")]
    fn encrypt(&self, config: &mut Config) -> Result<(), LinkError> {
        if let Some(settings) = &self.tls {
            config.tls = Some(super::tls::configure(settings, &self.topology)?);
        }
        Ok(())
    }

    #[cfg(not(feature = "tls"))]
    fn encrypt(&self, _: &mut Config) -> Result<(), LinkError> {
        match self.tls {
            Some(_) => Err(LinkError::Config("TLS needs the feature `tls`".to_owned())),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for LinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkConfig")
            .field("topology", &self.topology)
            .field("username", &self.username)
            .field("password", &redacted(self.password.as_ref()))
            .field("database", &self.database)
            .field("tls", &self.tls)
            .field("request_timeout", &self.request_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("ping_interval", &self.ping_interval)
            .field("backlog", &self.backlog)
            .field("channel", &self.channel)
            .finish()
    }
}

impl Topology {
    fn to_fred(&self) -> Result<ServerConfig, LinkError> {
        Ok(match self {
            Self::Standalone(endpoint) => ServerConfig::Centralized { server: endpoint.to_fred() },
            Self::Unix(path) => ServerConfig::Unix { path: path.clone() },
            Self::Cluster { seeds } => ServerConfig::Clustered {
                hosts: to_fred(seeds)?,
                policy: ClusterDiscoveryPolicy::default(),
            },
            Self::Sentinel { sentinels, master, username, password } => ServerConfig::Sentinel {
                hosts: to_fred(sentinels)?,
                service_name: master.clone(),
                username: username.clone(),
                password: password.clone(),
            },
        })
    }
}

impl fmt::Debug for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster { seeds } => f.debug_struct("Cluster").field("seeds", seeds).finish(),
            Self::Sentinel { sentinels, master, username, password } => f
                .debug_struct("Sentinel")
                .field("sentinels", sentinels)
                .field("master", master)
                .field("username", username)
                .field("password", &redacted(password.as_ref()))
                .finish(),
            Self::Standalone(endpoint) => f.debug_tuple("Standalone").field(endpoint).finish(),
            Self::Unix(path) => f.debug_tuple("Unix").field(path).finish(),
        }
    }
}

impl Endpoint {
    pub(crate) fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    fn to_fred(&self) -> Server {
        Server::new(self.host.as_str(), self.port)
    }
}

fn to_fred(endpoints: &[Endpoint]) -> Result<Vec<Server>, LinkError> {
    if endpoints.is_empty() {
        return Err(LinkError::Config("no host is given".to_owned()));
    }
    Ok(endpoints.iter().map(Endpoint::to_fred).collect())
}

fn redacted(secret: Option<&String>) -> Option<&'static str> {
    secret.map(|_| "…")
}
