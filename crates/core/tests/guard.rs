//! What a guard says of itself.

mod support;

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use distlock_core::{Backend as _, Client, FencingToken, Lease, Standing};
use distlock_memory::MemoryBackend;
use futures_util::FutureExt as _;
use support::Bent;
use tokio::time;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn who_cancels_the_token_that_he_was_given_cancels_only_his_own() {
    let client = Client::new(MemoryBackend::new());
    let guard = client.mutex("k").lock().await.unwrap();
    let other = guard.lost_token();
    guard.lost_token().cancel();
    assert!(guard.is_held() && !other.is_cancelled());
    time::timeout(SECOND, guard.lost()).await.expect_err("it is not lost");
    guard.release().await.unwrap();
    assert!(other.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn the_highest_token_of_all_is_a_token() {
    let bent = Bent::new().acquire(|_, _, _| async move {
        Ok(Standing::Held(Lease::new(FencingToken::new(u64::MAX)).with_spare(7)))
    });
    let client = Client::new(bent);
    let guard = client.mutex("k").lock().await.unwrap();
    assert_eq!(guard.fencing_token().as_u64(), u64::MAX);
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_ended_on_its_way_is_not_handed_out() {
    let client = Client::new(MemoryBackend::new());
    let mutex = client.mutex("k");
    let guard = mutex.lock().await.unwrap();
    let left = guard.remaining();
    let mut waiting = Box::pin(mutex.lock());
    assert!(waiting.as_mut().now_or_never().is_none());
    // It is handed on at once. Then nothing runs until the very moment in which it ends, and the keeper has not seen it yet.
    drop(guard);
    assert!(time::advance(left).now_or_never().is_none());
    let got = waiting.as_mut().now_or_never();
    assert!(got.is_none_or(|guard| guard.unwrap().is_held()));
}

/// Counts how often it is woken.
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_release_does_not_wake_who_took_the_lock() {
    let client = Client::new(Bent::new().acquire(|store, claim, _| async move {
        time::sleep(SECOND / 50).await;
        store.acquire(&claim).await
    }));
    let mutex = client.mutex("k");
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let guard = {
        let waker = Waker::from(Arc::clone(&count));
        let mut lock = pin!(mutex.lock());
        loop {
            if let Poll::Ready(guard) = lock.as_mut().poll(&mut Context::from_waker(&waker)) {
                break guard.unwrap();
            }
            time::sleep(SECOND / 100).await;
        }
    };
    let before = count.0.load(Ordering::Relaxed);
    assert!(0 < before, "it was waited for");
    guard.release().await.unwrap();
    assert_eq!(count.0.load(Ordering::Relaxed), before);
}

#[tokio::test(start_paused = true)]
async fn it_knows_how_long_it_has_the_lock_and_the_store_how_long_it_keeps_it() {
    let client = Client::new(MemoryBackend::new());
    let guard = client.mutex("k").ttl(SECOND).no_renewal().lock().await.unwrap();
    time::sleep(SECOND / 4).await;
    assert_eq!(guard.remaining(), guard.expires_at() - time::Instant::now());
    assert!(guard.remaining() > SECOND / 2 && guard.remaining() < SECOND * 3 / 4);
    assert_eq!(guard.ttl().await.unwrap(), SECOND * 3 / 4);
    let shown = format!("{guard:?}");
    assert!(shown.contains("Guard") && shown.contains("\"k\""), "{shown}");
    time::sleep(SECOND).await;
    assert_eq!((guard.remaining(), guard.ttl().await.unwrap()), (Duration::ZERO, Duration::ZERO));
}
