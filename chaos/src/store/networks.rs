//! Networks between the workers and servers of Redis, which fail in every way that a proxy knows.

use std::{io, net::Ipv4Addr, time::Duration};

use distlock_servers::proxy::{Direction, Matcher, Proxy};

use crate::{
    scene::Scene,
    store::{Wound, unknown},
};

/// What befalls networks. Every lock survives it, however long it lasts, as servers hear and see each other all the time.
pub(crate) const WOUNDS: [Wound; 9] = [
    Wound::BlackHole,
    Wound::ConnectionsCut,
    Wound::ConnectionsRefused,
    Wound::Delayed,
    Wound::PushesLost,
    Wound::RepliesLost,
    Wound::RequestsDoubled,
    Wound::RequestsLost,
    Wound::Silenced,
];

/// Networks, each with some of the workers behind it, and a way to each server.
#[derive(Debug)]
pub(crate) struct Networks {
    networks: Vec<Network>,
}

/// Each server is at this address, at its own port.
#[derive(Debug)]
struct Network {
    address: Ipv4Addr,
    ways: Vec<Proxy>,
}

impl Networks {
    /// So many of them in front of servers with these ports.
    pub(crate) fn start(count: u8, ports: &[u16]) -> io::Result<Self> {
        let network = |number| {
            // 127.0.0.1 is where the servers are themselves.
            let address = Ipv4Addr::new(127, 0, 0, 2 + number);
            let way = |port: &u16| Proxy::start_at(address, *port);
            Ok(Network { address, ways: ports.iter().map(way).collect::<io::Result<_>>()? })
        };
        Ok(Self { networks: (0..count).map(network).collect::<io::Result<_>>()? })
    }

    /// The ways to the servers that are at `direct` for those who are in no network: through each of the networks, and none.
    pub(crate) fn urls(&self, direct: &str) -> Vec<String> {
        let localhost = Ipv4Addr::LOCALHOST.to_string();
        let behind = |network: &Network| direct.replace(&localhost, &network.address.to_string());
        self.networks.iter().map(behind).chain([direct.to_owned()]).collect()
    }

    /// Inflicts one of [`WOUNDS`]. `primaries` are those of the servers that locks are asked of.
    pub(crate) fn inflict(
        &self,
        wound: Wound,
        scene: &mut Scene,
        primaries: &[usize],
    ) -> io::Result<()> {
        self.forget();
        let ttl = scene.ttl();
        let ways = self.ways(scene, primaries);
        let all = |act: &dyn Fn(&Proxy)| ways.iter().for_each(|way| act(way));
        match wound {
            Wound::BlackHole => {
                all(&|way| way.blackhole(true));
                scene.pause(1, 2 * ttl);
                all(&|way| way.blackhole(false));
            }
            Wound::ConnectionsCut => all(&Proxy::cut),
            Wound::ConnectionsRefused => {
                all(&|way| way.refuse(true));
                all(&Proxy::cut);
                scene.pause(1, ttl);
                all(&|way| way.refuse(false));
            }
            Wound::Delayed => {
                let direction = match scene.dice.chance(0.5) {
                    true => Direction::ToClient,
                    false => Direction::ToServer,
                };
                let time = scene.dice.time(scene.plan.ttl / 2);
                all(&|way| way.delay(direction, time));
                scene.pause(1, ttl);
                all(&|way| way.delay(direction, Duration::ZERO));
            }
            Wound::PushesLost => {
                all(&|way| way.drop_messages(true));
                scene.pause(1, ttl);
                all(&|way| way.drop_messages(false));
            }
            Wound::RepliesLost => {
                self.order(scene, primaries, |on, nth| on.drop_reply(nth, "EVALSHA"));
            }
            Wound::RequestsDoubled => {
                self.order(scene, primaries, |on, nth| on.duplicate(nth, "EVALSHA"));
            }
            Wound::RequestsLost => {
                self.order(scene, primaries, |on, nth| on.drop_request(nth, "EVALSHA"));
            }
            Wound::Silenced => match scene.dice.chance(0.5) {
                true => self.order(scene, primaries, |on, nth| on.silence_reply(nth, "EVALSHA")),
                false => {
                    self.order(scene, primaries, |on, nth| on.silence_request(nth, Matcher::any()));
                }
            },
            _ => return unknown(wound),
        }
        Ok(())
    }

    /// Nothing fails any more.
    pub(crate) fn heal(&self) {
        for way in self.all() {
            way.heal();
            // Some connections would be silent for ever.
            way.cut();
        }
    }

    /// All ways of one network, or one of them: mostly one on which locks are asked for.
    fn ways(&self, scene: &mut Scene, primaries: &[usize]) -> Vec<&Proxy> {
        let network = &self.networks[scene.dice.below(self.networks.len() as u64) as usize];
        match scene.dice.below(8) {
            0..4 => network.ways.iter().collect(),
            4..7 => {
                let primary = scene.dice.below(primaries.len() as u64) as usize;
                vec![&network.ways[primaries[primary]]]
            }
            _ => vec![&network.ways[scene.dice.below(network.ways.len() as u64) as usize]],
        }
    }

    /// In every network something becomes of one of the next requests to each primary.
    fn order(&self, scene: &mut Scene, primaries: &[usize], order: impl Fn(&Proxy, usize)) {
        for network in &self.networks {
            for &primary in primaries {
                order(&network.ways[primary], 1 + scene.dice.below(20) as usize);
            }
        }
    }

    /// The requests that were seen; a long run has many.
    fn forget(&self) {
        self.all().for_each(Proxy::forget);
    }

    fn all(&self) -> impl Iterator<Item = &Proxy> {
        self.networks.iter().flat_map(|network| &network.ways)
    }
}
