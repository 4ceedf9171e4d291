//! Moments between core and a store that need a script of faults and the paused clock.

use std::time::Duration;

use distlock_conformance::{Fault, Faulty, Op};
use distlock_core::{Backend as _, Client, Linear};
use distlock_memory::MemoryBackend;
use tokio::time;

/// The first answer is lost, the second request is late, and the store ends in the meantime what the first had got, and gives it to somebody
/// else: one attempt asks anew, and ends.
#[tokio::test(start_paused = true)]
async fn an_attempt_whose_claim_is_ended_under_way_asks_anew() {
    let store = MemoryBackend::new();
    let faulty = Faulty::new(store.clone()).timeout(Duration::from_millis(100));
    let (client, other) = (Client::new(faulty.clone()), Client::new(store.clone()));
    faulty.next(Op::Acquire, Fault::LoseReply);
    faulty.next(Op::Acquire, Fault::Delay(Duration::from_secs(3)));
    let mutex = client.mutex("key").ttl(Duration::from_secs(1));
    let mutex = mutex.retry(Linear::new(Duration::from_millis(10)));
    let attempt = tokio::spawn(async move { mutex.try_lock().await });
    time::sleep(Duration::from_millis(50)).await;
    let guard = other.mutex("key").lock().await.unwrap();
    let locked = time::timeout(Duration::from_secs(60), attempt).await.unwrap().unwrap();
    assert!(locked.unwrap().is_none(), "somebody else has it");
    assert_eq!(faulty.dropped(), 0, "a call in flight was dropped");
    guard.release().await.unwrap();
    time::sleep(Duration::from_secs(60)).await;
    assert!(store.is_empty());
}

/// A confirmation that took its time: the lease counts from when the renewal was sent, and no guard outlives it.
#[tokio::test(start_paused = true)]
async fn a_slow_confirmation_counts_from_its_request() {
    let store = MemoryBackend::new();
    let faulty = Faulty::new(store.clone()).timeout(Duration::from_millis(100));
    let client = Client::new(faulty.clone());
    let guard = client.mutex("key").ttl(Duration::from_secs(1)).lock().await.unwrap();
    faulty.next(Op::Renew, Fault::DelayReply(Duration::from_millis(500)));
    time::sleep(Duration::from_millis(900)).await;
    assert!(guard.is_held(), "the renewal was confirmed");
    faulty.always(Op::Renew, Fault::LoseRequest);
    while guard.is_held() {
        let holders = store.inspect(guard.key()).await.unwrap().holders;
        assert_eq!(holders.len(), 1, "a guard says that it is held, the store has nothing");
        time::sleep(Duration::from_millis(1)).await;
    }
    drop(guard);
}
