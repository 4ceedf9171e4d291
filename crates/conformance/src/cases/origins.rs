//! ORIGINS: what users of the older libraries rely on, a case for each row. Doc comments name the feature there.

use std::time::Duration;

use distlock_core::{
    Client, Error, Event, Exponential, Linear, LossReason, Mutex, NoRetry, Owner, Released,
    RetryStrategy as _,
};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    Op, Stage,
    tools::{LONG, Watch, eventually, is_free, lock, outlive, within},
};

const BRIEF: Duration = Duration::from_millis(30);

/// One `Mutex` interface over several stores.
pub async fn origins_distribmu_one_mutex_for_every_store(stage: &Stage) {
    async fn works(mutex: &Mutex) {
        let guard = mutex.lock().await.expect("free");
        assert!(guard.is_held());
        guard.release().await.expect("an answer");
    }
    let stores = [stage.backend(), stage.other().await];
    for client in stores.map(|store| stage.client_of(store)) {
        works(&client.mutex(Stage::NAME)).await;
    }
    works(&stage.client_of(stage.faulty()).mutex(Stage::NAME)).await;
}

/// A factory: the store is chosen where the client is made, and nothing else knows it.
pub async fn origins_distribmu_factory(stage: &Stage) {
    let client = Client::builder(stage.backend()).prefix(stage.prefix()).ttl(LONG).build();
    let client: Client = client.expect("valid");
    assert_eq!(client.capabilities().resolution, stage.capabilities().resolution);
    lock(&client).await.release().await.expect("an answer");
}

/// `Lock`: one attempt.
pub async fn origins_distribmu_lock(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let guard = client.mutex(Stage::NAME).try_lock().await.expect("an answer").expect("free");
    assert!(other.mutex(Stage::NAME).try_lock().await.expect("busy is no error").is_none());
    drop(guard);
}

/// `LockWait(timeout)`: false after the time, true as soon as it is free.
pub async fn origins_distribmu_lock_wait(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let guard = lock(&client).await;
    let error = other.mutex(Stage::NAME).lock_timeout(BRIEF).await.expect_err("it is taken");
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    let mutex = other.mutex(Stage::NAME);
    let waiter = tokio::spawn(async move { mutex.lock_timeout(LONG).await.map(drop) });
    sleep(BRIEF).await;
    guard.release().await.expect("an answer");
    within("it is served", waiter).await.expect("nothing panics").expect("in time");
}

/// `WaitKeyRelease(timeout)`: waits until it is free, without taking it.
pub async fn origins_distribmu_wait_key_release(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let guard = lock(&client).await;
    let mutex = other.mutex(Stage::NAME);
    assert!(matches!(mutex.wait_released(BRIEF).await, Err(Error::Timeout { .. })));
    guard.release().await.expect("an answer");
    within("it is free", mutex.wait_released(LONG)).await.expect("it is free");
    assert!(is_free(&client).await);
}

/// `Unlock`.
pub async fn origins_distribmu_unlock(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    assert_eq!(lock(&client).await.release().await.expect("an answer"), Released::Released);
    assert!(is_free(&other).await);
    drop(lock(&client).await);
    lock(&other).await.release().await.expect("an answer");
}

/// `DoWithMustDone(timeout, logic)`: asks until it has the lock, then runs.
pub async fn origins_distribmu_do_with_must_done(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let guard = lock(&client).await;
    let mutex = other.mutex(Stage::NAME);
    let run = tokio::spawn(async move { mutex.run(async |guard| guard.is_held()).await });
    sleep(BRIEF).await;
    assert!(!run.is_finished());
    guard.release().await.expect("an answer");
    assert!(within("it is done", run).await.expect("nothing panics").expect("free").value);
    assert!(is_free(&client).await);
}

/// `DoWithMaxRetry(max, timeout, logic)`: runs, or gives up after so many attempts.
pub async fn origins_distribmu_do_with_max_retry(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let guard = lock(&client).await;
    let mutex = other.mutex(Stage::NAME).retry(Linear::new(BRIEF / 3).limit(3));
    let error = mutex.run(async |_| panic!("it is taken")).await.expect_err("it is taken");
    assert!(matches!(error, Error::RetriesExhausted { attempts: 4, .. }), "{error:?}");
    guard.release().await.expect("an answer");
    assert_eq!(mutex.run(async |_| 7).await.expect("free").value, 7);
}

/// `RefreshTTL`, `GetExpireTime`.
pub async fn origins_distribmu_refresh_ttl_and_expire_time(stage: &Stage) {
    let client = stage.client();
    let ttl = stage.lasting_ttl();
    let guard = client.mutex(Stage::NAME).ttl(ttl).no_renewal().lock().await.expect("free");
    let before = guard.expires_at();
    assert!(Instant::now() < before && guard.remaining() <= ttl);
    guard.extend(LONG).await.expect("it is held");
    assert!(before < guard.expires_at() && LONG / 2 < guard.remaining());
}

/// `Lock(key, ttl)`, `Unlock(key)` with an error when it is not held.
pub async fn origins_elocker_lock_and_unlock(stage: &Stage) {
    let client = stage.eager().build().expect("valid");
    let guard = lock(&client).await;
    assert!(client.force_release(Stage::NAME).await.expect("an answer"));
    within("it is told", guard.lost()).await;
    assert_eq!(guard.release().await.expect("an answer"), Released::NotHeld);
}

/// The lock monitor: `WithMaxHeldTime`, `WithTimeoutCallback(key, held)`. PEERS SD08.
pub async fn origins_elocker_max_held_time(stage: &Stage) {
    let watch = Watch::default();
    let client = stage.builder().observer(watch.clone()).build().expect("valid");
    let guard = client.mutex(Stage::NAME).max_hold(BRIEF).lock().await.expect("free");
    assert_eq!(within("it is over", guard.lost()).await, LossReason::MaxHold);
    let told = |event: &Event| matches!(event, Event::MaxHoldReached { held } if BRIEF <= *held);
    assert_eq!(watch.count(told), 1);
    lock(&stage.other_client().await).await.release().await.expect("an answer");
    assert_eq!(guard.release().await.expect("an answer"), Released::NotHeld);
}

/// Everything takes a context: whatever is given up leaves nothing behind.
pub async fn origins_elocker_context(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let guard = lock(&client).await;
    timeout(BRIEF, other.mutex(Stage::NAME).lock()).await.expect_err("it is taken");
    timeout(BRIEF, other.mutex(Stage::NAME).wait_released(LONG)).await.expect_err("it is taken");
    timeout(BRIEF, other.mutex(Stage::NAME).run(async |_| ())).await.expect_err("it is taken");
    timeout(BRIEF, guard.lost()).await.expect_err("it is held");
    eventually("no place is left", async || stage.inspect().await.waiting.unwrap_or(0) == 0).await;
    assert!(guard.is_held());
}

/// `RunFuncInLock`, `RunJobInLock`: how long the job ran. PEERS SD06.
pub async fn origins_elocker_run_in_lock(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let mutex = client.mutex(Stage::NAME);
    let job = async |_: &distlock_core::Guard| {
        let second = other.mutex(Stage::NAME).try_run(async |_| ()).await.expect("an answer");
        assert!(second.is_none(), "the second is refused while the first runs");
        sleep(BRIEF).await;
        "done"
    };
    let report = mutex.run(job).await.expect("free");
    assert_eq!(report.value, "done");
    assert!(BRIEF <= report.held);
    assert!(other.mutex(Stage::NAME).try_run(async |_| ()).await.expect("an answer").is_some());
}

/// `WithRandomSleep(min, max)`: a fast job does not run twice; here nobody sleeps for it.
pub async fn origins_elocker_min_hold(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let min = stage.lasting_ttl();
    let mutex = |client: &Client| client.mutex(Stage::NAME).min_hold(min);
    let started = Instant::now();
    assert!(mutex(&client).try_run(async |_| ()).await.expect("an answer").is_some());
    for client in [&client, &other] {
        assert!(mutex(client).try_run(async |_| ()).await.expect("an answer").is_none());
    }
    lock(&other).await.release().await.expect("an answer");
    assert!(min / 10 * 9 <= started.elapsed(), "it was free after {:?}", started.elapsed());
}

/// `WithRandomSleep(min, max)` before the start: those who start together do not ask together. PEERS SD07.
pub async fn origins_elocker_start_jitter(stage: &Stage) {
    let client = stage.client();
    let mutex = client.mutex(Stage::NAME).start_jitter(BRIEF..=BRIEF * 2);
    for _ in 0..3 {
        let started = Instant::now();
        mutex.lock().await.expect("free").release().await.expect("an answer");
        assert!(BRIEF <= started.elapsed());
    }
    let error = mutex.lock_timeout(Duration::ZERO).await.map(drop);
    assert!(error.is_ok() || matches!(error, Err(Error::Timeout { .. })), "{error:?}");
}

/// `WithPrefix`, `WithSuccessCallback(key)`, `Close`.
pub async fn origins_elocker_prefix_callback_close(stage: &Stage) {
    let watch = Watch::default();
    let prefix = format!("{}team-", stage.prefix());
    stage.uses("team-key");
    let builder = Client::builder(stage.backend()).prefix(prefix).ttl(LONG);
    let client = builder.observer(watch.clone()).build().expect("valid");
    let guard = lock(&client).await;
    assert!(guard.key().as_str().ends_with("team-key"));
    assert_eq!(watch.count(|event| matches!(event, Event::Acquired { .. })), 1);
    within("it ends", client.shutdown()).await;
    assert!(!guard.is_held());
    assert!(matches!(client.mutex(Stage::NAME).lock().await, Err(Error::Closed)));
    let other = stage.other_client().await;
    assert!(other.mutex("team-key").try_lock().await.expect("an answer").is_some());
}

/// Waiting by subscription, not by polling.
pub async fn origins_godislock_waiting_by_push(stage: &Stage) {
    if !stage.can(stage.capabilities().push, "push") {
        return;
    }
    let faulty = stage.faulty();
    let (client, other) = (stage.client_of(faulty.clone()), stage.other_client().await);
    let guard = lock(&other).await;
    let waiter = tokio::spawn(async move { lock(&client).await.release().await });
    sleep(Duration::from_millis(300)).await;
    let asked = faulty.calls(Op::Acquire) + faulty.calls(Op::Renew);
    assert!(asked <= 2, "asked {asked} times while it waited");
    guard.release().await.expect("an answer");
    within("it is served", waiter).await.expect("nothing panics").expect("an answer");
}

/// Scripts for atomicity: of many at once, one has it.
pub async fn origins_godislock_atomicity(stage: &Stage) {
    let clients = [stage.client(), stage.other_client().await, stage.other_client().await];
    for _ in 0..10 {
        let attempts = (0..12).map(|n| {
            let mutex = clients[n % 3].mutex(Stage::NAME).retry(NoRetry);
            tokio::spawn(async move { mutex.lock().await })
        });
        let mut guards = Vec::new();
        for attempt in join_all(attempts).await {
            match attempt.expect("nothing panics") {
                Ok(guard) => guards.push(guard),
                Err(error) => assert!(matches!(error, Error::RetriesExhausted { .. }), "{error:?}"),
            }
        }
        assert!(guards.len() <= 1, "{guards:?}");
        for guard in guards {
            guard.release().await.expect("an answer");
        }
    }
}

/// `Acquire(ttl, waitTimeout)`, a ttl below 3 ms refused.
pub async fn origins_godislock_ttl_and_wait_timeout(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let mutex = other.mutex(Stage::NAME).ttl(stage.ttl());
    let guard = lock(&client).await;
    let error = mutex.lock_timeout(BRIEF).await.expect_err("it is taken");
    assert!(matches!(error, Error::Timeout { waited } if BRIEF <= waited), "{error:?}");
    drop(guard);
    let tiny = mutex.ttl(Duration::from_micros(1)).lock_timeout(BRIEF).await;
    assert!(matches!(tiny, Err(Error::Invalid { what: "ttl", .. })), "{tiny:?}");
}

/// `AutoRefresh`, `Release`. PEERS SD03, SD04.
pub async fn origins_godislock_auto_refresh_and_release(stage: &Stage) {
    let (client, other) = (stage.eager().build().expect("valid"), stage.other_client().await);
    let mutex = client.mutex(Stage::NAME);
    let guard = mutex.lock().await.expect("free");
    outlive(&guard).await;
    assert!(guard.is_held() && !is_free(&other).await);
    guard.release().await.expect("an answer");
    let again = mutex.lock().await.expect("free");
    assert!(!is_free(&other).await);
    again.release().await.expect("an answer");
}

/// The client can be passed, else there is a process-wide one.
pub async fn origins_goredislock_global_client(stage: &Stage) {
    let ours = stage.client().set_global();
    let error = stage.client().set_global().expect_err("there is one already");
    assert!(matches!(error, Error::Invalid { what: "global client", .. }), "{error:?}");
    let global = Client::global().expect("it is set");
    if ours.is_ok() {
        let guard = lock(global).await;
        assert!(!is_free(&stage.other_client().await).await);
        guard.release().await.expect("an answer");
        global.shutdown().await;
    }
}

/// The expiry is set in one step with the lock, and renewed at two thirds of the ttl.
pub async fn origins_goredislock_expiry_and_renewal(stage: &Stage) {
    let watch = Watch::default();
    let ttl = stage.lasting_ttl();
    let builder = stage.builder().observer(watch.clone()).ttl(ttl);
    let client = builder.renew_at(2.0 / 3.0).build().expect("valid");
    let taken = Instant::now();
    let guard = lock(&client).await;
    let left = guard.ttl().await.expect("an answer");
    assert!(!left.is_zero() && left <= ttl, "{left:?}");
    let renewed = |event: &Event| matches!(event, Event::Renewed { .. });
    watch.seen("a renewal", 3, renewed).await;
    // One of them may have been made because a connection was new.
    assert!(ttl * 5 / 4 <= taken.elapsed(), "3 renewals in {:?}", taken.elapsed());
    assert!(guard.is_held());
}

/// `ObtainLock(key, ttl, options)`, `ErrNotObtained` distinct from other errors.
pub async fn origins_redislock_obtain(stage: &Stage) {
    let faulty = stage.faulty();
    let (client, other) = (stage.client_of(faulty.clone()), stage.other_client().await);
    let guard = client.mutex(Stage::NAME).ttl(LONG).try_lock().await.expect("an answer");
    assert!(other.mutex(Stage::NAME).try_lock().await.expect("not an error").is_none());
    let error = other.mutex(Stage::NAME).retry(NoRetry).lock().await.expect_err("it is taken");
    assert!(matches!(error, Error::RetriesExhausted { .. }), "{error:?}");
    drop(guard);
    lock(&other).await.release().await.expect("an answer");
    faulty.next(Op::Acquire, crate::Fault::Refuse(distlock_core::ErrorKind::Permanent));
    let error = client.mutex(Stage::NAME).lock().await.expect_err("the store refuses");
    assert!(matches!(error, Error::Backend(_)), "{error:?}");
}

/// `Key`, `Token`, `Metadata`.
pub async fn origins_redislock_key_token_metadata(stage: &Stage) {
    let client = stage.client();
    let guard = client.mutex(Stage::NAME).metadata("my data").lock().await.expect("free");
    assert_eq!(guard.key(), &stage.key());
    assert_eq!(&*guard.metadata(), "my data");
    let seen = &client.inspect(Stage::NAME).await.expect("an answer").holders[0];
    assert_eq!((seen.owner, &*seen.metadata), (Some(guard.owner()), "my data"));
    assert_eq!(guard.owner().to_string().len(), 32);
}

/// `TTL` (0 once expired), `Refresh(ttl, options)`, `Release`, `ErrLockNotHeld`. PEERS RL14, RL24.
pub async fn origins_redislock_ttl_refresh_release(stage: &Stage) {
    let client = stage.client();
    let ttl = stage.lasting_ttl();
    let guard = client.mutex(Stage::NAME).ttl(ttl).no_renewal().lock().await.expect("free");
    assert!(!guard.ttl().await.expect("an answer").is_zero());
    guard.extend(ttl).await.expect("it is held");
    within("it ends", guard.lost()).await;
    eventually("the store says so, too", async || guard.ttl().await.expect("an answer").is_zero())
        .await;
    assert!(matches!(guard.extend(LONG).await, Err(Error::Lost { .. })));
    assert_eq!(guard.release().await.expect("an answer"), Released::NotHeld);
}

/// `Options { RetryStrategy, Metadata, Token }`. PEERS RL04.
pub async fn origins_redislock_options(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let id = Owner::random().expect("random bytes");
    let mutex = |client: &Client| client.mutex(Stage::NAME).owner(id).retry(NoRetry);
    let guard = mutex(&client).metadata("before").lock().await.expect("free");
    assert_eq!(guard.owner(), id);
    let stranger = other.mutex(Stage::NAME).retry(NoRetry).lock().await;
    assert!(matches!(stranger, Err(Error::RetriesExhausted { .. })), "{stranger:?}");
    let resumed = mutex(&other).metadata("after").lock().await.expect("it is the holder's id");
    assert_eq!(stage.inspect().await.holders[0].metadata, "after");
    std::mem::forget(guard);
    resumed.release().await.expect("an answer");
}

/// `NoRetry`, `LinearBackoff(d)`, `ExponentialBackoff(min, max)`, `LimitRetry(s, n)`.
pub async fn origins_redislock_retry_strategies(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let guard = lock(&client).await;
    let attempts = async |mutex: Mutex| match mutex.lock().await.expect_err("it is taken") {
        Error::RetriesExhausted { attempts, waited } => (attempts, waited),
        other => panic!("{other:?}"),
    };
    let mutex = || other.mutex(Stage::NAME);
    assert_eq!(attempts(mutex().retry(NoRetry)).await.0, 1);
    let (made, waited) = attempts(mutex().retry(Linear::new(BRIEF / 2).limit(2))).await;
    assert!(made == 3 && BRIEF <= waited, "{made} in {waited:?}");
    let exponential = Exponential::new(BRIEF / 2, BRIEF).limit(2);
    let (made, waited) = attempts(mutex().retry(exponential)).await;
    assert!(made == 3 && BRIEF <= waited, "{made} in {waited:?}");
    let own = || [BRIEF / 3, BRIEF / 2];
    assert_eq!(attempts(mutex().retry(own)).await.0, 3);
    drop(guard);
}
