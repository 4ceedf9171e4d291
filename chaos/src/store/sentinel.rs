//! A Redis with a replica and three Sentinels, whose master dies.

use std::{io, time::Duration};

use distlock_servers::{
    net::wait_until,
    redis::{RedisSentinel, RedisServer},
};

use crate::{
    plan::Plan,
    scene::Scene,
    store::{Store, Wound, keys, unknown, unsettled},
};

/// For an election, on a machine that is busy.
const ELECTION: Duration = Duration::from_secs(60);

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
        let kills = scene.dice.chance(0.5);
        if kills {
            master.kill()?
        } else {
            master.stop()?
        }
        let promoted = || Ok(self.group.master()?.port() != master.port());
        wait_until("the replica is promoted", ELECTION, promoted)?;
        scene.pause(0, scene.ttl());
        if kills {
            master.restart()?
        } else {
            master.cont()?
        }
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
                replica.stop()?;
                scene.pause(1, 3 * UNNOTICED);
                replica.cont()?;
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
                master.stop()?;
                scene.pause(1, UNNOTICED);
                master.cont()?;
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
