//! Answers that come late, and in another order than they were asked for: nothing is held that the store may have given away, and nothing
//! is lost that it still has.

mod support;

use std::time::Duration;

use distlock_core::{
    Backend as _, Client, Error, FencingToken, Guard, Lease, LossReason, Owner, Standing,
};
use distlock_memory::MemoryBackend;
use futures_util::FutureExt as _;
use support::{Bent, away};
use tokio::time::{self, Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

async fn lock(client: &Client) -> Guard {
    time::timeout(60 * SECOND, client.mutex("k").ttl(30 * SECOND).lock())
        .await
        .expect("waits for ever")
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_answer_for_the_place_that_is_overtaken_by_the_grant_takes_nothing_away() {
    // The store answers the check of a place at once, but the answer takes 2 s.
    let bent = Bent::new().renew(|store, renewals, _| async move {
        let answers = store.renew(&renewals).await;
        sleep(2 * SECOND).await;
        answers
    });
    let holder = Client::new(bent.store.clone());
    let waiter = Client::new(bent.clone());
    let held = lock(&holder).await;
    let waiting = tokio::spawn(async move { (lock(&waiter).await, waiter) });
    while bent.calls()[1] == 0 {
        sleep(SECOND / 10).await;
    }
    // The check is under way: now the grant overtakes its answer.
    held.release().await.unwrap();
    let (guard, _waiter) = waiting.await.unwrap();
    sleep(3 * SECOND).await;
    assert!(guard.is_held(), "the answer was about the place that it had before");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_under_way_when_an_extension_fails_counts_no_more_than_the_store_has() {
    // The extension fails at once; the renewal that was sent after it is carried out a second later.
    let bent = Bent::new().renew(|store, renewals, nth| async move {
        if renewals[0].changed && nth == 0 {
            sleep(SECOND).await;
            return vec![Err(away())];
        }
        sleep(2 * SECOND).await;
        store.renew(&renewals).await
    });
    let client = Client::new(bent.clone());
    let guard = lock(&client).await;
    sleep(10 * SECOND - SECOND / 2).await;
    guard.extend(300 * SECOND).await.unwrap_err();
    assert_eq!(bent.calls()[1], 2, "the keeper renewed while the extension was under way");
    sleep(3 * SECOND).await;
    let store = bent.store.inspect(guard.key()).await.unwrap().holders[0].expires_in.unwrap();
    assert!(guard.remaining() <= store, "{:?} of {store:?}", guard.remaining());
}

#[tokio::test(start_paused = true)]
async fn a_shorter_ttl_counts_from_when_it_is_asked_for() {
    // The store has it at once, and says nothing.
    let bent = Bent::new().renew(|store, renewals, nth| async move {
        let answers = store.renew(&renewals).await;
        if nth == 0 { support::never().await } else { answers }
    });
    let guard = lock(&Client::new(bent.clone())).await;
    let mut extension = Box::pin(guard.extend(3 * SECOND));
    assert!(extension.as_mut().now_or_never().is_none());
    assert!(guard.remaining() < 3 * SECOND);
    assert!(extension.await.unwrap_err().is_transient());
    sleep(20 * SECOND).await;
    assert!(guard.is_held(), "it is renewed in time all the same");
    let store = bent.store.inspect(guard.key()).await.unwrap().holders[0].expires_in.unwrap();
    assert!(guard.remaining() <= store, "{:?} of {store:?}", guard.remaining());
}

#[tokio::test(start_paused = true)]
async fn an_extension_that_nobody_waits_for_any_more_is_carried_out() {
    let bent = Bent::new().renew(|store, renewals, _| async move {
        sleep(2 * SECOND).await;
        store.renew(&renewals).await
    });
    let client = Client::new(bent.clone());
    let guard = lock(&client).await;
    time::timeout(SECOND, guard.extend(300 * SECOND)).await.unwrap_err();
    sleep(2 * SECOND).await;
    let store = bent.store.inspect(guard.key()).await.unwrap().holders[0].expires_in.unwrap();
    assert!(store > 200 * SECOND, "a request on its way is never dropped: {store:?}");
    assert!(guard.remaining() < 30 * SECOND, "nobody heard of it");
}

#[tokio::test(start_paused = true)]
async fn an_extension_without_an_answer_takes_nothing_away_from_a_lock_that_is_renewed() {
    let bent = Bent::new().renew(|store, renewals, nth| async move {
        if nth == 0 {
            return support::never().await;
        }
        store.renew(&renewals).await
    });
    let client = Client::new(bent);
    let guard = lock(&client).await;
    let started = Instant::now();
    let error = guard.extend(60 * SECOND).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(started.elapsed() <= 30 * SECOND);
    assert!(guard.is_held(), "renewals were confirmed meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_could_not_be_shortened_is_renewed_in_time() {
    let bent = Bent::new().renew(|store, renewals, nth| async move {
        if nth == 0 {
            return vec![Err(away())];
        }
        store.renew(&renewals).await
    });
    let client = Client::new(bent);
    let guard = lock(&client).await;
    guard.extend(3 * SECOND).await.unwrap_err();
    sleep(30 * SECOND).await;
    assert!(guard.is_held(), "the shorter ttl counts, and is renewed");
    assert!(guard.remaining() < 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_granted_for_less_is_renewed_in_time() {
    let bent = Bent::new().acquire(|store, claim, _| async move {
        let Standing::Held(lease) = store.acquire(&claim).await? else { panic!("it is free") };
        Ok(Standing::Held(lease.with_ttl(6 * SECOND)))
    });
    let client = Client::new(bent);
    let guard = lock(&client).await;
    assert!(guard.remaining() < 6 * SECOND);
    sleep(7 * SECOND).await;
    assert!(guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_lock_with_an_id_of_ones_own_is_not_handed_on_under_it() {
    let store = MemoryBackend::new();
    let (here, there) = (Client::new(store.clone()), Client::new(store));
    let id = Owner::new(7);
    let first = here.mutex("k").owner(id).lock().await.unwrap();
    let waiting = tokio::spawn(async move { (here.mutex("k").lock().await.unwrap(), here) });
    tokio::task::yield_now().await;
    first.release().await.unwrap();
    let (next, _here) = waiting.await.unwrap();
    // Whoever asks with the id is its holder, and that lock was released.
    let resumed = there.mutex("k").owner(id).try_lock().await.unwrap();
    assert!(resumed.is_none() || !next.is_held(), "two hold it");
}

#[tokio::test(start_paused = true)]
async fn what_the_store_has_instead_of_the_lock_is_given_back() {
    let others = [
        Standing::Held(Lease::new(FencingToken::new(u64::MAX))),
        Standing::Queued { recheck: SECOND },
    ];
    for other in others {
        let bent = Bent::new().renew(move |_, renewals, _| async move {
            renewals.iter().map(|_| Ok(other)).collect()
        });
        let client = Client::new(bent.clone());
        for extended in [true, false] {
            let guard = lock(&client).await;
            if extended {
                guard.extend(SECOND).await.unwrap_err();
            }
            sleep(15 * SECOND).await;
            assert!(!guard.is_held());
            assert!(bent.store.is_empty(), "{other:?}");
        }
    }
}

/// A store whose first attempt gets a place, but the answer is lost. All others take 2 s on their way to it.
fn forgetful() -> Bent {
    Bent::new().acquire(|store, claim, nth| async move {
        if nth == 0 {
            let _ = store.acquire(&claim).await;
            return Err(away());
        }
        sleep(2 * SECOND).await;
        store.acquire(&claim).await
    })
}

/// Takes the lock by a push, while another attempt is on its way.
async fn lock_by_push(bent: &Bent, client: &Client, owner: Option<Owner>) -> Guard {
    let held = lock(&Client::new(bent.store.clone())).await;
    let mutex = client.mutex("k").retry(|| [SECOND / 10; 100]);
    let mutex = owner.map_or(mutex.clone(), |owner| mutex.owner(owner));
    let waiting = tokio::spawn(async move { mutex.lock().await.unwrap() });
    sleep(SECOND).await;
    assert_eq!(bent.calls()[0], 2);
    held.release().await.unwrap();
    waiting.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_carried_out_after_the_release_leaves_nothing() {
    // The release after that fails too, and is tried again.
    let bent = forgetful().release(|store, claim, nth| async move {
        if nth == 1 { Err(away()) } else { store.release(&claim).await }
    });
    let client = Client::new(bent.clone());
    lock_by_push(&bent, &client, None).await.release().await.unwrap();
    assert!(bent.store.is_empty());
    sleep(5 * SECOND).await;
    assert!(bent.store.is_empty(), "nobody has the lock, and it is taken");
    assert_eq!(bent.calls()[2], 3);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_carried_out_late_takes_nothing_from_who_holds_the_lock_by_then() {
    let bent = forgetful();
    let client = Client::new(bent.clone());
    let guard = lock_by_push(&bent, &client, None).await;
    sleep(5 * SECOND).await;
    assert_eq!(bent.calls()[2], 0);
    assert!(guard.is_held() && !bent.store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_carried_out_late_takes_nothing_from_who_uses_the_same_id_again() {
    let bent = forgetful();
    let client = Client::new(bent.clone());
    let owner = Owner::random().unwrap();
    lock_by_push(&bent, &client, Some(owner)).await.release().await.unwrap();
    let again = Client::new(bent.store.clone()).mutex("k").owner(owner);
    let guard = again.lock().await.unwrap();
    sleep(5 * SECOND).await;
    assert_eq!(bent.calls()[2], 1);
    assert!(guard.is_held() && !bent.store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_attempt_that_was_granted_by_a_push_is_given_back_once() {
    let bent = Bent::new().acquire(|store, claim, _| async move {
        let Ok(Standing::Held(lease)) = store.acquire(&claim).await else { return Err(away()) };
        claim.grant(lease);
        sleep(2 * SECOND).await;
        Ok(Standing::Held(lease))
    });
    let client = Client::new(bent.clone());
    lock(&client).await.release().await.unwrap();
    sleep(5 * SECOND).await;
    assert_eq!(bent.calls(), [1, 0, 1]);
    assert!(bent.store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_renewed_before_its_deadline_however_late_its_renewal_is_wanted() {
    let client = Client::new(MemoryBackend::new());
    // At 0.99 it is certain no more.
    for fraction in [0.99, 0.999] {
        let guard = client.mutex("k").renew_at(fraction).lock().await.unwrap();
        sleep(90 * SECOND).await;
        assert!(guard.is_held());
    }
}

#[tokio::test(start_paused = true)]
async fn one_who_does_not_look_at_what_was_handed_to_him_holds_it_up_for_a_ttl_at_most() {
    let client = Client::new(MemoryBackend::new());
    let mutex = client.mutex("k").ttl(30 * SECOND);
    let guard = mutex.lock().await.unwrap();
    let mut idle = Box::pin(mutex.lock());
    assert!(idle.as_mut().now_or_never().is_none());
    let next = mutex.clone();
    let waiting = tokio::spawn(async move { next.lock().await.unwrap() });
    sleep(SECOND).await;
    drop(guard);
    let next = time::timeout(31 * SECOND, waiting).await.expect("held up for ever").unwrap();
    assert!(next.is_held());
    drop(next);
    assert!(
        time::timeout(SECOND, idle).await.unwrap().unwrap().is_held(),
        "it stands in line anew"
    );
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_nobody_looks_at_is_given_back_at_its_deadline() {
    let bent = Bent::new();
    let held = lock(&Client::new(bent.store.clone())).await;
    let client = Client::new(bent.clone());
    let mutex = client.mutex("k").ttl(10 * SECOND);
    let mut idle = Box::pin(mutex.lock());
    assert!(idle.as_mut().now_or_never().is_none());
    held.release().await.unwrap();
    sleep(10 * SECOND - SECOND / 10 - SECOND / 1000).await;
    assert!(!bent.store.is_empty(), "it has it, should it look");
    assert_eq!(bent.calls()[2], 0);
    sleep(SECOND / 500).await;
    assert!(bent.store.is_empty());
    assert_eq!(bent.calls()[2], 1);
    assert!(idle.await.unwrap().is_held(), "it asks anew");
}

#[tokio::test(start_paused = true)]
async fn a_push_and_an_answer_that_name_different_grants_are_no_grant() {
    let bent = Bent::new().acquire(|_, claim, _| async move {
        assert!(claim.grant(Lease::new(FencingToken::new(8))));
        Ok(Standing::Held(Lease::new(FencingToken::new(7))))
    });
    let error = Client::new(bent.clone()).mutex("k").lock().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    sleep(SECOND).await;
    assert_eq!(bent.calls(), [1, 0, 1], "it is given back");
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_over_is_not_extended_before_anybody_has_seen_that() {
    let bent = Bent::new();
    let guard = lock(&Client::new(bent.clone())).await;
    // To the very moment, and nothing else runs meanwhile.
    assert!(time::advance(guard.remaining()).now_or_never().is_none());
    let error = guard.extend(SECOND).await.unwrap_err();
    assert!(matches!(error, Error::Lost { reason: LossReason::Expired, .. }), "{error}");
    assert_eq!(bent.calls()[1], 0, "the store was not asked");
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_handed_on_gets_the_ttl_of_who_takes_it() {
    for (ttl, renewals) in [(30 * SECOND, 0), (90 * SECOND, 1), (5 * SECOND, 1)] {
        let bent = Bent::new();
        let client = Client::new(bent.clone());
        let guard = lock(&client).await;
        let mutex = client.mutex("k").ttl(ttl);
        let waiting = tokio::spawn(async move { mutex.lock().await.unwrap() });
        sleep(SECOND).await;
        guard.release().await.unwrap();
        let next = waiting.await.unwrap();
        assert_eq!(bent.calls(), [1, renewals, 0], "it is asked for a change, if there is one");
        let since = if renewals == 0 { SECOND } else { Duration::ZERO };
        assert_eq!(next.remaining(), ttl - ttl / 100 - since);
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_extensions_the_one_that_was_asked_for_last_counts() {
    let bent = Bent::new().renew(|store, renewals, nth| async move {
        let answers = store.renew(&renewals).await;
        if nth == 0 {
            sleep(2 * SECOND).await;
        }
        answers
    });
    let guard = lock(&Client::new(bent)).await;
    let mut first = Box::pin(guard.extend(300 * SECOND));
    assert!(first.as_mut().now_or_never().is_none());
    let asked = Instant::now();
    let certain = 60 * SECOND - 60 * SECOND / 100;
    guard.extend(60 * SECOND).await.unwrap();
    assert_eq!(guard.expires_at(), asked + certain);
    first.await.unwrap();
    assert_eq!(guard.expires_at(), asked + certain, "the answer to the first one is old");
}

#[tokio::test(start_paused = true)]
async fn an_extension_that_is_answered_after_the_end_says_why_it_ended() {
    let client = Client::new(Bent::new().renew(|store, renewals, _| async move {
        sleep(5 * SECOND).await;
        store.renew(&renewals).await
    }));
    let guard = client.mutex("k").max_hold(3 * SECOND).lock().await.unwrap();
    let error = guard.extend(60 * SECOND).await.unwrap_err();
    assert!(matches!(error, Error::Lost { reason: LossReason::MaxHold, .. }), "{error}");
}
