//! What all kinds of Redis have in common: keys that are looked at, deleted and flushed by hand.

use std::{collections::BTreeMap, io, time::Duration};

use distlock_servers::{net::wait_until, redis::RedisServer};

use crate::{plan::Plan, scene::Scene, setup::lock_name, store::Wound};

/// For an election, on a machine that is busy.
pub(crate) const ELECTION: Duration = Duration::from_secs(60);

/// The options that fit the leases of a plan.
pub(crate) fn options(plan: &Plan) -> String {
    let timeout = (plan.ttl / 4).max(Duration::from_millis(100));
    format!("timeout={}ms&connect_timeout=2s", timeout.as_millis())
}

/// What these servers have, beside the counts of tokens, which outlive their locks.
pub(crate) fn left<'a>(
    servers: impl IntoIterator<Item = &'a RedisServer>,
) -> io::Result<Vec<(&'static str, u64)>> {
    let mut left = BTreeMap::from([("locks", 0), ("places", 0)]);
    for server in servers {
        for key in server.command(&["KEYS", "*"])?.lines() {
            let what = match key.strip_prefix("__distlock:") {
                Some(side) if side.starts_with("f:") => continue,
                Some(_) => "places",
                None => "locks",
            };
            *left.entry(what).or_default() += 1;
        }
    }
    Ok(left.into_iter().collect())
}

/// Deletes a lock, whoever has it.
pub(crate) fn delete(
    scene: &mut Scene,
    wound: Wound,
    server: impl FnOnce(&str) -> io::Result<String>,
) -> io::Result<()> {
    let key = lock_name(scene.dice.below(scene.plan.locks as u64) as usize);
    scene.fault(wound.name(), &key);
    server(&key).map(drop)
}

/// Ends the connections of all clients, or of those that listen.
pub(crate) fn kill_clients(scene: &mut Scene, server: &RedisServer) -> io::Result<()> {
    let kind = if scene.dice.chance(0.5) { "normal" } else { "pubsub" };
    server.command(&["CLIENT", "KILL", "TYPE", kind]).map(drop)
}

/// Lets a server stand still for a while, of so many milliseconds at most.
pub(crate) fn stand_still(scene: &mut Scene, server: &RedisServer, most: u64) -> io::Result<()> {
    server.stop()?;
    scene.pause(1, most);
    server.cont()
}

/// Kills or stops a master until another server is in its place, and lets it come back a while after that.
pub(crate) fn fail_over(
    scene: &mut Scene,
    master: &RedisServer,
    promoted: impl Fn() -> io::Result<bool>,
) -> io::Result<()> {
    let kills = scene.dice.chance(0.5);
    if kills {
        master.kill()?
    } else {
        master.stop()?
    }
    wait_until("the replica is promoted", ELECTION, promoted)?;
    scene.pause(0, scene.ttl());
    if kills { master.restart() } else { master.cont() }
}
