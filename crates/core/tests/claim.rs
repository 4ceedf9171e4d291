//! What a claim tells its store, and what a store can tell a claim.

mod support;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use distlock_core::{
    Backend as _, Claim, Client, FencingToken, Key, Lease, Linear, LossReason, Mode, NoRetry,
    Owner, Standing,
};
use support::Bent;
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

fn claim() -> Claim {
    Claim::new(Key::new("k").unwrap(), Owner::new(1), Mode::Exclusive, SECOND)
}

fn lease(token: u64) -> Lease {
    Lease::new(FencingToken::new(token))
}

/// Notes of what a store was told.
type Notes<T> = Arc<Mutex<Vec<T>>>;

fn taken<T>(notes: &Notes<T>) -> Vec<T> {
    std::mem::take(&mut notes.lock().unwrap())
}

/// A store in which somebody else has the lock, and the claim of one who waits for it there.
async fn waiting(bent: Bent) -> (distlock_core::Guard, Claim) {
    let claims = Notes::default();
    let seen = Arc::clone(&claims);
    let bent = bent.acquire(move |store, claim, _| {
        seen.lock().unwrap().push(claim.clone());
        async move { store.acquire(&claim).await }
    });
    let held = Client::new(bent.store.clone()).mutex("k").lock().await.unwrap();
    let client = Client::new(bent);
    tokio::spawn(async move { client.mutex("k").lock().await.map(drop) });
    sleep(SECOND / 1000).await;
    let claim = taken(&claims).pop().unwrap();
    (held, claim)
}

#[test]
fn a_copy_that_does_not_queue_asks_for_the_same() {
    let original = claim().with_metadata("words").with_block(7).with_rest(SECOND).with_renewal();
    let copy = original.without_queue();
    assert!(original.may_queue() && !copy.may_queue());
    for claim in [original, copy] {
        assert_eq!((claim.key().as_str(), claim.owner()), ("k", Owner::new(1)));
        assert_eq!((claim.mode(), claim.ttl()), (Mode::Exclusive, SECOND));
        assert_eq!((&*claim.metadata(), claim.block()), ("words", 7));
        assert_eq!((claim.rest(), claim.renews()), (SECOND, true));
    }
}

#[test]
fn a_claim_promises_nothing_that_was_not_said() {
    let claim = claim();
    assert_eq!((&*claim.metadata(), claim.block(), claim.rest()), ("", 1, Duration::ZERO));
    assert!(claim.may_queue() && !claim.renews() && !claim.has_new_owner());
    assert!(claim.with_new_owner().has_new_owner());
}

#[test]
fn a_claim_shows_itself_without_its_words_and_all_of_its_id() {
    let shown = format!("{:?}", claim().with_metadata("words"));
    assert!(shown.contains("\"k\"") && shown.contains("Exclusive") && shown.contains("1s"));
    assert!(shown.contains(&format!("{:?}", Owner::new(1))) && !shown.contains("words"), "{shown}");
}

#[tokio::test]
async fn a_store_is_told_whether_a_lock_is_to_be_renewed_and_may_queue() {
    let asked = Notes::default();
    let seen = Arc::clone(&asked);
    let client = Client::new(Bent::new().acquire(move |store, claim, _| {
        seen.lock().unwrap().push((claim.renews(), claim.may_queue()));
        async move { store.acquire(&claim).await }
    }));
    drop(client.mutex("a").lock().await.unwrap());
    drop(client.mutex("b").no_renewal().lock().await.unwrap());
    drop(client.mutex("c").try_lock().await.unwrap());
    drop(client.mutex("d").lock_timeout(Duration::ZERO).await.unwrap());
    drop(client.mutex("e").lock_timeout(SECOND).await.unwrap());
    drop(client.mutex("f").retry(NoRetry).lock_timeout(SECOND).await.unwrap());
    drop(client.mutex("g").retry(Linear::new(SECOND)).lock().await.unwrap());
    let (queues, only_asks) = ((true, true), (true, false));
    let told = [queues, (false, true), only_asks, only_asks, queues, only_asks, queues];
    assert_eq!(taken(&asked), told);
}

#[tokio::test(start_paused = true)]
async fn a_store_is_told_the_last_token_that_was_used() {
    let told = Notes::default();
    let (seen, given) = (Arc::clone(&told), Arc::clone(&told));
    let bent = Bent::new()
        .renew(move |store, renewals, _| {
            seen.lock().unwrap().push(renewals[0].claim.last_token());
            async move { store.renew(&renewals).await }
        })
        .release(move |store, claim, _| {
            given.lock().unwrap().push(claim.last_token());
            async move { store.release(&claim).await }
        });
    let client = Client::new(bent.clone());
    let mutex = client.mutex("k").ttl(9 * SECOND);
    let first = mutex.lock().await.unwrap();
    let next = tokio::spawn(async move { mutex.lock().await.unwrap() });
    sleep(4 * SECOND).await;
    assert_eq!(taken(&told), [Some(first.fencing_token())], "by the renewal");
    drop(first);
    let next = next.await.unwrap();
    let token = next.fencing_token();
    sleep(4 * SECOND).await;
    assert_eq!(taken(&told), [Some(token)], "by the renewal for the second one");
    next.release().await.unwrap();
    assert_eq!(taken(&told), [Some(token)], "by the release of what was handed on");
    assert_eq!(bent.calls()[0], 1, "the second one had it from the first one");
}

#[tokio::test(start_paused = true)]
async fn of_what_nobody_took_no_token_was_used() {
    let told = Notes::default();
    let given = Arc::clone(&told);
    let bent = Bent::new().release(move |store, claim, _| {
        given.lock().unwrap().push(claim.last_token());
        async move { store.release(&claim).await }
    });
    let _held = Client::new(bent.store.clone()).mutex("k").lock().await.unwrap();
    let client = Client::new(bent);
    client.mutex("k").lock_timeout(SECOND).await.unwrap_err();
    sleep(SECOND).await;
    assert_eq!(taken(&told), [None]);
    let claim = claim();
    assert!(claim.last_token().is_none() && claim.grant(lease(7)));
    assert!(claim.last_token().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_grant_can_be_told_again_and_another_one_cannot() {
    let claim = claim();
    assert!(claim.grant(lease(7)) && claim.grant(lease(7)), "nobody took it yet");
    assert!(!claim.grant(lease(8)), "another grant is nobody's");
    assert_eq!(claim.granted().await.unwrap().token(), FencingToken::new(7));
    claim.end(LossReason::Gone);
    assert!(!claim.grant(lease(7)), "it is over");
    assert_eq!(claim.granted().await.unwrap_err(), LossReason::Gone);
}

#[tokio::test(start_paused = true)]
async fn a_grant_can_be_told_again_to_who_has_it_and_another_one_cannot() {
    let claims = Notes::default();
    let seen = Arc::clone(&claims);
    let client = Client::new(Bent::new().acquire(move |store, claim, _| {
        seen.lock().unwrap().push(claim.clone());
        async move { store.acquire(&claim).await }
    }));
    let guard = client.mutex("k").lock().await.unwrap();
    let claim = taken(&claims).pop().unwrap();
    let token = guard.fencing_token().as_u64();
    assert!(claim.grant(lease(token)) && !claim.grant(lease(token + 1)));
    assert!(guard.is_held());
    drop(guard);
    assert!(!claim.grant(lease(token)));
}

#[tokio::test(start_paused = true)]
async fn a_pushed_grant_counts_from_its_push_or_from_before_it() {
    sleep(60 * SECOND).await;
    let certain = 30 * SECOND - 30 * SECOND / 100;
    for (after, before, left) in [(0, 0, certain), (5, 0, certain), (0, 5, certain - 5 * SECOND)] {
        let client = Client::new(Bent::new().acquire(move |_, claim, _| async move {
            let since = Instant::now() + after * SECOND - before * SECOND;
            claim.grant(lease(7).with_since(since));
            Ok(Standing::Queued { recheck: SECOND })
        }));
        assert_eq!(client.mutex("k").lock().await.unwrap().remaining(), left);
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_is_looked_at_at_once_when_the_store_asks_for_it() {
    let bent = Bent::new();
    let (_held, claim) = waiting(bent.clone()).await;
    let before = bent.calls()[1];
    claim.recheck();
    sleep(SECOND / 1000).await;
    assert_eq!(bent.calls()[1], before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_place_is_looked_at_once_more_when_the_store_asks_for_it_during_a_look() {
    let bent = Bent::new().renew(|store, renewals, _| async move {
        let answers = store.renew(&renewals).await;
        sleep(SECOND).await;
        let later = Standing::Queued { recheck: 10 * SECOND };
        answers.into_iter().map(|answer| answer.map(|_| later)).collect()
    });
    let (_held, claim) = waiting(bent.clone()).await;
    claim.recheck();
    sleep(SECOND / 2).await;
    assert_eq!(bent.calls()[1], 1);
    claim.recheck();
    claim.recheck();
    sleep(SECOND / 4).await;
    assert_eq!(bent.calls()[1], 1, "one look at a time");
    sleep(5 * SECOND).await;
    assert_eq!(bent.calls()[1], 2, "and one more");
    sleep(60 * SECOND).await;
    assert_eq!(bent.calls()[0], 1, "it still has its place");
}

#[tokio::test(start_paused = true)]
async fn nothing_comes_of_a_look_that_is_asked_for_when_all_is_over() {
    let bent = Bent::new();
    let (held, claim) = waiting(bent.clone()).await;
    held.release().await.unwrap();
    sleep(SECOND).await;
    let before = bent.calls();
    claim.recheck();
    claim.contend();
    sleep(3600 * SECOND).await;
    assert_eq!(bent.calls(), before);
    assert_eq!(claim.granted().await.unwrap_err(), LossReason::Released);
}
