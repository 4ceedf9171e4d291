//! A Redis Cluster.

use std::{io, time::Duration};

use crate::{
    net::{free_port, wait_until},
    redis::RedisServer,
};

/// Of each shard one.
const MASTERS: usize = RedisCluster::SHARDS;

/// Slots of a cluster, as the protocol fixes them.
const SLOTS: usize = 16_384;

/// How long gossip may take, on a machine that is busy compiling.
const READY: Duration = Duration::from_secs(60);

/// Three masters with a replica each.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// How many shards there are.
    pub const SHARDS: usize = 3;

    /// Starts a cluster and waits until it is [ready](Self::wait_ready).
    ///
    /// The arguments go to every node; `&["--cluster-node-timeout", "1000"]` makes for quick
    /// failovers (the default here is 5000).
    ///
    /// # Errors
    /// As [`RedisServer::start`], and [`io::ErrorKind::TimedOut`] if the nodes do not agree.
    pub fn start(args: &[&str]) -> io::Result<Self> {
        Self::start_with_env(args, |_| Vec::new())
    }

    /// As [`start`](Self::start), with `NAME=VALUE` in the environment of each node, by the number
    /// of its shard.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with_env(args: &[&str], env: impl Fn(usize) -> Vec<String>) -> io::Result<Self> {
        let node = |index| start_node(args, &env(index % MASTERS));
        let nodes = (0..2 * MASTERS).map(node).collect::<io::Result<_>>()?;
        let cluster = Self { nodes };
        cluster.form()?;
        cluster.wait_ready()?;
        Ok(cluster)
    }

    /// All nodes; at first three masters, then their replicas in the same order.
    #[must_use]
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// `redis-cluster://127.0.0.1:PORT,…` with every node.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts: Vec<_> =
            self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis-cluster://{}", hosts.join(","))
    }

    /// The number of the shard that `key` is in: of those nodes whose index, divided by three, leaves
    /// it, as long as slots are where they were at first.
    ///
    /// # Errors
    /// If no node can be asked.
    pub fn shard_of(&self, key: &str) -> io::Result<usize> {
        let slot = slot_of(key, &self.nodes[0])?;
        Ok((0..MASTERS).rev().find(|shard| SLOTS * shard / MASTERS <= slot).unwrap_or(0))
    }

    /// The node that serves `key` as its master, in its own view and in that of `asked`.
    ///
    /// # Errors
    /// If `asked` does not answer, or [`io::ErrorKind::NotFound`] if nobody serves the key.
    pub fn master_of(&self, key: &str, asked: &RedisServer) -> io::Result<&RedisServer> {
        let slot = slot_of(key, asked)?;
        let port = members(asked)?
            .into_iter()
            .find_map(|member| member.serves(slot).then_some(member.port))
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the slot is not served"))?;
        self.node(port)
    }

    /// The replica of `master`, as `master` sees it.
    ///
    /// # Errors
    /// If `master` does not answer, or [`io::ErrorKind::NotFound`] if it has no replica.
    pub fn replica_of(&self, master: &RedisServer) -> io::Result<&RedisServer> {
        let id = master.command(&["CLUSTER", "MYID"])?;
        let port = members(master)?
            .into_iter()
            .find_map(|member| (member.master == id).then_some(member.port))
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it has no replica"))?;
        self.node(port)
    }

    /// Waits until the cluster is whole: every node serves, knows three masters with all slots
    /// between them, and sees a replica of each that is linked to it.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if that does not happen within a minute.
    pub fn wait_ready(&self) -> io::Result<()> {
        wait_until("the cluster is whole", READY, || {
            Ok(self.nodes.iter().all(|node| is_whole(node).unwrap_or(false)))
        })
    }

    /// The servers, for who wants to keep them longer than the cluster.
    #[must_use]
    pub fn into_nodes(self) -> Vec<RedisServer> {
        self.nodes
    }

    /// Does what `redis-cli --cluster create` does, without its waits and without the tool.
    fn form(&self) -> io::Result<()> {
        for (index, node) in self.nodes.iter().enumerate() {
            // Different epochs, so that the nodes need not settle them among themselves.
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()])?;
        }
        let (masters, replicas) = self.nodes.split_at(MASTERS);
        for (index, master) in masters.iter().enumerate() {
            let first = SLOTS * index / MASTERS;
            let last = SLOTS * (index + 1) / MASTERS - 1;
            let (first, last) = (first.to_string(), last.to_string());
            master.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last])?;
        }
        // Everybody meets everybody, which is faster than leaving it to gossip.
        for (index, node) in self.nodes.iter().enumerate() {
            for other in &self.nodes[..index] {
                let bus = other.command(&["CONFIG", "GET", "cluster-port"])?;
                let bus = bus.lines().last().unwrap_or_default();
                node.command(&["CLUSTER", "MEET", "127.0.0.1", &other.port().to_string(), bus])?;
            }
        }
        wait_until("all nodes know each other", READY, || {
            let mut all = true;
            for node in &self.nodes {
                let members = members(node)?;
                all &= members.len() == self.nodes.len();
                all &= members.iter().all(|member| member.linked && !member.handshake);
            }
            Ok(all)
        })?;
        for (master, replica) in masters.iter().zip(replicas) {
            let id = master.command(&["CLUSTER", "MYID"])?;
            replica.command(&["CLUSTER", "REPLICATE", &id])?;
        }
        Ok(())
    }

    fn node(&self, port: u16) -> io::Result<&RedisServer> {
        self.nodes.iter().find(|node| node.port() == port).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("no node of ours listens on {port}"))
        })
    }
}

/// One line of CLUSTER NODES.
struct Member {
    port: u16,
    flags: Vec<String>,
    handshake: bool,
    linked: bool,
    /// The id of the master it follows, or `-`.
    master: String,
    /// First and last slot of each range, both included.
    slots: Vec<(usize, usize)>,
}

impl Member {
    /// Reads `id ip:port@bus flags master ping pong epoch link slots…`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace().skip(1);
        let address = words.next()?;
        let flags: Vec<_> = words.next()?.split(',').map(str::to_owned).collect();
        let master = words.next()?.to_owned();
        let linked = words.nth(3)? == "connected";
        let slots = words.filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some((first.parse().ok()?, last.parse().ok()?))
        });
        Some(Self {
            port: address.rsplit_once(':')?.1.split('@').next()?.parse().ok()?,
            handshake: flags.iter().any(|flag| flag == "handshake"),
            linked,
            master,
            slots: slots.collect(),
            flags,
        })
    }

    fn is(&self, flag: &str) -> bool {
        self.flags.iter().any(|own| own == flag)
    }

    fn serves(&self, slot: usize) -> bool {
        self.is("master") && self.slots.iter().any(|(first, last)| (*first..=*last).contains(&slot))
    }
}

fn slot_of(key: &str, asked: &RedisServer) -> io::Result<usize> {
    asked.command(&["CLUSTER", "KEYSLOT", key])?.parse().map_err(io::Error::other)
}

fn start_node(args: &[&str], env: &[String]) -> io::Result<RedisServer> {
    RedisServer::launch_with_env("cluster", env, |port, _| {
        let (port, bus) = (port.to_string(), free_port()?.to_string());
        let own = [
            ["--port", &port],
            ["--cluster-enabled", "yes"],
            ["--cluster-port", &bus],
            ["--cluster-announce-ip", "127.0.0.1"],
            ["--cluster-node-timeout", "5000"],
            // A replica gets its data at once, not after five seconds.
            ["--repl-diskless-sync-delay", "0"],
        ];
        Ok([own.as_flattened(), args].concat().into_iter().map(str::to_owned).collect())
    })
}

fn members(node: &RedisServer) -> io::Result<Vec<Member>> {
    Ok(node.command(&["CLUSTER", "NODES"])?.lines().filter_map(Member::parse).collect())
}

fn is_whole(node: &RedisServer) -> io::Result<bool> {
    let members = members(node)?;
    let healthy = |member: &&Member| member.linked && !member.is("fail") && !member.is("fail?");
    let masters = members.iter().filter(|member| member.is("master")).filter(healthy);
    let slots: usize =
        masters.clone().flat_map(|master| &master.slots).map(|(a, b)| b - a + 1).sum();
    let replicas = members.iter().filter(|member| member.is("slave")).filter(healthy).count();
    let serves = node.command(&["CLUSTER", "INFO"])?.contains("cluster_state:ok");
    let linked = match node.info("role")?.as_str() {
        "slave" => node.info("master_link_status")? == "up",
        _ => slots_of_myself(&members) == 0 || node.info("connected_slaves")? == "1",
    };
    Ok(serves
        && linked
        && slots == SLOTS
        && masters.filter(|master| !master.slots.is_empty()).count() == MASTERS
        && replicas == MASTERS)
}

fn slots_of_myself(members: &[Member]) -> usize {
    members.iter().filter(|member| member.is("myself")).map(|member| member.slots.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_cluster_nodes_is_understood() {
        let line = "07c37df 127.0.0.1:30004@31004 slave e7d1eec 0 1426238317239 4 connected";
        let member = Member::parse(line).unwrap();
        assert_eq!((member.port, member.master.as_str()), (30_004, "e7d1eec"));
        assert!(member.is("slave") && member.linked && !member.serves(0));
        let line = "e7d1eec 127.0.0.1:30001@31001,host myself,master - 0 0 1 connected 0-5460 7000";
        let member = Member::parse(line).unwrap();
        assert_eq!(member.port, 30_001);
        assert!(member.serves(0) && member.serves(5460) && member.serves(7000));
        assert!(!member.serves(5461));
    }
}
