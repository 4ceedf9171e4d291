//! What the library costs on top of what it stands on, when nobody contends.
//!
//! In memory: beside the store without the library, and `tokio::sync::Mutex`. On Redis: beside two bare `EVALSHA` of the same commands on the
//! same driver.
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::{future::Future, time::Duration};

use distlock_benches::{each, median};
use distlock_core::{Backend as _, Claim, Client, Key, Mode, Owner};
use distlock_memory::MemoryBackend;

const ROUNDS: usize = 5;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(memory());
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
