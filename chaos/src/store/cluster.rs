//! A Redis Cluster behind networks that fail, with clocks that can be set, whose masters die.

use std::{io, path::Path};

use distlock_servers::{
    net::wait_until,
    redis::{RedisCluster, RedisServer},
};

use crate::{
    plan::Plan,
    scene::Scene,
    setup::lock_name,
    shim::{Shim, WallClock},
    store::{
        Store, UNSETTLED, Wound, keys,
        networks::{self, Networks},
        unsettled,
    },
};

/// Each with some of the workers behind it.
const NETWORKS: u8 = 2;

/// So long a master may stand still, in milliseconds, without being replaced.
const UNNOTICED: u64 = 700;

#[derive(Debug)]
pub(crate) struct Cluster {
    cluster: RedisCluster,
    networks: Networks,
    shards: Vec<Shard>,
}

/// A master and its replica, whichever of the nodes is which.
#[derive(Debug)]
struct Shard {
    /// Of both: where clocks differ, a hand-over is a step of the clock.
    clock: WallClock,
    locks: Vec<String>,
}

impl Cluster {
    pub(crate) fn start(plan: &Plan, dir: &Path) -> io::Result<Self> {
        let shim = Shim::build(dir)?;
        let shard = |number| {
            let clock = shim.clock(&format!("shard-{number}"))?;
            Ok(Shard { clock, locks: Vec::new() })
        };
        let mut shards = (0..RedisCluster::SHARDS).map(shard).collect::<io::Result<Vec<_>>>()?;
        let args = ["--cluster-node-timeout", "3000", "--cluster-replica-validity-factor", "0"];
        let cluster = RedisCluster::start_with_env(&args, |shard| shards[shard].clock.env())?;
        for lock in (0..plan.locks).map(lock_name) {
            shards[cluster.shard_of(&lock)?].locks.push(lock);
        }
        let ports: Vec<u16> = cluster.nodes().iter().map(RedisServer::port).collect();
        let networks = Networks::start(NETWORKS, &ports)?;
        Ok(Self { cluster, networks, shards })
    }

    fn masters(&self) -> io::Result<Vec<&RedisServer>> {
        let mut masters = Vec::new();
        for node in self.cluster.nodes() {
            if node.info("role")? == "master" {
                masters.push(node);
            }
        }
        Ok(masters)
    }

    /// The master of a lock, as another node sees it.
    fn master_of(&self, key: &str) -> io::Result<&RedisServer> {
        self.cluster.master_of(key, &self.cluster.nodes()[0])
    }

    /// One of the locks, with its shard and the master of that.
    fn some(&self, scene: &mut Scene) -> io::Result<(String, &Shard, &RedisServer)> {
        let key = lock_name(scene.dice.below(scene.plan.locks as u64) as usize);
        let shard = self.shards.iter().find(|shard| shard.locks.contains(&key));
        let master = self.master_of(&key)?;
        Ok((key, shard.expect("each lock has one"), master))
    }

    /// The masters of locks, by their numbers.
    fn primaries(&self) -> io::Result<Vec<usize>> {
        let mut ports = Vec::new();
        for lock in self.shards.iter().filter_map(|shard| shard.locks.first()) {
            ports.push(self.master_of(lock)?.port());
        }
        let nodes = self.cluster.nodes().iter().enumerate();
        Ok(nodes.filter(|(_, node)| ports.contains(&node.port())).map(|(index, _)| index).collect())
    }

    fn fail_over(&self, wound: Wound, scene: &mut Scene) -> io::Result<()> {
        let (key, shard, master) = self.some(scene)?;
        let replica = self.cluster.replica_of(master)?;
        shard.befall(wound, &key, scene);
        let depose = || replica.command(&["CLUSTER", "FAILOVER", "TAKEOVER"]).map(drop);
        let promoted = || Ok(self.cluster.master_of(&key, replica)?.port() == replica.port());
        unsettled(scene, &keys::second_holders(&shard.clock, shard.locks()), |scene| {
            keys::fail_over(scene, master, depose, promoted)?;
            self.cluster.wait_ready()
        })
    }

    /// As an administrator does it, before the master's machine is switched off: nothing that was answered is lost.
    fn hand_over(&self, scene: &mut Scene) -> io::Result<()> {
        let (key, _, master) = self.some(scene)?;
        let replica = self.cluster.replica_of(master)?;
        replica.command(&["CLUSTER", "FAILOVER"])?;
        let promoted = || Ok(self.cluster.master_of(&key, replica)?.port() == replica.port());
        wait_until("the replica takes over", keys::ELECTION, promoted)?;
        self.cluster.wait_ready()
    }
}

impl Shard {
    fn locks(&self) -> impl Iterator<Item = &str> {
        self.locks.iter().map(String::as_str)
    }

    /// Writes down that this befalls a lock, and what it explains of the others that are here too.
    fn befall(&self, wound: Wound, key: &str, scene: &Scene) {
        scene.fault(wound.name(), key);
        self.locks().filter(|lock| *lock != key).for_each(|lock| scene.fault(UNSETTLED, lock));
    }
}

impl Store for Cluster {
    fn urls(&self, plan: &Plan) -> Vec<String> {
        self.networks.urls(&format!("{}?{}", self.cluster.url(), keys::options(plan)))
    }

    fn harmless(&self) -> Vec<Wound> {
        let wounds = [
            Wound::ClientsKilled,
            Wound::ClockBack,
            Wound::HandedOver,
            Wound::ReplicaStopped,
            Wound::ScriptsFlushed,
            Wound::ServerStopped,
        ];
        [&networks::WOUNDS[..], &wounds].concat()
    }

    fn fatal(&self) -> Vec<Wound> {
        vec![Wound::ClockForward, Wound::Deleted, Wound::Failover, Wound::Flushed]
    }

    fn chooses(&self, wound: Wound) -> bool {
        self.fatal().contains(&wound)
    }

    fn inflict(&self, wound: Wound, scene: &mut Scene) -> io::Result<()> {
        match wound {
            Wound::ClientsKilled => {
                for node in self.cluster.nodes() {
                    keys::kill_clients(scene, node)?;
                }
            }
            Wound::ClockBack => self.some(scene)?.1.clock.set_back(scene)?,
            Wound::ClockForward => {
                let (key, shard, _) = self.some(scene)?;
                shard.befall(wound, &key, scene);
                shard.clock.set_forward(scene)?;
            }
            Wound::Deleted => {
                let delete = |key: &str| self.master_of(key)?.command(&["DEL", key]);
                keys::delete(scene, wound, delete)?;
            }
            Wound::Failover => self.fail_over(wound, scene)?,
            Wound::Flushed => {
                let (key, shard, master) = self.some(scene)?;
                shard.befall(wound, &key, scene);
                keys::forget(scene, &shard.clock, shard.locks());
                master.command(&["FLUSHALL"])?;
            }
            Wound::HandedOver => self.hand_over(scene)?,
            Wound::ReplicaStopped => {
                let (.., master) = self.some(scene)?;
                let replica = self.cluster.replica_of(master)?;
                keys::stand_still(scene, replica, UNNOTICED)?;
            }
            Wound::ScriptsFlushed => {
                for master in self.masters()? {
                    master.command(&["SCRIPT", "FLUSH"])?;
                }
            }
            Wound::ServerStopped => {
                let (.., master) = self.some(scene)?;
                keys::stand_still(scene, master, UNNOTICED)?;
            }
            _ => self.networks.inflict(wound, scene, &self.primaries()?)?,
        }
        Ok(())
    }

    fn heal(&self, scene: &Scene) -> io::Result<()> {
        self.networks.heal();
        for shard in &self.shards {
            keys::set_right(scene, &shard.clock, shard.locks())?;
        }
        self.cluster.wait_ready()
    }

    fn left(&self) -> io::Result<Vec<(&'static str, u64)>> {
        keys::left(self.masters()?)
    }
}
