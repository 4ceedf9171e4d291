//! One Redis that keeps its data, behind networks that fail, with a clock that can be set.

use std::{fs, io, path::Path};

use distlock_servers::redis::RedisServer;

use crate::{
    plan::Plan,
    scene::Scene,
    shim::{Shim, WallClock},
    store::{
        Store, UNSETTLED, Wound, keys,
        networks::{self, Networks},
    },
};

/// Each with some of the workers behind it.
const NETWORKS: u8 = 3;

/// Where the server keeps its data, in its folder.
const DATA: &str = "appendonlydir";

#[derive(Debug)]
pub(crate) struct Redis {
    server: RedisServer,
    networks: Networks,
    clock: WallClock,
}

impl Redis {
    pub(crate) fn start(dir: &Path) -> io::Result<Self> {
        let clock = Shim::build(dir)?.clock("server")?;
        let args = ["--appendonly", "yes", "--appendfsync", "always"];
        let server = RedisServer::start_with_env(&args, &clock.env())?;
        let networks = Networks::start(NETWORKS, &[server.port()])?;
        Ok(Self { server, networks, clock })
    }
}

impl Store for Redis {
    fn urls(&self, plan: &Plan) -> Vec<String> {
        self.networks.urls(&format!("{}?{}", self.server.url(), keys::options(plan)))
    }

    fn harmless(&self) -> Vec<Wound> {
        let wounds = [
            Wound::ClientsKilled,
            Wound::ClockBack,
            Wound::Restarted,
            Wound::ScriptsFlushed,
            Wound::ServerStopped,
        ];
        [&networks::WOUNDS[..], &wounds].concat()
    }

    fn fatal(&self) -> Vec<Wound> {
        vec![Wound::ClockForward, Wound::DataLost, Wound::Deleted, Wound::Flushed]
    }

    fn chooses(&self, wound: Wound) -> bool {
        wound == Wound::Deleted
    }

    fn inflict(&self, wound: Wound, scene: &mut Scene) -> io::Result<()> {
        let ttl = scene.ttl();
        match wound {
            Wound::ClientsKilled => keys::kill_clients(scene, &self.server)?,
            Wound::ClockBack => self.clock.set_back(scene)?,
            Wound::ClockForward => self.clock.set_forward(scene)?,
            Wound::DataLost => {
                self.server.kill()?;
                fs::remove_dir_all(self.server.dir().join(DATA))?;
                keys::forget(scene, &self.clock, [""]);
                self.server.restart()?;
                // Who asks the empty server first may come late.
                scene.fault(UNSETTLED, "");
            }
            Wound::Deleted => {
                keys::delete(scene, wound, |key| self.server.command(&["DEL", key]))?;
            }
            Wound::Flushed => {
                keys::forget(scene, &self.clock, [""]);
                self.server.command(&["FLUSHALL"])?;
            }
            Wound::Restarted => {
                self.server.kill()?;
                scene.pause(0, ttl);
                self.server.restart()?;
            }
            Wound::ScriptsFlushed => drop(self.server.command(&["SCRIPT", "FLUSH"])?),
            Wound::ServerStopped => {
                keys::stand_still(scene, &self.server, 2 * ttl)?;
            }
            _ => self.networks.inflict(wound, scene, &[0])?,
        }
        Ok(())
    }

    fn heal(&self, scene: &Scene) -> io::Result<()> {
        self.networks.heal();
        keys::set_right(scene, &self.clock, [""])
    }

    fn left(&self) -> io::Result<Vec<(&'static str, u64)>> {
        keys::left([&self.server])
    }
}
