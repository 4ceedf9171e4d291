//! Who does the harm: one to the servers and networks, one who stops workers, and one who kills them.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::{
    clock,
    crew::Crew,
    scene::Scene,
    store::{Store, Wound},
};

/// Between two of them, in milliseconds.
const PAUSE: (u64, u64) = (200, 2000);

/// After so many others the one who is stopped is one that has a lock.
const OTHERS: u32 = 3;

/// Inflicts wounds until the time is over: at first what every lock survives, in the second half also what none does. Each kind comes at least once,
/// however long that takes.
pub(crate) fn rage(store: &dyn Store, crew: &Crew, scene: &mut Scene) -> io::Result<()> {
    let over = AtomicBool::new(false);
    let (mut stops, mut kills) = (scene.fork(), scene.fork());
    thread::scope(|scope| {
        let goes_on = |scene: &Scene| !over.load(Ordering::Relaxed) && !scene.has_failed();
        let stopper = scope.spawn(move || {
            guarded(&mut stops, |scene| {
                let mut since = 0;
                while goes_on(scene) {
                    scene.pause(PAUSE.0, PAUSE.1);
                    if since < OTHERS {
                        crew.stop_some(scene)?;
                        since += 1;
                    } else if crew.stop_holder(scene)? {
                        since = 0;
                    }
                }
                Ok(())
            })
        });
        let killer = scope.spawn(move || {
            guarded(&mut kills, |scene| {
                while goes_on(scene) {
                    // Each death costs a ttl, in which nothing else happens to that lock.
                    scene.pause(PAUSE.0, 5 * PAUSE.1);
                    crew.look_after(scene)?;
                    crew.kill_one(scene)?;
                }
                Ok(())
            })
        });
        let servers = guarded(scene, |scene| strike(store, scene));
        over.store(true, Ordering::Relaxed);
        let join = |thread: thread::ScopedJoinHandle<'_, io::Result<()>>| {
            thread.join().map_err(|_| io::Error::other("it panicked"))?
        };
        let (stopper, killer) = (join(stopper), join(killer));
        servers.and(stopper).and(killer)
    })
}

/// Tells the others if it fails.
fn guarded(scene: &mut Scene, work: impl FnOnce(&mut Scene) -> io::Result<()>) -> io::Result<()> {
    let result = work(scene);
    if result.is_err() {
        scene.failed.store(true, Ordering::Relaxed);
    }
    result
}

fn strike(store: &dyn Store, scene: &mut Scene) -> io::Result<()> {
    let started = clock::now();
    let faulty = u64::try_from(scene.plan.faulty.as_nanos()).unwrap_or(u64::MAX);
    let (harmless, fatal) = (store.harmless(), store.fatal());
    deal(store, scene, &harmless, &harmless, started + faulty / 2)?;
    let all = [&fatal[..], &harmless].concat();
    deal(store, scene, &fatal, &all, started + faulty)
}

/// Each of the first once; then all of them, again and again, until the time is over.
fn deal(
    store: &dyn Store,
    scene: &mut Scene,
    first: &[Wound],
    all: &[Wound],
    until: u64,
) -> io::Result<()> {
    let mut deck = shuffled(scene, first);
    let mut owed = deck.len();
    while 0 < owed || scene.goes_on(until) {
        if scene.has_failed() {
            return Ok(());
        }
        scene.pause(PAUSE.0, PAUSE.1);
        if deck.is_empty() {
            deck = shuffled(scene, all);
        }
        let Some(wound) = deck.pop() else { return Ok(()) };
        owed = owed.saturating_sub(1);
        if !store.chooses(wound) {
            scene.fault(wound.name(), "");
        }
        let told = |error: io::Error| io::Error::new(error.kind(), format!("{wound:?}: {error}"));
        store.inflict(wound, scene).map_err(told)?;
    }
    Ok(())
}

fn shuffled(scene: &mut Scene, wounds: &[Wound]) -> Vec<Wound> {
    let mut deck = wounds.to_vec();
    for last in (1..deck.len()).rev() {
        deck.swap(last, scene.dice.below(last as u64 + 1) as usize);
    }
    deck
}
