//! Hand-over of a contended lock: between separate clients on Redis, and inside a process in memory beside tokio's mutex.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use distlock_benches::{
    Times, each, median, micros, raw, redis_url,
    report::{Goal, Report},
    rounds,
    server::{Arrivals, Counters, ping},
    show,
};
use distlock_core::{Client, Guard};
use distlock_memory::MemoryBackend;
use distlock_redis::RedisBackend;
use fred::prelude::{Client as Driver, ClientLike as _};
use tokio::{sync::Barrier, task::JoinSet, time::Instant};

const BACKENDS: usize = 4;

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut report = Report::new(
            "handover",
            "Who waits gets the lock: how soon, at what cost, and in what order. Nothing is done while the lock is held.",
        );
        redis(&mut report).await;
        memory(&mut report).await;
        report.finish();
    });
}

async fn redis(report: &mut Report) {
    let url = redis_url();
    let driver = raw::connect(&url).await;
    let (mut rows, mut bars) = (Vec::new(), Vec::new());
    for waiters in [2, 32, 1000] {
        let mut measured = Vec::new();
        for _ in 0..rounds() {
            measured.push(redis_round(&url, &driver, waiters, 10_000, false).await);
        }
        let watched = redis_round(&url, &driver, waiters, 2_000, true).await;
        let of = |figure: fn(&Round) -> f64| median(measured.iter().map(figure).collect());
        let (gap, ratio) =
            (of(|round| micros(round.gap)), of(|round| micros(round.gap) / micros(round.ping)));
        let scripts = of(|round| round.scripts);
        rows.push(vec![
            waiters.to_string(),
            show(of(|round| round.rate)),
            show(gap),
            show(of(|round| micros(round.gap_p99))),
            show(of(|round| micros(round.ping))),
            show(ratio),
            format!("{scripts:.3}"),
            format!("{} of {}", watched.inversions, watched.turns),
        ]);
        bars.push((format!("PING, beside {waiters}"), of(|round| micros(round.ping))));
        bars.push((format!("distlock, {waiters} waiters"), gap));
        report.goal(&Goal {
            what: &format!("Redis, hand-over between clients, {waiters} waiters"),
            target: "gap p50 ≤ 4 × PING, 2 scripts, no inversion",
            measured: format!("{ratio:.2} × PING, {scripts:.2} scripts, {}", watched.inversions),
            peer: "rueidislock (Go, elsewhere) 0.36 to 0.58 ms, 6.8 to 18.6 commands, 60 %",
            hit: ratio <= 4.0 && scripts <= 2.01 && watched.inversions == 0,
        });
    }
    report.table(
        "Redis, between clients",
        &[
            "waiters",
            "hand-overs/s",
            "gap p50 µs",
            "p99 µs",
            "PING p50 µs",
            "gap / PING",
            "scripts each",
            "inversions",
        ],
        &rows,
    );
    report.say(
        "The waiters are spread over four connections, each with a place of its own in the server's line (`cohort_limit(0)`). \
         A gap runs from the call of `release` to the next holder's first line of code. \
         Inversions are counted in a round of their own, in which `MONITOR` shows in what order the requests came to the server: pairs, one served right after the other, of which the second had come first.",
    );
    report.bars("gap", "Redis, hand-over: gap p50, µs", &bars);
    driver.quit().await.ok();
}

struct Round {
    rate: f64,
    gap: Duration,
    gap_p99: Duration,
    ping: Duration,
    scripts: f64,
    turns: u64,
    inversions: u64,
}

/// What the holders of a round write down.
#[derive(Default)]
struct Record {
    released: Option<Instant>,
    gaps: Vec<Duration>,
    token: u64,
    /// Those who were served, in this order, if it is asked for.
    served: Option<Vec<String>>,
}

async fn redis_round(
    url: &str,
    driver: &Driver,
    waiters: usize,
    hand_overs: u64,
    watched: bool,
) -> Round {
    let ping = ping(driver).await;
    let mut clients = Vec::new();
    for _ in 0..BACKENDS.min(waiters) {
        let backend = RedisBackend::connect(url).await.unwrap();
        clients.push(Client::builder(backend).cohort_limit(0).build().unwrap());
    }
    let key = format!("handover-{waiters}");
    let served = watched.then(Vec::new);
    let record = Arc::new(Mutex::new(Record { served, ..Record::default() }));
    let turns = Arc::new(AtomicU64::new(0));
    let hand_overs = hand_overs.max(waiters as u64 * 4);
    let ready = Arc::new(Barrier::new(waiters + 1));
    let arrivals = if watched { Some(Arrivals::watch(url).await) } else { None };
    let mut tasks = JoinSet::new();
    let before = Counters::read(driver).await;
    let first = clients[0].mutex(&key).lock().await.unwrap();
    for waiter in 0..waiters {
        let mutex = clients[waiter % clients.len()].mutex(&key);
        let (record, turns, ready) = (Arc::clone(&record), Arc::clone(&turns), Arc::clone(&ready));
        tasks.spawn(async move {
            ready.wait().await;
            while turns.load(Ordering::Relaxed) < hand_overs {
                let guard = mutex.lock().await.unwrap();
                turns.fetch_add(1, Ordering::Relaxed);
                hold(&record, guard).await;
            }
        });
    }
    ready.wait().await;
    let mut questions = 1;
    while clients[0].inspect(&key).await.unwrap().waiting != Some(waiters as u64) {
        questions += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let started = Instant::now();
    hold(&record, first).await;
    while tasks.join_next().await.is_some() {}
    let (took, counted) = (started.elapsed(), Counters::read(driver).await.since(&before));
    let record = Arc::try_unwrap(record).ok().unwrap().into_inner().unwrap();
    let turns = turns.load(Ordering::Relaxed);
    let inversions = match (arrivals, record.served) {
        (Some(arrivals), Some(served)) => arrivals.inversions(&served).await,
        _ => 0,
    };
    for client in clients {
        client.shutdown().await;
    }
    let gaps = Times::new(record.gaps);
    Round {
        rate: turns as f64 / took.as_secs_f64(),
        gap: gaps.median(),
        gap_p99: gaps.percentile(0.99),
        ping,
        scripts: (counted.scripts() - questions) as f64 / (turns + 1) as f64,
        turns,
        inversions,
    }
}

async fn hold(record: &Mutex<Record>, guard: Guard) {
    {
        let mut record = record.lock().unwrap();
        let now = Instant::now();
        if let Some(released) = record.released {
            record.gaps.push(now - released);
        }
        let token = guard.fencing_token().as_u64();
        assert!(record.token < token, "tokens rise");
        record.token = token;
        if let Some(served) = &mut record.served {
            served.push(guard.owner().to_string());
        }
        record.released = Some(Instant::now());
    }
    guard.release().await.unwrap();
}

async fn memory(report: &mut Report) {
    let mut rows = Vec::new();
    for tasks in [16, 128] {
        let (mut floor, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..rounds() {
            floor.push(tokio_round(tasks).await);
            ours.push(memory_round(tasks).await);
        }
        let ratio = median(ours.iter().zip(&floor).map(|(ours, floor)| ours / floor).collect());
        rows.push(vec![
            tasks.to_string(),
            show(median(floor)),
            show(median(ours)),
            format!("{ratio:.2}"),
        ]);
        report.goal(&Goal {
            what: &format!("memory, hand-over, {tasks} tasks"),
            target: "≤ 2 × `tokio::sync::Mutex`",
            measured: format!("{ratio:.2} ×"),
            peer: "tokio 1",
            hit: ratio <= 2.0,
        });
    }
    report.table(
        "Memory, between tasks of a process that yield once while they hold, ns",
        &["tasks", "tokio::sync::Mutex", "distlock", "ratio"],
        &rows,
    );
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
