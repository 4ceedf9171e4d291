//! Runtimes that end, or were never there, and code that panics: nothing hangs, nothing else panics, nobody's lock is forgotten.

mod support;

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};

use distlock_core::{Claim, Client, Event, Key, Standing};
use futures_util::FutureExt as _;
use support::{Bent, away, never};
use tokio::{
    runtime::{Builder, Runtime},
    time::{self, sleep},
};

const SECOND: Duration = Duration::from_secs(1);

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Does something in a thread of its own, and fails when that hangs.
fn hangs_not(something: impl FnOnce() + Send + 'static) {
    let (tx, rx) = mpsc::channel();
    let worker = thread::spawn(move || {
        something();
        tx.send(()).unwrap();
    });
    match rx.recv_timeout(20 * SECOND) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("hangs"),
        _ => worker.join().unwrap(),
    }
}

/// Takes a while without a timer, which would end with its runtime.
async fn a_while() {
    for _ in 0..9 {
        tokio::task::yield_now().await;
    }
}

/// A store that takes a while to give something back.
fn slow() -> Bent {
    Bent::new().release(|store, claim, _| async move {
        a_while().await;
        distlock_core::Backend::release(&store, &claim).await
    })
}

/// A store whose pushes get lost.
fn deaf() -> Bent {
    Bent::new().acquire(|store, claim, _| async move {
        let twin = Claim::new(claim.key().clone(), claim.owner(), claim.mode(), claim.ttl());
        Ok(match distlock_core::Backend::acquire(&store, &twin).await? {
            Standing::Queued { .. } => Standing::Queued { recheck: SECOND / 2 },
            other => other,
        })
    })
}

#[test]
fn a_guard_that_is_dropped_in_a_runtime_that_has_ended_does_not_hang() {
    hangs_not(|| {
        let ended = runtime();
        let client = Client::new(slow());
        let guard = ended.block_on(client.mutex("k").lock()).unwrap();
        let handle = ended.handle().clone();
        drop(ended);
        let _inside = handle.enter();
        drop(guard);
    });
}

#[test]
fn a_guard_that_is_dropped_in_a_runtime_that_has_ended_does_not_panic() {
    hangs_not(|| {
        let ended = runtime();
        let client = Client::new(Bent::new().release(|_, _, _| async move {
            sleep(SECOND / 1000).await;
            Ok(true)
        }));
        let guard = ended.block_on(client.mutex("k").lock()).unwrap();
        let handle = ended.handle().clone();
        drop(ended);
        let _inside = handle.enter();
        drop(guard);
    });
}

/// A store and its client, whose guard was dropped when their runtime had ended.
fn left_without_a_runtime() -> (Bent, Client) {
    let ended = runtime();
    let bent = slow();
    let client = Client::new(bent.clone());
    let guard = ended.block_on(client.mutex("k").lock()).unwrap();
    drop(ended);
    drop(guard);
    (bent, client)
}

#[test]
fn a_shutdown_finishes_what_was_left_without_a_runtime() {
    hangs_not(|| {
        let (bent, client) = left_without_a_runtime();
        assert!(!bent.store.is_empty(), "nobody could give it back");
        assert_eq!(bent.calls()[2], 0, "a driver is not polled where there is no runtime");
        runtime().block_on(client.shutdown());
        assert!(bent.store.is_empty());
    });
}

#[test]
fn a_shutdown_without_any_runtime_ends_though_nobody_can_do_what_is_owed() {
    hangs_not(|| {
        let (bent, client) = left_without_a_runtime();
        poll_without_a_runtime(client.shutdown());
        assert!(!bent.store.is_empty(), "it stays until its ttl is over");
    });
}

/// Polls a future in this thread, in no runtime.
fn poll_without_a_runtime<T>(future: impl Future<Output = T>) -> T {
    let thread = thread::current();
    let waker = Waker::from(Arc::new(Unpark(thread)));
    let (mut future, mut cx) = (pin!(future), Context::from_waker(&waker));
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut cx) {
            return value;
        }
        thread::park();
    }
}

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[test]
fn a_shutdown_goes_on_when_the_runtime_of_the_keeper_ends() {
    hangs_not(|| {
        let keepers = runtime();
        let bent = slow();
        let client = Client::new(bent.clone());
        let guard = keepers.block_on(client.mutex("k").lock()).unwrap();
        // The keeper's runtime is there, and does nothing.
        drop(guard);
        let ending = thread::spawn(move || {
            thread::sleep(SECOND / 10);
            drop(keepers);
        });
        runtime().block_on(client.shutdown());
        assert!(bent.store.is_empty());
        ending.join().unwrap();
    });
}

#[test]
fn a_renewal_that_ended_with_its_runtime_is_made_again() {
    hangs_not(|| {
        let bent = Bent::new().renew(|store, renewals, nth| async move {
            if nth == 0 {
                return never().await;
            }
            distlock_core::Backend::renew(&store, &renewals).await
        });
        let client = Client::new(bent.clone());
        let mutex = client.mutex("k").ttl(3 * SECOND);
        let ended = runtime();
        let guard = ended.block_on(async {
            let guard = mutex.lock().await.unwrap();
            while bent.calls()[1] == 0 {
                sleep(SECOND / 100).await;
            }
            guard
        });
        drop(ended);
        runtime().block_on(async {
            let _another = client.mutex("another").lock().await.unwrap();
            sleep(2 * SECOND + SECOND / 2).await;
            assert!(guard.is_held());
        });
    });
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_observer_or_the_store_leaves_the_other_locks_alone() {
    let panics = Arc::new(AtomicBool::new(false));
    let on = Arc::clone(&panics);
    let bent = Bent::new().renew(move |store, renewals, nth| async move {
        assert!(nth != 2, "the store panics");
        distlock_core::Backend::renew(&store, &renewals).await
    });
    let observer = move |key: &Key, _: &Event| {
        assert!(key.as_str() != "a" || !on.load(Ordering::SeqCst), "the observer panics");
    };
    let client = Client::builder(bent.clone()).observer(observer).build().unwrap();
    let ttl = 3 * SECOND;
    let a = client.mutex("a").ttl(ttl).lock().await.unwrap();
    let b = client.mutex("b").ttl(ttl).lock().await.unwrap();
    panics.store(true, Ordering::SeqCst);
    sleep(60 * SECOND).await;
    assert!(a.is_held() && b.is_held(), "they are renewed all the same");
    drop((a, b));
    time::timeout(60 * SECOND, client.shutdown()).await.expect("hangs");
    assert!(bent.store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_keeps_nobody_longer_than_the_lock_would_have_lasted() {
    let bent = Bent::new().release(|_, _, _| never());
    let client = Client::new(bent);
    let mutex = client.mutex("k").ttl(10 * SECOND);
    let error = time::timeout(11 * SECOND, mutex.lock().await.unwrap().release()).await;
    assert!(error.expect("hangs").unwrap_err().is_transient());
    let waited = time::timeout(11 * SECOND, mutex.lock()).await;
    drop(waited.expect("the turn is not passed on").unwrap());
    time::timeout(11 * SECOND, client.shutdown()).await.expect("the shutdown hangs");
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_a_store_does_not_answer_for_keeps_nobody_longer_than_it_would_have_lasted() {
    let bent = Bent::new().acquire(|store, claim, nth| async move {
        if nth == 0 {
            return never().await;
        }
        distlock_core::Backend::acquire(&store, &claim).await
    });
    let client = Client::new(bent);
    let mutex = client.mutex("k").ttl(10 * SECOND);
    time::timeout(SECOND, mutex.lock()).await.unwrap_err();
    let next = time::timeout(11 * SECOND, mutex.lock()).await;
    drop(next.expect("the turn is not passed on").unwrap());
    time::timeout(11 * SECOND, client.shutdown()).await.expect("the shutdown hangs");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_a_store_does_not_answer_does_not_hold_up_a_shutdown() {
    let bent = Bent::new().renew(|_, _, _| never());
    let client = Client::new(bent.clone());
    let guard = client.mutex("k").ttl(10 * SECOND).lock().await.unwrap();
    sleep(5 * SECOND).await;
    time::timeout(SECOND, client.shutdown()).await.expect("the shutdown hangs");
    assert!(!guard.is_held());
    assert!(bent.store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_given_back_is_tried_again_also_without_the_client() {
    let bent = Bent::new().release(|store, claim, nth| async move {
        if nth < 3 {
            return Err(distlock_core::BackendError::transient("bent", "is away"));
        }
        distlock_core::Backend::release(&store, &claim).await
    });
    let client = Client::new(bent.clone());
    let guard = client.mutex("k").lock().await.unwrap();
    drop(client);
    drop(guard);
    sleep(SECOND).await;
    assert!(bent.store.is_empty());
    assert_eq!(bent.owners(), 1, "nothing is left of the client");
}

#[test]
fn nothing_is_left_of_a_client_that_ends_before_its_runtime() {
    let bent = deaf();
    let runtime = runtime();
    let client = Client::new(bent.clone());
    let guard = runtime.block_on(client.mutex("k").lock()).unwrap();
    drop(guard);
    drop(client);
    drop(runtime);
    assert_eq!(bent.owners(), 1);
}

/// A release that was sent, by a client that is gone with its runtime.
fn orphaned(bent: &Bent, shut_down: bool) -> impl Future {
    let first = runtime();
    let client = Client::new(bent.clone());
    let guard = first.block_on(client.mutex("k").lock()).unwrap();
    let mut release = Box::pin(guard.release());
    first.block_on(async {
        assert!(release.as_mut().now_or_never().is_none());
        if shut_down {
            client.shutdown().await;
        }
    });
    release
}

/// Drops it in another runtime, and waits there until nothing has the store any more.
fn drop_elsewhere(release: impl Future, bent: &Bent) {
    let second = runtime();
    second.block_on(async {
        drop(release);
        while 1 < bent.owners() {
            assert_eq!(bent.calls()[2], 1, "it is told once");
            sleep(SECOND / 1000).await;
        }
    });
    assert_eq!(second.metrics().num_alive_tasks(), 0);
}

#[test]
fn a_release_that_outlives_its_client_is_finished_and_leaves_no_task() {
    hangs_not(|| {
        let bent = slow();
        drop_elsewhere(orphaned(&bent, false), &bent);
        assert!(bent.store.is_empty());
    });
}

#[test]
fn a_release_that_fails_after_a_shutdown_is_not_tried_again() {
    hangs_not(|| {
        let bent = Bent::new().release(|store, claim, _| async move {
            a_while().await;
            // Only the answer fails.
            distlock_core::Backend::release(&store, &claim).await?;
            Err(away())
        });
        drop_elsewhere(orphaned(&bent, true), &bent);
    });
}

#[test]
fn one_who_waits_in_another_runtime_is_looked_after_when_the_keepers_ends() {
    hangs_not(|| {
        let bent = deaf();
        let holder = Client::new(bent.store.clone());
        let (keepers, waiters) = (runtime(), runtime());
        let held = waiters.block_on(holder.mutex("k").lock()).unwrap();
        let client = Client::new(bent);
        let another = keepers.block_on(client.mutex("another").lock()).unwrap();
        let mutex = client.mutex("k");
        let waiting = waiters.spawn(async move { mutex.lock().await.map(drop) });
        waiters.block_on(async { sleep(SECOND / 10).await });
        drop(keepers);
        drop(another);
        waiters.block_on(async {
            held.release().await.unwrap();
            waiting.await.unwrap().unwrap();
        });
    });
}
