//! One seed, from the draw of its plan to the verdict.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use distlock_checker::{Event, History, Kind, Rules, Verdict, judge};
use distlock_conformance::Dice;
use distlock_core::{Owner, simulation};
use tokio::{
    runtime::{Builder, Handle},
    time::{Instant, sleep},
};

use crate::{
    Bug,
    etcd::Etcd,
    nemesis,
    plan::{FENCE_RESET, Plan, Wound},
    process::{Kit, Sim},
    redis::Redis,
    world::World,
};

/// Which store is simulated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(clippy::exhaustive_enums, reason = "who runs seeds must know each")]
pub enum Store {
    /// One like Redis: a wall clock, a line beside the lock, pushed grants.
    Redis,
    /// One like etcd: leases, revisions, watches.
    Etcd,
}

/// What came of a seed.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// What was drawn.
    pub plan: Plan,
    /// What happened.
    pub history: History,
    /// What the judge says.
    pub verdict: Verdict,
    /// How often clients did, or had, what is in no history.
    pub deeds: BTreeMap<&'static str, u64>,
}

impl Store {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Redis, Self::Etcd];

    /// Its name on a command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Etcd => "etcd",
        }
    }
}

/// Simulates a seed.
#[must_use]
pub fn run(store: Store, seed: u64) -> Outcome {
    run_with(store, seed, None)
}

/// The same, with a bug in it.
#[must_use]
pub fn run_with(store: Store, seed: u64, bug: Option<Bug>) -> Outcome {
    let mut dice = Dice::new(seed);
    let plan = Plan { bug, ..Plan::draw(&mut dice, store == Store::Redis) };
    run_plan(store, plan, dice.roll())
}

/// Simulates a plan, with chance from this seed.
///
/// # Panics
/// When the system gives no runtime.
#[must_use]
pub fn run_plan(store: Store, plan: Plan, seed: u64) -> Outcome {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O needs nothing");
    simulation::seed(seed);
    let (mut history, plan, deeds) = runtime.block_on(async {
        match store {
            Store::Redis => simulate(Redis::new(plan.bug), plan, seed).await,
            Store::Etcd => simulate(Etcd::new(plan.bug), plan, seed).await,
        }
    });
    let mut rules = Rules::default().excusing(Wound::fatal());
    rules.fence_excuses.push(FENCE_RESET.to_owned());
    (rules.exact, rules.rises) = (true, true);
    rules.bound = Some(bound(&plan));
    // Some ask for twice the usual ttl.
    rules.reach = plan.ttl * 2;
    rules.leaks_looked_for = true;
    let verdict = judge(&mut history, &rules);
    Outcome { plan, history, verdict, deeds }
}

async fn simulate<S: Kit>(
    server: S,
    plan: Plan,
    seed: u64,
) -> (History, Plan, BTreeMap<&'static str, u64>) {
    let world = Arc::new(World::new(Dice::new(seed), plan.rates));
    let sim = Sim::new(world, server, plan);
    for _ in 0..sim.plan.processes {
        sim.start_process();
    }
    let net = Arc::clone(&sim.net);
    let ticks = tokio::spawn(async move {
        loop {
            sleep(Duration::from_millis(500)).await;
            net.tick();
        }
    });
    nemesis::rage(&sim).await;
    sim.world.heal();
    look_for_orphans(&sim).await;
    sim.stopped.store(true, Ordering::Relaxed);
    for process in sim.all() {
        if !sim.retire(&process).await {
            // Somebody waits for ever, which the history tells.
            process.gate.shut();
        }
        sim.forget(&process);
    }
    look_around(&sim).await;
    ticks.abort();
    // What the dead had is dropped with the runtime, and must not stir then.
    sim.bury_all();
    (sim.world.take_history(), sim.plan.clone(), sim.world.deeds())
}

/// How long after the last fault everybody who waits is served: everybody else may come first, and work for as long as can be. The places of the dead
/// live for 15 s, and each of them may block the others for a ttl.
fn bound(plan: &Plan) -> Duration {
    let clients = plan.processes * plan.workers;
    Duration::from_secs(20) + (plan.work + plan.ttl) * clients + plan.ttl * 2 * plan.workers
}

/// While all is well, and clients come and go, no lock is left to end by itself.
async fn look_for_orphans<S: Kit>(sim: &Arc<Sim<S>>) {
    let until = Instant::now() + sim.plan.healthy;
    // What was left behind before ends by itself, unless the clock was set back. And the places of the dead, and those that a failover brought back, are granted for a while.
    let explained = [Wound::StepBack, Wound::Crash, Wound::Failover]
        .iter()
        .any(|wound| sim.world.count(wound.name()) > 0);
    sleep(sim.plan.ttl * 2).await;
    let mut before: Vec<(String, Owner)> = Vec::new();
    while Instant::now() < until {
        sleep(sim.plan.request_timeout * 2).await;
        let processes = sim.all();
        let is_orphan = |(key, owner): &(String, Owner)| {
            !processes.iter().any(|process| process.witness.wants(key, *owner))
        };
        let mut orphans = sim.net.peek(|server| server.holders());
        orphans.retain(is_orphan);
        if !explained {
            for (key, _) in orphans.iter().filter(|orphan| before.contains(*orphan)) {
                let event = Event::new(sim.world.now(), Kind::Breach).key(key);
                sim.world.record(&event.name("a lock is left with nobody"));
            }
        }
        before = orphans;
    }
}

/// Long after everybody is gone, nothing is to be left.
async fn look_around<S: Kit>(sim: &Arc<Sim<S>>) {
    // Long before anything would end by itself: what was held or asked for has been given back.
    sleep(sim.plan.request_timeout * 2).await;
    if sim.world.count(Wound::Crash.name()) == 0 {
        let left = sim.net.peek(|server| server.left());
        let locks = left.iter().filter(|(name, _)| *name == "locks").map(|(_, count)| count).sum();
        let event = Event::new(sim.world.now(), Kind::Left).name("locks of the living");
        sim.world.record(&event.value(locks));
    }
    sleep(sim.plan.ttl * 4 + Duration::from_secs(60)).await;
    // A clock that was set back keeps what the dead had, for as long as it was set back.
    let steps = sim.world.count(Wound::StepBack.name());
    sleep(Duration::from_secs(61) * u32::try_from(steps).unwrap_or(u32::MAX)).await;
    let mut left = sim.net.peek(|server| server.left());
    if sim.world.count(Wound::Crash.name()) == 0 {
        // This one's and the ticks' are all there should be.
        let tasks = Handle::current().metrics().num_alive_tasks() as u64;
        left.push(("tasks", tasks.saturating_sub(1)));
    }
    for (name, count) in left {
        sim.world.record(&Event::new(sim.world.now(), Kind::Left).name(name).value(count));
    }
}
