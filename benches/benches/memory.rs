//! The memory of a held lock and of one who waits, counted by the allocator; and what is left of them.

use std::{alloc::System, mem::size_of, sync::Arc, time::Duration};

use distlock_benches::{
    median, raw, redis_url,
    report::{Goal, Report},
    rounds, server, show,
};
use distlock_core::{Client, Guard};
use distlock_memory::MemoryBackend;
use distlock_redis::RedisBackend;
use fred::prelude::ClientLike as _;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::time::sleep;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// So many locks or waiters.
const COUNT: usize = 10_000;

/// What is left of each may be its part of tables that have a size however few there are.
const FIXED: f64 = 8.0;

/// Bytes in use.
fn used() -> f64 {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as f64 - stats.bytes_deallocated as f64
}

/// Bytes each while there are so many, and bytes left of each when they are gone.
#[derive(Clone, Copy)]
struct Cost {
    each: f64,
    left: f64,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut report = Report::new(
            "memory",
            "Bytes on the heap for each of 10 000 locks held, and of 10 000 tasks that wait.",
        );
        let url = redis_url();
        let mut costs = Vec::new();
        costs.push(("held: `tokio::sync::Mutex`", rounds_of(tokio_held).await, None));
        let cost = rounds_of(|| held(Client::new(MemoryBackend::new()))).await;
        costs.push(("held: distlock, memory", cost, Some("held lock, memory")));
        let cost = rounds_of(|| async { held(redis(&url, 32).await).await }).await;
        costs.push(("held: distlock, Redis", cost, Some("held lock, Redis")));
        costs.push(("waiting: `tokio::sync::Mutex`", rounds_of(tokio_waiting).await, None));
        let cost = rounds_of(|| waiting(Client::new(MemoryBackend::new()))).await;
        costs.push(("waiting: distlock, memory", cost, Some("waiter, memory")));
        let cost = rounds_of(|| async { waiting(redis(&url, 32).await).await }).await;
        costs.push(("waiting: distlock, Redis", cost, Some("waiter, Redis")));
        let cost = rounds_of(|| async { placed(redis(&url, 0).await).await }).await;
        costs.push(("waiting: distlock, in Redis's own line", cost, Some("waiter in Redis's own line")));
        let rows: Vec<_> = costs
            .iter()
            .map(|(what, cost, _)| vec![(*what).to_owned(), show(cost.each), show(cost.left)])
            .collect();
        report.table("Bytes", &["", "each", "left of each afterwards"], &rows);
        report.say(&format!(
            "A guard is {} bytes more, on the stack or where its owner puts it. A waiter is a spawned task that shares its mutex with the others: the future of `lock`, the task, and its place in the line. \
             What is left are tables that keep their size for the next.",
            size_of::<Guard>()
        ));
        let server = server_side(&url).await;
        report.say(&format!("The server has {} bytes for each held lock.", show(server)));
        let bars: Vec<_> =
            costs.iter().map(|(what, cost, _)| (what.replace('`', ""), cost.each)).collect();
        report.bars("bytes", "Memory: bytes each", &bars);
        for (_, cost, goal) in costs {
            if let Some(what) = goal {
                report.goal(&Goal {
                    what: &format!("memory of a {what}"),
                    target: "≤ 1 KiB, nothing left",
                    measured: format!("{} B, {} B left", show(cost.each), show(cost.left)),
                    peer: "–",
                    hit: cost.each <= 1024.0 && cost.left < FIXED,
                });
            }
        }
        report.finish();
    });
}

async fn rounds_of<F: Future<Output = Cost>>(measure: impl Fn() -> F) -> Cost {
    let mut costs = Vec::new();
    for _ in 0..rounds() {
        // The connections of the round before are closed.
        settle().await;
        costs.push(measure().await);
    }
    Cost {
        each: median(costs.iter().map(|cost| cost.each).collect()),
        left: median(costs.iter().map(|cost| cost.left).collect()),
    }
}

async fn redis(url: &str, cohort_limit: u32) -> Client {
    let backend = RedisBackend::connect(url).await.unwrap();
    Client::builder(backend).cohort_limit(cohort_limit).build().unwrap()
}

/// What was used before, with so many, and after, as costs of each.
fn cost(before: f64, with: f64, after: f64) -> Cost {
    Cost { each: (with - before) / COUNT as f64, left: (after - before) / COUNT as f64 }
}

/// Everything that goes on in the background comes to its end.
async fn settle() {
    sleep(Duration::from_millis(200)).await;
}

async fn tokio_held() -> Cost {
    let mut guards = Vec::with_capacity(COUNT);
    let before = used();
    for _ in 0..COUNT {
        guards.push(Arc::new(tokio::sync::Mutex::new(())).lock_owned().await);
    }
    let with = used();
    guards.clear();
    cost(before, with, used())
}

async fn held(client: Client) -> Cost {
    let mut guards = Vec::with_capacity(COUNT);
    warm(&client).await;
    let before = used();
    for number in 0..COUNT {
        guards.push(client.mutex(format!("memory/{number:06}")).lock().await.unwrap());
    }
    settle().await;
    let with = used();
    for guard in guards.drain(..) {
        guard.release().await.unwrap();
    }
    settle().await;
    let after = used();
    client.shutdown().await;
    cost(before, with, after)
}

async fn tokio_waiting() -> Cost {
    let mutex = Arc::new(tokio::sync::Mutex::new(()));
    let guard = mutex.lock().await;
    let mut tasks = Vec::with_capacity(COUNT);
    let before = used();
    for _ in 0..COUNT {
        let mutex = Arc::clone(&mutex);
        tasks.push(tokio::spawn(async move { drop(mutex.lock().await) }));
    }
    settle().await;
    let with = used();
    drop(guard);
    for task in tasks.drain(..) {
        task.await.unwrap();
    }
    settle().await;
    cost(before, with, used())
}

/// One lock, for which all wait in the line of the process.
async fn waiting(client: Client) -> Cost {
    wait(client, 1).await
}

/// One lock, for which each waits at a place of its own in the store's line.
async fn placed(client: Client) -> Cost {
    wait(client, COUNT as u64).await
}

async fn wait(client: Client, places: u64) -> Cost {
    let mut tasks = Vec::with_capacity(COUNT);
    warm(&client).await;
    let mutex = Arc::new(client.mutex("memory"));
    let guard = mutex.lock().await.unwrap();
    let before = used();
    for _ in 0..COUNT {
        let mutex = Arc::clone(&mutex);
        tasks.push(tokio::spawn(async move { drop(mutex.lock().await.unwrap()) }));
    }
    settle().await;
    let stand = places > 1;
    while stand && client.inspect("memory").await.unwrap().waiting != Some(places) {
        settle().await;
    }
    let with = used();
    drop(guard);
    for task in tasks.drain(..) {
        task.await.unwrap();
    }
    settle().await;
    let after = used();
    client.shutdown().await;
    cost(before, with, after)
}

/// What is made once.
async fn warm(client: &Client) {
    let mutex = client.mutex("warm");
    let guard = mutex.lock().await.unwrap();
    let waiter = tokio::spawn(async move { drop(mutex.lock().await.unwrap()) });
    settle().await;
    drop(guard);
    waiter.await.unwrap();
}

/// Bytes of the server for each lock.
async fn server_side(url: &str) -> f64 {
    let driver = raw::connect(url).await;
    let client = redis(url, 32).await;
    let before = server::memory(&driver).await;
    let mut guards = Vec::new();
    for number in 0..COUNT {
        guards.push(client.mutex(format!("server/{number:06}")).lock().await.unwrap());
    }
    let each = (server::memory(&driver).await - before) as f64 / COUNT as f64;
    client.shutdown().await;
    drop(guards);
    driver.quit().await.ok();
    each
}
