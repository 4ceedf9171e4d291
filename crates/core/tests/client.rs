//! What a client does beside locks, and what its parts show of themselves.

mod support;

use std::{fmt::Debug, time::Duration};

use distlock_core::{
    AnyBackend, Backend as _, Client, Error, Holder, LossReason, Mode, Occupancy, Owner,
};
use distlock_memory::MemoryBackend;
use support::Bent;
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_lock_is_taken_away_from_whoever_holds_it() {
    let client = Client::new(MemoryBackend::new());
    assert!(!client.force_release("k").await.unwrap(), "nobody held it");
    let guard = client.mutex("k").lock().await.unwrap();
    assert!(client.force_release("k").await.unwrap());
    assert_eq!(guard.lost().await, LossReason::Gone);
    assert!(client.inspect("k").await.unwrap().holders.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_name_stands_behind_the_prefix_of_its_client() {
    let store = MemoryBackend::new();
    let client = Client::builder(store.clone()).prefix("jobs/").build().unwrap();
    let mutex = client.mutex("k");
    assert_eq!(mutex.key(), "jobs/k");
    let _guard = mutex.lock().await.unwrap();
    let plain = Client::new(store);
    assert_eq!(plain.mutex("k").key(), "k");
    for (client, name, holders) in [(&client, "k", 1), (&plain, "jobs/k", 1), (&plain, "k", 0)] {
        assert_eq!(client.inspect(name).await.unwrap().holders.len(), holders, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_prefix_leaves_room_for_a_name() {
    for (length, right) in [(0, true), (1022, true), (1023, true), (1024, false), (1025, false)] {
        let built = Client::builder(MemoryBackend::new()).prefix("x".repeat(length)).build();
        assert_eq!(built.is_ok(), right, "{length}");
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_enough_if_one_of_several_holders_was_still_there() {
    let holder = |id| Holder::new(Mode::Shared).owner(Owner::new(id));
    for (there, released) in [([1, 0], true), ([0, 1], true), ([1, 1], true), ([0, 0], false)] {
        let store = Bent::new()
            .inspect(move |_, _, _| async move { Ok(Occupancy::new(vec![holder(0), holder(1)])) })
            .release(move |_, claim, _| async move {
                assert_eq!(claim.mode(), Mode::Shared);
                Ok(there[claim.owner().as_u128() as usize] == 1)
            });
        let client = Client::new(store.clone());
        assert_eq!(client.force_release("k").await.unwrap(), released, "{there:?}");
        assert_eq!(store.calls()[2], 2, "all are asked for");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_shutdown_nothing_is_asked_of_the_store() {
    let store = Bent::new();
    let client = Client::new(store.clone());
    let mutex = client.mutex("k");
    client.shutdown().await;
    let before = store.calls();
    assert!(matches!(mutex.lock().await, Err(Error::Closed)));
    assert!(matches!(mutex.try_lock().await, Err(Error::Closed)));
    assert!(matches!(mutex.wait_released(SECOND).await, Err(Error::Closed)));
    assert!(matches!(client.inspect("k").await, Err(Error::Closed)));
    assert!(matches!(client.force_release("k").await, Err(Error::Closed)));
    assert_eq!(store.calls(), before);
}

#[tokio::test(start_paused = true)]
async fn a_client_has_and_waits_for_no_more_locks_than_it_may() {
    let store = Bent::new();
    let client = Client::builder(store.clone()).max_locks(2).build().unwrap();
    for _ in 0..3 {
        let held = client.mutex("a").lock().await.unwrap();
        let next = client.mutex("a");
        let next = tokio::spawn(async move { next.lock().await.unwrap() });
        sleep(SECOND).await;
        let before = store.calls()[0];
        for name in ["a", "b"] {
            let error = client.mutex(name).lock_timeout(SECOND).await.unwrap_err();
            assert!(matches!(error, Error::Overloaded { what: "locks", limit: 2 }), "{error}");
            let error = client.mutex(name).try_lock().await.unwrap_err();
            assert!(matches!(error, Error::Overloaded { what: "locks", limit: 2 }), "{error}");
        }
        assert_eq!(store.calls()[0], before);
        // What was handed on counts as one, and who gave up as none.
        held.release().await.unwrap();
        let next = next.await.unwrap();
        client.mutex("a").lock_timeout(SECOND).await.unwrap_err();
        drop(client.mutex("b").lock().await.unwrap());
        next.release().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_has_one_global_client() {
    assert!(Client::global().is_none());
    let store = MemoryBackend::new();
    Client::new(store.clone()).set_global().unwrap();
    let error = Client::new(MemoryBackend::new()).set_global().unwrap_err();
    assert!(matches!(error, Error::Invalid { what: "global client", .. }), "{error}");
    let _guard = Client::global().unwrap().mutex("k").lock().await.unwrap();
    assert!(!store.is_empty(), "it is the first one");
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_waited_for_until_another_process_has_it() {
    let store = MemoryBackend::new();
    let mutex = Client::new(store.clone()).mutex("k");
    mutex.wait_released(SECOND).await.unwrap();
    let held = mutex.lock().await.unwrap();
    let error = mutex.wait_released(SECOND).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    let (next, looking) = (Client::new(store).mutex("k"), mutex.clone());
    let next = tokio::spawn(async move { next.lock().await.unwrap() });
    let looking = tokio::spawn(async move { looking.wait_released(60 * SECOND).await });
    sleep(5 * SECOND).await;
    assert!(!looking.is_finished());
    drop(held);
    let _next = next.await.unwrap();
    sleep(SECOND).await;
    assert!(looking.is_finished(), "somebody else has it");
    looking.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_behind_another_one_is_the_same_store() {
    let store = MemoryBackend::new();
    let (any, direct) = (AnyBackend::new(AnyBackend::new(store.clone())), store);
    assert_eq!((any.name(), any.capabilities().fair), ("memory", true));
    let guard = Client::new(any).mutex("k").ttl(3 * SECOND).lock().await.unwrap();
    let occupancy = direct.inspect(guard.key()).await.unwrap();
    assert_eq!(occupancy.holders[0].owner, Some(guard.owner()));
    sleep(60 * SECOND).await;
    assert!(guard.is_held(), "it is renewed");
    guard.release().await.unwrap();
    assert!(direct.is_empty());
}

#[test]
fn all_parts_show_what_they_are() {
    fn shows(part: &dyn Debug, words: &[&str]) {
        let shown = format!("{part:?}");
        assert!(words.iter().all(|word| shown.contains(word)), "{shown}");
    }

    let store = || MemoryBackend::named("jobs");
    shows(&AnyBackend::new(store()), &["MemoryBackend", "jobs"]);
    shows(&Client::builder(store()), &["ClientBuilder", "jobs"]);
    let client = Client::new(store());
    shows(&client, &["Client", "jobs"]);
    shows(&client.mutex("k").ttl(SECOND), &["Mutex", "\"k\"", "1s"]);
}
