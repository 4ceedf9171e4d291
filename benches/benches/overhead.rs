//! What the library costs on top of what it stands on, when nobody contends.
//!
//! In memory: beside the store without the library, and `tokio::sync::Mutex`. On Redis: beside two bare `EVALSHA` of the same commands on the
//! same driver.

use std::{future::Future, time::Duration};

use distlock_benches::{
    each, is_quick, median, micros, raw, redis_url,
    report::{Goal, Report},
    rounds,
    server::Counters,
    show,
};
use distlock_core::{Backend as _, Claim, Client, Key, Mode, Owner};
use distlock_memory::MemoryBackend;
use distlock_redis::RedisBackend;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut report = Report::new("overhead", "What a lock costs that nobody contends for.");
        memory(&mut report).await;
        // A spawned task calls the driver a good deal faster than the main future does. All on one thread: between two, a round trip is as
        // long as the scheduler likes.
        tokio::spawn(redis(report)).await.unwrap().finish();
    });
}

async fn redis(mut report: Report) -> Report {
    const COUNT: u32 = 1_000;
    let rounds = if is_quick() { 5 } else { 41 };
    let url = redis_url();
    let driver = raw::connect(&url).await;
    let scripts = raw::Scripts::load(driver.clone(), "overhead-floor").await;
    let client = Client::new(RedisBackend::connect(&url).await.unwrap());
    let mutex = client.mutex("overhead");
    let (mut floor, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut floor_server, mut our_server) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let before = Counters::read(&driver).await;
        let bare = micros(each(COUNT, || scripts.cycle()).await);
        let between = Counters::read(&driver).await;
        let lock = each(COUNT, || async {
            mutex.lock().await.unwrap().release().await.unwrap();
        });
        let lock = micros(lock.await);
        let after = Counters::read(&driver).await;
        floor.push(bare);
        ours.push(lock);
        ratios.push(lock / bare);
        let server = |counters: Counters| counters.micros(&["evalsha"]) as f64 / f64::from(COUNT);
        floor_server.push(server(between.since(&before)));
        our_server.push(server(after.since(&between)));
    }
    let (ratio, server) = (median(ratios), median(our_server));
    report.table(
        "Redis, nobody contends, µs per lock and release",
        &["", "round trips", "of it in the server"],
        &[
            vec![
                "two bare `EVALSHA` of the same commands".to_owned(),
                show(median(floor)),
                show(median(floor_server)),
            ],
            vec!["lock, release".to_owned(), show(median(ours)), show(server)],
        ],
    );
    report.say(&format!("Medians of {rounds} rounds, on one thread; the ratio is {ratio:.2}."));
    report.goal(&Goal {
        what: "Redis, lock and release, one task",
        target: "≤ 1.15 × two `EVALSHA`, ≤ 11 µs of server time",
        measured: format!("{ratio:.2} ×, {server:.1} µs"),
        peer: "see `peers`",
        hit: ratio <= 1.15 && server <= 11.0,
    });
    client.shutdown().await;
    report
}

async fn memory(report: &mut Report) {
    const COUNT: u32 = 300_000;
    let mut rows = Vec::new();
    let mutex = tokio::sync::Mutex::new(());
    let row = &mut rows;
    measure(row, "`tokio::sync::Mutex`", COUNT, || async { drop(mutex.lock().await) }).await;

    let store = MemoryBackend::new();
    measure(row, "the store alone", COUNT, || async {
        let claim =
            Claim::new(Key::new("k").unwrap(), Owner::random().unwrap(), Mode::Exclusive, TTL);
        let _ = store.acquire(&claim).await.unwrap();
        store.release(&claim).await.unwrap();
    })
    .await;

    let client = Client::new(MemoryBackend::new());
    let mutex = client.mutex("k");
    let ours = measure(row, "lock, release", COUNT, || async {
        mutex.lock().await.unwrap().release().await.unwrap();
    })
    .await;
    measure(row, "lock, drop", COUNT, || async { drop(mutex.lock().await.unwrap()) }).await;
    measure(row, "`client.mutex`, lock, drop", COUNT, || async {
        drop(client.mutex("k").lock().await.unwrap())
    })
    .await;
    let mut held = Vec::new();
    for number in 0..10_000 {
        held.push(client.mutex(format!("held-{number}")).lock().await.unwrap());
    }
    measure(row, "lock, release with 10,000 other locks held", COUNT, || async {
        mutex.lock().await.unwrap().release().await.unwrap();
    })
    .await;
    let guard = mutex.lock().await.unwrap();
    measure(row, "`guard.is_held`", COUNT, || async {
        std::hint::black_box(guard.is_held());
    })
    .await;
    measure(row, "`try_lock` of a lock held in this process", COUNT, || async {
        assert!(mutex.try_lock().await.unwrap().is_none());
    })
    .await;
    report.table("Memory, ns", &["", "each"], &rows);
    report.goal(&Goal {
        what: "memory, lock and release",
        target: "≤ 1 µs",
        measured: format!("{} ns", show(ours)),
        peer: "tokio, without ttl, token and renewal: see the table",
        hit: ours <= 1000.0,
    });
}

const TTL: Duration = Duration::from_secs(30);

/// Nanoseconds of one call.
async fn measure<F: Future>(
    rows: &mut Vec<Vec<String>>,
    what: &str,
    count: u32,
    mut call: impl FnMut() -> F,
) -> f64 {
    let mut times = Vec::new();
    for _ in 0..rounds() {
        times.push(each(count, &mut call).await.as_nanos() as f64);
    }
    let time = median(times);
    rows.push(vec![what.to_owned(), show(time)]);
    time
}
