//! Several clients with random faults, cancellations, extensions and cohort limits over one store, under the paused clock. A seed decides
//! all of it: `DISTLOCK_SEED=n` runs that one alone, `DISTLOCK_SEEDS=n` the first n.

use std::{
    collections::HashMap,
    env,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use distlock_conformance::{Dice, Faulty, Rates};
use distlock_core::{Backend as _, Client, Error, FencingToken, Guard, Key, Linear, Released};
use distlock_memory::MemoryBackend;
use tokio::{
    runtime::{Builder, Handle},
    task::JoinSet,
    time,
};

const SEEDS: u64 = 300;
const KEYS: [&str; 2] = ["a", "b"];

fn millis(dice: &mut Dice, low: u64, high: u64) -> Duration {
    Duration::from_millis(low + dice.below(high - low + 1))
}

/// Sees every guard, and objects.
#[derive(Clone)]
struct Judge {
    store: MemoryBackend,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    guards: HashMap<Key, Vec<Weak<Guard>>>,
    last: HashMap<Key, FencingToken>,
    /// So that a run in which nothing happened does not pass.
    grants: u64,
    lost: u64,
    canceled: u64,
    refused: u64,
}

impl Judge {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lock was granted.
    async fn admit(&self, guard: Guard) -> Arc<Guard> {
        let guard = Arc::new(guard);
        {
            let mut seen = self.seen();
            let (key, token) = (guard.key().clone(), guard.fencing_token());
            let last = seen.last.insert(key.clone(), token);
            assert!(last < Some(token), "token {token} of `{key}` was given after {last:?}");
            seen.guards.entry(key).or_default().push(Arc::downgrade(&guard));
            seen.grants += 1;
        }
        self.check().await;
        guard
    }

    /// At most one guard of a key says that it is held, and the store agrees with it.
    async fn check(&self) {
        let mut held = Vec::new();
        {
            let mut seen = self.seen();
            for guards in seen.guards.values_mut() {
                guards.retain(|guard| 0 < guard.strong_count());
                let alive: Vec<_> = guards.iter().filter_map(Weak::upgrade).collect();
                let holding: Vec<_> = alive.iter().filter(|guard| guard.is_held()).collect();
                assert!(holding.len() < 2, "held twice: {holding:?}");
                held.extend(holding.into_iter().map(|guard| (guard.key().clone(), guard.owner())));
            }
        }
        for (key, owner) in held {
            let holders = self.store.inspect(&key).await.unwrap().holders;
            let known = holders.iter().any(|holder| holder.owner == Some(owner));
            assert!(known, "a guard of `{key}` says that it is held, the store has {holders:?}");
        }
    }
}

/// Somebody who locks, holds and gives back.
async fn work(client: Client, judge: Judge, mut dice: Dice) {
    for _ in 0..6 {
        time::sleep(millis(&mut dice, 0, 300)).await;
        let ttl = millis(&mut dice, 200, 2000);
        let mut mutex = client.mutex(KEYS[usize::from(dice.chance(0.2))]).ttl(ttl);
        if dice.chance(0.6) {
            mutex = mutex.retry(Linear::new(Duration::from_millis(20)));
        }
        if dice.chance(0.2) {
            mutex = mutex.no_renewal();
        }
        if dice.chance(0.2) {
            mutex = mutex.metadata("words");
        }
        if dice.chance(0.1) {
            mutex = mutex.max_hold(ttl);
        } else if dice.chance(0.1) {
            mutex = mutex.min_hold(ttl / 2);
        }
        let limit = millis(&mut dice, 0, 4000);
        let locked = match dice.below(4) {
            0 => mutex.try_lock().await,
            1 => mutex.lock_timeout(limit).await.map(Some),
            2 => match time::timeout(limit, mutex.lock()).await {
                Ok(locked) => locked.map(Some),
                Err(_) => {
                    judge.seen().canceled += 1;
                    Ok(None)
                }
            },
            _ => mutex.lock().await.map(Some),
        };
        match locked {
            Ok(Some(guard)) => hold(guard, ttl, &judge, &mut dice).await,
            Ok(None) | Err(Error::Timeout { .. }) => {}
            Err(Error::Backend(error)) if error.is_transient() => judge.seen().refused += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
}

async fn hold(guard: Guard, ttl: Duration, judge: &Judge, dice: &mut Dice) {
    let guard = judge.admit(guard).await;
    for _ in 0..dice.below(3) {
        tokio::select! {
            _ = guard.lost() => {}
            () = time::sleep(millis(dice, 0, 1500)) => {}
        }
        if dice.chance(0.5) {
            let other = if dice.chance(0.5) { ttl / 2 } else { ttl * 2 };
            let extended = if dice.chance(0.8) {
                guard.extend(other).await
            } else {
                let limit = millis(dice, 0, 100);
                time::timeout(limit, guard.extend(other)).await.unwrap_or(Ok(()))
            };
            match extended {
                Ok(()) | Err(Error::Lost { .. }) => {}
                Err(Error::Backend(error)) if error.is_transient() => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        judge.check().await;
    }
    judge.seen().lost += u64::from(!guard.is_held());
    if dice.chance(0.3) {
        return;
    }
    let held = guard.is_held();
    let Some(guard) = Arc::into_inner(guard) else { return };
    let releasing = guard.release();
    let released = if dice.chance(0.8) {
        releasing.await
    } else {
        let limit = millis(dice, 0, 100);
        time::timeout(limit, releasing).await.unwrap_or(Ok(Released::Released))
    };
    if !held {
        assert!(!matches!(released, Ok(Released::Released)), "what was lost cannot be released");
    }
}

/// One run. Gives back how many grants, losses, cancellations, refusals and faults it had.
async fn run(seed: u64) -> [u64; 5] {
    let mut dice = Dice::new(seed);
    let store = MemoryBackend::new();
    let judge = Judge { store: store.clone(), seen: Arc::default() };
    let mut tasks = JoinSet::new();
    let mut clients = Vec::new();
    for _ in 0..2 + dice.below(2) {
        let mut rates = Rates::default();
        // Every seed draws which faults there are at all.
        for rate in [
            &mut rates.delay,
            &mut rates.delay_reply,
            &mut rates.double,
            &mut rates.lose_reply,
            &mut rates.lose_request,
            &mut rates.refuse,
        ] {
            if dice.chance(0.5) {
                *rate = if dice.chance(0.5) { 0.02 } else { 0.15 };
            }
        }
        rates.longest_delay = millis(&mut dice, 10, 4000);
        let timeout = millis(&mut dice, 10, 500);
        let faulty = Faulty::seeded(store.clone(), dice.roll(), rates).timeout(timeout);
        let limit = if dice.chance(0.5) { 0 } else { 1 + u32::from(dice.chance(0.5)) * 31 };
        let client = Client::builder(faulty.clone()).cohort_limit(limit).build().unwrap();
        for _ in 0..2 + dice.below(3) {
            tasks.spawn(work(client.clone(), judge.clone(), Dice::new(dice.roll())));
        }
        clients.push((client, faulty));
    }
    let watch = tokio::spawn({
        let judge = judge.clone();
        async move {
            loop {
                time::sleep(Duration::from_millis(10)).await;
                judge.check().await;
            }
        }
    });
    let all = async { while tasks.join_next().await.transpose().unwrap().is_some() {} };
    time::timeout(Duration::from_secs(3600), all).await.expect("somebody waits for ever");
    watch.abort();
    let mut faults = 0;
    for (client, faulty) in &clients {
        faults += faulty.faults();
        faulty.heal();
        if dice.chance(0.5) {
            client.shutdown().await;
        }
        assert_eq!(faulty.dropped(), 0, "a call in flight was dropped");
    }
    clients.clear();
    // Longer than the longest ttl, and shorter than the life of a place that nobody gave up.
    time::sleep(Duration::from_secs(8)).await;
    assert!(store.is_empty(), "something is left in the store");
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0, "a task is left");
    let seen = judge.seen();
    [seen.grants, seen.lost, seen.canceled, seen.refused, faults]
}

#[test]
fn chaos() {
    let number = |name| env::var(name).ok().map(|text: String| text.parse::<u64>().unwrap());
    let seeds = match number("DISTLOCK_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("DISTLOCK_SEEDS").unwrap_or(SEEDS),
    };
    let many = 100 <= seeds.end() - seeds.start();
    let mut sum = [0; 5];
    for seed in seeds {
        let builder = || Builder::new_current_thread().enable_time().start_paused(true).build();
        let counts = std::panic::catch_unwind(|| builder().unwrap().block_on(run(seed)));
        let counts = counts.unwrap_or_else(|_| panic!("DISTLOCK_SEED={seed}"));
        for (sum, count) in sum.iter_mut().zip(counts) {
            *sum += count;
        }
    }
    eprintln!("grants, lost, canceled, refused, faults: {sum:?}");
    if many {
        assert!(sum.iter().all(|count| 100 <= *count), "too little happened: {sum:?}");
    }
}
