//! What cases are written with.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use distlock_core::{
    AnyBackend, Backend, Claim, Client, Event, FencingToken, Guard, Key, Lease, Observer, Renewal,
    Standing,
};
use tokio::time::{self, Instant};

use crate::Stage;

/// A ttl that no case waits for.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// What takes longer than this never happens. Only a guard against hanging: no case is about it.
const NEVER: Duration = Duration::from_secs(15);

/// Waits for something that must happen.
#[track_caller]
pub(crate) fn within<F: Future>(what: &str, something: F) -> impl Future<Output = F::Output> {
    let message = format!("{what} within {NEVER:?}");
    async move { time::timeout(NEVER, something).await.expect(&message) }
}

/// Waits for a condition that must come true.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < NEVER, "{what} within {NEVER:?}");
        time::sleep(Duration::from_millis(5)).await;
    }
}

/// Asks the store.
pub(crate) async fn ask(backend: &AnyBackend, claim: &Claim) -> Standing {
    backend.acquire(claim).await.expect("the store answers")
}

/// Asks the store for a key that is free.
pub(crate) async fn lease(backend: &AnyBackend, claim: &Claim) -> Lease {
    match ask(backend, claim).await {
        Standing::Held(lease) => lease,
        other => panic!("the claim is to hold the key, but: {other:?}"),
    }
}

/// Asks the store for a key that is free.
pub(crate) async fn hold(backend: &AnyBackend, claim: &Claim) -> FencingToken {
    lease(backend, claim).await.token()
}

/// Asks the store for a key that is taken, with a claim that may queue.
pub(crate) async fn queue(backend: &AnyBackend, claim: &Claim) -> Duration {
    match ask(backend, claim).await {
        Standing::Queued { recheck } => recheck,
        other => panic!("the claim is to wait in line, but: {other:?}"),
    }
}

/// Asks the store for a key that is taken.
pub(crate) async fn is_refused(backend: &AnyBackend, claim: &Claim) -> bool {
    !matches!(ask(backend, claim).await, Standing::Held(_))
}

pub(crate) async fn renew(backend: &AnyBackend, renewal: Renewal) -> Standing {
    let mut answers = backend.renew(&[renewal]).await;
    assert_eq!(answers.len(), 1, "one answer for each renewal");
    answers.remove(0).expect("the store answers")
}

pub(crate) async fn release(backend: &AnyBackend, claim: &Claim) -> bool {
    backend.release(claim).await.expect("the store answers")
}

/// Waits for a pushed grant.
pub(crate) async fn pushed(claim: &Claim) -> FencingToken {
    let lease = within("a grant is pushed", claim.granted()).await;
    lease.expect("the claim is not ended").token()
}

/// The same claim by another object, as another process would have it.
pub(crate) fn twin(claim: &Claim) -> Claim {
    Claim::new(claim.key().clone(), claim.owner(), claim.mode(), claim.ttl())
}

/// How long the store would keep the key.
pub(crate) async fn expires_in(backend: &AnyBackend, key: &Key) -> Duration {
    let occupancy = backend.inspect(key).await.expect("the store answers");
    let holder = occupancy.holders.first().expect("somebody holds the key");
    holder.expires_in.expect("a lock of ours ends by itself")
}

/// Takes the lock of a case.
pub(crate) async fn lock(client: &Client) -> Guard {
    within("the lock is free", client.mutex(Stage::NAME).lock()).await.expect("the store answers")
}

/// Waits until the first end of a guard is past, had it not been renewed.
pub(crate) async fn outlive(guard: &Guard) {
    let first = guard.expires_at();
    eventually("its first end is past", async || first < Instant::now()).await;
}

/// Whether the lock of a case can be taken now. If so, it is given back.
pub(crate) async fn is_free(client: &Client) -> bool {
    match client.mutex(Stage::NAME).try_lock().await.expect("the store answers") {
        Some(guard) => {
            guard.release().await.expect("the store answers");
            true
        }
        None => false,
    }
}

/// Remembers what a client's observer is told.
#[derive(Clone, Default)]
pub(crate) struct Watch(Arc<Mutex<Vec<Event>>>);

impl Watch {
    pub(crate) fn count(&self, which: impl Fn(&Event) -> bool) -> usize {
        let events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().filter(|event| which(event)).count()
    }

    /// Waits until so many had to wait.
    pub(crate) async fn contended(&self, times: usize) {
        self.seen("contention", times, |event| matches!(event, Event::Contended)).await;
    }

    pub(crate) async fn seen(&self, what: &str, times: usize, which: impl Fn(&Event) -> bool) {
        let what = format!("{what} is seen {times} times");
        eventually(&what, async || times <= self.count(&which)).await;
    }
}

impl Observer for Watch {
    fn event(&self, _: &Key, event: &Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event.clone());
    }
}

/// Sees who is inside a critical section: one at a time, with rising tokens.
#[derive(Clone, Default)]
pub(crate) struct Section(Arc<Inside>);

#[derive(Default)]
struct Inside {
    holder: AtomicU64,
    last: AtomicU64,
    entries: AtomicU64,
}

impl Section {
    /// Goes in and out again. `fenced`: the store gives tokens.
    pub(crate) async fn visit(&self, guard: &Guard, fenced: bool) {
        let Inside { holder, last, entries } = &*self.0;
        let number = entries.fetch_add(1, Ordering::SeqCst) + 1;
        assert_eq!(holder.swap(number, Ordering::SeqCst), 0, "somebody is inside already");
        assert!(guard.is_held());
        let token = guard.fencing_token().as_u64();
        let before = last.swap(token, Ordering::SeqCst);
        assert!(!fenced || before < token, "token {token} was given after {before}");
        tokio::task::yield_now().await;
        assert_eq!(holder.swap(0, Ordering::SeqCst), number, "somebody came in");
    }

    pub(crate) fn entries(&self) -> u64 {
        self.0.entries.load(Ordering::SeqCst)
    }
}
