//! What all kinds of Redis have in common: keys that are looked at, deleted and flushed by hand.

use std::{collections::BTreeMap, io, time::Duration};

use distlock_servers::{net::wait_until, redis::RedisServer};

use crate::{
    plan::Plan,
    scene::Scene,
    setup::lock_name,
    shim::WallClock,
    store::{Excuse, FENCE_RESET, UNSETTLED, Wound},
};

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

/// Writes down that the counts of tokens of these locks are gone, and begin at the clock.
pub(crate) fn forget<'a>(
    scene: &Scene,
    clock: &WallClock,
    keys: impl IntoIterator<Item = &'a str>,
) {
    if 0 < clock.behind() {
        keys.into_iter().for_each(|key| scene.fault(FENCE_RESET, key));
    }
}

/// What a failover may explain: second holders of these locks; and if the counts that it loses cannot begin at the clock, tokens that repeat.
pub(crate) fn second_holders<'a>(
    clock: &WallClock,
    keys: impl IntoIterator<Item = &'a str>,
) -> Vec<Excuse> {
    let names = if clock.behind() == 0 { &[UNSETTLED][..] } else { &[UNSETTLED, FENCE_RESET] };
    let excuses = |key: &'a str| names.iter().map(move |name| (*name, key.to_owned()));
    keys.into_iter().flat_map(excuses).collect()
}

/// Sets a clock right, as a time daemon would: to a time that no token of these locks is ahead of.
pub(crate) fn set_right<'a>(
    scene: &Scene,
    clock: &WallClock,
    keys: impl IntoIterator<Item = &'a str>,
) -> io::Result<()> {
    let behind = clock.behind();
    if 0 < behind {
        keys.into_iter().for_each(|key| scene.fault(Wound::ClockForward.name(), key));
        clock.step(behind)?;
    }
    Ok(())
}

/// Puts another server in a master's place: it is killed or stopped until then, and comes back a while after, or lives, and learns of it late.
pub(crate) fn fail_over(
    scene: &mut Scene,
    master: &RedisServer,
    depose: impl Fn() -> io::Result<()>,
    promoted: impl Fn() -> io::Result<bool>,
) -> io::Result<()> {
    let way = scene.dice.below(3);
    match way {
        0 => master.kill()?,
        1 => master.stop()?,
        _ => depose()?,
    }
    wait_until("the replica is promoted", ELECTION, promoted)?;
    scene.pause(0, scene.ttl());
    match way {
        0 => master.restart(),
        1 => master.cont(),
        _ => Ok(()),
    }
}
