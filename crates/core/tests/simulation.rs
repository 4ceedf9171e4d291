//! The gate of a simulated process stops the keeper too.

#![cfg(feature = "_simulation")]

mod support;

use std::time::Duration;

use distlock_core::{
    AnyBackend, Client, Error, Mode,
    simulation::{Gate, in_mode},
};
use distlock_memory::MemoryBackend;
use support::Bent;
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
    let mut late = tokio::spawn(gate.hold(async { 7 }));
    assert!(time::timeout(TTL, &mut late).await.is_err());
    gate.open();
    assert_eq!(late.await.unwrap(), 7, "what would have run by now does");
    let mut lost = std::pin::pin!(guard.lost());
    assert!(time::timeout(TTL, &mut lost).await.is_ok());
}

#[tokio::test]
async fn a_store_is_not_asked_for_a_mode_that_it_does_not_have() {
    let permits = Mode::Permits { want: 1, of: 2 };
    for (shared, permitted) in [(false, true), (true, false)] {
        let mut store = Bent::new();
        (store.capabilities.shared, store.capabilities.permits) = (shared, permitted);
        let client = Client::builder(store.clone()).cohort_limit(0).build().unwrap();
        let all = [(Mode::Exclusive, true), (Mode::Shared, shared), (permits, permitted)];
        for (mode, able) in all {
            let mutex = in_mode(client.mutex(format!("{mode:?}")), mode);
            let before = store.calls()[0];
            match mutex.lock().await {
                Ok(_) => assert!(able, "{mode:?}"),
                Err(error) => {
                    assert!(matches!(error, Error::Invalid { what: "mode", .. }), "{error}");
                    assert_eq!((able, store.calls()[0]), (false, before));
                }
            }
        }
    }
}
