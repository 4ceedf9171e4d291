//! A Redis master with a replica, watched by Sentinels.

use std::{fs, io, time::Duration};

use crate::{net::wait_until, redis::RedisServer};

/// How long links and discovery may take, on a machine that is busy compiling.
const READY: Duration = Duration::from_secs(60);

/// One master, one replica, three Sentinels with a quorum of two.
#[derive(Debug)]
pub struct RedisSentinel {
    sentinels: Vec<RedisServer>,
    /// At first the master, then the replica.
    servers: Vec<RedisServer>,
}

impl RedisSentinel {
    /// The name under which the Sentinels know the master.
    pub const MASTER: &str = "distlock";

    /// Starts everything and waits until it is [ready](Self::wait_ready).
    ///
    /// The arguments go to master and replica. A master that does not answer for two seconds is
    /// failed over.
    ///
    /// # Errors
    /// As [`RedisServer::start`], and [`io::ErrorKind::TimedOut`] if they do not find each other.
    pub fn start(args: &[&str]) -> io::Result<Self> {
        Self::start_with_env(args, &[], |_| Vec::new())
    }

    /// As [`start`](Self::start), with `NAME=VALUE` in the environment of master and replica, and of
    /// each Sentinel by its number.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with_env(
        args: &[&str],
        env: &[String],
        sentinel_env: impl Fn(usize) -> Vec<String>,
    ) -> io::Result<Self> {
        let args = [&["--repl-diskless-sync-delay", "0"], args].concat();
        let master = RedisServer::start_with_env(&args, env)?;
        let port = master.port().to_string();
        let args = [&args, &["--replicaof", "127.0.0.1", &port][..]].concat();
        let replica = RedisServer::start_with_env(&args, env)?;
        // Sentinels that start before the replica is linked learn of it up to ten seconds later.
        wait_until("the replica is linked", READY, || Ok(is_linked(&replica).unwrap_or(false)))?;
        let sentinel = |number| start_sentinel(&port, &sentinel_env(number));
        let sentinels = (0..3).map(sentinel).collect::<io::Result<Vec<_>>>()?;
        let group = Self { sentinels, servers: vec![master, replica] };
        group.wait_ready()?;
        Ok(group)
    }

    /// The Sentinels.
    #[must_use]
    pub fn sentinels(&self) -> &[RedisServer] {
        &self.sentinels
    }

    /// The data servers; at first the master, then the replica.
    #[must_use]
    pub fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    /// `redis-sentinel://127.0.0.1:PORT,…/?master=distlock` with every Sentinel.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts: Vec<_> =
            self.sentinels.iter().map(|one| format!("127.0.0.1:{}", one.port())).collect();
        format!("redis-sentinel://{}/?master={}", hosts.join(","), Self::MASTER)
    }

    /// The data server that the first Sentinel names as the master.
    ///
    /// # Errors
    /// If that Sentinel does not answer.
    pub fn master(&self) -> io::Result<&RedisServer> {
        let address =
            self.sentinels[0].command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::MASTER])?;
        let port = address.lines().last().unwrap_or_default();
        self.servers.iter().find(|server| server.port().to_string() == port).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("no server of ours at `{address}`"))
        })
    }

    /// Waits until every Sentinel knows a healthy master with a linked replica, and both others.
    ///
    /// After a failover they need some twenty seconds for the old master that came back.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if that does not happen within a minute.
    pub fn wait_ready(&self) -> io::Result<()> {
        wait_until("the sentinels know everybody", READY, || {
            Ok(self.sentinels.iter().all(|one| knows_everybody(one).unwrap_or(false)))
        })
    }

    /// All servers, Sentinels first, for who wants to keep them longer than the group.
    #[must_use]
    pub fn into_servers(self) -> Vec<RedisServer> {
        self.sentinels.into_iter().chain(self.servers).collect()
    }
}

fn start_sentinel(master: &str, env: &[String]) -> io::Result<RedisServer> {
    RedisServer::launch_with_env("sentinel", env, |port, dir| {
        let name = RedisSentinel::MASTER;
        let config = format!(
            "port {port}\n\
             sentinel monitor {name} 127.0.0.1 {master} 2\n\
             sentinel down-after-milliseconds {name} 2000\n\
             sentinel failover-timeout {name} 10000\n"
        );
        // Sentinel keeps what it learns in its file, so the file is its own.
        let path = dir.join("sentinel.conf");
        fs::write(&path, config)?;
        Ok(vec![path.display().to_string(), "--sentinel".to_owned()])
    })
}

fn is_linked(replica: &RedisServer) -> io::Result<bool> {
    Ok(replica.info("master_link_status")? == "up")
}

fn knows_everybody(sentinel: &RedisServer) -> io::Result<bool> {
    let name = RedisSentinel::MASTER;
    let master = fields(&sentinel.command(&["SENTINEL", "MASTER", name])?);
    let replica = fields(&sentinel.command(&["SENTINEL", "REPLICAS", name])?);
    let is = |fields: &[(String, String)], name: &str, value: &str| {
        fields.iter().any(|(own, has)| own == name && has == value)
    };
    Ok(is(&master, "flags", "master")
        && is(&master, "num-slaves", "1")
        && is(&master, "num-other-sentinels", "2")
        && is(&replica, "flags", "slave")
        && is(&replica, "master-link-status", "ok"))
}

/// Names and values of a reply that lists them in turn, a line each.
fn fields(reply: &str) -> Vec<(String, String)> {
    let lines: Vec<_> = reply.split('\n').collect();
    lines.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
}
