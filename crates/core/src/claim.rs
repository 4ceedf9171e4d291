//! A claim to a key: the one noun between core and the stores.

use std::{
    fmt,
    future::poll_fn,
    mem,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    FencingToken, Key, LossReason, Mode, Owner,
    keeper::{Keeper, Slot},
    lease::{self, Lease},
    sync::{AtomicBool, Mutex, MutexGuard, Ordering, PoisonError},
    tenure::{End, Tenure},
};

/// A claim to a key: who wants it, how, and for how long. All clones are the same claim.
///
/// Stores read it, and tell it what they have to say unasked: [`grant`](Self::grant), [`end`](Self::end), [`contend`](Self::contend),
/// [`recheck`](Self::recheck). These four may be called from anywhere, also under a mutex of the store.
#[derive(Clone)]
pub struct Claim(Arc<Inner>);

struct Inner {
    key: Key,
    owner: Owner,
    mode: Mode,
    may_queue: bool,
    /// Somebody of another process waits for what this claim holds.
    contended: AtomicBool,
    keeper: Option<Keeper>,
    state: Mutex<State>,
}

/// What of a claim changes. Guarded by one mutex, under which nobody else's code runs.
///
/// There may be as many of them as there are waiters: what only one phase needs is in that phase, so that it has the room of what the others need.
pub(crate) struct State {
    pub(crate) terms: Terms,
    pub(crate) phase: Phase,
    /// Its place in the keeper's table.
    pub(crate) slot: Option<Slot>,
}

/// What the store is to write.
pub(crate) struct Terms {
    pub(crate) ttl: Duration,
    pub(crate) metadata: Arc<str>,
    pub(crate) block: u32,
    pub(crate) rest: Duration,
    /// Whether the holder means to renew.
    pub(crate) renews: bool,
    /// Whether the owner id was drawn for this claim.
    pub(crate) new_owner: bool,
    /// Rises with every change, so that the answer to an older request is known as such.
    pub(crate) version: u32,
    /// The store has not confirmed the last change yet.
    pub(crate) unconfirmed: bool,
}

/// Where a claim stands, as far as this process knows.
pub(crate) enum Phase {
    /// The store was asked, or the claim has a place in its line.
    Waiting(Place),
    /// The store granted it; nobody took the grant yet.
    Granted { lease: Lease, since: Instant },
    /// A guard has it.
    Held(Tenure),
    /// It is over. An owner id is never used again.
    Over {
        reason: LossReason,
        token: FencingToken,
        /// Since when the store could not say how its place stands.
        unsure: Option<Instant>,
    },
}

/// A place in the store's line, if the claim has one yet.
#[derive(Default)]
pub(crate) struct Place {
    /// When it is to be renewed; while that is under way, until when an answer is waited for.
    pub(crate) recheck: Option<Instant>,
    pub(crate) renewing: bool,
    /// It is to be renewed once more as soon as the renewal under way is answered.
    pub(crate) again: bool,
    /// Since when the store cannot say how it stands.
    pub(crate) unsure: Option<Instant>,
    /// Who waits for the grant.
    pub(crate) waker: Option<Waker>,
}

impl Claim {
    /// A claim that no client made, for tests of stores and for stores made of stores. It may queue, has no metadata, asks for one token, and
    /// promises no renewal, nor that its owner id is new.
    #[must_use]
    pub fn new(key: Key, owner: Owner, mode: Mode, ttl: Duration) -> Self {
        Self::build(key, owner, mode, true, Terms::new(ttl, "".into()), None)
    }

    pub(crate) fn build(
        key: Key,
        owner: Owner,
        mode: Mode,
        may_queue: bool,
        terms: Terms,
        keeper: Option<Keeper>,
    ) -> Self {
        let phase = Phase::Waiting(Place::default());
        let state = Mutex::new(State { terms, phase, slot: None });
        let contended = AtomicBool::new(false);
        Self(Arc::new(Inner { key, owner, mode, may_queue, contended, keeper, state }))
    }

    /// The same claim as the store sees it, but with a place, pushes and an end of its own; it does not queue.
    #[must_use]
    pub fn without_queue(&self) -> Self {
        let terms = {
            let state = self.state();
            let Terms { ttl, ref metadata, block, rest, renews, .. } = state.terms;
            Terms { block, rest, renews, ..Terms::new(ttl, Arc::clone(metadata)) }
        };
        Self::build(self.0.key.clone(), self.0.owner, self.0.mode, false, terms, None)
    }

    /// With these words, to be shown by `inspect`.
    #[must_use]
    pub fn with_metadata(self, metadata: impl Into<Arc<str>>) -> Self {
        self.state().terms.metadata = metadata.into();
        self
    }

    /// Asking for so many tokens in a row: see [`Claim::block`].
    #[must_use]
    pub fn with_block(self, block: u32) -> Self {
        self.state().terms.block = block;
        self
    }

    /// To stay taken for so long after its release: see [`Claim::rest`].
    #[must_use]
    pub fn with_rest(self, rest: Duration) -> Self {
        self.state().terms.rest = rest;
        self
    }

    /// With the intention to renew it: see [`Claim::renews`].
    #[must_use]
    pub fn with_renewal(self) -> Self {
        self.state().terms.renews = true;
        self
    }

    /// Under an owner id that was drawn for it: see [`Claim::has_new_owner`].
    #[must_use]
    pub fn with_new_owner(self) -> Self {
        self.state().terms.new_owner = true;
        self
    }

    /// What is claimed.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.0.key
    }

    /// Who claims it.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.0.owner
    }

    /// How.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.0.mode
    }

    /// Whether the store may give it a place in its line.
    #[must_use]
    pub fn may_queue(&self) -> bool {
        self.0.may_queue
    }

    /// For how long the store is to keep it without a renewal.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.state().terms.ttl
    }

    /// What `inspect` is to show.
    #[must_use]
    pub fn metadata(&self) -> Arc<str> {
        Arc::clone(&self.state().terms.metadata)
    }

    /// How many fencing tokens in a row are useful: more than one when others of this process wait for the key, so that it can be
    /// handed on without the store ([`Lease::with_spare`]).
    #[must_use]
    pub fn block(&self) -> u32 {
        self.state().terms.block
    }

    /// For how long the key is to stay taken after the release, without an owner (a minimal hold). Zero: not at all.
    #[must_use]
    pub fn rest(&self) -> Duration {
        self.state().terms.rest
    }

    /// Whether the holder means to renew it. A store may keep all those together alive that do; one that is not renewed ends at its ttl by itself, whatever
    /// becomes of this process. A place in the line is renewed in any case.
    #[must_use]
    pub fn renews(&self) -> bool {
        self.state().terms.renews
    }

    /// Whether the owner id was drawn for this claim, so that nothing was ever asked, or granted, under it but by this claim. An id that the user gave may
    /// have been used before: what a store says of it unasked, before it has answered this claim, may be news of an earlier one.
    #[must_use]
    pub fn has_new_owner(&self) -> bool {
        self.state().terms.new_owner
    }

    /// The last token used of a grant: the store may use those after it again. None before a guard took the grant.
    #[must_use]
    pub fn last_token(&self) -> Option<FencingToken> {
        match &self.state().phase {
            Phase::Held(tenure) => Some(tenure.token()),
            Phase::Over { token, .. } if *token != FencingToken::NONE => Some(*token),
            _ => None,
        }
    }

    /// The store grants what was asked. `false`: nobody waits for it any more, give it to the next.
    ///
    /// [`Lease::since`] is from when the ttl runs on our clock; without it, from now. It may come before the answer to `acquire`, and more than once.
    pub fn grant(&self, lease: Lease) -> bool {
        let now = Instant::now();
        let since = lease.since().map_or(now, |since| since.min(now));
        self.granted_since(lease, since)
    }

    /// The store says that the claim has nothing there any more: a holder has lost the lock, a waiter its place.
    pub fn end(&self, reason: LossReason) {
        if let Some(end) = self.conclude(reason) {
            match self.keeper() {
                Some(keeper) => keeper.ended(self, end),
                None => end.settle(),
            }
        }
    }

    /// Somebody of another process waits for what this claim holds.
    pub fn contend(&self) {
        self.0.contended.store(true, Ordering::Relaxed);
    }

    /// The store may have missed to tell this claim something: it is to be renewed now.
    pub fn recheck(&self) {
        let now = Instant::now();
        match &mut self.state().phase {
            Phase::Waiting(place) if place.renewing => place.again = true,
            Phase::Waiting(Place { recheck: Some(recheck), .. }) => *recheck = now,
            Phase::Held(tenure) => tenure.renew_now(now),
            _ => return,
        }
        if let Some(keeper) = self.keeper() {
            keeper.place(self);
        }
    }

    /// Waits until the store grants the claim by [`Claim::grant`], for tests of stores.
    ///
    /// # Errors
    /// The reason when the store ended it.
    ///
    /// # Cancel safety
    /// Nothing is lost: the grant stays with the claim.
    pub async fn granted(&self) -> Result<Lease, LossReason> {
        poll_fn(|cx| self.poll_settled(cx)).await.map(|(lease, _)| lease)
    }

    /// Ready when the store has granted or ended it, or a guard has it.
    pub(crate) fn poll_settled(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Lease, Instant), LossReason>> {
        let mut state = self.state();
        if let Some(settled) = state.settled() {
            return Poll::Ready(settled);
        }
        if let Phase::Waiting(place) = &mut state.phase
            && !place.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            let before = place.waker.replace(cx.waker().clone());
            // Whoever is the last to have a task drops it, with all that it has.
            drop(state);
            drop(before);
        }
        Poll::Pending
    }

    /// What the store said unasked, if it did.
    pub(crate) fn settled(&self) -> Option<Result<(Lease, Instant), LossReason>> {
        self.state().settled()
    }

    pub(crate) fn granted_since(&self, lease: Lease, since: Instant) -> bool {
        let waker = {
            let mut state = self.state();
            match &mut state.phase {
                Phase::Waiting(place) => {
                    let waker = place.waker.take();
                    state.phase = Phase::Granted { lease, since };
                    waker
                }
                Phase::Granted { lease: had, .. } => return had.token() == lease.token(),
                Phase::Held(tenure) => return tenure.granted == lease.token(),
                Phase::Over { .. } => return false,
            }
        };
        if let Some(keeper) = self.keeper() {
            keeper.place(self);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Ends the claim. What the end has to set free is given back, to be settled outside of all locks but a store's.
    pub(crate) fn conclude(&self, reason: LossReason) -> Option<End> {
        self.state().conclude(reason)
    }

    /// Whether somebody of another process waits for what this claim holds.
    pub(crate) fn is_contended(&self) -> bool {
        self.0.contended.load(Ordering::Relaxed)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn keeper(&self) -> Option<&Keeper> {
        self.0.keeper.as_ref()
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Claim");
        debug.field("key", &self.0.key).field("owner", &self.0.owner).field("mode", &self.0.mode);
        debug.field("ttl", &self.ttl()).finish_non_exhaustive()
    }
}

impl State {
    pub(crate) fn conclude(&mut self, reason: LossReason) -> Option<End> {
        let (token, unsure) = match &self.phase {
            Phase::Over { .. } => return None,
            Phase::Held(tenure) => {
                if tenure.is_bound() {
                    self.terms.rest = tenure.rest(Instant::now());
                }
                (tenure.token(), None)
            }
            Phase::Granted { .. } => (FencingToken::NONE, None),
            Phase::Waiting(place) => (FencingToken::NONE, place.unsure),
        };
        let phase = mem::replace(&mut self.phase, Phase::Over { reason, token, unsure });
        Some(End::new(reason, phase))
    }

    /// Since when the store could not say how its place stood, if that is what it ended by.
    pub(crate) const fn unsure(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Over { unsure, .. } => *unsure,
            _ => None,
        }
    }

    fn settled(&self) -> Option<Result<(Lease, Instant), LossReason>> {
        match &self.phase {
            Phase::Waiting(_) => None,
            Phase::Granted { lease, since } => Some(Ok((*lease, *since))),
            Phase::Held(tenure) => Some(Ok((tenure.lease(), tenure.since))),
            Phase::Over { reason, .. } => Some(Err(*reason)),
        }
    }

    /// When the keeper is to look at it next.
    pub(crate) fn due(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Waiting(place) => place.recheck,
            Phase::Granted { lease, since } => Some(self.deadline(lease, *since)),
            Phase::Held(tenure) => Some(tenure.due()),
            Phase::Over { .. } => None,
        }
    }

    /// Whether the keeper would look at it at another time than it should.
    pub(crate) fn is_misplaced(&self) -> bool {
        self.slot.map(Slot::at) != self.due()
    }

    /// Until when a grant is certain: the smaller of the asked and the granted ttl counts.
    pub(crate) fn deadline(&self, lease: &Lease, since: Instant) -> Instant {
        lease::deadline(since, self.granted_ttl(lease))
    }

    pub(crate) fn granted_ttl(&self, lease: &Lease) -> Duration {
        let ttl = self.terms.ttl;
        lease.ttl().map_or(ttl, |granted| granted.min(ttl))
    }
}

impl Terms {
    pub(crate) fn new(ttl: Duration, metadata: Arc<str>) -> Self {
        Self {
            ttl,
            metadata,
            block: 1,
            rest: Duration::ZERO,
            renews: false,
            new_owner: false,
            version: 0,
            unconfirmed: false,
        }
    }
}

#[cfg(test)]
mod tests {
    /// There is one for each lock that is held and for each place in a store's line. Shared, it has 16 bytes more.
    #[cfg(all(target_pointer_width = "64", not(shuttle)))]
    #[test]
    fn a_claim_takes_little_room() {
        let room = size_of::<super::Inner>();
        assert!(room <= 304, "{room} bytes");
    }
}
