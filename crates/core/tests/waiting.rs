//! How long a call waits: no longer than it was told to, as long as it was told to, and never without a pause.

mod support;

use std::time::Duration;

use distlock_core::{Backend as _, Client, Error, Linear, NoRetry, Standing};
use support::{Bent, never};
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
