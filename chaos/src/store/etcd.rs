//! Three members of etcd, behind networks that fail.

use std::{io, time::Duration};

use distlock_servers::{
    etcd::{EtcdCluster, EtcdServer},
    proxy::{Direction, RawProxy},
};

use crate::{
    plan::Plan,
    scene::Scene,
    store::{Store, UNSETTLED, Wound, unknown, unsettled},
};

/// Each with some of the workers behind it, and a way to each member.
const NETWORKS: usize = 2;

/// So long a member is missing at most, in milliseconds: another leader is chosen within.
const MISSING: u64 = 2500;

#[derive(Debug)]
pub(crate) struct Etcd {
    cluster: EtcdCluster,
    networks: Vec<Vec<RawProxy>>,
    /// A leader that was deposed while it stood still ends leases that live, when it goes on.
    deposed_leaders_revoke: bool,
}

impl Etcd {
    pub(crate) fn start() -> io::Result<Self> {
        let cluster = EtcdCluster::start(&[])?;
        let network = |_| {
            let members = cluster.members().iter();
            members.map(|member| RawProxy::start(member.port())).collect::<io::Result<Vec<_>>>()
        };
        let networks = (0..NETWORKS).map(network).collect::<io::Result<_>>()?;
        let version = cluster.members()[0].etcdctl(&["endpoint", "status", "-w", "fields"])?;
        let version = version.lines().find_map(|line| line.strip_prefix("\"Version\" : "));
        let version = version.unwrap_or_default().trim_matches('"');
        let deposed_leaders_revoke = is_affected(version);
        Ok(Self { cluster, networks, deposed_leaders_revoke })
    }

    /// One way, or all ways, of one network.
    fn ways(&self, scene: &mut Scene) -> &[RawProxy] {
        let network = &self.networks[scene.dice.below(NETWORKS as u64) as usize];
        let way = scene.dice.below(network.len() as u64) as usize;
        match scene.dice.chance(0.5) {
            true => network,
            false => &network[way..=way],
        }
    }

    fn any(&self, scene: &mut Scene) -> &EtcdServer {
        let members = self.cluster.members();
        &members[scene.dice.below(members.len() as u64) as usize]
    }

    fn kill(&self, member: &EtcdServer, scene: &mut Scene) -> io::Result<()> {
        member.kill()?;
        scene.pause(1, MISSING);
        member.restart()?;
        self.cluster.wait_ready()
    }

    fn stop(&self, member: &EtcdServer, scene: &mut Scene) -> io::Result<()> {
        member.stop()?;
        scene.pause(1, MISSING);
        member.cont()?;
        self.cluster.wait_ready()
    }

    fn leader(&self) -> io::Result<usize> {
        self.cluster.wait_ready()?;
        self.cluster.leader()
    }

    fn lines(&self, args: &[&str]) -> io::Result<Vec<String>> {
        let told = self.cluster.members()[0].etcdctl(args)?;
        Ok(told.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    fn keys(&self) -> io::Result<Vec<String>> {
        self.lines(&["get", "--prefix", "--keys-only", ""])
    }

    fn leases(&self) -> io::Result<Vec<String>> {
        let mut lines = self.lines(&["lease", "list"])?;
        lines.retain(|line| !line.starts_with("found"));
        Ok(lines)
    }

    fn compact(&self) -> io::Result<()> {
        let status = self.lines(&["get", "nothing", "-w", "fields"])?;
        let revision = status.iter().find_map(|line| line.strip_prefix("\"Revision\" : "));
        let revision = revision.ok_or_else(|| io::Error::other("no revision is told"))?;
        match self.cluster.members()[0].etcdctl(&["compact", revision]) {
            // Nothing was written since the last time.
            Err(error) if error.to_string().contains("has been compacted") => Ok(()),
            other => other.map(drop),
        }
    }

    /// Deletes a contender's key, whoever stands there.
    fn delete(&self, wound: Wound, scene: &mut Scene) -> io::Result<()> {
        let keys = self.keys()?;
        if let Some(key) = keys.get(scene.dice.below(keys.len() as u64) as usize)
            && let Some((lock, _)) = key.rsplit_once('/')
        {
            scene.fault(wound.name(), lock);
            self.cluster.members()[0].etcdctl(&["del", key])?;
        }
        Ok(())
    }

    fn revoke(&self, scene: &mut Scene) -> io::Result<()> {
        let leases = self.leases()?;
        if let Some(lease) = leases.get(scene.dice.below(leases.len() as u64) as usize) {
            match self.cluster.members()[0].etcdctl(&["lease", "revoke", lease]) {
                // It has ended meanwhile.
                Err(error) if error.to_string().contains("lease not found") => {}
                other => drop(other?),
            }
        }
        Ok(())
    }
}

impl Store for Etcd {
    fn urls(&self, plan: &Plan) -> Vec<String> {
        let timeout = (plan.ttl / 8).max(Duration::from_millis(100)).as_millis();
        let url = |network: &Vec<RawProxy>| {
            let hosts = network.iter().map(|way| format!("127.0.0.1:{}", way.port()));
            let hosts: Vec<_> = hosts.collect();
            format!("etcd://{}?timeout={timeout}ms", hosts.join(","))
        };
        let direct = format!("{}?timeout={timeout}ms", self.cluster.url());
        self.networks.iter().map(url).chain([direct]).collect()
    }

    fn harmless(&self) -> Vec<Wound> {
        let mut wounds = vec![
            Wound::AllRestarted,
            Wound::BlackHole,
            Wound::Compacted,
            Wound::ConnectionsCut,
            Wound::ConnectionsRefused,
            Wound::ConnectionsReset,
            Wound::Delayed,
            Wound::FollowerStopped,
            Wound::LeaderKilled,
            Wound::MemberKilled,
            Wound::OneWay,
            Wound::Silenced,
        ];
        if !self.deposed_leaders_revoke {
            wounds.push(Wound::LeaderStopped);
        }
        wounds
    }

    fn fatal(&self) -> Vec<Wound> {
        let mut wounds = vec![Wound::Deleted, Wound::Revoked];
        if self.deposed_leaders_revoke {
            wounds.push(Wound::LeaderStopped);
        }
        wounds
    }

    fn chooses(&self, wound: Wound) -> bool {
        wound == Wound::Deleted
    }

    fn inflict(&self, wound: Wound, scene: &mut Scene) -> io::Result<()> {
        let ttl = scene.ttl();
        let direction = match scene.dice.chance(0.5) {
            true => Direction::ToClient,
            false => Direction::ToServer,
        };
        match wound {
            Wound::AllRestarted => self.cluster.restart()?,
            Wound::BlackHole => {
                let ways = self.ways(scene);
                ways.iter().for_each(|way| way.blackhole(true));
                scene.pause(1, ttl);
                ways.iter().for_each(|way| way.blackhole(false));
            }
            Wound::Compacted => self.compact()?,
            Wound::ConnectionsCut => {
                let ways = self.ways(scene);
                match scene.dice.chance(0.5) {
                    true => ways.iter().for_each(RawProxy::cut),
                    // In the middle of a frame.
                    false => ways.iter().for_each(|way| way.cut_after(direction, 5)),
                }
            }
            Wound::ConnectionsRefused => {
                let ways = self.ways(scene);
                ways.iter().for_each(|way| way.refuse(true));
                ways.iter().for_each(RawProxy::cut);
                scene.pause(1, ttl);
                ways.iter().for_each(|way| way.refuse(false));
            }
            Wound::ConnectionsReset => self.ways(scene).iter().for_each(RawProxy::reset),
            Wound::Delayed => {
                let (ways, time) = (self.ways(scene), scene.dice.time(scene.plan.ttl / 8));
                ways.iter().for_each(|way| way.delay(direction, time));
                scene.pause(1, ttl);
                ways.iter().for_each(|way| way.delay(direction, Duration::ZERO));
            }
            Wound::Deleted => self.delete(wound, scene)?,
            Wound::FollowerStopped => {
                let follower = (self.leader()? + 1 + scene.dice.below(2) as usize) % 3;
                self.stop(&self.cluster.members()[follower], scene)?;
            }
            Wound::LeaderKilled => self.kill(&self.cluster.members()[self.leader()?], scene)?,
            Wound::LeaderStopped => {
                let leader = &self.cluster.members()[self.leader()?];
                let excuses = [(UNSETTLED, String::new())];
                unsettled(scene, &excuses, |scene| self.stop(leader, scene))?;
            }
            Wound::MemberKilled => self.kill(self.any(scene), scene)?,
            Wound::OneWay => {
                let ways = self.ways(scene);
                ways.iter().for_each(|way| way.hold(direction, true));
                scene.pause(1, ttl);
                ways.iter().for_each(|way| way.hold(direction, false));
            }
            Wound::Revoked => self.revoke(scene)?,
            Wound::Silenced => self.ways(scene).iter().for_each(|way| way.silence(direction)),
            _ => return unknown(wound),
        }
        Ok(())
    }

    fn heal(&self, _: &Scene) -> io::Result<()> {
        // What was silenced stays so until it ends.
        self.networks.iter().flatten().for_each(RawProxy::cut);
        self.cluster.wait_ready()
    }

    fn left(&self) -> io::Result<Vec<(&'static str, u64)>> {
        Ok(vec![("keys", self.keys()?.len() as u64), ("leases", self.leases()?.len() as u64)])
    }
}

/// Whether etcd's bug 15247 is in this version.
fn is_affected(version: &str) -> bool {
    let numbers: Vec<u32> = version.split('.').map_while(|part| part.parse().ok()).collect();
    match numbers[..] {
        [3, ..4, _] => true,
        [3, 4, patch] => patch < 31,
        [3, 5, patch] => patch < 13,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_the_bug_are_known() {
        for version in ["3.4.23", "3.4.30", "3.5.12", "3.3.27"] {
            assert!(is_affected(version), "{version}");
        }
        for version in ["3.4.31", "3.5.13", "3.6.0", "4.0.0", ""] {
            assert!(!is_affected(version), "{version}");
        }
    }
}
