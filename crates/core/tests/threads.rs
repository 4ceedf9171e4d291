//! Many tasks on several threads, which take, lose patience, extend, hand on and drop: nobody is together with another one, nobody waits for
//! ever, nothing is left.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use distlock_core::{Backend as _, Client, Guard, Mutex};
use support::Bent;
use tokio::{
    task::yield_now,
    time::{self, sleep},
};

const KEYS: usize = 4;
const TASKS: u64 = 48;
const ROUNDS: u64 = 6;

/// What a key shows of its holders.
#[derive(Default)]
struct Seen {
    inside: AtomicUsize,
    token: AtomicU64,
}

/// Xorshift: a failure names its round, the order of the threads is theirs.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// A store that lets others run in the midst of its calls.
fn hesitant() -> Bent {
    let acquire = Bent::new().acquire(|store, claim, nth| async move {
        if nth.is_multiple_of(3) {
            yield_now().await;
        }
        let standing = store.acquire(&claim).await;
        if nth.is_multiple_of(4) {
            yield_now().await;
        }
        standing
    });
    acquire.release(|store, claim, nth| async move {
        if nth.is_multiple_of(3) {
            yield_now().await;
        }
        let released = store.release(&claim).await;
        if nth.is_multiple_of(4) {
            yield_now().await;
        }
        released
    })
}

async fn take(mutex: &Mutex, dice: &mut Dice) -> Option<Guard> {
    match dice.roll(6) {
        0 => mutex.try_lock().await.unwrap(),
        1 => {
            let patience = Duration::from_micros(dice.roll(500));
            time::timeout(patience, mutex.lock()).await.ok().map(Result::unwrap)
        }
        2 => mutex.lock_timeout(Duration::from_micros(dice.roll(3000))).await.ok(),
        _ => Some(mutex.lock().await.unwrap()),
    }
}

async fn work(client: Client, seen: Arc<[Seen; KEYS]>, mut dice: Dice) {
    for _ in 0..300 {
        let key = dice.roll(KEYS as u64) as usize;
        let mut mutex = client.mutex(format!("key {key}")).ttl(Duration::from_secs(600));
        match dice.roll(30) {
            0..3 => mutex = mutex.metadata("other words"),
            3 => mutex = mutex.no_renewal(),
            _ => {}
        }
        let Some(guard) = take(&mutex, &mut dice).await else { continue };
        let (token, seen) = (guard.fencing_token().as_u64(), &seen[key]);
        assert_eq!(seen.inside.fetch_add(1, Ordering::SeqCst), 0, "two hold it");
        assert!(seen.token.swap(token, Ordering::SeqCst) < token, "tokens rise");
        match dice.roll(5) {
            0 => yield_now().await,
            1 => guard.extend(Duration::from_secs(500)).await.unwrap(),
            _ => {}
        }
        assert!(guard.is_held());
        seen.inside.fetch_sub(1, Ordering::SeqCst);
        match dice.roll(3) {
            0 => drop(guard),
            1 => drop(guard.release().await.unwrap()),
            _ => drop(time::timeout(Duration::ZERO, guard.release()).await),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_is_together_with_another_one_and_nobody_waits_for_ever() {
    for round in 1..=ROUNDS {
        let store = if round % 2 == 0 { hesitant() } else { Bent::new() };
        let clients = [0, 1, 32]
            .map(|limit| Client::builder(store.clone()).cohort_limit(limit).build().unwrap());
        let seen: Arc<[Seen; KEYS]> = Arc::default();
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let client = clients[(task % 3) as usize].clone();
                let dice = Dice(((round << 8) | (task + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                tokio::spawn(work(client, Arc::clone(&seen), dice))
            })
            .collect();
        for task in tasks {
            let done = time::timeout(Duration::from_secs(120), task).await;
            done.unwrap_or_else(|_| panic!("somebody waits for ever in round {round}")).unwrap();
        }
        for client in clients {
            let shutdown = time::timeout(Duration::from_secs(60), client.shutdown()).await;
            shutdown.unwrap_or_else(|_| panic!("the shutdown hangs in round {round}"));
        }
        // A shutdown waits for what the keeper has; the last release of a task may be its own.
        for _ in 0..1000 {
            if store.store.is_empty() {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
        assert!(store.store.is_empty(), "something is left in round {round}");
    }
}
