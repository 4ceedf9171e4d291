//! What all kinds of Redis have in common: keys that are looked at, deleted and flushed by hand.

use std::{collections::BTreeMap, io, time::Duration};

use distlock_servers::redis::RedisServer;

use crate::{plan::Plan, scene::Scene, setup::lock_name, store::Wound};

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
