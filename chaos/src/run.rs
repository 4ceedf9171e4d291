//! One run, from the start of the servers to the verdict.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    thread,
    time::Duration,
};

use distlock_checker::{Event, Kind};
use distlock_conformance::Dice;
use distlock_servers::net::wait_until;

use crate::{
    clock,
    crew::Crew,
    journal::Journal,
    nemesis,
    plan::Plan,
    scene::Scene,
    store::{self, Store},
    verdict::{self, BOUND, Decks, Outcome},
};

/// Without harm before it begins, so that all have connected, and after it, so that all come to something.
const CALM: Duration = Duration::from_secs(5);

/// For the leases and places of the dead to end.
const ENDS: Duration = Duration::from_secs(45);

/// Runs a plan. What it writes is in `dir`, which has to be empty.
pub(crate) fn run(plan: &Plan, dir: &Path) -> io::Result<Outcome> {
    let plan = Arc::new(plan.clone());
    let mut scene = Scene {
        dice: Dice::new(plan.seed ^ 0x6368_616f_7300),
        dir: PathBuf::from(dir),
        journal: Arc::new(Journal::open(dir, 0)?),
        failed: Arc::new(AtomicBool::new(false)),
        plan: Arc::clone(&plan),
    };
    let store = store::start(&plan, dir)?;
    let decks = Decks { harmless: store.harmless(), fatal: store.fatal() };
    let crew = Crew::new(store.urls(&plan));
    for _ in 0..plan.workers {
        crew.start(&mut scene)?;
    }
    thread::sleep(CALM);
    nemesis::rage(&*store, &crew, &mut scene)?;
    store.heal(&scene)?;
    scene.write(&Event::new(clock::now(), Kind::Heal));
    thread::sleep(CALM);
    crew.look_after(&scene)?;
    let problems = crew.finish(&scene, BOUND)?;
    let left = look_around(&*store, &scene)?;
    verdict::look(&plan, &decks, dir, left, problems)
}

/// When everybody is gone, and what the dead had has ended, nothing is to be left.
fn look_around(store: &dyn Store, scene: &Scene) -> io::Result<Vec<(&'static str, u64)>> {
    let mut left = store.left()?;
    let limit = ENDS + scene.plan.longest_ttl() * 2;
    let gone = wait_until("nothing is left", limit, || {
        left = store.left()?;
        // Asking costs the server something, and it is in no hurry.
        thread::sleep(Duration::from_millis(200));
        Ok(left.iter().all(|(_, count)| *count == 0))
    });
    match gone {
        Err(error) if error.kind() != io::ErrorKind::TimedOut => return Err(error),
        _ => {}
    }
    for (name, count) in &left {
        scene.write(&Event::new(clock::now(), Kind::Left).name(*name).value(*count));
    }
    Ok(left)
}

/// An empty folder for a run.
pub(crate) fn folder(wanted: Option<&Path>) -> io::Result<PathBuf> {
    let Some(dir) = wanted else { return distlock_servers::process::temp_dir("chaos") };
    fs::create_dir_all(dir)?;
    if fs::read_dir(dir)?.next().is_some() {
        let message = format!("{} is not empty", dir.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    // Workers and servers have working folders of their own.
    dir.canonicalize()
}
