//! The end of a client: what it holds is given back, who waits is told, and nothing comes after it.

mod support;

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use distlock_core::{Backend as _, Client, Error};
use distlock_memory::MemoryBackend;
use futures_util::FutureExt as _;
use support::{Bent, never};
use tokio::{
    task::yield_now,
    time::{self, sleep},
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_grant_that_comes_with_the_shutdown_is_given_back() {
    // Answers as soon as the client is shut down, and before the one who asked looks at anything else.
    let (tx, _) = tokio::sync::broadcast::channel(1);
    let answers = tx.clone();
    let bent = Bent::new().acquire(move |store, claim, _| {
        let mut answers = answers.subscribe();
        async move {
            answers.recv().await.unwrap();
            store.acquire(&claim).await
        }
    });
    let client = Client::new(bent.clone());
    let mutex = client.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock().await });
    yield_now().await;
    let mut shutdown = Box::pin(client.shutdown());
    // The shutdown ends all that is held, then the answer comes.
    let _ = (shutdown.as_mut().now_or_never(), shutdown.as_mut().now_or_never());
    tx.send(()).unwrap();
    let got = waiting.await.unwrap();
    assert!(matches!(got, Err(Error::Closed)), "{got:?}");
    sleep(SECOND).await;
    assert!(bent.store.is_empty());
}

/// A task that comes to run some time after it was woken, as on a busy thread.
async fn slowly<T>(future: impl Future<Output = T>) -> T {
    let (mut future, mut delay) = (pin!(future), 0);
    poll_fn(|cx| {
        if 0 < delay {
            delay -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        delay = 1000;
        future.as_mut().poll(cx)
    })
    .await
}

/// A store that grants at once, and tells it when a minute is over.
fn late() -> Bent {
    Bent::new().acquire(|store, claim, _| async move {
        let granted = store.acquire(&claim).await;
        sleep(60 * SECOND).await;
        granted
    })
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_those_whose_request_is_under_way() {
    let bent = Bent::new().acquire(|store, claim, _| async move {
        let granted = store.acquire(&claim).await;
        sleep(SECOND).await;
        granted
    });
    let client = Client::new(bent.clone());
    let mutex = client.mutex("k");
    let waiting = tokio::spawn(slowly(async move { mutex.lock().await.map(drop) }));
    while bent.calls()[0] == 0 {
        yield_now().await;
    }
    client.shutdown().await;
    assert!(bent.store.is_empty(), "what it was granted is given back");
    assert!(matches!(waiting.await.unwrap(), Err(Error::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_one_who_does_not_run() {
    let client = Client::new(late());
    let mutex = client.mutex("k");
    let mut stopped = Box::pin(mutex.lock());
    assert!(stopped.as_mut().now_or_never().is_none());
    time::timeout(2 * SECOND, client.shutdown()).await.expect("the shutdown hangs");
    assert!(matches!(stopped.await, Err(Error::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_is_dropped_at_once_gives_back_all_the_same() {
    let store = MemoryBackend::new();
    let client = Client::new(store.clone());
    let guard = client.mutex("k").lock().await.unwrap();
    let mut shutdown = Box::pin(client.shutdown());
    assert!(shutdown.as_mut().now_or_never().is_none());
    drop(shutdown);
    sleep(SECOND).await;
    assert!(!guard.is_held());
    assert!(store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_leaves_the_rest_of_a_minimal_hold() {
    let store = MemoryBackend::new();
    let (client, other) = (Client::new(store.clone()), Client::new(store));
    let _guard = client.mutex("k").min_hold(10 * SECOND).lock().await.unwrap();
    time::timeout(SECOND, client.shutdown()).await.unwrap();
    assert!(other.mutex("k").try_lock().await.unwrap().is_none(), "it stays taken for 10 s");
    sleep(11 * SECOND).await;
    assert!(other.mutex("k").try_lock().await.unwrap().is_some());
}

/// Whoever waits for the lock is told of a shutdown before the store is told.
async fn hears_of_it_at_once(client: &Client) {
    let mutex = client.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock().await.map(drop) });
    sleep(SECOND).await;
    let mut shutdown = Box::pin(client.shutdown());
    assert!(shutdown.as_mut().now_or_never().is_none());
    let told = time::timeout(SECOND, waiting).await.expect("it waits for the store").unwrap();
    assert!(matches!(told, Err(Error::Closed)), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn who_waits_in_this_process_hears_of_it_at_once_whatever_the_store_does() {
    let client = Client::new(Bent::new().release(|_, _, _| never()));
    let _guard = client.mutex("k").lock().await.unwrap();
    hears_of_it_at_once(&client).await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_an_answer_of_the_store_hears_of_it_at_once() {
    let client = Client::new(Bent::new().acquire(|_, _, _| never()));
    hears_of_it_at_once(&client).await;
}
