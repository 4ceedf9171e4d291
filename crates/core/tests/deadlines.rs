//! The moments at which something is over, swept to the millisecond, and what is so when nobody looked in time. FAULTS A9, B3, C6, C12, D7, H9, I10, J4.

mod support;

use std::{
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use distlock_core::{Backend as _, Client, Error, Event, Key, LossReason, Released};
use distlock_memory::MemoryBackend;
use support::{Bent, never};
use tokio::{
    runtime::Handle,
    task::yield_now,
    time::{Instant, sleep, sleep_until, timeout},
};

const SECOND: Duration = Duration::from_secs(1);

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What happens together in one millisecond happens in any order, so each is looked at from all sides.
fn around(moment: u64) -> impl Iterator<Item = u64> {
    moment - 3..=moment + 3
}

#[tokio::test(start_paused = true)]
async fn a09_a_limit_that_ends_with_the_answer_gives_a_lock_or_an_error_and_leaves_nothing_else() {
    let slow = Bent::new().acquire(|store, claim, _| async move {
        sleep(ms(100)).await;
        store.acquire(&claim).await
    });
    let mut outcomes = [0, 0];
    for limit in around(100) {
        let client = Client::new(slow.clone());
        match client.mutex("k").lock_timeout(ms(limit)).await {
            Ok(guard) => {
                outcomes[0] += 1;
                assert!(guard.is_held());
                assert!(!slow.store.is_empty());
                guard.release().await.unwrap();
            }
            Err(error) => {
                outcomes[1] += 1;
                assert!(matches!(error, Error::Timeout { .. }), "{error}");
                sleep(SECOND).await;
            }
        }
        assert!(slow.store.is_empty(), "after a limit of {limit} ms");
    }
    assert!(0 < outcomes[0] && 0 < outcomes[1], "it was swept over: {outcomes:?}");
}

#[tokio::test(start_paused = true)]
async fn a09_a_limit_that_ends_with_the_release_of_the_holder_does_the_same() {
    // Inside of one process, and between two.
    for elsewhere in [false, true] {
        let mut outcomes = [0, 0];
        for limit in around(100) {
            let store = MemoryBackend::new();
            let client = Client::new(store.clone());
            let other = if elsewhere { Client::new(store.clone()) } else { client.clone() };
            let guard = client.mutex("k").lock().await.unwrap();
            let waiter = tokio::spawn(async move {
                match other.mutex("k").lock_timeout(ms(limit)).await {
                    Ok(guard) => guard.is_held(),
                    Err(error) => {
                        assert!(matches!(error, Error::Timeout { .. }), "{error}");
                        false
                    }
                }
            });
            sleep(ms(100)).await;
            guard.release().await.unwrap();
            outcomes[usize::from(waiter.await.unwrap())] += 1;
            let next = timeout(SECOND, client.mutex("k").lock()).await;
            drop(next.expect("nobody has it").unwrap());
            sleep(SECOND).await;
            assert!(store.is_empty());
        }
        assert!(0 < outcomes[0] && 0 < outcomes[1], "it was swept over: {outcomes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn b03_a_release_at_the_moment_of_the_loss_is_one_of_both() {
    let mut outcomes = [0, 0];
    for after in around(1000 - 10) {
        let bent = Bent::new();
        let client = Client::new(bent.clone());
        let guard = client.mutex("k").ttl(SECOND).no_renewal().lock().await.unwrap();
        let lost = guard.lost_token();
        let deadline = guard.expires_at();
        sleep(ms(after)).await;
        let in_time = Instant::now() < deadline;
        let released = guard.release().await.unwrap();
        assert_eq!(released == Released::Released, in_time, "after {after} ms");
        outcomes[usize::from(in_time)] += 1;
        assert!(lost.is_cancelled());
        sleep(SECOND).await;
        assert!(bent.store.is_empty());
        assert_eq!(bent.calls()[2], 1, "after {after} ms: given back once");
    }
    assert!(0 < outcomes[0] && 0 < outcomes[1], "it was swept over: {outcomes:?}");
}

#[tokio::test(start_paused = true)]
async fn h09_a_holder_is_over_before_anybody_else_can_be_in() {
    for ttl in [ms(50), SECOND, 30 * SECOND] {
        // What is given back at the deadline does not arrive, so that the store ends the lock by itself.
        let bent = Bent::new().release(|_, _, _| never());
        let (client, rival) = (Client::new(bent.clone()), Client::new(bent.store.clone()));
        let guard = client.mutex("k").ttl(ttl).no_renewal().lock().await.unwrap();
        let end = Instant::now() + ttl;
        sleep_until(guard.expires_at() - ms(1)).await;
        assert!(guard.is_held());
        sleep_until(guard.expires_at()).await;
        assert!(!guard.is_held(), "at the deadline and not after it");
        let mutex = rival.mutex("k");
        while Instant::now() < end {
            assert!(mutex.try_lock().await.unwrap().is_none(), "{:?} before", end - Instant::now());
            sleep(ms(1)).await;
        }
        sleep(ms(1)).await;
        assert!(mutex.try_lock().await.unwrap().is_some());
    }
}

/// Real time: nothing of the process runs, its keeper neither, until the lock is over.
#[tokio::test]
async fn c06_who_did_not_let_the_keeper_run_is_told_by_the_first_look_and_how_late_it_is() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let client = Client::builder(MemoryBackend::new())
        .observer(move |_: &Key, event: &Event| heard.lock().unwrap().push(event.clone()))
        .build()
        .unwrap();
    let guard = client.mutex("k").ttl(ms(1000)).lock().await.unwrap();
    let token = guard.lost_token();
    thread::sleep(ms(1100));
    assert!(!token.is_cancelled(), "nobody could tell it");
    assert!(!guard.is_held(), "the clock says so by itself");
    assert_eq!(guard.remaining(), Duration::ZERO);
    assert_eq!(timeout(10 * SECOND, guard.lost()).await.unwrap(), LossReason::Expired);
    assert!(matches!(guard.extend(SECOND).await, Err(Error::Lost { .. })), "lost is final");
    let told = |event: &Event| matches!(event, Event::Lost { late, .. } if ms(50) < *late);
    assert!(events.lock().unwrap().iter().any(told), "{events:?}");
}

/// A runtime whose tasks never rest, of which the keeper is one in a thousand.
#[tokio::test]
async fn i10_a_lock_is_renewed_among_a_thousand_tasks_that_never_rest() {
    let client = Client::new(MemoryBackend::new());
    let guard = client.mutex("k").ttl(ms(6000)).renew_at(0.05).lock().await.unwrap();
    let busy: Vec<_> = (0..1000)
        .map(|_| {
            tokio::spawn(async {
                loop {
                    yield_now().await;
                }
            })
        })
        .collect();
    for _ in 0..3 {
        let known = guard.expires_at();
        while guard.is_held() && guard.expires_at() <= known {
            yield_now().await;
        }
        assert!(guard.is_held());
    }
    busy.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn c12_forty_thousand_locks_leave_no_task_and_their_tokens_rise() {
    let bent = Bent::new();
    let client = Client::new(bent.clone());
    let mutex = client.mutex("k");
    drop(mutex.lock().await.unwrap());
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let mut last = None;
    for round in 0..40_000 {
        let guard = mutex.lock().await.unwrap();
        assert!(last < Some(guard.fencing_token()));
        last = Some(guard.fencing_token());
        if round % 2 == 0 {
            guard.release().await.unwrap();
        }
        // And each time another name, which nobody uses again.
        drop(client.mutex(format!("k{round}")).lock().await.unwrap());
    }
    sleep(SECOND).await;
    assert_eq!(tasks(), before);
    assert!(bent.store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn d07_ten_thousand_waiters_of_a_process_are_one_contender_and_come_in_their_order() {
    const COUNT: usize = 10_000;
    let bent = Bent::new();
    let client = Client::builder(bent.clone()).max_waiters(COUNT).max_locks(2 * COUNT);
    let client = client.build().unwrap();
    let held = client.mutex("k").lock().await.unwrap();
    let served = Arc::new(Mutex::new(Vec::new()));
    let waiters: Vec<_> = (0..COUNT)
        .map(|number| {
            let (mutex, served) = (client.mutex("k"), Arc::clone(&served));
            tokio::spawn(async move {
                let guard = mutex.lock().await.unwrap();
                served.lock().unwrap().push((number, guard.fencing_token()));
                guard.release().await.unwrap();
            })
        })
        .collect();
    sleep(SECOND).await;
    assert_eq!(bent.calls()[0], 1, "they wait in this process");
    held.release().await.unwrap();
    for waiter in waiters {
        waiter.await.unwrap();
    }
    let served = served.lock().unwrap();
    assert!(served.iter().map(|(number, _)| *number).eq(0..COUNT), "in the order of arrival");
    assert!(served.is_sorted_by(|(_, one), (_, two)| one < two), "tokens rise");
    assert!(bent.store.is_empty());
    let calls = bent.calls();
    assert!(calls[0] + calls[2] <= 2 * COUNT, "{calls:?}");
}
