//! Several processes with a bad network each, over one real server: cut, silent and slow connections, lost requests, replies and
//! messages, doubled requests, waiters that give up.
//!
//! `DISTLOCK_SEED=n` runs that seed alone, `DISTLOCK_SEEDS=n` the first n. Real time and real connections: a seed decides what is done, not
//! what comes of it.

mod common;

use std::{
    collections::HashMap,
    env,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use common::{LONG, leftovers, ms, server, soon};
use distlock_conformance::Dice;
use distlock_core::{Client, FencingToken, Guard};
use distlock_redis::RedisBackend;
use distlock_servers::proxy::{Direction, Matcher, Proxy};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const PROCESSES: u64 = 4;
const TASKS: u64 = 3;
const RUN: Duration = Duration::from_secs(3);

/// Sees every guard, and objects.
#[derive(Default)]
struct Judge {
    guards: Mutex<HashMap<u64, Guard>>,
    last: Mutex<Option<FencingToken>>,
    serial: AtomicU64,
    grants: AtomicU64,
    lost: AtomicU64,
}

impl Judge {
    fn admit(&self, guard: Guard) -> u64 {
        let number = self.serial.fetch_add(1, Ordering::Relaxed);
        self.grants.fetch_add(1, Ordering::Relaxed);
        let mut guards = self.guards.lock().unwrap();
        let mut last = self.last.lock().unwrap();
        let token = guard.fencing_token();
        guards.insert(number, guard);
        let held: Vec<_> = guards.values().filter(|guard| guard.is_held()).collect();
        assert!(held.len() <= 1, "held at once: {held:?}");
        if guards[&number].is_held() {
            assert!(*last < Some(token), "token {token} after {last:?}");
        }
        *last = (*last).max(Some(token));
        number
    }

    /// The same guard, after it was extended.
    fn admit_again(&self, guard: Guard) -> u64 {
        let number = self.serial.fetch_add(1, Ordering::Relaxed);
        let mut guards = self.guards.lock().unwrap();
        guards.insert(number, guard);
        let held: Vec<_> = guards.values().filter(|guard| guard.is_held()).collect();
        assert!(held.len() <= 1, "held at once: {held:?}");
        number
    }

    fn take(&self, number: u64) -> Guard {
        let guard = self.guards.lock().unwrap().remove(&number).unwrap();
        self.lost.fetch_add(u64::from(!guard.is_held()), Ordering::Relaxed);
        guard
    }
}

async fn spoil(proxy: Arc<Proxy>, mut dice: Dice, going: Arc<AtomicBool>) {
    while going.load(Ordering::Relaxed) {
        sleep(dice.time(ms(500))).await;
        let nth = 1 + usize::try_from(dice.below(3)).unwrap();
        match dice.below(12) {
            0 => proxy.cut(),
            1 => drop(proxy.cut_where("SUBSCRIBE")),
            2 => proxy.drop_reply(nth, "EVALSHA"),
            3 => proxy.drop_request(nth, "EVALSHA"),
            4 => proxy.silence_reply(nth, "EVALSHA"),
            5 => proxy.silence_request(nth, Matcher::any()),
            6 | 7 => proxy.duplicate(nth, "EVALSHA"),
            8 => {
                proxy.drop_messages(true);
                sleep(dice.time(ms(200))).await;
                proxy.drop_messages(false);
            }
            9 => {
                let way = if dice.chance(0.5) { Direction::ToClient } else { Direction::ToServer };
                proxy.delay(way, dice.time(ms(250)));
                sleep(dice.time(ms(300))).await;
                proxy.delay(way, Duration::ZERO);
            }
            10 => {
                proxy.blackhole(true);
                sleep(dice.time(ms(400))).await;
                proxy.blackhole(false);
            }
            _ => {
                proxy.refuse(true);
                sleep(dice.time(ms(100))).await;
                proxy.refuse(false);
            }
        }
    }
}

async fn work(
    client: Client,
    ttl: Duration,
    judge: Arc<Judge>,
    mut dice: Dice,
    going: Arc<AtomicBool>,
) {
    while going.load(Ordering::Relaxed) {
        let mut mutex = client.mutex("k").ttl(ttl);
        if dice.chance(0.1) {
            mutex = mutex.min_hold(dice.time(ms(30)));
        }
        let patience = if dice.chance(0.3) { dice.time(ms(30)) } else { dice.time(ms(1500)) };
        let guard = match dice.below(4) {
            0 => mutex.try_lock().await.ok().flatten(),
            1 => mutex.lock_timeout(patience).await.ok(),
            _ => timeout(patience, mutex.lock()).await.ok().and_then(Result::ok),
        };
        let Some(guard) = guard else {
            sleep(dice.time(ms(10))).await;
            continue;
        };
        let number = judge.admit(guard);
        let longest = if dice.chance(0.04) { ms(600) } else { ms(5) };
        sleep(dice.time(longest)).await;
        let guard = judge.take(number);
        if dice.chance(0.2) {
            let other = if dice.chance(0.5) { ttl / 2 } else { ttl * 2 };
            let _ = guard.extend(other).await;
            let number = judge.admit_again(guard);
            sleep(dice.time(ms(20))).await;
            drop(judge.take(number));
        } else if dice.chance(0.5) {
            let _ = guard.release().await;
        }
    }
}
async fn run(seed: u64) {
    let server = server();
    let mut dice = Dice::new(seed);
    let judge = Arc::new(Judge::default());
    let going = Arc::new(AtomicBool::new(true));
    // With a long ttl an orphan would be left at the end, with a short one deadlines matter.
    let ttl = [ms(400), ms(30_000)][usize::try_from(seed % 2).unwrap()];
    let mut tasks = JoinSet::new();
    let mut proxies = Vec::new();
    let mut clients = Vec::new();
    for process in 0..PROCESSES {
        let proxy = Arc::new(Proxy::start(server.port()).unwrap());
        let url = format!("redis://127.0.0.1:{}?timeout=150ms", proxy.port());
        let backend = connect(&url).await;
        let cohort = [0, 4][usize::try_from(process % 2).unwrap()];
        let client = Client::builder(backend).cohort_limit(cohort).build().unwrap();
        for _ in 0..TASKS {
            let dice = Dice::new(dice.roll());
            tasks.spawn(work(client.clone(), ttl, Arc::clone(&judge), dice, Arc::clone(&going)));
        }
        tasks.spawn(spoil(Arc::clone(&proxy), Dice::new(dice.roll()), Arc::clone(&going)));
        proxies.push(proxy);
        clients.push(client);
    }
    sleep(RUN).await;
    // A machine that is busy with other things may need longer for as much as proves something.
    let enough = async {
        while judge.grants.load(Ordering::Relaxed) <= 20 {
            sleep(ms(20)).await;
        }
    };
    soon(enough).await;
    going.store(false, Ordering::Relaxed);
    while let Some(done) = soon(tasks.join_next()).await {
        done.unwrap();
    }
    // What the network still has in store strikes now.
    for proxy in &proxies {
        proxy.blackhole(false);
        proxy.cut();
    }
    let (grants, lost) = (judge.grants.load(Ordering::Relaxed), judge.lost.load(Ordering::Relaxed));
    eprintln!("seed {seed}: {grants} grants, {lost} lost");
    // An orphan with the long ttl would outlast this.
    let end = Instant::now() + LONG;
    while !leftovers(&server).is_empty() {
        assert!(Instant::now() < end, "seed {seed}: left: {:?}", state(&server));
        sleep(ms(20)).await;
    }
}

/// A machine that is busy with other things may need more than one attempt.
async fn connect(url: &str) -> RedisBackend {
    let attempts = async {
        loop {
            if let Ok(backend) = RedisBackend::connect(url).await {
                return backend;
            }
        }
    };
    soon(attempts).await
}

fn state(server: &distlock_servers::redis::RedisServer) -> Vec<(String, String)> {
    let show = |key: String| {
        let value = server.command(&["GET", &key]).unwrap_or_default();
        (key, value)
    };
    leftovers(server).into_iter().map(show).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_holds_it_together_with_another_and_nothing_is_left() {
    let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("DISTLOCK_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("DISTLOCK_SEEDS").unwrap_or(2),
    };
    for seed in seeds {
        run(seed).await;
    }
}
