//! A Redis with a replica and three Sentinels, behind networks that fail, with clocks that can be set, whose master dies.

use std::{io, path::Path};

use distlock_servers::{
    net::wait_until,
    redis::{RedisSentinel, RedisServer},
};

use crate::{
    plan::Plan,
    scene::Scene,
    shim::{Shim, WallClock},
    store::{
        Store, Wound, keys,
        networks::{self, Networks},
        unsettled,
    },
};

/// Each with some of the workers behind it.
const NETWORKS: u8 = 2;

/// So long the master may stand still, in milliseconds, without being replaced: Sentinels ask it every second, and replace it after two.
const UNNOTICED: u64 = 500;

/// The Sentinel that has a clock of its own. When that is set, it does nothing for half a minute, and the other two are enough.
const DREAMER: usize = 2;

#[derive(Debug)]
pub(crate) struct Sentinel {
    group: RedisSentinel,
    /// To the servers, and behind them to the Sentinels.
    networks: Networks,
    /// Of master and replica: where clocks differ, a failover is a step of the clock.
    clock: WallClock,
    dreams: WallClock,
}

impl Sentinel {
    pub(crate) fn start(dir: &Path) -> io::Result<Self> {
        let shim = Shim::build(dir)?;
        let (clock, dreams) = (shim.clock("servers")?, shim.clock("sentinel")?);
        let env = |number| if number == DREAMER { dreams.env() } else { Vec::new() };
        let group = RedisSentinel::start_with_env(&[], &clock.env(), env)?;
        let ports: Vec<u16> =
            group.servers().iter().chain(group.sentinels()).map(RedisServer::port).collect();
        let networks = Networks::start(NETWORKS, &ports)?;
        Ok(Self { group, networks, clock, dreams })
    }

    fn replica(&self) -> io::Result<&RedisServer> {
        let master = self.group.master()?.port();
        let replica = self.group.servers().iter().find(|server| server.port() != master);
        Ok(replica.expect("there are two"))
    }

    /// The number of the master.
    fn primary(&self) -> io::Result<usize> {
        Ok(usize::from(self.group.master()?.port() != self.group.servers()[0].port()))
    }

    fn fail_over(&self, scene: &mut Scene) -> io::Result<()> {
        let master = self.group.master()?;
        let depose = || {
            let order = ["SENTINEL", "FAILOVER", RedisSentinel::MASTER];
            wait_until("the replica is good enough", keys::ELECTION, || {
                match self.group.sentinels()[0].command(&order) {
                    Err(error) if error.to_string().starts_with("NOGOODSLAVE") => Ok(false),
                    other => other.map(|_| true),
                }
            })
        };
        let promoted = || Ok(self.group.master()?.port() != master.port());
        unsettled(scene, &keys::second_holders(&self.clock, [""]), |scene| {
            keys::fail_over(scene, master, depose, promoted)?;
            self.group.wait_ready()
        })
    }
}

impl Store for Sentinel {
    fn urls(&self, plan: &Plan) -> Vec<String> {
        self.networks.urls(&format!("{}&{}", self.group.url(), keys::options(plan)))
    }

    fn harmless(&self) -> Vec<Wound> {
        let wounds = [
            Wound::ClientsKilled,
            Wound::ClockBack,
            Wound::ReplicaStopped,
            Wound::ScriptsFlushed,
            Wound::SentinelClock,
            Wound::SentinelKilled,
            Wound::ServerStopped,
        ];
        [&networks::WOUNDS[..], &wounds].concat()
    }

    fn fatal(&self) -> Vec<Wound> {
        vec![Wound::ClockForward, Wound::Deleted, Wound::Failover, Wound::Flushed]
    }

    fn chooses(&self, wound: Wound) -> bool {
        wound == Wound::Deleted
    }

    fn inflict(&self, wound: Wound, scene: &mut Scene) -> io::Result<()> {
        match wound {
            Wound::ClientsKilled => {
                for server in self.group.servers() {
                    keys::kill_clients(scene, server)?;
                }
            }
            Wound::ClockBack => self.clock.set_back(scene)?,
            Wound::ClockForward => self.clock.set_forward(scene)?,
            Wound::Deleted => {
                keys::delete(scene, wound, |key| self.group.master()?.command(&["DEL", key]))?;
            }
            Wound::Failover => self.fail_over(scene)?,
            Wound::Flushed => {
                keys::forget(scene, &self.clock, [""]);
                self.group.master()?.command(&["FLUSHALL"])?;
            }
            Wound::ReplicaStopped => {
                let replica = self.replica()?;
                keys::stand_still(scene, replica, 3 * UNNOTICED)?;
            }
            Wound::ScriptsFlushed => drop(self.group.master()?.command(&["SCRIPT", "FLUSH"])?),
            Wound::SentinelClock => match scene.dice.chance(0.5) {
                true => self.dreams.set_back(scene)?,
                false => self.dreams.set_forward(scene)?,
            },
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
            _ => self.networks.inflict(wound, scene, &[self.primary()?])?,
        }
        Ok(())
    }

    fn heal(&self, scene: &Scene) -> io::Result<()> {
        self.networks.heal();
        keys::set_right(scene, &self.clock, [""])?;
        self.group.wait_ready()
    }

    fn left(&self) -> io::Result<Vec<(&'static str, u64)>> {
        keys::left([self.group.master()?])
    }
}
