//! `distlock-sim --seeds N [--seed S] [--store redis|etcd|all]`: simulates seeds, and prints what happened in them.

#![allow(clippy::print_stdout, reason = "a command line tool talks on its standard output")]

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs::File,
    io::BufWriter,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use distlock_checker::Check;
use distlock_sim::{Outcome, Store, run};

const USAGE: &str = "\
distlock-sim [--seeds N] [--seed FIRST] [--store redis|etcd|all] [--history FILE]

  --seeds N       how many seeds, of each store; 1 if the first is given, else 300
  --seed FIRST    the first of them; 1 if it is not given
  --store STORE   one store, or all
  --history FILE  writes the history of the last run to a file
";

/// What is wanted.
struct Args {
    seeds: u64,
    first: u64,
    stores: Vec<Store>,
    history: Option<String>,
}

/// What all runs together came to.
#[derive(Default)]
struct Totals {
    runs: u64,
    operations: u64,
    grants: u64,
    contended: u64,
    shared: u64,
    permits: u64,
    together: u64,
    losses: u64,
    events: u64,
    simulated: Duration,
    writes: (u64, u64),
    open_stale: u64,
    paused_overlaps: u64,
    longest_wait: Duration,
    faults: BTreeMap<String, u64>,
    deeds: BTreeMap<&'static str, u64>,
    negatives: BTreeMap<Check, u64>,
    failed: Vec<(Store, u64)>,
    digest: u64,
}

fn main() -> ExitCode {
    match parse(env::args().skip(1)) {
        Ok(args) => simulate(&args),
        Err(error) => {
            eprintln!("distlock-sim: {error}\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, Box<dyn Error>> {
    let mut args = Args { seeds: 0, first: 1, stores: Store::ALL.to_vec(), history: None };
    let mut one = false;
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("`{word}` needs a value"));
        match word.as_str() {
            "--seeds" => args.seeds = value()?.parse()?,
            "--seed" => {
                args.first = value()?.parse()?;
                one = true;
            }
            "--store" => {
                let name = value()?;
                args.stores.retain(|store| name == "all" || store.name() == name);
                if args.stores.is_empty() {
                    return Err(format!("no store `{name}`").into());
                }
            }
            "--history" => args.history = Some(value()?),
            _ => return Err(format!("`{word}`?").into()),
        }
    }
    if args.seeds == 0 {
        args.seeds = if one { 1 } else { 300 };
    }
    Ok(args)
}

#[expect(clippy::disallowed_methods, reason = "this is about the time of the one who waits")]
fn simulate(args: &Args) -> ExitCode {
    let started = Instant::now();
    let totals = Mutex::new(Totals::default());
    let next = AtomicU64::new(0);
    let stores = args.stores.len() as u64;
    let all = args.seeds * stores;
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if all <= number {
                        return;
                    }
                    let store = args.stores[(number % stores) as usize];
                    let seed = args.first + number / stores;
                    let outcome = run(store, seed);
                    let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
                    totals.add(store, seed, outcome, args);
                }
            });
        }
    });
    let totals = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    totals.print(started.elapsed());
    let missing = totals.missing();
    // A few seeds need not have drawn everything.
    if 100 <= args.seeds && !missing.is_empty() {
        println!("PROVES NOTHING: there was no {}", missing.join(", no "));
        return ExitCode::FAILURE;
    }
    match totals.failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// What must have happened somewhere in a run of many seeds.
const WANTED: &[&str] = &[
    "clock_back",
    "clock_forward",
    "clock_rate",
    "connection_cut",
    "crash",
    "data_loss",
    "deafness",
    "deletion",
    "eviction",
    "failover",
    "force_release",
    "push_doubled",
    "push_late",
    "partition",
    "push_lost",
    "refused",
    "reply_late",
    "reply_lost",
    "request_doubled",
    "request_late",
    "request_lost",
    "restart",
    "scripts_flushed",
    "server_stopped",
    "shutdown",
    "side_key_evicted",
    "stall",
    "stranger",
    "watch_canceled",
];

/// What clients must have done, or had, in it.
const DEEDS: &[&str] = &[
    "extension cancelled",
    "extension failed",
    "lock by an id of its own",
    "lock cancelled",
    "lock extended",
    "lock handed on",
    "lock with a limit",
    "lock with a minimum",
    "lock without renewal",
    "lost by a shutdown",
    "lost by its limit",
    "lost by the clock",
    "lost by the store's word",
    "release cancelled",
    "release failed",
];

impl Totals {
    fn add(&mut self, store: Store, seed: u64, mut outcome: Outcome, args: &Args) {
        let digest = outcome.history.digest();
        if let Some(path) = &args.history {
            let written =
                File::create(path).and_then(|file| outcome.history.write(BufWriter::new(file)));
            if let Err(error) = written {
                eprintln!("{path}: {error}");
            }
        }
        let Outcome { verdict, plan, deeds, .. } = outcome;
        for (deed, count) in deeds {
            *self.deeds.entry(deed).or_default() += count;
        }
        if args.seeds == 1 {
            println!("{}, seed {seed}: {plan:#?}\n{verdict}\nhash {digest:016x}\n", store.name());
        } else if !verdict.is_clean() {
            println!("{}, seed {seed}: {verdict}", store.name());
            println!("again: cargo xtask sim --store {} --seed {seed}\n", store.name());
        }
        if !verdict.is_clean() {
            self.failed.push((store, seed));
        }
        let figures = verdict.figures;
        self.runs += 1;
        self.operations += figures.operations;
        self.grants += figures.grants;
        self.contended += figures.contended;
        self.shared += figures.shared;
        self.permits += figures.permits;
        self.together += figures.together;
        self.losses += figures.losses;
        self.events += figures.events;
        self.simulated += figures.span;
        self.writes.0 += figures.writes.0;
        self.writes.1 += figures.writes.1;
        self.open_stale += figures.open_stale;
        self.paused_overlaps += figures.paused_overlaps;
        self.longest_wait = self.longest_wait.max(figures.longest_wait);
        for (name, count) in figures.faults {
            *self.faults.entry(name).or_default() += count;
        }
        for (check, count) in verdict.negatives {
            *self.negatives.entry(check).or_default() += count;
        }
        // Threads end in any order, so the sum must not depend on it.
        self.digest = self.digest.wrapping_add(digest);
    }

    fn missing(&self) -> Vec<&str> {
        let faults = WANTED.iter().copied().filter(|name| !self.faults.contains_key(*name));
        let deeds = DEEDS.iter().copied().filter(|name| !self.deeds.contains_key(name));
        let second = self.negatives.get(&Check::Exclusion).copied().unwrap_or(0);
        let grants = [
            ("contended grant", self.contended),
            ("shared grant", self.shared),
            ("grant of permits", self.permits),
            ("grant beside another one", self.together),
            ("stale write that was refused", self.writes.1),
            ("stale write where nobody looks at tokens", self.open_stale),
            ("second holder after a fault that no lock survives", second),
        ];
        let grants = grants.into_iter().filter(|(_, count)| *count == 0).map(|(name, _)| name);
        faults.chain(deeds).chain(grants).collect()
    }

    fn print(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let hours = self.simulated.as_secs_f64() / 3600.0;
        println!(
            "{} seeds in {seconds:.1} s, {:.1} a second",
            self.runs,
            self.runs as f64 / seconds
        );
        println!(
            "{hours:.1} simulated hours, {:.0} times faster than time",
            hours * 3600.0 / seconds
        );
        println!("{} acquisitions, {} grants", self.operations, self.grants);
        println!("{} grants contended, {} locks lost", self.contended, self.losses);
        println!(
            "{} grants shared, {} of permits, {} while others had the lock too",
            self.shared, self.permits, self.together
        );
        println!("{} events of history, hash {:016x}", self.events, self.digest);
        println!("longest wait after the heal {:?}", self.longest_wait);
        println!("faults:");
        for (name, count) in &self.faults {
            println!("  {name:<18} {count}");
        }
        println!("what clients did, or had:");
        for (name, count) in &self.deeds {
            println!("  {name:<26} {count}");
        }
        println!("writes with a token: {} accepted, {} refused", self.writes.0, self.writes.1);
        println!("stale writes without: {}", self.open_stale);
        println!("overlaps of work because a process did not run: {}", self.paused_overlaps);
        println!("documented negatives, each explained by a fault that no such store survives:");
        for (check, count) in &self.negatives {
            println!("  {check:?} {count}");
        }
        match self.failed.len() {
            0 => println!("no violations"),
            failed => println!("VIOLATIONS in {failed} seeds: {:?}", self.failed),
        }
    }
}
