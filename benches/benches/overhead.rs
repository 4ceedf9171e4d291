//! What the library costs on top of what it stands on, when nobody contends.
//!
//! In memory: beside the store without the library, and `tokio::sync::Mutex`. On Redis: beside two bare `EVALSHA` of the same commands on the
//! same driver.
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::{future::Future, time::Duration};

use distlock_benches::{each, median, micros, raw, redis_url};
use distlock_core::{Backend as _, Claim, Client, Key, Mode, Owner};
use distlock_memory::MemoryBackend;
use distlock_redis::RedisBackend;

const ROUNDS: usize = 5;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        memory().await;
        // A spawned task calls the driver a good deal faster than the main future does. All on one thread: between two, a round trip is as
        // long as the scheduler likes.
        tokio::spawn(redis()).await.unwrap();
    });
}

async fn redis() {
    const COUNT: u32 = 1_000;
    const ROUNDS: usize = 41;
    let url = redis_url();
    let scripts = raw::Scripts::load(raw::connect(&url).await, "overhead-floor").await;
    let client = Client::new(RedisBackend::connect(&url).await.unwrap());
    let mutex = client.mutex("overhead");
    let (mut floor, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let bare = micros(each(COUNT, || scripts.cycle()).await);
        let lock = each(COUNT, || async {
            mutex.lock().await.unwrap().release().await.unwrap();
        });
        let lock = micros(lock.await);
        floor.push(bare);
        ours.push(lock);
        ratios.push(lock / bare);
    }
    println!("\nRedis, nobody contends, µs per lock and release, medians of {ROUNDS} rounds");
    println!("{:>8.1}  two bare EVALSHA of the same commands", median(floor));
    println!("{:>8.1}  lock, release", median(ours));
    println!("{:>8.2}  ratio", median(ratios));
    client.shutdown().await;
}

async fn memory() {
    const COUNT: u32 = 300_000;
    println!("Memory, nobody contends, ns per lock and release, medians of {ROUNDS} rounds");
    let mutex = tokio::sync::Mutex::new(());
    row("tokio::sync::Mutex", COUNT, || async { drop(mutex.lock().await) }).await;

    let store = MemoryBackend::new();
    row("the store alone", COUNT, || async {
        let claim =
            Claim::new(Key::new("k").unwrap(), Owner::random().unwrap(), Mode::Exclusive, TTL);
        let _ = store.acquire(&claim).await.unwrap();
        store.release(&claim).await.unwrap();
    })
    .await;

    let client = Client::new(MemoryBackend::new());
    let mutex = client.mutex("k");
    row("lock, release", COUNT, || async {
        mutex.lock().await.unwrap().release().await.unwrap();
    })
    .await;
    row("lock, drop", COUNT, || async { drop(mutex.lock().await.unwrap()) }).await;
    row("client.mutex, lock, drop", COUNT, || async {
        drop(client.mutex("k").lock().await.unwrap())
    })
    .await;
    let mut held = Vec::new();
    for number in 0..10_000 {
        held.push(client.mutex(format!("held-{number}")).lock().await.unwrap());
    }
    row("lock, release with 10,000 other locks held", COUNT, || async {
        mutex.lock().await.unwrap().release().await.unwrap();
    })
    .await;
    let guard = mutex.lock().await.unwrap();
    row("guard.is_held", COUNT, || async {
        std::hint::black_box(guard.is_held());
    })
    .await;
    row("try_lock of a lock held in this process", COUNT, || async {
        assert!(mutex.try_lock().await.unwrap().is_none());
    })
    .await;
}

const TTL: Duration = Duration::from_secs(30);

async fn row<F: Future>(what: &str, count: u32, mut call: impl FnMut() -> F) {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(each(count, &mut call).await.as_nanos() as f64);
    }
    println!("{:>8.0}  {what}", median(times));
}
