//! PEERS 4: what the test suites of other libraries ask, where no other case does. Doc comments name the sources.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use distlock_core::{
    Backend as _, Claim, Error, ErrorKind, Linear, LossReason, Mode, NoRetry, Released,
    RetryStrategy as _,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    Fault, Op, Stage,
    tools::{LONG, Watch, eventually, is_free, lock, within},
};

const BRIEF: Duration = Duration::from_millis(30);

/// RL07: a deadline that comes before the patience ends says that it was the time.
pub async fn rl07_a_deadline_before_the_end_of_patience(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let guard = lock(&client).await;
    let mutex = other.mutex(Stage::NAME).retry(Linear::new(BRIEF / 6));
    let error = mutex.lock_timeout(BRIEF).await.expect_err("it is taken");
    assert!(matches!(error, Error::Timeout { waited } if BRIEF <= waited), "{error:?}");
    drop(guard);
}

/// RL09, RL10, RL27, RL31, RL32: refreshed again and again, shorter and longer, token and words stay.
pub async fn rl31_two_refreshes_in_a_row(stage: &Stage) {
    let client = stage.client();
    let mutex = client.mutex(Stage::NAME).metadata("byte for byte \u{1f512}");
    let mutex = mutex.retry(Linear::new(BRIEF).limit(3)).no_renewal();
    let guard = mutex.lock().await.expect("free");
    let (owner, token) = (guard.owner(), guard.fencing_token());
    for ttl in [LONG / 2, LONG * 3, LONG / 4] {
        guard.extend(ttl).await.expect("it is held");
        let left = guard.ttl().await.expect("an answer");
        assert!(
            ttl / 4 * 3 < left && left <= ttl + stage.capabilities().resolution,
            "{left:?} of {ttl:?}"
        );
        let holder = &stage.inspect().await.holders[0];
        assert_eq!((holder.owner, &*holder.metadata), (Some(owner), "byte for byte \u{1f512}"));
        assert!(holder.token.is_none_or(|seen| seen == token));
        assert_eq!(guard.fencing_token(), token);
    }
}

/// RL11, RL28, RL30, RL37: the refresh of a lost lock returns at once, whatever its patience.
pub async fn rl11_a_refresh_of_a_lost_lock_does_not_wait(stage: &Stage) {
    let client = stage.client();
    let patient = client.mutex(Stage::NAME).no_renewal().retry(Linear::new(LONG * 10));
    let guard = patient.lock().await.expect("free");
    assert!(stage.other_client().await.force_release(Stage::NAME).await.expect("an answer"));
    let error = within("it returns at once", guard.extend(LONG)).await.expect_err("it is gone");
    assert!(matches!(error, Error::Lost { reason: LossReason::Gone, .. }), "{error:?}");
    assert!(!guard.is_held());
    assert!(stage.inspect().await.holders.is_empty(), "nothing was created");
}

/// RL12, RL38: failures within the limit of the strategy are borne.
pub async fn rl12_a_refresh_recovers(stage: &Stage) {
    let faulty = stage.faulty();
    let client = stage.client_of(faulty.clone());
    let mutex = client.mutex(Stage::NAME).no_renewal().retry(Linear::new(BRIEF / 10).limit(5));
    let guard = mutex.lock().await.expect("free");
    for _ in 0..2 {
        faulty.next(Op::Renew, Fault::Refuse(ErrorKind::Transient));
    }
    guard.extend(LONG * 2).await.expect("the third attempt succeeds");
    assert_eq!(faulty.calls(Op::Renew), 3);
    assert!(LONG < guard.remaining());
}

/// RL13, RL39, RL40: failures beyond the limit: what the store said, not "not held".
pub async fn rl13_a_refresh_gives_up_with_the_error(stage: &Stage) {
    let faulty = stage.faulty();
    let client = stage.client_of(faulty.clone());
    let mutex = client.mutex(Stage::NAME).no_renewal();
    faulty.always(Op::Renew, Fault::Refuse(ErrorKind::Transient));
    for (mutex, calls) in [
        (mutex.clone().retry(Linear::new(BRIEF / 10).limit(2)), 3),
        (mutex.clone().retry(NoRetry), 1),
        (mutex.clone(), 1),
    ] {
        let guard = mutex.lock().await.expect("free");
        let before = faulty.calls(Op::Renew);
        let error = guard.extend(LONG * 2).await.expect_err("it is refused");
        assert!(matches!(&error, Error::Backend(error) if error.is_transient()), "{error:?}");
        assert_eq!(faulty.calls(Op::Renew) - before, calls);
        assert!(guard.is_held(), "it is as it was");
        guard.release().await.expect("an answer");
    }
}

/// RL16, RL29: somebody else's value at our name is not touched, and is a loss.
pub async fn rl16_a_foreign_value_survives(stage: &Stage) {
    let store = stage.other().await;
    let client = stage.eager().build().expect("valid");
    let guard = lock(&client).await;
    let ours = Claim::new(stage.key(), guard.owner(), Mode::Exclusive, LONG);
    assert!(store.release(&ours).await.expect("an answer"));
    let theirs = stage.long_claim();
    crate::tools::hold(&store, &theirs).await;
    assert_eq!(within("it is told", guard.lost()).await, LossReason::Gone);
    assert_eq!(guard.release().await.expect("an answer"), Released::NotHeld);
    assert_eq!(stage.inspect().await.holders[0].owner, Some(theirs.owner()));
    assert!(store.release(&theirs).await.expect("an answer"));
}

/// RL41: given up while it retries: nothing is left, and what was held is held.
pub async fn rl41_a_refresh_dropped_while_it_retries(stage: &Stage) {
    let faulty = stage.faulty();
    let client = stage.client_of(faulty.clone());
    let guard = client.mutex(Stage::NAME).retry(Linear::new(BRIEF)).lock().await.expect("free");
    faulty.always(Op::Renew, Fault::Refuse(ErrorKind::Transient));
    timeout(BRIEF * 3, guard.extend(LONG * 2)).await.expect_err("it retries for ever");
    faulty.heal();
    assert!(guard.is_held());
    guard.extend(LONG).await.expect("it is held");
}

/// RL42, RL43: a strategy is asked for the first delay only after the first failure, and for no more than are needed.
pub async fn rl43_success_asks_for_no_delay(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let drawn = Arc::new(AtomicUsize::new(0));
    let counting = {
        let drawn = Arc::clone(&drawn);
        move || {
            let drawn = Arc::clone(&drawn);
            std::iter::repeat_with(move || {
                drawn.fetch_add(1, Ordering::SeqCst);
                BRIEF / 10
            })
        }
    };
    let mutex = other.mutex(Stage::NAME).retry(counting);
    mutex.lock().await.expect("free").release().await.expect("an answer");
    // Whether there is any delay at all may be looked at once.
    assert!(drawn.load(Ordering::SeqCst) <= 1);
    let guard = lock(&client).await;
    let waiter = tokio::spawn(async move { mutex.lock().await.map(drop) });
    eventually("it asks for delays", async || 2 < drawn.load(Ordering::SeqCst)).await;
    assert!(!waiter.is_finished());
    waiter.abort();
    drop(guard);
}

/// RU05, RU06–09, RU22: taken away from a holder and everybody behind him: he is told, they go on.
pub async fn ru05_taken_away_under_load(stage: &Stage) {
    let watch = Watch::default();
    let builder = stage.eager().observer(watch.clone());
    let (client, other) = (builder.build().expect("valid"), stage.other_client().await);
    let guard = lock(&client).await;
    let mut waiters = JoinSet::new();
    for _ in 0..5 {
        let mutex = client.mutex(Stage::NAME);
        waiters.spawn(async move { mutex.lock().await.expect("an answer").release().await });
    }
    watch.contended(5).await;
    assert!(other.force_release(Stage::NAME).await.expect("an answer"));
    assert_eq!(within("it is told", guard.lost()).await, LossReason::Gone);
    for released in within("they go on", waiters.join_all()).await {
        released.expect("an answer");
    }
    assert!(is_free(&other).await);
}

/// RU10: another client shortens our ttl: the next renewal mends it.
pub async fn ru10_a_ttl_that_somebody_shortened(stage: &Stage) {
    let ttl = stage.lasting_ttl();
    let client = stage.builder().ttl(ttl * 2).renew_at(0.1).build().expect("valid");
    let guard = lock(&client).await;
    let shorter = Claim::new(stage.key(), guard.owner(), Mode::Exclusive, ttl);
    let renewal = distlock_core::Renewal::changed(shorter);
    assert!(stage.other().await.renew(&[renewal]).await.remove(0).is_ok());
    sleep(ttl * 3 / 2).await;
    assert!(guard.is_held());
    assert_eq!(guard.release().await.expect("an answer"), Released::Released);
}

/// RU11: a waiter gets it only after the holder's release, many ttls later.
pub async fn ru11_a_waiter_behind_a_renewed_holder(stage: &Stage) {
    let client = stage.eager().build().expect("valid");
    let other = stage.client_of(stage.other().await);
    let guard = lock(&client).await;
    let waiter = tokio::spawn(async move {
        let guard = other.mutex(Stage::NAME).lock().await.expect("an answer");
        (guard, Instant::now())
    });
    sleep(stage.lasting_ttl() * 2).await;
    assert!(guard.is_held() && !waiter.is_finished());
    let released = Instant::now();
    guard.release().await.expect("an answer");
    let (next, served) = within("it is served", waiter).await.expect("nothing panics");
    assert!(released <= served && next.is_held());
}

/// RU15: a limit shorter than the ttl ends the work, and nothing is left.
pub async fn ru15_a_limit_shorter_than_the_ttl(stage: &Stage) {
    let client = stage.client();
    let mutex = client.mutex(Stage::NAME);
    let work = mutex.run(async |_| std::future::pending::<()>().await);
    timeout(BRIEF, work).await.expect_err("it never ends");
    lock(&stage.other_client().await).await.release().await.expect("an answer");
}
