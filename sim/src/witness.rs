//! Stands between the core and a store, and sees to it that the core keeps what it promises to stores, and to itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use distlock_core::{
    AnyBackend, Backend, BackendError, Capabilities, Claim, Key, Occupancy, Owner, Renewal,
    Standing, simulation,
};

use crate::world::World;

/// A store with a witness before it. All clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Witness {
    inner: AnyBackend,
    world: Arc<World>,
    /// One contender of the process for each key.
    alone: bool,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The claims to each key that the store was asked for, and that are not over.
    claims: BTreeMap<Key, Vec<Claim>>,
    tries: BTreeMap<Owner, Tries>,
    /// Holders of whom the store said that they have nothing, or another grant than theirs.
    denied: BTreeSet<Owner>,
}

/// What the store was asked for a claim.
#[derive(Clone, Copy, Debug, Default)]
struct Tries {
    under_way: u32,
    /// So many of them change the ttl or the words.
    changes: u32,
    /// When the latest one was answered.
    answered: u64,
    /// The second in which it was asked last, and how often in that.
    second: u64,
    count: u32,
}

/// Nobody asks for one claim more often in a second.
const MOST: u32 = 100;

impl Witness {
    pub(crate) fn new(inner: AnyBackend, world: &Arc<World>, alone: bool) -> Self {
        Self { inner, world: Arc::clone(world), alone, state: Arc::default() }
    }

    /// Since when the store was not asked to extend what this owner holds; none while it is being asked.
    pub(crate) fn idle_since(&self, owner: Owner) -> Option<u64> {
        let tries = self.state().tries.get(&owner).copied();
        tries.filter(|tries| tries.under_way == 0).map(|tries| tries.answered)
    }

    /// Whether the store is being asked for what this owner holds; `changed`: to change it.
    pub(crate) fn is_asked(&self, owner: Owner, changed: bool) -> bool {
        let tries = self.state().tries.get(&owner).copied().unwrap_or_default();
        tries.under_way > 0 && (tries.changes > 0 || !changed)
    }

    /// Whether the store is being asked for anything.
    pub(crate) fn is_busy(&self) -> bool {
        self.state().tries.values().any(|tries| tries.under_way > 0)
    }

    /// Whether somebody waits for what this owner has, or a guard has it.
    pub(crate) fn wants(&self, key: &str, owner: Owner) -> bool {
        let state = self.state();
        let claims = state.claims.iter().filter(|(name, _)| name.as_str() == key);
        let mut claims = claims.flat_map(|(_, claims)| claims);
        claims.any(|claim| claim.owner() == owner && !simulation::is_over(claim))
    }

    /// Whether the store said, in answer to a renewal, that this holder has lost the lock; that what it has was granted later says the same.
    pub(crate) fn is_denied(&self, owner: Owner) -> bool {
        self.state().denied.contains(&owner)
    }

    fn begin(&self, claim: &Claim) {
        let second = self.world.now() / 1_000_000_000;
        let mut state = self.state();
        let tries = state.tries.entry(claim.owner()).or_default();
        tries.under_way += 1;
        if std::mem::replace(&mut tries.second, second) != second {
            tries.count = 0;
        }
        tries.count += 1;
        if tries.count == MOST {
            self.world.breach("the store is asked again and again without a pause", claim.key());
        }
    }

    fn count_changes(&self, renewals: &[Renewal], count: impl Fn(u32) -> u32) {
        let mut state = self.state();
        for renewal in renewals.iter().filter(|renewal| renewal.changed) {
            if let Some(tries) = state.tries.get_mut(&renewal.claim.owner()) {
                tries.changes = count(tries.changes);
            }
        }
    }

    fn end(&self, owner: Owner) {
        let now = self.world.now();
        if let Some(tries) = self.state().tries.get_mut(&owner) {
            (tries.under_way, tries.answered) = (tries.under_way.saturating_sub(1), now);
        }
    }

    /// At most one contender of a process goes to the store for a key.
    fn contends(&self, claim: &Claim) {
        let mut state = self.state();
        let claims = state.claims.entry(claim.key().clone()).or_default();
        claims.retain(|other| !simulation::is_over(other));
        if claims.iter().any(|other| other.owner() == claim.owner()) {
            return;
        }
        if self.alone && !claims.is_empty() {
            self.world.breach("two contenders of a process for one key", claim.key());
        }
        claims.push(claim.clone());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for Witness {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn acquire(&self, claim: &Claim) -> Result<Standing, BackendError> {
        self.contends(claim);
        self.begin(claim);
        let answer = self.inner.acquire(claim).await;
        self.end(claim.owner());
        answer
    }

    async fn renew(&self, renewals: &[Renewal]) -> Vec<Result<Standing, BackendError>> {
        renewals.iter().for_each(|renewal| self.begin(&renewal.claim));
        self.count_changes(renewals, |changes| changes + 1);
        // A grant may overtake what is said of a place. And nobody may wait any more for the answer to a change.
        let held = |renewal: &Renewal| match renewal.changed || simulation::is_over(&renewal.claim)
        {
            true => None,
            false => renewal.claim.last_token(),
        };
        let held: Vec<_> = renewals.iter().map(held).collect();
        let answers = self.inner.renew(renewals).await;
        self.count_changes(renewals, |changes| changes.saturating_sub(1));
        for ((renewal, held), answer) in renewals.iter().zip(held).zip(&answers) {
            let owner = renewal.claim.owner();
            self.end(owner);
            let Some(token) = held else { continue };
            let denies = match answer {
                Ok(Standing::Held(lease)) => token < lease.token(),
                Ok(_) => true,
                Err(_) => false,
            };
            if denies {
                self.state().denied.insert(owner);
            }
        }
        answers
    }

    async fn release(&self, claim: &Claim) -> Result<bool, BackendError> {
        if !simulation::is_over(claim) {
            self.world.breach("a lock is given back that is still held", claim.key());
        }
        let released = self.inner.release(claim).await;
        let mut state = self.state();
        state.tries.remove(&claim.owner());
        state.denied.remove(&claim.owner());
        released
    }

    async fn inspect(&self, key: &Key) -> Result<Occupancy, BackendError> {
        self.inner.inspect(key).await
    }
}
