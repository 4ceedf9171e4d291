//! The servers that the tests need, and the environment that leads to them.

use std::{
    fmt::Write,
    io,
    path::PathBuf,
    thread::{self, ScopedJoinHandle},
};

use distlock_servers::{
    etcd::{EtcdCluster, EtcdServer, EtcdTls},
    redis::{RedisCluster, RedisSentinel, RedisServer, RedisTls},
};

use crate::Result;

/// Running servers; they end with this value, unless detached.
#[derive(Debug)]
pub(crate) struct Servers {
    servers: Vec<Server>,
    env: Vec<(&'static str, String)>,
}

/// One server, of whatever store.
#[derive(Debug)]
pub(crate) enum Server {
    Etcd(EtcdServer),
    Redis(RedisServer),
}

impl Servers {
    /// Starts one of each kind.
    pub(crate) fn start_all() -> Result<Self> {
        let (redis, etcd, plain) = thread::scope(|scope| {
            let redis = scope.spawn(redis_groups);
            let etcd = scope.spawn(etcd_groups);
            (finish(redis), finish(etcd), Self::start_standalone())
        });
        let mut all = plain?;
        for group in [redis?, etcd?] {
            all.servers.extend(group.servers);
            all.env.extend(group.env);
        }
        Ok(all)
    }

    /// Starts one plain server per store.
    pub(crate) fn start_standalone() -> Result<Self> {
        let (etcd, redis) = (EtcdServer::start(&[])?, RedisServer::start(&[])?);
        let env = vec![
            ("DISTLOCK_REQUIRE_BACKENDS", "1".to_owned()),
            ("DISTLOCK_TEST_ETCD_URL", etcd.url()),
            ("DISTLOCK_TEST_REDIS_URL", redis.url()),
        ];
        Ok(Self { servers: vec![Server::Etcd(etcd), Server::Redis(redis)], env })
    }

    /// Names and values for the environment of the tests.
    pub(crate) fn env(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.env.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// The environment as lines for a shell.
    pub(crate) fn exports(&self) -> String {
        self.env.iter().fold(String::new(), |mut lines, (name, value)| {
            writeln!(lines, "export {name}='{value}'").expect("a string takes everything");
            lines
        })
    }

    /// The servers themselves.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Server> {
        self.servers.iter()
    }

    /// Leaves all servers running for good.
    pub(crate) fn detach(self) -> io::Result<()> {
        self.servers.into_iter().try_for_each(|server| server.detach().map(drop))
    }
}

impl Server {
    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        match self {
            Self::Etcd(server) => server.pid(),
            Self::Redis(server) => server.pid(),
        }
    }

    /// A unix socket, in the server's own folder, on which it listens as long as it lives.
    pub(crate) fn socket(&self) -> PathBuf {
        match self {
            Self::Etcd(server) => server.socket(),
            Self::Redis(server) => server.socket(),
        }
    }

    fn detach(self) -> io::Result<u32> {
        match self {
            Self::Etcd(server) => server.detach(),
            Self::Redis(server) => server.detach(),
        }
    }
}

/// A Cluster, a group of Sentinels, and a server with TLS.
fn redis_groups() -> io::Result<Servers> {
    let (cluster, sentinel, tls) = thread::scope(|scope| {
        let cluster = scope.spawn(|| RedisCluster::start(&[]));
        let sentinel = scope.spawn(|| RedisSentinel::start(&[]));
        (finish(cluster), finish(sentinel), RedisTls::start(&[]))
    });
    let (cluster, sentinel, tls) = (cluster?, sentinel?, tls?);
    let env = vec![
        ("DISTLOCK_TEST_REDIS_CLUSTER_URL", cluster.url()),
        ("DISTLOCK_TEST_REDIS_SENTINEL_URL", sentinel.url()),
        ("DISTLOCK_TEST_REDIS_TLS_URL", tls.url()),
        ("DISTLOCK_TEST_REDIS_TLS_CA", tls.ca().display().to_string()),
    ];
    let mut servers = cluster.into_nodes();
    servers.extend(sentinel.into_servers());
    servers.push(tls.into_server());
    Ok(Servers { servers: servers.into_iter().map(Server::Redis).collect(), env })
}

/// Three members, and one with TLS and users.
fn etcd_groups() -> io::Result<Servers> {
    let (cluster, tls) = thread::scope(|scope| {
        let cluster = scope.spawn(|| EtcdCluster::start(&[]));
        (finish(cluster), EtcdTls::start(&[]))
    });
    let (cluster, tls) = (cluster?, tls?);
    let env = vec![
        ("DISTLOCK_TEST_ETCD_CLUSTER_URL", cluster.url()),
        ("DISTLOCK_TEST_ETCD_TLS_URL", tls.url()),
        ("DISTLOCK_TEST_ETCD_TLS_CA", tls.ca().display().to_string()),
        ("DISTLOCK_TEST_ETCD_TLS_CERT", tls.client_certificate().display().to_string()),
        ("DISTLOCK_TEST_ETCD_TLS_KEY", tls.client_key().display().to_string()),
        ("DISTLOCK_TEST_ETCD_TLS_USER", tls.user().to_owned()),
        ("DISTLOCK_TEST_ETCD_TLS_PASSWORD", tls.password().to_owned()),
        ("DISTLOCK_TEST_ETCD_TLS_PREFIX", tls.prefix().to_owned()),
    ];
    let mut servers = cluster.into_members();
    servers.push(tls.into_server());
    Ok(Servers { servers: servers.into_iter().map(Server::Etcd).collect(), env })
}

fn finish<T>(thread: ScopedJoinHandle<'_, io::Result<T>>) -> io::Result<T> {
    thread.join().expect("it reports what goes wrong")
}
