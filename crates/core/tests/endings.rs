//! The end of a hold: who is told of it, what he is told, and when the next one may ask.

mod support;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use distlock_core::{Backend as _, Claim, Client, Error, Event, Key, LossReason};
use support::{Bent, away};
use tokio::time::{self, Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

/// What a client is told, in short.
type Heard = Arc<Mutex<Vec<String>>>;

fn told(store: Bent) -> (Client, Heard) {
    let heard = Heard::default();
    let notes = Arc::clone(&heard);
    let observer = move |key: &Key, event: &Event| {
        let event = match event {
            Event::Acquired { waited, .. } => format!("acquired after {waited:?}"),
            Event::Contended => "contended".into(),
            Event::Lost { held, late, reason } => format!("lost {reason:?} {held:?} {late:?}"),
            Event::MaxHoldReached { held } => format!("max hold {held:?}"),
            Event::Released { held } => format!("released after {held:?}"),
            Event::RenewalFailed { error } => format!("failed: {error}"),
            Event::Renewed { late } => format!("renewed {late:?}"),
            other => format!("{other:?}"),
        };
        notes.lock().unwrap().push(format!("{key} {event}"));
    };
    (Client::builder(store).observer(observer).build().unwrap(), heard)
}

fn heard(heard: &Heard) -> Vec<String> {
    std::mem::take(&mut heard.lock().unwrap())
}

/// A store, and the last claim that it was asked for.
fn watched() -> (Bent, Arc<Mutex<Option<Claim>>>) {
    let last = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&last);
    let bent = Bent::new().acquire(move |store, claim, _| {
        *seen.lock().unwrap() = Some(claim.clone());
        async move { store.acquire(&claim).await }
    });
    (bent, last)
}

/// Else it would find the lock taken, and stand in line behind its own process.
#[tokio::test(start_paused = true)]
async fn the_next_one_asks_when_the_store_has_answered_the_release() {
    let bent = Bent::new().release(|store, claim, _| async move {
        sleep(SECOND).await;
        store.release(&claim).await
    });
    let client = Client::new(bent.clone());
    let mutex = client.mutex("k").no_renewal();
    let guard = mutex.lock().await.unwrap();
    let next = mutex.clone();
    let next = tokio::spawn(async move { next.lock().await.map(drop) });
    sleep(SECOND).await;
    let began = Instant::now();
    let released = tokio::spawn(guard.release());
    sleep(SECOND / 2).await;
    assert_eq!(bent.calls(), [1, 0, 1], "the release is under way");
    next.await.unwrap().unwrap();
    assert_eq!(began.elapsed(), SECOND);
    assert_eq!(bent.calls()[0], 2);
    released.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_the_store_takes_away_is_lost_at_once_and_all_hear_of_it() {
    let (bent, claim) = watched();
    let (client, notes) = told(bent.clone());
    let guard = client.mutex("k").lock().await.unwrap();
    let token = guard.lost_token();
    let next = client.mutex("k");
    let next = tokio::spawn(async move { next.lock().await.map(drop) });
    sleep(SECOND).await;
    assert_eq!(bent.calls()[0], 1, "the next one waits in this process");
    let claim = claim.lock().unwrap().take().unwrap();
    bent.store.release(&claim).await.unwrap();
    heard(&notes);
    let at = Instant::now();
    claim.end(LossReason::Gone);
    assert_eq!(guard.lost().await, LossReason::Gone);
    assert!(token.is_cancelled());
    next.await.unwrap().unwrap();
    assert_eq!(Instant::now(), at);
    assert!(heard(&notes).contains(&"k lost Gone 1s 0ns".into()));
}

#[tokio::test(start_paused = true)]
async fn who_loses_its_place_asks_anew_at_once() {
    let (bent, claim) = watched();
    let _held = Client::new(bent.store.clone()).mutex("k").lock().await.unwrap();
    let (client, notes) = told(bent.clone());
    let _waiting = tokio::spawn(async move { client.mutex("k").lock().await.map(drop) });
    sleep(SECOND).await;
    let claim = claim.lock().unwrap().take().unwrap();
    claim.end(LossReason::Gone);
    sleep(SECOND / 1000).await;
    assert_eq!(bent.calls()[0], 2);
    assert_eq!(heard(&notes), ["k contended"], "what nobody had is not lost");
}

/// A store that takes 2 s to give something back.
fn slow() -> Bent {
    Bent::new().release(|store, claim, _| async move {
        sleep(2 * SECOND).await;
        store.release(&claim).await
    })
}

#[tokio::test(start_paused = true)]
async fn the_next_one_asks_as_soon_as_a_lock_has_ended_by_itself() {
    let bent = slow();
    let client = Client::new(bent.clone());
    let mutex = client.mutex("k").ttl(10 * SECOND).no_renewal();
    let guard = mutex.lock().await.unwrap();
    let next = tokio::spawn(async move { mutex.lock().await.map(drop) });
    assert_eq!(guard.lost().await, LossReason::Expired);
    sleep(SECOND / 1000).await;
    assert_eq!(bent.calls()[0], 2, "what the store still has of it ends by itself");
    next.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_next_one_asks_when_the_store_was_told_that_a_lock_is_over_before_its_time() {
    let bent = slow();
    let client = Client::new(bent.clone());
    let guard = client.mutex("k").max_hold(3 * SECOND).lock().await.unwrap();
    let mutex = client.mutex("k");
    let next = tokio::spawn(async move { mutex.lock().await.map(drop) });
    assert_eq!(guard.lost().await, LossReason::MaxHold);
    sleep(SECOND).await;
    assert_eq!(bent.calls(), [1, 0, 1], "it would only stand in line behind its own process");
    time::timeout(SECOND + SECOND / 1000, next).await.unwrap().unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_observer_is_told_the_whole_life_of_a_lock() {
    let (client, notes) = told(Bent::new().renew(|store, renewals, nth| async move {
        if nth == 1 {
            return vec![Err(away())];
        }
        store.renew(&renewals).await
    }));
    let mutex = client.mutex("k").ttl(9 * SECOND);
    let guard = mutex.lock().await.unwrap();
    assert_eq!(heard(&notes), ["k acquired after 0ns"]);
    sleep(4 * SECOND).await;
    assert_eq!(heard(&notes), ["k renewed 0ns"]);
    sleep(3 * SECOND).await;
    assert_eq!(heard(&notes), ["k failed: bent: is away", "k renewed 0ns"]);
    let next = tokio::spawn(async move { mutex.max_hold(SECOND).lock().await.unwrap() });
    sleep(SECOND).await;
    assert_eq!(heard(&notes), ["k contended"]);
    guard.release().await.unwrap();
    let next = next.await.unwrap();
    assert_eq!(heard(&notes), ["k released after 8s", "k acquired after 1s"]);
    assert_eq!(next.lost().await, LossReason::MaxHold);
    assert_eq!(heard(&notes), ["k max hold 1s", "k lost MaxHold 1s 0ns"]);
    let error = next.extend(SECOND).await.unwrap_err();
    assert!(matches!(error, Error::Lost { reason: LossReason::MaxHold, .. }), "{error}");
    drop(client.mutex("k").lock().await.unwrap());
    assert_eq!(heard(&notes), ["k acquired after 0ns", "k released after 0ns"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_answers_less_than_it_was_asked_is_named_and_loses_nothing() {
    let (client, notes) = told(Bent::new().renew(|store, renewals, nth| async move {
        let answers = store.renew(&renewals).await;
        answers.into_iter().skip(usize::from(nth == 0)).collect()
    }));
    let guard = client.mutex("k").ttl(9 * SECOND).lock().await.unwrap();
    sleep(20 * SECOND).await;
    assert!(guard.is_held());
    let failure = "k failed: bent: gave fewer answers than there were renewals";
    assert!(heard(&notes).contains(&failure.into()));
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_renewed_at_once_when_the_store_asks_for_it() {
    let (bent, claim) = watched();
    let client = Client::new(bent.clone());
    let guard = client.mutex("k").ttl(30 * SECOND).lock().await.unwrap();
    sleep(SECOND).await;
    claim.lock().unwrap().take().unwrap().recheck();
    sleep(SECOND / 1000).await;
    assert_eq!(bent.calls()[1], 1);
    assert!(29 * SECOND < guard.remaining());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_comes_late_says_how_late() {
    let (client, notes) = told(Bent::new());
    let _guard = client.mutex("k").ttl(30 * SECOND).lock().await.unwrap();
    sleep(SECOND).await;
    heard(&notes);
    // Nothing runs for so long.
    time::advance(14 * SECOND).await;
    sleep(SECOND / 1000).await;
    assert_eq!(heard(&notes), ["k renewed 5s"]);
}
