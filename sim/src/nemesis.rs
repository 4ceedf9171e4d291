//! What befalls servers and processes, one after the other, until it is time to heal.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use distlock_checker::{Event, Kind};
use distlock_core::Owner;
use tokio::time::{Instant, sleep};

use crate::{
    net::Health,
    plan::Wound,
    process::{Kit, Process, Sim},
};

/// Inflicts wounds while there are to be faults, and returns when all of them are over.
pub(crate) async fn rage<S: Kit>(sim: &Arc<Sim<S>>) {
    let until = Instant::now() + sim.plan.faulty;
    let pause = sim.plan.pause.as_millis() as u64;
    let mut wounds = Vec::new();
    while Instant::now() < until {
        sleep(sim.world.between(1, 2 * pause)).await;
        let choice = sim.world.below(sim.plan.wounds.len() as u64) as usize;
        if let Some(wound) = sim.plan.wounds.get(choice).copied() {
            wounds.push(tokio::spawn(inflict(Arc::clone(sim), wound)));
        }
    }
    for wound in wounds {
        let _ = wound.await;
    }
    // What a failover brought back is not ours to give back, and a clock that was set back would keep it.
    for (key, owner) in sim.strangers().drain(..) {
        sim.net.carry_out(&|server: &mut S| server.take_back(&key, owner));
    }
}

async fn inflict<S: Kit>(sim: Arc<Sim<S>>, wound: Wound) {
    let ttl = sim.plan.ttl.as_millis() as u64;
    let (world, net) = (&sim.world, &sim.net);
    match wound {
        Wound::Stall => {
            let Some(process) = sim.any() else { return };
            match world.below(4) {
                0 => return stall_around_a_deadline(&sim, &process).await,
                1 => return stall_in_a_request(&sim, &process).await,
                _ => {}
            }
            if process.stall() {
                sleep(world.between(1, (3 * ttl) >> world.below(4))).await;
                process.resume();
            }
        }
        Wound::Crash => {
            let Some(process) = sim.any() else { return };
            world.fault(wound.name(), "");
            sim.forget(&process);
            process.die();
            // If its machine is gone too, the server does not know.
            net.deafen(process.id, world.chance(0.5));
            net.bury(process.id);
            sleep(world.between(0, 2000)).await;
            sim.start_process();
        }
        Wound::Shutdown => {
            let Some(process) = sim.any() else { return };
            if process.leaving.swap(true, Ordering::Relaxed) {
                return;
            }
            world.fault(wound.name(), "");
            let client = process.client.clone();
            let shutdown = process.gate.hold(async move { client.shutdown().await });
            let _ = tokio::time::timeout(Duration::from_secs(60), tokio::spawn(shutdown)).await;
            // It may have crashed meanwhile, and have been replaced.
            if sim.all().iter().any(|other| other.id == process.id) {
                sim.forget(&process);
                sim.start_process();
                sim.retire(&process).await;
            }
        }
        Wound::Deafness => {
            let Some(process) = sim.any() else { return };
            let Some(ear) = net.ear(process.id) else { return };
            world.fault(wound.name(), "");
            net.deafen(process.id, true);
            sleep(world.between(1, ttl)).await;
            if sim.all().iter().any(|other| other.id == process.id) {
                net.undeafen(process.id, ear);
            }
        }
        Wound::Partition => {
            let Some(process) = sim.any() else { return };
            world.fault(wound.name(), "");
            net.cut_off(process.id, true);
            sleep(world.between(1, (3 * ttl) >> world.below(3))).await;
            net.cut_off(process.id, false);
        }
        Wound::Hang | Wound::Restart if net.is_up() => {
            world.fault(wound.name(), "");
            let health = if wound == Wound::Hang { Health::Hung } else { Health::Down };
            net.set_health(health);
            if wound == Wound::Restart {
                sim.reconnect().await;
            } else {
                sleep(world.between(1, ttl * 2)).await;
            }
            net.suffer(wound, "", 0);
            net.set_health(Health::Up);
        }
        Wound::Hang | Wound::Restart => {}
        Wound::DataLoss | Wound::Failover => {
            if net.suffer(wound, "", 0) {
                world.fault(wound.name(), "");
                sim.reconnect().await;
            }
        }
        Wound::Eviction | Wound::Deletion | Wound::ForceRelease => {
            let key = format!("lock/{}", world.below(u64::from(sim.plan.keys)));
            let amount = world.below(1000);
            if net.suffer(wound, &key, amount) {
                // What lies beside a lock holds nobody off.
                let beside = wound == Wound::Eviction && amount % 4 != 0;
                world.fault(if beside { "side_key_evicted" } else { wound.name() }, &key);
            }
        }
        Wound::Compaction => {
            let Some(process) = sim.any() else { return };
            let Some(ear) = net.ear(process.id) else { return };
            world.fault(wound.name(), "");
            net.deafen(process.id, true);
            // It is told, and watches anew at once. What happened in between it never hears.
            sleep(world.between(1, 20)).await;
            if sim.all().iter().any(|other| other.id == process.id) {
                net.undeafen(process.id, ear);
            }
        }
        Wound::Stranger => lock_from_outside(&sim).await,
        Wound::ScriptFlush => {
            if net.is_up() && net.suffer(wound, "", 0) {
                world.fault(wound.name(), "");
            }
        }
        Wound::StepBack | Wound::Drift | Wound::StepForward => {
            if net.suffer(wound, "", world.below(1_000_000)) {
                world.fault(wound.name(), "");
            }
        }
    }
}

/// Stops a process while it renews a lock, until a moment after the deadline: the answer is older than the end, and is read after it.
async fn stall_around_a_deadline<S: Kit>(sim: &Arc<Sim<S>>, process: &Process) {
    let (mut tries, changed) = (sim.plan.ttl.as_millis(), sim.world.chance(0.5));
    let deadline = loop {
        if let Some(deadline) = process.renews_until(changed) {
            break deadline;
        }
        tries -= 1;
        if tries == 0 {
            return;
        }
        sleep(Duration::from_millis(1)).await;
    };
    if process.stall() {
        let left = Duration::from_nanos(deadline.saturating_sub(sim.world.now()));
        let after = sim.plan.ttl.as_millis() as u64 >> sim.world.below(6);
        sleep(left + sim.world.between(1, after)).await;
        process.resume();
    }
}

/// Stops a process while the store is asked for a lock, for about a ttl.
async fn stall_in_a_request<S: Kit>(sim: &Arc<Sim<S>>, process: &Process) {
    let ttl = sim.plan.ttl.as_millis() as u64;
    let mut tries = ttl;
    while !process.witness.is_busy() {
        tries -= 1;
        if tries == 0 {
            return;
        }
        sleep(Duration::from_millis(1)).await;
    }
    if process.stall() {
        sleep(sim.world.between(ttl * 9 / 10, ttl * 3 / 2)).await;
        process.resume();
    }
}

/// A client of another library, which gives back in time what it takes.
async fn lock_from_outside<S: Kit>(sim: &Arc<Sim<S>>) {
    let (world, net) = (&sim.world, &sim.net);
    let key = format!("lock/{}", world.below(u64::from(sim.plan.keys)));
    let (Ok(owner), client) = (Owner::random(), sim.next_id()) else { return };
    let mut tries = 100;
    while !net.is_up() || !net.carry_out(&|server: &mut S| server.lend(&key, owner, sim.plan.ttl)) {
        tries -= 1;
        if tries == 0 {
            return;
        }
        sleep(world.between(1, 20)).await;
    }
    sim.strangers().push((key.clone(), owner));
    world.fault(Wound::Stranger.name(), "");
    let write = |kind| Event::new(world.now(), kind).of(client, 1).key(&key);
    let certain = u64::try_from(sim.plan.ttl.as_nanos()).unwrap_or(u64::MAX) / 100 * 98;
    world.record(&write(Kind::Invoke));
    world.record(&write(Kind::Granted).deadline(world.now() + certain));
    world.record(&write(Kind::Enter));
    sleep(world.between(0, (sim.plan.ttl.as_millis() as u64) * 9 / 10)).await;
    world.record(&write(Kind::Exit));
    world.record(&write(Kind::ReleaseInvoke));
    if net.is_up() {
        net.carry_out(&|server: &mut S| server.take_back(&key, owner));
        world.record(&write(Kind::Released));
    }
}

impl<S: Kit> Sim<S> {
    /// Everybody loses the connection for pushes, and gets it back.
    async fn reconnect(&self) {
        let ears: Vec<_> = self
            .all()
            .into_iter()
            .filter_map(|process| Some((process.id, self.net.ear(process.id)?)))
            .collect();
        for (process, _) in &ears {
            self.net.deafen(*process, true);
        }
        sleep(self.world.between(0, self.plan.ttl.as_millis() as u64)).await;
        let alive: Vec<_> = self.all().iter().map(|process| process.id).collect();
        for (process, ear) in ears {
            if alive.contains(&process) {
                self.net.undeafen(process, ear);
            }
        }
    }

    /// Waits for the workers of a process, and takes it off the network.
    pub(crate) async fn retire(&self, process: &Process) -> bool {
        let workers = std::mem::take(&mut *process.workers());
        let mut all = true;
        let until = Instant::now() + Duration::from_secs(180);
        for worker in workers {
            all &= tokio::time::timeout_at(until, worker).await.is_ok();
        }
        self.net.deafen(process.id, true);
        all
    }
}
