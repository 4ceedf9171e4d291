//! Servers under fire: what can befall them, and what they still have when it is over.

pub(crate) mod cluster;
pub(crate) mod etcd;
pub(crate) mod keys;
pub(crate) mod networks;
pub(crate) mod redis;
pub(crate) mod sentinel;

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use crate::{
    plan::{Backend, Plan},
    scene::Scene,
};

/// Servers, and what is between them and the workers.
pub(crate) trait Store: Send + Sync {
    /// The ways to the servers, of which a worker has one.
    fn urls(&self, plan: &Plan) -> Vec<String>;

    /// What every lock survives.
    fn harmless(&self) -> Vec<Wound>;

    /// What no lock on such a store survives.
    fn fatal(&self) -> Vec<Wound>;

    /// Whether it befalls some of the locks only, which it chooses, and of which it takes note itself.
    fn chooses(&self, wound: Wound) -> bool;

    /// Inflicts a wound, and returns when it is healed.
    fn inflict(&self, wound: Wound, scene: &mut Scene) -> io::Result<()>;

    /// Ends what may be left of all wounds.
    fn heal(&self, scene: &Scene) -> io::Result<()>;

    /// What is there of locks, by what it is.
    fn left(&self) -> io::Result<Vec<(&'static str, u64)>>;
}

/// What can befall servers and networks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wound {
    AllRestarted,
    BlackHole,
    ClientsKilled,
    ClockBack,
    ClockForward,
    Compacted,
    ConnectionsCut,
    ConnectionsRefused,
    ConnectionsReset,
    DataLost,
    Delayed,
    Deleted,
    Failover,
    Flushed,
    FollowerStopped,
    HandedOver,
    LeaderKilled,
    LeaderStopped,
    MemberKilled,
    OneWay,
    PushesLost,
    RepliesLost,
    ReplicaStopped,
    RequestsDoubled,
    RequestsLost,
    Restarted,
    Revoked,
    ScriptsFlushed,
    SentinelClock,
    SentinelKilled,
    ServerStopped,
    Silenced,
}

/// What an excuse is called that lasts: it is written down again and again until it is over.
pub(crate) const UNSETTLED: &str = "unsettled";

/// What a token may repeat after: the count is lost, and the clock is behind of what it was.
pub(crate) const FENCE_RESET: &str = "fence_reset";

impl Wound {
    /// Its name in a history.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::AllRestarted => "all_restarted",
            Self::BlackHole => "black_hole",
            Self::ClientsKilled => "clients_killed",
            Self::ClockBack => "clock_back",
            Self::ClockForward => "clock_forward",
            Self::Compacted => "compacted",
            Self::ConnectionsCut => "connections_cut",
            Self::ConnectionsRefused => "connections_refused",
            Self::ConnectionsReset => "connections_reset",
            Self::DataLost => "data_lost",
            Self::Delayed => "delayed",
            Self::Deleted => "deleted",
            Self::Failover => "failover",
            Self::Flushed => "flushed",
            Self::FollowerStopped => "follower_stopped",
            Self::HandedOver => "handed_over",
            Self::LeaderKilled => "leader_killed",
            Self::LeaderStopped => "leader_stopped",
            Self::MemberKilled => "member_killed",
            Self::OneWay => "one_way",
            Self::PushesLost => "pushes_lost",
            Self::RepliesLost => "replies_lost",
            Self::ReplicaStopped => "replica_stopped",
            Self::RequestsDoubled => "requests_doubled",
            Self::RequestsLost => "requests_lost",
            Self::Restarted => "restarted",
            Self::Revoked => "revoked",
            Self::ScriptsFlushed => "scripts_flushed",
            Self::SentinelClock => "sentinel_clock",
            Self::SentinelKilled => "sentinel_killed",
            Self::ServerStopped => "server_stopped",
            Self::Silenced => "silenced",
        }
    }
}

/// Starts the servers of a plan. What they need beside their own folders is in `dir`.
pub(crate) fn start(plan: &Plan, dir: &Path) -> io::Result<Box<dyn Store>> {
    Ok(match plan.backend {
        Backend::Redis => Box::new(redis::Redis::start(dir)?),
        Backend::RedisCluster => Box::new(cluster::Cluster::start(plan, dir)?),
        Backend::RedisSentinel => Box::new(sentinel::Sentinel::start(dir)?),
        Backend::Etcd => Box::new(etcd::Etcd::start()?),
    })
}

/// What explains a second holder, or a token that repeats: its name, and the lock, or none for all of them.
pub(crate) type Excuse = (&'static str, String);

/// While this is done, and until it is over, these may explain something at any time.
pub(crate) fn unsettled<T>(
    scene: &mut Scene,
    excuses: &[Excuse],
    work: impl FnOnce(&mut Scene) -> io::Result<T>,
) -> io::Result<T> {
    let over = AtomicBool::new(false);
    let witness = scene.fork();
    let tell = |scene: &Scene| excuses.iter().for_each(|(name, key)| scene.fault(name, key));
    let tells = || {
        while !over.load(Ordering::Relaxed) {
            tell(&witness);
            thread::sleep(Duration::from_millis(100));
        }
    };
    thread::scope(|scope| {
        scope.spawn(tells);
        let result = work(scene);
        tell(scene);
        over.store(true, Ordering::Relaxed);
        result
    })
}

/// What only a mistake in a deck asks for.
pub(crate) fn unknown(wound: Wound) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, format!("{wound:?} does not befall this store")))
}
