//! Contenders of one process: who of them asks the store, and what for.

mod support;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use distlock_core::{Backend as _, Client, Guard, Lease, Standing};
use support::Bent;
use tokio::{task::JoinHandle, time::sleep};

const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_millis(1);

/// A store that takes a second to answer.
fn slow() -> Bent {
    Bent::new().acquire(|store, claim, _| async move {
        sleep(SECOND).await;
        store.acquire(&claim).await
    })
}

fn client(store: &Bent, cohort_limit: u32) -> Client {
    Client::builder(store.clone()).cohort_limit(cohort_limit).build().unwrap()
}

fn locking(client: &Client) -> JoinHandle<Guard> {
    let mutex = client.mutex("k");
    tokio::spawn(async move { mutex.lock().await.unwrap() })
}

fn trying(client: &Client) -> JoinHandle<Option<Guard>> {
    let mutex = client.mutex("k");
    tokio::spawn(async move { mutex.try_lock().await.unwrap() })
}

#[tokio::test(start_paused = true)]
async fn of_a_process_one_asks_the_store_and_who_only_tries_does_so_too() {
    let store = slow();
    let client = client(&store, 32);
    let first = trying(&client);
    sleep(MOMENT).await;
    let (second, third) = (trying(&client), locking(&client));
    sleep(MOMENT).await;
    assert!(second.is_finished(), "it is not its turn");
    assert!(second.await.unwrap().is_none());
    assert_eq!(store.calls()[0], 1);
    drop(first.await.unwrap().unwrap());
    drop(third.await.unwrap());
    assert_eq!(store.calls()[0], 1, "it had it from who tried");
    let fourth = locking(&client);
    sleep(MOMENT).await;
    assert!(trying(&client).await.unwrap().is_none());
    drop(fourth.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn without_a_cohort_everybody_asks_the_store() {
    let store = slow();
    let client = client(&store, 0);
    let (first, second) = (trying(&client), trying(&client));
    let (third, fourth) = (locking(&client), locking(&client));
    sleep(MOMENT).await;
    assert_eq!(store.calls()[0], 4);
    let got = [first.await.unwrap(), second.await.unwrap()];
    assert_eq!(got.iter().flatten().count(), 1);
    drop(got);
    drop(third.await.unwrap());
    drop(fourth.await.unwrap());
    assert_eq!(store.calls()[0], 4);
}

#[tokio::test(start_paused = true)]
async fn tokens_for_those_behind_are_asked_for_when_there_are_any() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    // A store that gives no more tokens than it is asked for.
    let client = Client::new(Bent::new().acquire(move |store, claim, _| {
        let block = claim.block();
        seen.lock().unwrap().push(block);
        async move {
            match store.acquire(&claim).await? {
                Standing::Held(lease) => {
                    Ok(Standing::Held(Lease::new(lease.token()).with_spare(block - 1)))
                }
                other => Ok(other),
            }
        }
    }));
    let first = client.mutex("k").lock().await.unwrap();
    let waiting = [locking(&client), locking(&client), locking(&client)];
    sleep(MOMENT).await;
    drop(first);
    for guard in waiting {
        drop(guard.await.unwrap());
    }
    assert_eq!(*asked.lock().unwrap(), [1, 256]);
}

#[tokio::test(start_paused = true)]
async fn who_has_nothing_at_the_store_gives_nothing_back() {
    let bent = Bent::new()
        .acquire(|store, claim, _| async move { store.acquire(&claim.without_queue()).await });
    let _held = Client::new(bent.store.clone()).mutex("k").lock().await.unwrap();
    let client = Client::new(bent.clone());
    assert!(client.mutex("k").try_lock().await.unwrap().is_none());
    client.mutex("k").lock_timeout(SECOND).await.unwrap_err();
    sleep(SECOND).await;
    assert_eq!(bent.calls()[2], 0);
}

#[tokio::test(start_paused = true)]
async fn work_that_somebody_else_does_is_left_to_him() {
    let mutex = Client::new(Bent::new()).mutex("k");
    let other = mutex.clone();
    let work = tokio::spawn(async move {
        let work = async |_: &Guard| {
            sleep(2 * SECOND).await;
            7
        };
        other.try_run(work).await.unwrap().expect("nobody does it")
    });
    sleep(SECOND).await;
    assert!(mutex.try_run(async |_| 8).await.unwrap().is_none());
    let report = work.await.unwrap();
    assert_eq!((report.value, report.held), (7, 2 * SECOND));
    assert_eq!(mutex.try_run(async |_| 9).await.unwrap().unwrap().value, 9);
}
