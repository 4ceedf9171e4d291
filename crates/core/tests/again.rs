//! What is asked again after a failure, when, and for how long.

mod support;

use std::{
    sync::{self, Arc},
    time::Duration,
};

use distlock_core::{BackendError, Client, Error, Linear, Mutex, RetryStrategy as _};
use support::{Bent, away};
use tokio::time::{self, Instant};

const MS: Duration = Duration::from_millis(1);

/// When it was asked for, in ms from the first one on.
fn offsets(calls: &sync::Mutex<Vec<Instant>>) -> Vec<u128> {
    let calls = calls.lock().unwrap();
    calls.iter().map(|call| (*call - calls[0]).as_millis()).collect()
}

/// A store that fails so often to release, and the moments at which it was asked.
fn failing(times: usize, error: fn() -> BackendError) -> (Bent, Arc<sync::Mutex<Vec<Instant>>>) {
    let calls = Arc::new(sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    let store = Bent::new().release(move |store, claim, nth| {
        seen.lock().unwrap().push(Instant::now());
        async move {
            if nth < times {
                Err(error())
            } else {
                distlock_core::Backend::release(&store, &claim).await
            }
        }
    });
    (store, calls)
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_could_not_be_given_back_is_given_back_in_longer_and_longer_steps() {
    let (store, calls) = failing(9, away);
    let client = Client::new(store);
    drop(client.mutex("k").ttl(10_000 * MS).lock().await.unwrap());
    time::sleep(20_000 * MS).await;
    assert_eq!(offsets(&calls), [0, 0, 16, 48, 112, 240, 496, 1008, 1520, 2032]);
    assert!(client.inspect("k").await.unwrap().holders.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_place_that_could_not_be_given_back_is_given_back_again() {
    let (store, calls) = failing(3, away);
    let _held = Client::new(store.store.clone()).mutex("k").lock().await.unwrap();
    let client = Client::new(store);
    client.mutex("k").lock_timeout(1000 * MS).await.unwrap_err();
    time::sleep(20_000 * MS).await;
    assert_eq!(offsets(&calls), [0, 16, 48, 112]);
    assert_eq!(client.inspect("k").await.unwrap().waiting, Some(0));
}

#[tokio::test(start_paused = true)]
async fn nobody_gives_back_what_has_ended() {
    let (store, calls) = failing(usize::MAX, away);
    let client = Client::new(store);
    drop(client.mutex("k").ttl(600 * MS).lock().await.unwrap());
    time::sleep(20_000 * MS).await;
    // The next one would come at 1008.
    assert_eq!(offsets(&calls), [0, 0, 16, 48, 112, 240, 496]);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_good_is_not_asked_again() {
    let (store, calls) = failing(usize::MAX, || BackendError::permanent("bent", "never"));
    let client = Client::new(store);
    drop(client.mutex("k").lock().await.unwrap());
    time::sleep(20_000 * MS).await;
    assert_eq!(offsets(&calls), [0]);
}

/// A store that fails to change a ttl so often.
fn stubborn(times: usize, error: fn() -> BackendError) -> Bent {
    Bent::new().renew(move |store, renewals, nth| async move {
        if nth < times {
            return renewals.iter().map(|_| Err(error())).collect();
        }
        distlock_core::Backend::renew(&store, &renewals).await
    })
}

#[tokio::test(start_paused = true)]
async fn an_extension_is_asked_for_again_as_the_strategy_says() {
    let extend = |store: Bent, limit| async move {
        let mutex = Client::new(store.clone()).mutex("k").no_renewal().ttl(10_000 * MS);
        let guard = mutex.retry(Linear::new(10 * MS).limit(limit)).lock().await.unwrap();
        (guard.extend(20_000 * MS).await, store.calls()[1])
    };
    let (extended, calls) = extend(stubborn(3, away), 3).await;
    assert!(extended.is_ok() && calls == 4, "{extended:?} {calls}");
    let (extended, calls) = extend(stubborn(3, away), 2).await;
    assert!(matches!(extended, Err(Error::Backend(_))) && calls == 3, "{extended:?} {calls}");
    let never = || BackendError::permanent("bent", "never");
    let (extended, calls) = extend(stubborn(3, never), 3).await;
    assert!(matches!(extended, Err(Error::Backend(_))) && calls == 1, "{extended:?} {calls}");
}

#[tokio::test(start_paused = true)]
async fn an_extension_is_not_asked_for_without_a_pause() {
    // A store that is away until it was asked far too often.
    let store = Bent::new().renew(|store, renewals, nth| async move {
        if nth < 20_000 {
            return renewals.iter().map(|_| Err(away())).collect();
        }
        distlock_core::Backend::renew(&store, &renewals).await
    });
    let mutex = Client::new(store.clone()).mutex("k").no_renewal().ttl(1000 * MS);
    let guard = mutex.retry(Linear::new(Duration::ZERO)).lock().await.unwrap();
    let extended = guard.extend(2000 * MS).await;
    let calls = store.calls()[1];
    assert!(matches!(extended, Err(Error::Lost { .. })), "{extended:?} after {calls} calls");
    assert!(calls <= 1000, "{calls} calls in a second");
}

#[tokio::test(start_paused = true)]
async fn what_may_not_have_been_written_is_not_handed_on() {
    let refuses = stubborn(1, away);
    let hangs = Bent::new().renew(|_, _, _| support::never());
    for (store, hangs) in [(refuses, false), (hangs, true)] {
        let client = Client::new(store.clone());
        let held = client.mutex("k").metadata("old").lock().await.unwrap();
        let mutex = client.mutex("k").metadata("new");
        let waits = |mutex: Mutex| tokio::spawn(async move { mutex.lock().await });
        let first = waits(mutex.clone());
        time::sleep(MS).await;
        let second = waits(mutex);
        time::sleep(MS).await;
        // The first one is handed the lock and has it written anew, in vain; the second one wants it as that would have been.
        held.release().await.unwrap();
        time::sleep(MS).await;
        if hangs {
            first.abort();
        }
        let guard = second.await.unwrap().unwrap();
        let holders = client.inspect("k").await.unwrap().holders;
        assert_eq!(holders[0].metadata, "new", "{hangs}");
        assert_eq!(store.calls(), [2, 1, 1], "{hangs}");
        drop(guard);
        // It has stood in line again, behind the second one.
        assert_eq!(first.await.is_ok(), !hangs);
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_failed_is_made_again_soon_and_until_the_lock_has_ended() {
    // After a 24th of the ttl, and neither after less than 10 ms nor after more than 2 s.
    for (ttl, step, times) in [(100, 10, 5), (12_000, 500, 12), (600_000, 2000, 147)] {
        let calls = Arc::new(sync::Mutex::new(Vec::new()));
        let seen = Arc::clone(&calls);
        let client = Client::new(Bent::new().renew(move |_, renewals, _| {
            seen.lock().unwrap().push(Instant::now());
            async move { renewals.iter().map(|_| Err(away())).collect() }
        }));
        let ttl = ttl * MS;
        let started = Instant::now();
        let guard = client.mutex("k").ttl(ttl).renew_at(0.5).lock().await.unwrap();
        guard.lost().await;
        assert!(offsets(&calls).into_iter().eq((0..times).map(|nth| nth * step)), "{ttl:?}");
        assert_eq!(calls.lock().unwrap()[0] - started, ttl / 2);
    }
}
