//! `zoo [SEEDS]`: puts each bug of the zoo into the simulation, and tells by what and how soon it is caught.

#![allow(clippy::print_stdout, reason = "it prints its table")]

use std::{
    env,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use distlock_checker::Check;
use distlock_sim::{Bug, Store, run_with};

/// A bug that no seed up to this one finds is not caught.
const SEEDS: u64 = 1000;

fn main() -> ExitCode {
    let seeds = env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(SEEDS);
    let next = AtomicUsize::new(0);
    let found = Mutex::new(vec![None; Bug::ALL.len()]);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((bug, store)) = Bug::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let caught = hunt(*bug, *store, seeds);
                    let index = Bug::ALL.iter().position(|one| *one == (*bug, *store));
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    found[index.unwrap_or(0)] = caught;
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("| bug | store | caught by | seeds |\n|---|---|---|---|");
    let mut missed = 0;
    for ((bug, store), caught) in Bug::ALL.iter().zip(found) {
        let (by, seed) = match caught {
            Some((checks, seed)) => (format!("{checks:?}"), seed.to_string()),
            None => ("NOTHING".to_owned(), format!("more than {seeds}")),
        };
        missed += u32::from(by == "NOTHING");
        println!("| {bug:?} | {} | {} | {seed} |", store.name(), by.trim_matches(['[', ']']));
    }
    println!("{} of {} caught", Bug::ALL.len() as u32 - missed, Bug::ALL.len());
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The first seed that finds it, and what its run violates.
fn hunt(bug: Bug, store: Store, seeds: u64) -> Option<(Vec<Check>, u64)> {
    (1..=seeds).find_map(|seed| {
        let verdict = run_with(store, seed, Some(bug)).verdict;
        let counts = |check: &Check| *check != Check::Leak || !bug.leaks_by_itself();
        let checks: Vec<Check> = verdict.counts.keys().copied().filter(counts).collect();
        (!checks.is_empty()).then_some((checks, seed))
    })
}
