//! How long a call waits: no longer than it was told to, as long as it was told to, and never without a pause.

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use distlock_core::{
    Backend as _, BackendError, Client, Error, Event, FencingToken, Key, Lease, Linear, LossReason,
    NoRetry, Owner, RetryStrategy as _, Standing,
};
use distlock_memory::MemoryBackend;
use support::{Bent, away, never};
use tokio::time::{self, Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

/// A store without a line, which does not tell when it is worth asking again.
fn lineless() -> Bent {
    Bent::new().acquire(|store, claim, _| async move {
        match store.acquire(&claim.without_queue()).await? {
            Standing::Nothing { .. } => Ok(Standing::Nothing { retry_in: None }),
            other => Ok(other),
        }
    })
}

/// A store in which somebody else has the lock.
async fn taken(bent: &Bent) -> distlock_core::Guard {
    Client::new(bent.store.clone()).mutex("k").ttl(1000 * SECOND).lock().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_endless_delay_does_not_outlast_the_limit() {
    let bent = lineless();
    let _held = taken(&bent).await;
    let mutex = Client::new(bent).mutex("k").retry(|| [Duration::MAX]);
    let waited = time::timeout(60 * SECOND, mutex.lock_timeout(3 * SECOND)).await;
    assert!(matches!(waited.expect("waits for ever"), Err(Error::Timeout { .. })));
    let mutex = mutex.start_jitter(Duration::MAX..=Duration::MAX);
    let waited = time::timeout(60 * SECOND, mutex.lock_timeout(3 * SECOND)).await;
    assert!(matches!(waited.expect("waits for ever"), Err(Error::Timeout { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_time_of_the_range_passes_before_the_first_attempt() {
    let bent = Bent::new();
    let client = Client::new(bent.clone());
    let mutex = client.mutex("k").start_jitter(3 * SECOND..=5 * SECOND);
    for waits in [true, false] {
        let (started, before) = (Instant::now(), bent.calls()[0]);
        let mutex = mutex.clone();
        let locking = tokio::spawn(async move {
            match waits {
                true => mutex.lock().await,
                false => Ok(mutex.try_lock().await?.expect("nobody has it")),
            }
        });
        sleep(3 * SECOND - SECOND / 1000).await;
        assert_eq!(bent.calls()[0], before, "it asked too early");
        drop(locking.await.unwrap().unwrap());
        assert!((3 * SECOND..=5 * SECOND).contains(&started.elapsed()), "{:?}", started.elapsed());
    }
    let started = Instant::now();
    let locking = tokio::spawn(async move { mutex.lock().await.map(drop) });
    sleep(SECOND).await;
    client.shutdown().await;
    assert!(matches!(locking.await.unwrap(), Err(Error::Closed)));
    assert_eq!(started.elapsed(), SECOND, "a shutdown ends that too");
}

#[tokio::test(start_paused = true)]
async fn delays_of_nothing_wait_in_line_for_as_long_as_it_takes() {
    let bent = Bent::new();
    let held = taken(&bent).await;
    let mutex = Client::new(bent).mutex("k").retry(Linear::new(Duration::ZERO));
    let waiting = tokio::spawn(async move { mutex.lock().await });
    time::timeout(10 * SECOND, sleep(SECOND)).await.unwrap();
    held.release().await.unwrap();
    drop(waiting.await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_place_to_be_looked_at_always_or_never_is_looked_at_now_and_then() {
    for recheck in [Duration::ZERO, Duration::MAX] {
        let queued = move |standing| match standing {
            Standing::Queued { .. } => Standing::Queued { recheck },
            other => other,
        };
        let bent = Bent::new()
            .acquire(move |store, claim, _| async move { store.acquire(&claim).await.map(queued) })
            .renew(move |store, renewals, _| async move {
                let answers = store.renew(&renewals).await;
                answers.into_iter().map(|answer| answer.map(queued)).collect()
            });
        let held = taken(&bent).await;
        let client = Client::new(bent.clone());
        let waiting = tokio::spawn(async move { client.mutex("k").lock().await });
        sleep(SECOND).await;
        assert!(bent.calls()[1] <= 1000, "{} looks in a second", bent.calls()[1]);
        held.release().await.unwrap();
        drop(waiting.await.unwrap().unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_ends_what_it_is_asked_for_is_not_asked_without_a_pause() {
    let bent = Bent::new().acquire(|_, claim, _| async move {
        claim.end(LossReason::Gone);
        Ok(Standing::Nothing { retry_in: None })
    });
    let mutex = Client::new(bent.clone()).mutex("k");
    let tried = time::timeout(10 * SECOND, mutex.try_lock()).await.expect("tries for ever");
    let error = tried.unwrap_err();
    assert!(
        error.is_transient()
            && error.to_string() == "bent: took the lock back in the moment of the grant",
        "{error}"
    );
    let before = bent.calls()[0];
    time::timeout(SECOND, mutex.lock()).await.unwrap_err();
    assert!(bent.calls()[0] - before <= 100, "{} times in a second", bent.calls()[0] - before);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_always_grants_too_late_is_not_asked_without_a_pause() {
    let bent = Bent::new().acquire(|_, claim, _| async move {
        let long_ago = Instant::now() - 1000 * SECOND;
        claim.grant(Lease::new(FencingToken::new(7)).with_since(long_ago));
        Ok(Standing::Queued { recheck: SECOND })
    });
    sleep(2000 * SECOND).await;
    let mutex = Client::new(bent.clone()).mutex("k");
    let tried = time::timeout(10 * SECOND, mutex.try_lock()).await.expect("tries for ever");
    let error = tried.unwrap_err();
    assert!(
        error.is_transient() && error.to_string() == "bent: granted the lock after its deadline",
        "{error}"
    );
    let before = bent.calls()[0];
    time::timeout(SECOND, mutex.lock()).await.unwrap_err();
    assert!(bent.calls()[0] - before <= 100, "{} times in a second", bent.calls()[0] - before);
}

#[tokio::test(start_paused = true)]
async fn one_who_stands_in_line_hears_of_a_store_that_stays_away() {
    let gone = Arc::new(AtomicUsize::new(0));
    let (asked, looked) = (Arc::clone(&gone), Arc::clone(&gone));
    let bent = Bent::new()
        .acquire(move |store, claim, _| {
            let gone = asked.load(Ordering::SeqCst) != 0;
            async move { if gone { Err(away()) } else { store.acquire(&claim).await } }
        })
        .renew(move |store, renewals, _| {
            let gone = looked.load(Ordering::SeqCst);
            async move {
                match gone {
                    0 => store.renew(&renewals).await,
                    1 => renewals.iter().map(|_| Err(away())).collect(),
                    _ => never().await,
                }
            }
        });
    for how in [1, 2] {
        gone.store(0, Ordering::SeqCst);
        let held = taken(&bent).await;
        let client = Client::new(bent.clone());
        let waiting = tokio::spawn(async move { client.mutex("k").lock().await });
        sleep(60 * SECOND).await;
        gone.store(how, Ordering::SeqCst);
        let since = Instant::now();
        let answer = time::timeout(600 * SECOND, waiting).await.expect("waits for ever").unwrap();
        assert!(answer.unwrap_err().is_transient());
        let after = since.elapsed();
        assert!(29 * SECOND < after && after < 40 * SECOND, "{after:?}");
        drop(held);
        sleep(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn outages_that_a_store_came_back_from_do_not_add_up() {
    // Away for 20 s of 30: for those who ask, and for places that are looked at.
    let started = Instant::now();
    let is_away = move || started.elapsed().as_secs() % 30 < 20;
    let looked = Bent::new().renew(move |store, renewals, _| async move {
        if is_away() {
            return renewals.iter().map(|_| Err(away())).collect();
        }
        store.renew(&renewals).await
    });
    // A store that takes places away is asked again and again.
    let asked = Bent::new()
        .acquire(move |store, claim, nth| async move {
            if nth > 0 && is_away() { Err(away()) } else { store.acquire(&claim).await }
        })
        .renew(move |store, renewals, _| async move {
            for renewal in &renewals {
                let _ = store.release(&renewal.claim).await;
            }
            renewals.iter().map(|_| Ok(Standing::Nothing { retry_in: None })).collect()
        });
    for bent in [looked, asked] {
        let held = taken(&bent).await;
        let client = Client::new(bent.clone());
        let waiting = tokio::spawn(async move { client.mutex("k").lock().await });
        sleep(300 * SECOND).await;
        assert!(!waiting.is_finished(), "{:?}", waiting.await);
        assert!(10 < bent.calls()[0] + bent.calls()[1]);
        held.release().await.unwrap();
        drop(time::timeout(60 * SECOND, waiting).await.unwrap().unwrap().unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_delay_goes_on_when_a_place_is_lost_in_it() {
    let bent = Bent::new().renew(|store, renewals, _| async move {
        for renewal in &renewals {
            let _ = store.release(&renewal.claim).await;
        }
        renewals.iter().map(|_| Ok(Standing::Nothing { retry_in: None })).collect()
    });
    let _held = taken(&bent).await;
    let mutex = Client::new(bent.clone()).mutex("k").ttl(3 * SECOND);
    let (started, strategy) = (Instant::now(), Linear::new(100 * SECOND).limit(2));
    let error = mutex.retry(strategy).lock().await.unwrap_err();
    assert!(matches!(error, Error::RetriesExhausted { attempts: 3, .. }), "{error}");
    assert_eq!(started.elapsed().as_secs(), 200);
    assert!(20 < bent.calls()[0], "it asked anew {} times", bent.calls()[0]);
}

#[tokio::test(start_paused = true)]
async fn delays_and_a_limit_that_are_not_over_end_nothing() {
    for bent in [Bent::new(), lineless()] {
        let held = taken(&bent).await;
        let mutex = Client::new(bent).mutex("k").retry(Linear::new(SECOND));
        let waiting = tokio::spawn(async move { mutex.lock_timeout(10 * SECOND).await });
        sleep(5 * SECOND).await;
        held.release().await.unwrap();
        drop(waiting.await.unwrap().unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_no_time_waits_for_one_answer() {
    let bent = Bent::new().acquire(|store, claim, _| async move {
        sleep(SECOND).await;
        store.acquire(&claim).await
    });
    let client = Client::new(bent.clone());
    let held = client.mutex("k").lock_timeout(Duration::ZERO).await.unwrap();
    let other = Client::new(bent.clone()).mutex("k");
    let error = other.lock_timeout(Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert_eq!(bent.calls()[0], 2);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_limit_holds_whatever_the_store_does() {
    let started = Instant::now();
    // Whoever may not wait in line, but has a time.
    let mutex = Client::new(Bent::new().acquire(|_, _, _| never())).mutex("k").retry(NoRetry);
    assert!(matches!(mutex.lock_timeout(3 * SECOND).await, Err(Error::Timeout { .. })));
    // One to whom a lock is handed on that has to be written anew.
    let client = Client::new(Bent::new().renew(|_, _, _| never()));
    let held = client.mutex("k").lock().await.unwrap();
    let mutex = client.mutex("k").metadata("other words");
    let waiting = tokio::spawn(async move { mutex.lock_timeout(3 * SECOND).await });
    sleep(SECOND).await;
    held.release().await.unwrap();
    assert!(matches!(waiting.await.unwrap(), Err(Error::Timeout { .. })));
    // One who only looks.
    let mutex = Client::new(Bent::new().inspect(|_, _, _| never())).mutex("k");
    let looked = time::timeout(60 * SECOND, mutex.wait_released(3 * SECOND)).await;
    assert!(matches!(looked.expect("waits for ever"), Err(Error::Timeout { .. })));
    assert!(started.elapsed() <= 10 * SECOND, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_has_to_wait_is_told_of_once() {
    let told = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&told);
    let observer = move |_: &Key, event: &Event| {
        counted.fetch_add(usize::from(matches!(event, Event::Contended)), Ordering::SeqCst);
    };
    let store = MemoryBackend::new();
    let held = Client::new(store.clone()).mutex("k").lock().await.unwrap();
    let other = Client::new(store.clone()).mutex("k");
    let client = Client::builder(store).cohort_limit(1).observer(observer).build().unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let mutex = client.mutex("k");
            tokio::spawn(async move { mutex.lock().await.unwrap().release().await.unwrap() })
        })
        .collect();
    sleep(SECOND).await;
    // The other one comes between them, so that a turn inside the process is not the lock.
    let between = tokio::spawn(async move { other.run(async |_| sleep(SECOND).await).await });
    sleep(SECOND).await;
    held.release().await.unwrap();
    for waiter in waiting {
        waiter.await.unwrap();
    }
    between.await.unwrap().unwrap();
    assert_eq!(told.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn locks_of_a_store_that_answers_at_once_leave_others_their_time() {
    let mutex = Client::new(MemoryBackend::new()).mutex("k");
    let waiting = {
        let mutex = mutex.clone();
        tokio::spawn(async move { mutex.lock().await.unwrap().release().await.unwrap() })
    };
    for turn in 0.. {
        if waiting.is_finished() {
            break;
        }
        assert!(turn < 10_000, "nobody else comes to run");
        let guard = match turn % 2 {
            0 => Some(mutex.lock().await.unwrap()),
            _ => mutex.try_lock().await.unwrap(),
        };
        drop(guard);
    }
}

/// A store that takes its first place away, and is slow to answer a release.
fn fickle(release: impl Fn() -> Result<(), BackendError> + Copy + Send + Sync + 'static) -> Bent {
    Bent::new()
        .acquire(|store, claim, nth| async move {
            if nth > 0 {
                return store.acquire(&claim).await;
            }
            claim.end(LossReason::Gone);
            Ok(Standing::Queued { recheck: SECOND })
        })
        .release(move |store, claim, _| async move {
            sleep(Duration::from_millis(300)).await;
            release()?;
            store.release(&claim).await
        })
}

/// What it had under an id of the user's own is given back before it asks anew: later, that would give back what it got since.
#[tokio::test(start_paused = true)]
async fn who_asks_anew_under_the_same_id_does_not_give_back_what_it_gets() {
    for cohort_limit in [0, 32] {
        let store = fickle(|| Ok(()));
        let id = Owner::random().unwrap();
        let client = Client::builder(store.clone()).cohort_limit(cohort_limit).build().unwrap();
        let guard = client.mutex("k").owner(id).lock().await.unwrap();
        sleep(SECOND).await;
        let holders = store.store.inspect(guard.key()).await.unwrap().holders;
        assert_eq!(holders.first().and_then(|holder| holder.owner), Some(id));
        assert!(guard.is_held());
    }
}

#[tokio::test(start_paused = true)]
async fn an_id_is_not_used_again_after_a_release_that_failed() {
    let store = fickle(|| Err(BackendError::transient("bent", "away")));
    let client = Client::new(store.clone());
    let mutex = client.mutex("k").owner(Owner::random().unwrap());
    let error = mutex.lock().await.unwrap_err();
    assert!(matches!(error, Error::Backend(_)), "{error}");
    assert_eq!(store.calls()[0], 1, "it did not ask again");
}

#[tokio::test]
async fn a_store_is_told_whether_an_id_may_have_been_used_before() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let store = Bent::new().acquire(move |store, claim, _| {
        seen.lock().unwrap().push(claim.has_new_owner());
        async move { store.acquire(&claim).await }
    });
    let client = Client::new(store);
    let owner = client.mutex("drawn").lock().await.unwrap().owner();
    drop(client.mutex("given").owner(owner).lock().await.unwrap());
    assert_eq!(*asked.lock().unwrap(), [true, false]);
}
