//! Runtimes that end, or were never there, and code that panics: nothing hangs, nothing else panics, nobody's lock is forgotten.

mod support;

use std::{sync::mpsc, thread, time::Duration};

use distlock_core::Client;
use support::Bent;
use tokio::runtime::{Builder, Runtime};

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

/// A store that takes a while to give something back.
fn slow() -> Bent {
    Bent::new().release(|store, claim, _| async move {
        tokio::task::yield_now().await;
        distlock_core::Backend::release(&store, &claim).await
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
fn a_shutdown_finishes_what_was_left_without_a_runtime() {
    hangs_not(|| {
        let ended = runtime();
        let bent = slow();
        let client = Client::new(bent.clone());
        let guard = ended.block_on(client.mutex("k").lock()).unwrap();
        drop(ended);
        drop(guard);
        assert!(!bent.store.is_empty(), "nobody could give it back");
        runtime().block_on(client.shutdown());
        assert!(bent.store.is_empty());
    });
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
