//! The gate of a simulated process stops the keeper too.

#![cfg(feature = "_simulation")]

use std::time::Duration;

use distlock_core::{AnyBackend, Client, simulation::Gate};
use distlock_memory::MemoryBackend;
use tokio::time;

const TTL: Duration = Duration::from_secs(3);

#[tokio::test(start_paused = true)]
async fn behind_a_shut_gate_nothing_is_renewed() {
    let gate = Gate::new();
    let backend = AnyBackend::new(MemoryBackend::new());
    let client = Client::new(backend.clone());
    let mutex = client.mutex("k").ttl(TTL);
    let guard = tokio::spawn(gate.hold(async move { mutex.lock().await.unwrap() }));
    let guard = guard.await.unwrap();
    time::sleep(TTL * 2).await;
    assert!(guard.is_held(), "the keeper is there");
    gate.shut();
    time::sleep(TTL * 2).await;
    assert!(!guard.is_held());
    assert!(Client::new(backend).mutex("k").try_lock().await.unwrap().is_some());
    gate.open();
    let mut lost = std::pin::pin!(guard.lost());
    assert!(time::timeout(TTL, &mut lost).await.is_ok());
}
