//! Waiting for a lock, and giving up.

use std::{sync::Arc, time::Duration};

use distlock_core::{
    Backend as _, Error, Exponential, Guard, Linear, Mutex, NoRetry, RetryStrategy as _,
};
use futures_util::future::join_all;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{self, Instant, sleep},
};

use crate::{
    Dice, Op, Stage,
    tools::{LONG, Watch, eventually, is_free, lock, within},
};

const BRIEF: Duration = Duration::from_millis(30);

/// With a limit of zero it asks once, and says that it was too short.
pub async fn a_limit_of_zero_asks_once(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let guard = client.mutex(Stage::NAME).lock_timeout(Duration::ZERO).await.expect("free");
    for client in [&client, &other] {
        let error = client.mutex(Stage::NAME).lock_timeout(Duration::ZERO).await;
        assert!(matches!(error, Err(Error::Timeout { .. })), "{error:?}");
    }
    guard.release().await.expect("an answer");
    assert!(is_free(&other).await);
}

/// FAULTS A10: limits and delays that no clock can hold are for ever.
pub async fn the_longest_limit_is_for_ever(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    for limit in [Duration::MAX, Duration::from_secs(u64::MAX / 2)] {
        let guard = lock(&client).await;
        let mutex = other.mutex(Stage::NAME).retry(move || [Duration::MAX, limit]);
        let waiter = tokio::spawn(async move { mutex.lock_timeout(limit).await });
        sleep(BRIEF).await;
        assert!(!waiter.is_finished());
        if stage.capabilities().push {
            guard.release().await.expect("an answer");
            let next = within("it is served", waiter).await.expect("nothing panics");
            next.expect("the store answers").release().await.expect("an answer");
        } else {
            waiter.abort();
        }
    }
}

/// Whoever gives up after a time leaves no place.
pub async fn a_limit_ends_the_wait(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let guard = lock(&client).await;
    for client in [&client, &other] {
        let started = Instant::now();
        let error = client.mutex(Stage::NAME).lock_timeout(BRIEF).await.expect_err("it is taken");
        assert!(matches!(error, Error::Timeout { waited } if BRIEF <= waited), "{error:?}");
        assert!(BRIEF <= started.elapsed());
    }
    eventually("no place is left", async || stage.inspect().await.waiting.unwrap_or(0) == 0).await;
    guard.release().await.expect("an answer");
}

/// FAULTS A9: the time is over in the very moment of success: a guard or an error, never both, never neither.
pub async fn fault_a9_a_limit_that_ends_with_the_grant(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    for step in 0..20 {
        let guard = lock(&client).await;
        let limit = Duration::from_micros(1000 + 100 * step);
        let mutex = other.mutex(Stage::NAME);
        let waiter = tokio::spawn(async move { mutex.lock_timeout(limit).await });
        sleep(Duration::from_millis(1)).await;
        guard.release().await.expect("an answer");
        match waiter.await.expect("nothing panics") {
            Ok(next) => assert!(next.is_held()),
            Err(error) => assert!(matches!(error, Error::Timeout { .. }), "{error:?}"),
        }
        lock(&client).await.release().await.expect("an answer");
    }
}

/// PEERS RL08: of a hundred who ask once, one gets it.
pub async fn one_of_a_hundred_gets_it(stage: &Stage) {
    let clients = [stage.client(), stage.other_client().await];
    let attempts = (0..100).map(|n| {
        let mutex = clients[n % 2].mutex(Stage::NAME);
        tokio::spawn(async move { mutex.try_lock().await.expect("the store answers") })
    });
    let guards: Vec<Guard> = join_all(attempts)
        .await
        .into_iter()
        .filter_map(|guard| guard.expect("nothing panics"))
        .collect();
    assert_eq!(guards.len(), 1);
}

/// PEERS RL05, RL06, RL19–RL22, RL42, RL43: a strategy decides how often and for how long, anew for each call.
pub async fn strategies_decide_how_long_to_wait(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let mutex = other.mutex(Stage::NAME);
    let exhausted = async |mutex: Mutex, attempts: u32| {
        let error = within("it gives up", mutex.lock()).await.expect_err("it is taken");
        let right =
            matches!(error, Error::RetriesExhausted { attempts: made, .. } if made == attempts);
        assert!(right, "{error:?}, not {attempts} attempts");
    };
    let guard = lock(&client).await;
    exhausted(mutex.clone().retry(NoRetry), 1).await;
    let twice = mutex.clone().retry(Linear::new(BRIEF / 3).limit(2));
    exhausted(twice.clone(), 3).await;
    exhausted(twice, 3).await;
    exhausted(mutex.clone().retry(|| [BRIEF / 3; 3]), 4).await;
    let exponential = Exponential::new(Duration::from_millis(2), BRIEF).jitter().limit(4);
    exhausted(mutex.clone().retry(exponential), 5).await;
    eventually("no place is left", async || stage.inspect().await.waiting.unwrap_or(0) == 0).await;
    let patient = mutex.retry(Linear::new(BRIEF).limit(400));
    let waiter = tokio::spawn(async move { patient.lock().await });
    sleep(BRIEF).await;
    guard.release().await.expect("an answer");
    let served = within("it is served", waiter).await.expect("nothing panics");
    assert!(served.is_ok(), "{served:?}");
}

/// Waits until it is free, without taking it; or until somebody else has it.
pub async fn wait_released_takes_nothing(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let mutex = other.mutex(Stage::NAME);
    within("it is free", mutex.wait_released(LONG)).await.expect("it is free");
    let guard = lock(&client).await;
    let error = mutex.wait_released(BRIEF).await.expect_err("it is taken");
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    let waiter = tokio::spawn(async move { mutex.wait_released(LONG).await });
    sleep(BRIEF).await;
    assert!(!waiter.is_finished());
    guard.release().await.expect("an answer");
    within("it is told", waiter).await.expect("nothing panics").expect("it is free");
    assert!(is_free(&client).await);
}

/// FAULTS A7, A8: three hundred calls, dropped at random moments, leave no lock and no place.
pub async fn fault_a8_canceled_locks_leave_nothing(stage: &Stage) {
    let clients = [stage.client(), stage.other_client().await];
    let names = ["a", "b", "c"];
    for name in names {
        stage.uses(name);
    }
    let mut dice = Dice::new(300);
    let mut tasks = JoinSet::new();
    for n in 0..300_usize {
        let mutex = clients[n % 2].mutex(names[n % 3]);
        let limit = dice.time(Duration::from_micros(1500));
        tasks.spawn(async move {
            let lock = async {
                let guard = mutex.lock().await.expect("the store answers");
                tokio::task::yield_now().await;
                drop(guard);
            };
            let _ = time::timeout(limit, lock).await;
        });
    }
    within("all are done", tasks.join_all()).await;
    sleep(Duration::from_secs(1)).await;
    for name in names {
        let key = stage.key_of(name);
        eventually("nothing is left", async || {
            let occupancy = stage.backend().inspect(&key).await.expect("an answer");
            occupancy.holders.is_empty() && occupancy.waiting.unwrap_or(0) == 0
        })
        .await;
        assert!(clients[0].mutex(name).try_lock().await.expect("an answer").is_some());
    }
}

/// FAULTS D6: one who gives up in line is skipped, in this process and in the store.
pub async fn fault_d6_a_waiter_that_gave_up_is_skipped(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let guard = lock(&client).await;
    let mut gone = Vec::new();
    let mut stay = JoinSet::new();
    for n in 0..12 {
        let client = if n % 2 == 0 { &client } else { &other };
        let mutex = client.mutex(Stage::NAME);
        let wait = async move { mutex.lock().await.expect("an answer").release().await };
        if n % 3 == 0 {
            stay.spawn(wait);
        } else {
            gone.push(tokio::spawn(wait));
        }
    }
    sleep(BRIEF).await;
    for waiter in gone {
        waiter.abort();
    }
    guard.release().await.expect("an answer");
    for released in within("the others are served", stay.join_all()).await {
        released.expect("the store answers");
    }
}

/// PEERS RU14, RU18, RU19: a hundred who give up at once, again and again, block nobody.
pub async fn a_hundred_give_up_at_once(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    for _ in 0..5 {
        let guard = lock(&client).await;
        let mut waiters = JoinSet::new();
        for _ in 0..100 {
            let mutex = other.mutex(Stage::NAME);
            waiters.spawn(async move { mutex.lock().await });
        }
        tokio::task::yield_now().await;
        waiters.shutdown().await;
        drop(guard);
        lock(&other).await.release().await.expect("an answer");
    }
}

/// PEERS RU03, RU04: every one of many clients gets its turns.
pub async fn no_wake_up_is_lost(stage: &Stage) {
    let mut tasks = JoinSet::new();
    for _ in 0..6 {
        let mutex = stage.other_client().await.mutex(Stage::NAME);
        tasks.spawn(async move {
            for _ in 0..15 {
                mutex.lock().await.expect("an answer").release().await.expect("an answer");
            }
        });
    }
    within("everybody comes to his turn", tasks.join_all()).await;
}

/// Idle waiters cost nothing: a hundred of one process have one place in the store.
pub async fn waiters_of_a_process_have_one_place(stage: &Stage) {
    let other = stage.other_client().await;
    let guard = lock(&other).await;
    let faulty = stage.faulty();
    let watch = Watch::default();
    let client = stage.builder_of(faulty.clone()).observer(watch.clone()).build().expect("valid");
    let mut waiters = JoinSet::new();
    for _ in 0..100 {
        let mutex = client.mutex(Stage::NAME);
        waiters.spawn(async move { mutex.lock().await.expect("an answer").release().await });
    }
    watch.contended(100).await;
    let calls = || faulty.calls(Op::Acquire) + faulty.calls(Op::Renew);
    let before = calls();
    sleep(Duration::from_secs(1)).await;
    let made = calls() - before;
    let allowed = if stage.capabilities().push { 3 } else { 20 };
    assert!(made <= allowed, "{made} calls in a second");
    assert!(stage.inspect().await.waiting.unwrap_or(1) <= 1);
    drop(guard);
    for released in within("all are served", waiters.join_all()).await {
        released.expect("the store answers");
    }
}

/// In the order of arrival across processes, when nothing is handed on inside one.
pub async fn the_order_of_arrival_across_clients(stage: &Stage) {
    if !stage.can(stage.capabilities().fair, "order of arrival") {
        return;
    }
    let mut clients = Vec::new();
    for backend in [stage.backend(), stage.other().await, stage.other().await] {
        clients.push(stage.builder_of(backend).cohort_limit(0).build().expect("valid"));
    }
    let guard = lock(&clients[0]).await;
    let (served, mut order) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for n in 0..12_usize {
        let (mutex, served) = (clients[n % 3].mutex(Stage::NAME), served.clone());
        tasks.spawn(async move {
            let guard = mutex.lock().await.expect("an answer");
            served.send(n).expect("the case listens");
            guard.release().await.expect("an answer");
        });
        eventually("it stands in line", async || {
            stage.inspect().await.waiting.is_none_or(|waiting| n < waiting as usize)
        })
        .await;
    }
    guard.release().await.expect("an answer");
    within("all are served", tasks.join_all()).await;
    let order: Vec<_> = std::iter::from_fn(|| order.try_recv().ok()).collect();
    assert_eq!(order, (0..12).collect::<Vec<_>>());
}

/// PEERS RL23: many who share a strategy do not use it up for each other.
pub async fn a_shared_strategy_is_not_used_up(stage: &Stage) {
    let client = stage.client();
    let strategy: Arc<dyn distlock_core::RetryStrategy> =
        Arc::new(Linear::new(BRIEF / 10).limit(100));
    assert_eq!(strategy.delays().count(), 100);
    let waiters = (0..16).map(|_| {
        let mutex = client.mutex(Stage::NAME).retry(Arc::clone(&strategy));
        tokio::spawn(async move { mutex.lock().await.map(drop) })
    });
    for waited in within("all are served", join_all(waiters)).await {
        waited.expect("nothing panics").expect("its patience is its own");
    }
    assert_eq!(strategy.delays().count(), 100);
}

/// FAULTS D7: a thousand waiters of one process on one key: all are served, and the store hears of few.
pub async fn fault_d7_a_thousand_waiters_of_a_process(stage: &Stage) {
    let faulty = stage.faulty();
    let watch = Watch::default();
    let client = stage.builder_of(faulty.clone()).observer(watch.clone()).build().expect("valid");
    let guard = lock(&client).await;
    let mut waiters = JoinSet::new();
    for _ in 0..1000 {
        let mutex = client.mutex(Stage::NAME);
        waiters.spawn(async move { mutex.lock().await.expect("an answer").release().await });
    }
    watch.contended(1000).await;
    assert_eq!(faulty.calls(Op::Acquire), 1, "they wait in this process");
    assert!(stage.inspect().await.waiting.unwrap_or(0) <= 1);
    guard.release().await.expect("an answer");
    for released in within("all are served", waiters.join_all()).await {
        released.expect("an answer");
    }
    assert!(faulty.calls(Op::Acquire) <= 1001, "one contender at a time");
}
