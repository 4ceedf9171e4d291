//! Every public future, dropped after every number of polls: nothing may be left at the store, in the line, or with the keeper.

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex as StdMutex},
    task::Poll,
    time::Duration,
};

use tokio::{task::yield_now, time};

use crate::{
    Backend, BackendError, Capabilities, Claim, Client, FencingToken, Key, Lease, Occupancy, Owner,
    Renewal, Standing,
};

/// More polls than any of the futures takes.
const POLLS: usize = 24;

/// A store that takes its time: every call is pending twice before and twice after it is carried out.
#[derive(Clone, Debug, Default)]
struct Slow {
    held: Arc<StdMutex<HashMap<Key, (Owner, u64)>>>,
    tokens: Arc<StdMutex<u64>>,
}

impl Slow {
    fn is_empty(&self) -> bool {
        self.held.lock().unwrap().is_empty()
    }

    fn take(&self, claim: &Claim) -> Standing {
        let mut held = self.held.lock().unwrap();
        let mut tokens = self.tokens.lock().unwrap();
        let (owner, token) = held.entry(claim.key().clone()).or_insert_with(|| {
            *tokens += 100;
            (claim.owner(), *tokens)
        });
        if *owner == claim.owner() {
            return Standing::Held(
                Lease::new(FencingToken::new(*token)).with_spare(claim.block().min(99) - 1),
            );
        }
        Standing::Nothing { retry_in: None }
    }

    fn look(&self, claim: &Claim) -> Standing {
        match self.held.lock().unwrap().get(claim.key()) {
            Some((owner, token)) if *owner == claim.owner() => {
                Standing::Held(Lease::new(FencingToken::new(*token)))
            }
            _ => Standing::Nothing { retry_in: None },
        }
    }
}

async fn twice() {
    yield_now().await;
    yield_now().await;
}

impl Backend for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::exclusive(Duration::from_millis(1))
    }

    async fn acquire(&self, claim: &Claim) -> Result<Standing, BackendError> {
        twice().await;
        let standing = self.take(claim);
        twice().await;
        Ok(standing)
    }

    async fn renew(&self, renewals: &[Renewal]) -> Vec<Result<Standing, BackendError>> {
        twice().await;
        let standings = renewals.iter().map(|renewal| Ok(self.look(&renewal.claim))).collect();
        twice().await;
        standings
    }

    async fn release(&self, claim: &Claim) -> Result<bool, BackendError> {
        twice().await;
        let released = matches!(self.look(claim), Standing::Held(_));
        if released {
            self.held.lock().unwrap().remove(claim.key());
        }
        twice().await;
        Ok(released)
    }

    async fn inspect(&self, _: &Key) -> Result<Occupancy, BackendError> {
        twice().await;
        Ok(Occupancy::default())
    }
}

/// Polls a future so often, and drops it. What it gave, if it was done by then.
async fn cut<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future: Pin<Box<F>> = Box::pin(future);
    for _ in 0..polls {
        let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        yield_now().await;
    }
    None
}

/// Lets the keeper finish, and looks for what is left. With the clock paused this takes no time.
async fn nothing_is_left(client: &Client, store: &Slow, what: &str) {
    time::sleep(Duration::from_secs(2)).await;
    assert!(store.is_empty(), "{what}: the store has a lock");
    assert_eq!(client.inner().lines.census(), (0, 0), "{what}: lines and waiters");
    assert_eq!(client.inner().keeper.census(), (0, 0), "{what}: claims and jobs");
}

fn client(store: &Slow, cohort_limit: u32) -> Client {
    Client::builder(store.clone()).cohort_limit(cohort_limit).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_dropped_leaves_nothing() {
    for cohort_limit in [0, 32] {
        for polls in 0..POLLS {
            let store = Slow::default();
            let client = client(&store, cohort_limit);
            drop(cut(polls, client.mutex("k").lock()).await);
            nothing_is_left(&client, &store, &format!("lock after {polls} polls")).await;
            drop(cut(polls, client.mutex("k").try_lock()).await);
            nothing_is_left(&client, &store, &format!("try_lock after {polls} polls")).await;
            drop(cut(polls, client.mutex("k").run(async |_| yield_now().await)).await);
            nothing_is_left(&client, &store, &format!("run after {polls} polls")).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_dropped_leaves_nothing_and_the_next_gets_in() {
    for cohort_limit in [0, 32] {
        for polls in 0..POLLS {
            let store = Slow::default();
            let client = client(&store, cohort_limit);
            let guard = client.mutex("k").lock().await.unwrap();
            let mutex = client.mutex("k");
            let waiter = tokio::spawn(async move { cut(polls, mutex.lock()).await.is_some() });
            yield_now().await;
            let mutex = client.mutex("k");
            let next =
                tokio::spawn(async move { mutex.lock().await.unwrap().release().await.unwrap() });
            for _ in 0..polls / 2 {
                yield_now().await;
            }
            drop(guard);
            waiter.await.unwrap();
            time::timeout(Duration::from_secs(60), next)
                .await
                .expect("the next waits for ever")
                .unwrap();
            nothing_is_left(&client, &store, &format!("waiter after {polls} polls")).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_or_extension_that_is_dropped_leaves_nothing() {
    for polls in 0..POLLS {
        let store = Slow::default();
        let client = client(&store, 32);
        let guard = client.mutex("k").lock().await.unwrap();
        drop(cut(polls, guard.extend(Duration::from_secs(5))).await);
        assert!(guard.is_held(), "an extension that nobody waits for takes nothing away");
        drop(cut(polls, guard.release()).await);
        nothing_is_left(&client, &store, &format!("release after {polls} polls")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_handed_on_is_never_lost_between_two() {
    for polls in 0..POLLS {
        for metadata in ["", "other words make the hand-over a call of the store"] {
            let store = Slow::default();
            let client = client(&store, 32);
            let first = client.mutex("k").lock().await.unwrap();
            let waiting: Vec<_> = (0..3)
                .map(|number| {
                    let mutex = client.mutex("k").metadata(if number == 1 { metadata } else { "" });
                    tokio::spawn(async move {
                        match number {
                            1 => cut(polls, mutex.lock()).await.map(drop),
                            _ => {
                                drop(mutex.lock().await.unwrap());
                                Some(())
                            }
                        }
                    })
                })
                .collect();
            yield_now().await;
            drop(first);
            for waiter in waiting {
                time::timeout(Duration::from_secs(60), waiter)
                    .await
                    .expect("a waiter is forgotten")
                    .unwrap();
            }
            nothing_is_left(&client, &store, &format!("hand-over, {polls} polls, `{metadata}`"))
                .await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_waiters_and_gives_back() {
    let store = Slow::default();
    let client = client(&store, 32);
    let guard = client.mutex("k").lock().await.unwrap();
    let mutex = client.mutex("k");
    let waiter = tokio::spawn(async move { mutex.lock().await.map(drop) });
    yield_now().await;
    client.shutdown().await;
    assert!(store.is_empty());
    assert!(!guard.is_held());
    assert!(matches!(waiter.await.unwrap(), Err(crate::Error::Closed)));
    assert!(matches!(client.mutex("k").lock().await, Err(crate::Error::Closed)));
    nothing_is_left(&client, &store, "shutdown").await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_dropped_ends_its_keeper() {
    let store = Slow::default();
    let client = client(&store, 32);
    client.mutex("k").lock().await.unwrap().release().await.unwrap();
    let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    drop(client);
    yield_now().await;
    yield_now().await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), before - 1);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_names_leave_nothing() {
    let store = Slow::default();
    let client = client(&store, 32);
    for number in 0..10_000 {
        let guard = client.mutex(format!("k{number}")).lock().await.unwrap();
        if number % 2 == 0 {
            guard.release().await.unwrap();
        }
    }
    nothing_is_left(&client, &store, "names").await;
}
