//! One Redis that keeps its data, behind networks that fail, with a clock that can be set.

use std::{fs, io, path::Path, time::Duration};

use distlock_servers::{
    proxy::{Direction, Matcher, Proxy},
    redis::RedisServer,
};

use crate::{
    plan::Plan,
    scene::Scene,
    shim::WallClock,
    store::{FENCE_RESET, Store, UNSETTLED, Wound, keys, unknown},
};

/// Each with some of the workers behind it.
const NETWORKS: usize = 3;

/// Where the server keeps its data, in its folder.
const DATA: &str = "appendonlydir";

#[derive(Debug)]
pub(crate) struct Redis {
    server: RedisServer,
    networks: Vec<Proxy>,
    clock: WallClock,
}

impl Redis {
    pub(crate) fn start(dir: &Path) -> io::Result<Self> {
        let clock = WallClock::new(dir)?;
        let args = ["--appendonly", "yes", "--appendfsync", "always"];
        let server = RedisServer::start_with_env(&args, &clock.env())?;
        let networks =
            (0..NETWORKS).map(|_| Proxy::start(server.port())).collect::<io::Result<_>>()?;
        Ok(Self { server, networks, clock })
    }

    fn network(&self, scene: &mut Scene) -> &Proxy {
        &self.networks[scene.dice.below(NETWORKS as u64) as usize]
    }

    /// On every network something becomes of one of the next requests.
    fn order(&self, scene: &mut Scene, order: impl Fn(&Proxy, usize)) {
        for network in &self.networks {
            order(network, 1 + scene.dice.below(20) as usize);
        }
    }

    /// The count of tokens is gone, and begins at the clock.
    fn forget(&self, scene: &Scene) {
        if 0 < self.clock.behind() {
            scene.fault(FENCE_RESET, "");
        }
    }
}

impl Store for Redis {
    fn urls(&self, plan: &Plan) -> Vec<String> {
        let ports = self.networks.iter().map(Proxy::port).chain([self.server.port()]);
        let options = keys::options(plan);
        ports.map(|port| format!("redis://127.0.0.1:{port}?{options}")).collect()
    }

    fn harmless(&self) -> Vec<Wound> {
        vec![
            Wound::BlackHole,
            Wound::ClientsKilled,
            Wound::ClockBack,
            Wound::ConnectionsCut,
            Wound::ConnectionsRefused,
            Wound::Delayed,
            Wound::PushesLost,
            Wound::RepliesLost,
            Wound::RequestsDoubled,
            Wound::RequestsLost,
            Wound::Restarted,
            Wound::ScriptsFlushed,
            Wound::ServerStopped,
            Wound::Silenced,
        ]
    }

    fn fatal(&self) -> Vec<Wound> {
        vec![Wound::ClockForward, Wound::DataLost, Wound::Deleted, Wound::Flushed]
    }

    fn inflict(&self, wound: Wound, scene: &mut Scene) -> io::Result<()> {
        let ttl = scene.ttl();
        self.networks.iter().for_each(Proxy::forget);
        match wound {
            Wound::BlackHole => {
                let network = self.network(scene);
                network.blackhole(true);
                scene.pause(1, 2 * ttl);
                network.blackhole(false);
            }
            Wound::ClientsKilled => keys::kill_clients(scene, &self.server)?,
            Wound::ClockBack => self.clock.step(-1 - scene.dice.below(20).cast_signed())?,
            Wound::ClockForward => self.clock.step(1 + scene.dice.below(20).cast_signed())?,
            Wound::ConnectionsCut => self.network(scene).cut(),
            Wound::ConnectionsRefused => {
                let network = self.network(scene);
                network.refuse(true);
                network.cut();
                scene.pause(1, ttl);
                network.refuse(false);
            }
            Wound::DataLost => {
                self.server.kill()?;
                fs::remove_dir_all(self.server.dir().join(DATA))?;
                self.forget(scene);
                self.server.restart()?;
                // Who asks the empty server first may come late.
                scene.fault(UNSETTLED, "");
            }
            Wound::Delayed => {
                let way = match scene.dice.chance(0.5) {
                    true => Direction::ToClient,
                    false => Direction::ToServer,
                };
                let (network, time) = (self.network(scene), scene.dice.time(scene.plan.ttl / 2));
                network.delay(way, time);
                scene.pause(1, ttl);
                network.delay(way, Duration::ZERO);
            }
            Wound::Deleted => {
                keys::delete(scene, wound, |key| self.server.command(&["DEL", key]))?;
            }
            Wound::Flushed => {
                self.forget(scene);
                self.server.command(&["FLUSHALL"])?;
            }
            Wound::PushesLost => {
                let network = self.network(scene);
                network.drop_messages(true);
                scene.pause(1, ttl);
                network.drop_messages(false);
            }
            Wound::RepliesLost => self.order(scene, |on, nth| on.drop_reply(nth, "EVALSHA")),
            Wound::RequestsDoubled => self.order(scene, |on, nth| on.duplicate(nth, "EVALSHA")),
            Wound::RequestsLost => self.order(scene, |on, nth| on.drop_request(nth, "EVALSHA")),
            Wound::Restarted => {
                self.server.kill()?;
                scene.pause(0, ttl);
                self.server.restart()?;
            }
            Wound::ScriptsFlushed => drop(self.server.command(&["SCRIPT", "FLUSH"])?),
            Wound::ServerStopped => {
                keys::stand_still(scene, &self.server, 2 * ttl)?;
            }
            Wound::Silenced => match scene.dice.chance(0.5) {
                true => self.order(scene, |on, nth| on.silence_reply(nth, "EVALSHA")),
                false => self.order(scene, |on, nth| on.silence_request(nth, Matcher::any())),
            },
            _ => return unknown(wound),
        }
        Ok(())
    }

    fn heal(&self, scene: &Scene) -> io::Result<()> {
        for network in &self.networks {
            network.heal();
            // Some connections would be silent for ever.
            network.cut();
        }
        // As a time daemon would: to a time that no token is ahead of.
        let behind = self.clock.behind();
        if 0 < behind {
            scene.fault(Wound::ClockForward.name(), "");
            self.clock.step(behind)?;
        }
        Ok(())
    }

    fn left(&self) -> io::Result<Vec<(&'static str, u64)>> {
        keys::left([&self.server])
    }
}
