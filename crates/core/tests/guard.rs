//! What a guard says of itself.

mod support;

use std::time::Duration;

use distlock_core::{Client, FencingToken, Lease, Standing};
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

#[tokio::test]
async fn a_lock_that_ended_on_its_way_is_not_handed_out() {
    let client = Client::new(MemoryBackend::new());
    let mutex = client.mutex("k").ttl(SECOND / 10);
    let guard = mutex.lock().await.unwrap();
    let mut waiting = Box::pin(mutex.lock());
    assert!(waiting.as_mut().now_or_never().is_none());
    // It is handed on at once. Then this thread is busy until the lock has ended, and the keeper has not seen it yet.
    drop(guard);
    std::thread::sleep(SECOND / 5);
    let got = waiting.as_mut().now_or_never();
    assert!(got.is_none_or(|guard| guard.unwrap().is_held()));
}
