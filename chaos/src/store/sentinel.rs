//! A Redis with a replica and three Sentinels, whose master dies.

use std::io;

use distlock_servers::redis::{RedisSentinel, RedisServer};

use crate::{
    plan::Plan,
    scene::Scene,
    store::{Store, Wound, keys, unknown, unsettled},
};

/// So long the master may stand still, in milliseconds, without being replaced: Sentinels ask it every second, and replace it after two.
const UNNOTICED: u64 = 500;

#[derive(Debug)]
pub(crate) struct Sentinel {
    group: RedisSentinel,
}

impl Sentinel {
    pub(crate) fn start() -> io::Result<Self> {
        Ok(Self { group: RedisSentinel::start(&[])? })
    }

    fn replica(&self) -> io::Result<&RedisServer> {
        let master = self.group.master()?.port();
        let replica = self.group.servers().iter().find(|server| server.port() != master);
        Ok(replica.expect("there are two"))
    }

    fn fail_over(&self, scene: &mut Scene) -> io::Result<()> {
        let master = self.group.master()?;
        let promoted = || Ok(self.group.master()?.port() != master.port());
        keys::fail_over(scene, master, promoted)?;
        self.group.wait_ready()
    }
}

impl Store for Sentinel {
    fn urls(&self, plan: &Plan) -> Vec<String> {
        vec![format!("{}&{}", self.group.url(), keys::options(plan))]
    }

    fn harmless(&self) -> Vec<Wound> {
        vec![
            Wound::ClientsKilled,
            Wound::ReplicaStopped,
            Wound::ScriptsFlushed,
            Wound::SentinelKilled,
            Wound::ServerStopped,
        ]
    }

    fn fatal(&self) -> Vec<Wound> {
        vec![Wound::Deleted, Wound::Failover, Wound::Flushed]
    }

    fn inflict(&self, wound: Wound, scene: &mut Scene) -> io::Result<()> {
        match wound {
            Wound::ClientsKilled => {
                for server in self.group.servers() {
                    keys::kill_clients(scene, server)?;
                }
            }
            Wound::Deleted => {
                keys::delete(scene, wound, |key| self.group.master()?.command(&["DEL", key]))?;
            }
            Wound::Failover => unsettled(scene, |scene| self.fail_over(scene))?,
            Wound::Flushed => drop(self.group.master()?.command(&["FLUSHALL"])?),
            Wound::ReplicaStopped => {
                let replica = self.replica()?;
                keys::stand_still(scene, replica, 3 * UNNOTICED)?;
            }
            Wound::ScriptsFlushed => drop(self.group.master()?.command(&["SCRIPT", "FLUSH"])?),
            Wound::SentinelKilled => {
                // The first one is asked who the master is.
                let sentinel = &self.group.sentinels()[1 + scene.dice.below(2) as usize];
                sentinel.kill()?;
                scene.pause(1, 2000);
                sentinel.restart()?;
            }
            Wound::ServerStopped => {
                let master = self.group.master()?;
                keys::stand_still(scene, master, UNNOTICED)?;
            }
            _ => return unknown(wound),
        }
        Ok(())
    }

    fn heal(&self, _: &Scene) -> io::Result<()> {
        self.group.wait_ready()
    }

    fn left(&self) -> io::Result<Vec<(&'static str, u64)>> {
        keys::left([self.group.master()?])
    }
}
