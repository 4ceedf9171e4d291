//! The servers that the tests need, and the environment that leads to them.

use std::{fmt::Write, io, thread};

use distlock_servers::redis::{RedisCluster, RedisSentinel, RedisServer, RedisTls};

use crate::Result;

/// Running servers; they end with this value, unless detached.
#[derive(Debug)]
pub(crate) struct Servers {
    servers: Vec<RedisServer>,
    env: Vec<(&'static str, String)>,
}

impl Servers {
    /// Starts one of each kind.
    pub(crate) fn start_all() -> Result<Self> {
        let (cluster, sentinel, tls) = thread::scope(|scope| {
            let cluster = scope.spawn(|| RedisCluster::start(&[]));
            let sentinel = scope.spawn(|| RedisSentinel::start(&[]));
            (cluster.join(), sentinel.join(), RedisTls::start(&[]))
        });
        let cluster = cluster.expect("it reports what goes wrong")?;
        let sentinel = sentinel.expect("it reports what goes wrong")?;
        let tls = tls?;
        let mut all = Self::start_standalone()?;
        all.env.extend([
            ("DISTLOCK_TEST_REDIS_CLUSTER_URL", cluster.url()),
            ("DISTLOCK_TEST_REDIS_SENTINEL_URL", sentinel.url()),
            ("DISTLOCK_TEST_REDIS_TLS_URL", tls.url()),
            ("DISTLOCK_TEST_REDIS_TLS_CA", tls.ca().display().to_string()),
        ]);
        all.servers.extend(cluster.into_nodes());
        all.servers.extend(sentinel.into_servers());
        all.servers.push(tls.into_server());
        Ok(all)
    }

    /// Starts one plain server per store.
    pub(crate) fn start_standalone() -> Result<Self> {
        let server = RedisServer::start(&[])?;
        let env = vec![
            ("DISTLOCK_REQUIRE_BACKENDS", "1".to_owned()),
            ("DISTLOCK_TEST_REDIS_URL", server.url()),
        ];
        Ok(Self { servers: vec![server], env })
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
    pub(crate) fn iter(&self) -> impl Iterator<Item = &RedisServer> {
        self.servers.iter()
    }

    /// Leaves all servers running for good.
    pub(crate) fn detach(self) -> io::Result<()> {
        self.servers.into_iter().try_for_each(|server| server.detach().map(drop))
    }
}
