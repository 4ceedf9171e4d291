//! What a seed decides: who competes, for how many locks, and how long a lease is.

use std::time::Duration;

use distlock_conformance::Dice;

/// Which servers are under fire.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Backend {
    Redis,
    RedisCluster,
    RedisSentinel,
    Etcd,
}

/// What a seed decides. What comes of it is decided by real processes in real time, and differs from run to run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) backend: Backend,
    pub(crate) seed: u64,
    /// How long there are faults.
    pub(crate) faulty: Duration,
    pub(crate) workers: u32,
    pub(crate) tasks: u32,
    pub(crate) locks: usize,
    pub(crate) ttl: Duration,
    /// Nearly all work is quick, so that locks pass from hand to hand as fast as they can.
    pub(crate) hurry: bool,
}

impl Backend {
    pub(crate) const ALL: [Self; 4] =
        [Self::Redis, Self::RedisCluster, Self::RedisSentinel, Self::Etcd];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::RedisCluster => "redis-cluster",
            Self::RedisSentinel => "redis-sentinel",
            Self::Etcd => "etcd",
        }
    }

    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|backend| backend.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("no backend `{name}`: there are {names}")
        })
    }
}

impl Plan {
    /// Draws a plan.
    pub(crate) fn draw(backend: Backend, seed: u64, faulty: Duration) -> Self {
        let mut dice = Dice::new(seed);
        // Sometimes it is crowded.
        let least = if dice.chance(0.1) { 24 } else { 8 };
        let workers = least + dice.below(9) as u32;
        let ttl = match backend {
            // Whole seconds: shorter and longer than an election with what follows it.
            Backend::Etcd => 1000 * (2 + dice.below(3)),
            _ => 1000 + dice.below(1500),
        };
        Self {
            backend,
            seed,
            faulty,
            workers,
            tasks: 3 + dice.below(3) as u32,
            locks: 2 + dice.below(3) as usize,
            ttl: Duration::from_millis(ttl),
            hurry: dice.chance(0.5),
        }
    }

    /// The longest lease that anybody asks for.
    pub(crate) fn longest_ttl(&self) -> Duration {
        self.ttl * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_differ_and_keep_to_what_is_promised() {
        let plans = (0..200).map(|seed| Plan::draw(Backend::Redis, seed, Duration::ZERO));
        let mut workers: Vec<u32> = plans.map(|plan| plan.workers).collect();
        workers.sort_unstable();
        assert_eq!((workers[0], workers[199]), (8, 32));
        assert!((8..17).contains(&workers[100]));
    }

    #[test]
    fn a_backend_is_known_by_its_name() {
        for backend in Backend::ALL {
            assert_eq!(Backend::parse(backend.name()), Ok(backend));
        }
        assert!(Backend::parse("redlock").unwrap_err().contains("redis-cluster"));
    }
}
