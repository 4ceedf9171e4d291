//! A Redis Cluster, whose masters die.

use std::io;

use distlock_servers::{
    net::wait_until,
    redis::{RedisCluster, RedisServer},
};

use crate::{
    plan::Plan,
    scene::Scene,
    setup::lock_name,
    store::{Store, Wound, keys, unknown, unsettled},
};

/// So long a master may stand still, in milliseconds, without being replaced.
const UNNOTICED: u64 = 700;

#[derive(Debug)]
pub(crate) struct Cluster {
    cluster: RedisCluster,
}

impl Cluster {
    pub(crate) fn start() -> io::Result<Self> {
        let args = ["--cluster-node-timeout", "3000", "--cluster-replica-validity-factor", "0"];
        Ok(Self { cluster: RedisCluster::start(&args)? })
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

    /// The master of one of the locks.
    fn some_master(&self, scene: &mut Scene) -> io::Result<(String, &RedisServer)> {
        let key = lock_name(scene.dice.below(scene.plan.locks as u64) as usize);
        let master = self.master_of(&key)?;
        Ok((key, master))
    }

    fn fail_over(&self, scene: &mut Scene) -> io::Result<()> {
        let (key, master) = self.some_master(scene)?;
        let replica = self.cluster.replica_of(master)?;
        let promoted = || Ok(self.cluster.master_of(&key, replica)?.port() == replica.port());
        keys::fail_over(scene, master, promoted)?;
        self.cluster.wait_ready()
    }

    /// As an administrator does it, before the master's machine is switched off: nothing that was answered is lost.
    fn hand_over(&self, scene: &mut Scene) -> io::Result<()> {
        let (key, master) = self.some_master(scene)?;
        let replica = self.cluster.replica_of(master)?;
        replica.command(&["CLUSTER", "FAILOVER"])?;
        let promoted = || Ok(self.cluster.master_of(&key, replica)?.port() == replica.port());
        wait_until("the replica takes over", keys::ELECTION, promoted)?;
        self.cluster.wait_ready()
    }
}

impl Store for Cluster {
    fn urls(&self, plan: &Plan) -> Vec<String> {
        vec![format!("{}?{}", self.cluster.url(), keys::options(plan))]
    }

    fn harmless(&self) -> Vec<Wound> {
        vec![
            Wound::ClientsKilled,
            Wound::HandedOver,
            Wound::ReplicaStopped,
            Wound::ScriptsFlushed,
            Wound::ServerStopped,
        ]
    }

    fn fatal(&self) -> Vec<Wound> {
        vec![Wound::Deleted, Wound::Failover, Wound::Flushed]
    }

    fn inflict(&self, wound: Wound, scene: &mut Scene) -> io::Result<()> {
        match wound {
            Wound::ClientsKilled => {
                for node in self.cluster.nodes() {
                    keys::kill_clients(scene, node)?;
                }
            }
            Wound::Deleted => {
                let delete = |key: &str| self.master_of(key)?.command(&["DEL", key]);
                keys::delete(scene, wound, delete)?;
            }
            Wound::Failover => unsettled(scene, |scene| self.fail_over(scene))?,
            Wound::Flushed => {
                let (_, master) = self.some_master(scene)?;
                master.command(&["FLUSHALL"])?;
            }
            Wound::HandedOver => self.hand_over(scene)?,
            Wound::ReplicaStopped => {
                let (_, master) = self.some_master(scene)?;
                let replica = self.cluster.replica_of(master)?;
                keys::stand_still(scene, replica, UNNOTICED)?;
            }
            Wound::ScriptsFlushed => {
                for master in self.masters()? {
                    master.command(&["SCRIPT", "FLUSH"])?;
                }
            }
            Wound::ServerStopped => {
                let (_, master) = self.some_master(scene)?;
                keys::stand_still(scene, master, UNNOTICED)?;
            }
            _ => return unknown(wound),
        }
        Ok(())
    }

    fn heal(&self, _: &Scene) -> io::Result<()> {
        self.cluster.wait_ready()
    }

    fn left(&self) -> io::Result<Vec<(&'static str, u64)>> {
        keys::left(self.masters()?)
    }
}
