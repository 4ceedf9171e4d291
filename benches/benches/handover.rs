//! Hand-over of a contended lock: between separate clients on Redis, and inside a process in memory beside tokio's mutex.
//!
//! On Redis, W waiters over four connections, each with a place of its own in the server's line; nothing is done while the lock is held. A gap runs
//! from the call of `release` to the next holder's first line of code.
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use distlock_benches::{Times, each, median, raw, redis_url};
use distlock_core::{Client, Guard};
use distlock_memory::MemoryBackend;
use distlock_redis::RedisBackend;
use fred::{
    prelude::{Client as Driver, ClientLike as _},
    types::InfoKind,
};
use tokio::{sync::Barrier, task::JoinSet, time::Instant};

const ROUNDS: usize = 5;
const BACKENDS: usize = 4;

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        redis().await;
        memory().await;
    });
}

async fn redis() {
    let url = redis_url();
    let driver = raw::connect(&url).await;
    println!("Redis, hand-over between clients, medians of {ROUNDS} rounds");
    println!(
        "waiters  hand-overs/s  gap p50 µs  p99 µs  PING p50 µs  gap / PING  scripts each  inversions"
    );
    for waiters in [2, 32, 1000] {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            rounds.push(redis_round(&url, &driver, waiters).await);
        }
        let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
        println!(
            "{waiters:>7}  {:>12.0}  {:>10.1}  {:>6.1}  {:>11.1}  {:>10.2}  {:>12.3}  {:>10}",
            of(|round| round.rate),
            of(|round| round.gap.as_secs_f64() * 1e6),
            of(|round| round.gap_p99.as_secs_f64() * 1e6),
            of(|round| round.ping.as_secs_f64() * 1e6),
            of(|round| round.gap.as_secs_f64() / round.ping.as_secs_f64()),
            of(|round| round.scripts),
            rounds.iter().map(|round| round.inversions).sum::<u64>(),
        );
    }
    driver.quit().await.ok();
}

struct Round {
    rate: f64,
    gap: Duration,
    gap_p99: Duration,
    ping: Duration,
    scripts: f64,
    inversions: u64,
}

/// What the holders of a round write down.
#[derive(Default)]
struct Record {
    released: Option<Instant>,
    gaps: Vec<Duration>,
    token: u64,
    /// The latest arrival that was served, and how many were served after one that came later.
    latest: Option<Instant>,
    inversions: u64,
}

async fn redis_round(url: &str, driver: &Driver, waiters: usize) -> Round {
    let ping = ping(driver).await;
    let mut clients = Vec::new();
    for _ in 0..BACKENDS.min(waiters) {
        let backend = RedisBackend::connect(url).await.unwrap();
        clients.push(Client::builder(backend).cohort_limit(0).build().unwrap());
    }
    let key = format!("handover-{waiters}");
    let record = Arc::new(Mutex::new(Record::default()));
    let turns = Arc::new(AtomicU64::new(0));
    let hand_overs = 10_000_u64.max(waiters as u64 * 4);
    let ready = Arc::new(Barrier::new(waiters + 1));
    let mut tasks = JoinSet::new();
    let first = clients[0].mutex(&key).lock().await.unwrap();
    for waiter in 0..waiters {
        let mutex = clients[waiter % clients.len()].mutex(&key);
        let (record, turns, ready) = (Arc::clone(&record), Arc::clone(&turns), Arc::clone(&ready));
        tasks.spawn(async move {
            ready.wait().await;
            while turns.load(Ordering::Relaxed) < hand_overs {
                let arrival = Instant::now();
                let guard = mutex.lock().await.unwrap();
                turns.fetch_add(1, Ordering::Relaxed);
                hold(&record, guard, arrival, ping).await;
            }
        });
    }
    ready.wait().await;
    while clients[0].inspect(&key).await.unwrap().waiting != Some(waiters as u64) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (started, scripts) = (Instant::now(), evalshas(driver).await);
    hold(&record, first, started, ping).await;
    while tasks.join_next().await.is_some() {}
    let (took, scripts) = (started.elapsed(), evalshas(driver).await - scripts);
    let record = Arc::try_unwrap(record).ok().unwrap().into_inner().unwrap();
    let done = turns.load(Ordering::Relaxed);
    for client in clients {
        client.shutdown().await;
    }
    let gaps = Times::new(record.gaps);
    Round {
        rate: done as f64 / took.as_secs_f64(),
        gap: gaps.median(),
        gap_p99: gaps.percentile(0.99),
        ping,
        scripts: scripts as f64 / done as f64,
        inversions: record.inversions,
    }
}

/// Two arrivals within a round trip of each other have no order: they come on different connections.
async fn hold(record: &Mutex<Record>, guard: Guard, arrival: Instant, round_trip: Duration) {
    {
        let mut record = record.lock().unwrap();
        let now = Instant::now();
        if let Some(released) = record.released {
            record.gaps.push(now - released);
        }
        let token = guard.fencing_token().as_u64();
        assert!(record.token < token, "tokens rise");
        record.token = token;
        record.inversions +=
            u64::from(record.latest.is_some_and(|latest| arrival + round_trip < latest));
        record.latest = record.latest.max(Some(arrival));
        record.released = Some(Instant::now());
    }
    guard.release().await.unwrap();
}

async fn ping(driver: &Driver) -> Duration {
    let mut times = Vec::new();
    for _ in 0..2000 {
        let sent = Instant::now();
        driver.ping::<String>(None).await.unwrap();
        times.push(sent.elapsed());
    }
    Times::new(times).median()
}

/// How many scripts the server has run.
async fn evalshas(driver: &Driver) -> u64 {
    let info: String = driver.info(Some(InfoKind::CommandStats)).await.unwrap();
    info.lines()
        .filter_map(|line| {
            line.strip_prefix("cmdstat_evalsha:calls=").or(line.strip_prefix("cmdstat_eval:calls="))
        })
        .filter_map(|rest| rest.split(',').next()?.parse::<u64>().ok())
        .sum()
}

async fn memory() {
    println!(
        "\nMemory, hand-over between tasks of a process with one yield inside, medians of {ROUNDS} rounds"
    );
    println!("tasks  tokio ns  ours ns  ours / tokio");
    for tasks in [16, 128] {
        let (mut floor, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            floor.push(tokio_round(tasks).await);
            ours.push(memory_round(tasks).await);
        }
        let ratio = median(ours.iter().zip(&floor).map(|(ours, floor)| ours / floor).collect());
        println!("{tasks:>5}  {:>8.0}  {:>7.0}  {ratio:>12.2}", median(floor), median(ours));
    }
}

const HAND_OVERS: u32 = 200_000;

async fn tokio_round(tasks: u32) -> f64 {
    let mutex = Arc::new(tokio::sync::Mutex::new(()));
    contend(tasks, move || {
        let mutex = Arc::clone(&mutex);
        async move {
            let guard = mutex.lock().await;
            tokio::task::yield_now().await;
            drop(guard);
        }
    })
    .await
}

async fn memory_round(tasks: u32) -> f64 {
    let mutex = Client::new(MemoryBackend::new()).mutex("handover");
    contend(tasks, move || {
        let mutex = mutex.clone();
        async move {
            let guard = mutex.lock().await.unwrap();
            tokio::task::yield_now().await;
            drop(guard);
        }
    })
    .await
}

/// Nanoseconds per hand-over when so many tasks want the same lock all the time.
async fn contend<F>(tasks: u32, turn: impl Fn() -> F + Clone + Send + 'static) -> f64
where
    F: Future<Output = ()> + Send,
{
    let started = Instant::now();
    let mut set = JoinSet::new();
    for _ in 0..tasks {
        let turn = turn.clone();
        set.spawn(async move { each(HAND_OVERS / tasks, turn).await });
    }
    while set.join_next().await.is_some() {}
    started.elapsed().as_nanos() as f64 / f64::from(HAND_OVERS)
}
