//! Threads that meet at a claim, a guard and a line, in thousands of orders: `cargo xtask interleavings`.
//!
//! Shuttle decides at every lock and every count which thread is next. The clock stands still, so that nothing ends by time, and the keeper's rounds
//! are a thread of the test.

use std::{
    collections::{BTreeSet, VecDeque},
    future::{Future as _, poll_fn},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use shuttle::{
    future::block_on,
    rand::{Rng as _, thread_rng},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use crate::{
    Backend, BackendError, Capabilities, Claim, Client, FencingToken, Guard, Key, Lease,
    LossReason, Occupancy, Owner, Renewal, Standing, claim::Phase,
};

/// In so many orders each test runs.
const ORDERS: usize = 3_000;

/// A store that answers at once, and grants by pushes.
#[derive(Clone, Debug, Default)]
struct Store(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    holder: Option<(Owner, u64)>,
    claim: Option<Claim>,
    line: VecDeque<Claim>,
    last: u64,
}

/// So many tokens belong to a grant.
const BLOCK: u64 = 10;

impl Table {
    fn give(&mut self, claim: &Claim) -> Lease {
        self.last += BLOCK;
        self.holder = Some((claim.owner(), self.last));
        self.claim = Some(claim.clone());
        let spare = claim.block().clamp(1, BLOCK as u32) - 1;
        Lease::new(FencingToken::new(self.last)).with_spare(spare)
    }

    /// Takes the lock from this owner, if it has it.
    fn take(&mut self, owner: Owner) -> Option<Claim> {
        self.holder.take_if(|(holder, _)| *holder == owner)?;
        self.claim.take()
    }

    fn standing(&self, claim: &Claim) -> Standing {
        match self.holder {
            Some((owner, token)) if owner == claim.owner() => {
                Standing::Held(Lease::new(FencingToken::new(token)))
            }
            _ if self.line.iter().any(|other| other.owner() == claim.owner()) => {
                Standing::Queued { recheck: Duration::from_secs(10) }
            }
            _ => Standing::Nothing { retry_in: None },
        }
    }
}

impl Store {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap()
    }

    fn holder(&self) -> Option<Owner> {
        self.table().holder.map(|(owner, _)| owner)
    }

    fn is_empty(&self) -> bool {
        let table = self.table();
        table.holder.is_none() && table.line.is_empty()
    }

    /// Grants the free lock to the first in line that still wants it.
    fn promote(&self) {
        loop {
            let mut table = self.table();
            if table.holder.is_some() {
                return;
            }
            let Some(claim) = table.line.pop_front() else { return };
            let lease = table.give(&claim);
            drop(table);
            let over = matches!(claim.state().phase, Phase::Over { .. });
            if claim.grant(lease) {
                assert!(!over, "it says yes to a grant that nobody waits for");
                return;
            }
            self.table().take(claim.owner());
        }
    }

    /// Takes the lock away from whoever has it.
    fn end(&self) {
        let mut table = self.table();
        let claim = table.holder.and_then(|(owner, _)| table.take(owner));
        drop(table);
        if let Some(claim) = claim {
            claim.end(LossReason::Gone);
        }
        self.promote();
    }
}

impl Backend for Store {
    fn name(&self) -> &'static str {
        "prompt"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::exclusive(Duration::from_millis(1));
        (capabilities.fair, capabilities.fencing, capabilities.push) = (true, true, true);
        capabilities
    }

    async fn acquire(&self, claim: &Claim) -> Result<Standing, BackendError> {
        let mut table = self.table();
        if table.holder.is_none() && table.line.is_empty() {
            return Ok(Standing::Held(table.give(claim)));
        }
        let standing = table.standing(claim);
        if !matches!(standing, Standing::Nothing { .. }) || !claim.may_queue() {
            return Ok(standing);
        }
        table.line.push_back(claim.clone());
        Ok(table.standing(claim))
    }

    async fn renew(&self, renewals: &[Renewal]) -> Vec<Result<Standing, BackendError>> {
        let table = self.table();
        renewals.iter().map(|renewal| Ok(table.standing(&renewal.claim))).collect()
    }

    async fn release(&self, claim: &Claim) -> Result<bool, BackendError> {
        let mut table = self.table();
        let released = table.take(claim.owner()).is_some();
        table.line.retain(|other| other.owner() != claim.owner());
        drop(table);
        self.promote();
        Ok(released)
    }

    async fn inspect(&self, _: &Key) -> Result<Occupancy, BackendError> {
        Ok(Occupancy::default())
    }
}

impl Client {
    /// A round of the keeper.
    fn keep(&self) {
        self.inner().keeper.round();
    }

    /// How many lines, waiters, claims of the keeper, and debts there are.
    fn census(&self) -> [usize; 4] {
        let (lines, waiters) = self.inner().lines.census();
        let (claims, owed) = self.inner().keeper.census();
        [lines, waiters, claims, owed]
    }
}

/// Runs it in many orders. Timers can be made, and never fire.
fn explore(test: impl Fn() + Send + Sync + 'static) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    let _entered = runtime.enter();
    shuttle::check_random(test, ORDERS);
}

/// The keepers of these clients, until the end.
fn keep(clients: &[Client], end: &Arc<AtomicBool>) -> JoinHandle<()> {
    let (clients, end) = (clients.to_vec(), Arc::clone(end));
    thread::spawn(move || {
        while !end.load(Ordering::SeqCst) {
            clients.iter().for_each(Client::keep);
            thread::yield_now();
        }
    })
}

/// Nothing is left with anybody.
fn assert_clean(clients: &[Client], store: &Store) {
    for client in clients {
        client.keep();
        client.keep();
        assert_eq!(client.census(), [0; 4], "lines, waiters, claims, debts");
    }
    assert!(store.is_empty(), "{store:?}");
}

/// Polls a call of `lock` some times, and drops it.
fn wait_for_a_while(client: &Client) -> Option<Guard> {
    let mutex = client.mutex("k");
    let mut future = Box::pin(mutex.lock());
    let mut polls = thread_rng().gen_range(1..4);
    block_on(poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(guard) => Poll::Ready(Some(guard.unwrap())),
        Poll::Pending if polls == 1 => Poll::Ready(None),
        Poll::Pending => {
            polls -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }))
}

/// Holds it, and gives it back in one way or the other.
fn hold(guard: Guard, store: &Store, tokens: &Mutex<BTreeSet<u64>>) {
    assert_eq!(store.holder(), Some(guard.owner()), "somebody else has it");
    let token = guard.fencing_token().as_u64();
    let mut tokens = tokens.lock().unwrap();
    assert!(tokens.last().is_none_or(|last| *last < token), "{token} after {tokens:?}");
    tokens.insert(token);
    drop(tokens);
    assert!(guard.is_held());
    assert_eq!(store.holder(), Some(guard.owner()), "somebody else got it meanwhile");
    if thread_rng().gen_bool(0.5) {
        return drop(guard);
    }
    let released = block_on(guard.release()).unwrap();
    assert_eq!(released, crate::Released::Released);
}

#[test]
fn everybody_who_waits_is_served_and_nobody_with_another() {
    explore(|| {
        let (store, end) = (Store::default(), Arc::new(AtomicBool::new(false)));
        let limit = thread_rng().gen_range(0..3);
        let client = || Client::builder(store.clone()).cohort_limit(limit).build().unwrap();
        let clients = [client(), client()];
        let tokens = Arc::new(Mutex::new(BTreeSet::new()));
        let keeper = keep(&clients, &end);
        let workers: Vec<_> = [0, 0, 0, 1]
            .into_iter()
            .enumerate()
            .map(|(index, client)| {
                let (client, store) = (clients[client].clone(), store.clone());
                let tokens = Arc::clone(&tokens);
                thread::spawn(move || {
                    let guard = match index {
                        // Gives up, perhaps in the moment in which it is served.
                        1 => wait_for_a_while(&client),
                        _ => Some(block_on(client.mutex("k").lock()).unwrap()),
                    };
                    if let Some(guard) = guard {
                        hold(guard, &store, &tokens);
                    }
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        end.store(true, Ordering::SeqCst);
        keeper.join().unwrap();
        assert_clean(&clients, &store);
    });
}

#[test]
fn a_guard_ends_once_and_everybody_hears_of_it() {
    explore(|| {
        let (store, end) = (Store::default(), Arc::new(AtomicBool::new(false)));
        let clients = [Client::new(store.clone())];
        let client = &clients[0];
        let guard = Arc::new(block_on(client.mutex("k").lock()).unwrap());
        let (lost, told) = (guard.lost_token(), guard.lost_token());
        let claim = store.table().claim.clone().unwrap();
        let mut threads = vec![
            // The store takes it away.
            thread::spawn({
                let store = store.clone();
                move || store.end()
            }),
            // It is renewed, or the store is asked what became of it.
            thread::spawn(move || claim.recheck()),
            // Somebody waits to be told, and somebody asks.
            thread::spawn(move || block_on(told.cancelled())),
            thread::spawn({
                let guard = Arc::clone(&guard);
                move || {
                    let answers = [(); 4].map(|()| guard.is_held());
                    assert!(answers.is_sorted_by(|before, after| before >= after), "{answers:?}");
                }
            }),
            // The next of this process waits for it.
            thread::spawn({
                let client = client.clone();
                move || drop(block_on(client.mutex("k").lock()).unwrap())
            }),
            thread::spawn({
                let client = client.clone();
                move || drop(wait_for_a_while(&client))
            }),
        ];
        // Whoever is the last to have the guard gives it back.
        threads.push(thread::spawn(move || drop(guard)));
        let keeper = keep(&clients, &end);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(lost.is_cancelled());
        end.store(true, Ordering::SeqCst);
        keeper.join().unwrap();
        assert_clean(&clients, &store);
    });
}

#[test]
fn a_shutdown_ends_whatever_is_held_or_waited_for() {
    explore(|| {
        let (store, end) = (Store::default(), Arc::new(AtomicBool::new(false)));
        let clients = [Client::new(store.clone()), Client::new(store.clone())];
        let keeper = keep(&clients, &end);
        let ask = |client: &Client| {
            let client = client.clone();
            // It gets the lock, or hears that there will be none.
            thread::spawn(move || {
                block_on(client.mutex("k").lock()).is_ok_and(|guard| guard.is_held())
            })
        };
        let threads = [ask(&clients[0]), ask(&clients[0]), ask(&clients[1])];
        let leaving = clients[0].clone();
        let shutdown = thread::spawn(move || block_on(leaving.shutdown()));
        let served = threads.map(|thread| thread.join().unwrap());
        assert!(served[2], "the other process goes on");
        shutdown.join().unwrap();
        end.store(true, Ordering::SeqCst);
        keeper.join().unwrap();
        assert_clean(&clients, &store);
    });
}
