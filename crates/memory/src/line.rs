//! The line of one key: holders and waiters, in the order of their arrival.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use distlock_core::{Claim, FencingToken, Holder, Lease, LossReason, Mode, Occupancy, Owner};
use tokio::time::Instant;

/// How long a place lives that nobody renews.
pub(crate) const PLACE_TTL: Duration = Duration::from_secs(15);

/// The longest silence that a waiter is to believe: two renewals of its place may be lost.
const RECHECK: Duration = Duration::from_secs(5);

/// How many tokens a grant takes at least. At a billion grants a second the counter lasts for two years.
const BLOCK: u32 = 256;

/// Holders and waiters of a key. Whatever stands behind an exclusive entry has to wait.
pub(crate) struct Line {
    entries: VecDeque<Entry>,
    /// No entry ends before this.
    ends_from: Option<Instant>,
}

struct Entry {
    /// None for what is left of a minimal hold.
    owner: Option<Owner>,
    mode: Mode,
    until: Instant,
    stake: Stake,
}

enum Stake {
    Held {
        claim: Claim,
        lease: Lease,
        /// As it was written last, whatever the claim says by now.
        metadata: Arc<str>,
    },
    Rest,
    Waiting(Claim),
}

/// What a claim has in a line.
pub(crate) enum Found {
    Held(Lease),
    Nothing,
    Waiting,
}

/// Why a claim's entry is looked for.
#[derive(Clone, Copy)]
pub(crate) enum Visit {
    /// It asks again, perhaps by another object.
    Again,
    /// It is kept alive.
    Renewal,
    /// It is kept alive, with other terms.
    Terms,
}

/// What claims are to be told, once the store's mutex is free again. Mostly nothing or little.
#[derive(Default)]
pub(crate) struct Pushes {
    first: Option<Push>,
    more: VecDeque<Push>,
}

pub(crate) enum Push {
    End(Claim, LossReason),
    Grant(Claim, Lease),
    Recheck(Claim),
}

impl Line {
    /// With room for its holder: most have nobody else.
    pub(crate) fn for_one() -> Self {
        Self { entries: VecDeque::with_capacity(1), ends_from: None }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The memory of a line that is empty, for another one. None when it has grown beyond so many entries.
    pub(crate) fn recycled(self, limit: usize) -> Option<Self> {
        let small = self.is_empty() && self.entries.capacity() <= limit;
        small.then_some(Self { ends_from: None, ..self })
    }

    /// Removes what has ended, and admits who is next.
    pub(crate) fn expire(&mut self, now: Instant, tokens: &mut u64, pushes: &mut Pushes) {
        if self.ends_from.is_none_or(|first| now < first) {
            return;
        }
        let before = self.entries.len();
        self.entries.retain(|entry| {
            if now < entry.until {
                return true;
            }
            match &entry.stake {
                Stake::Held { claim, .. } => {
                    pushes.add(Push::End(claim.clone(), LossReason::Expired));
                }
                Stake::Rest => {}
                Stake::Waiting(claim) => pushes.add(Push::End(claim.clone(), LossReason::Gone)),
            }
            false
        });
        if self.entries.len() < before {
            self.admit(now, tokens, pushes);
        }
        self.ends_from = self.entries.iter().map(|entry| entry.until).min();
    }

    /// Gives the claim the key or a place, if it has neither.
    pub(crate) fn enter(&mut self, claim: &Claim, now: Instant, tokens: &mut u64) -> Found {
        match self.visit(claim, Visit::Again, now) {
            Found::Nothing => {}
            Found::Waiting if !claim.may_queue() => return Found::Nothing,
            found => return found,
        }
        let mode = claim.mode();
        if mode.admitted_after(self.entries.iter().map(|entry| entry.mode)) {
            let lease = draw(tokens, claim);
            let stake = Stake::Held { claim: claim.clone(), lease, metadata: claim.metadata() };
            self.push(claim, stake, now + claim.ttl());
            return Found::Held(lease);
        }
        if !claim.may_queue() {
            return Found::Nothing;
        }
        for entry in self.front() {
            if let Stake::Held { claim, .. } = &entry.stake {
                claim.contend();
            }
        }
        self.push(claim, Stake::Waiting(claim.clone()), now + PLACE_TTL);
        Found::Waiting
    }

    /// Keeps alive what the claim has.
    pub(crate) fn visit(&mut self, claim: &Claim, visit: Visit, now: Instant) -> Found {
        let Some(index) = self.find(claim) else { return Found::Nothing };
        let entry = &mut self.entries[index];
        match &mut entry.stake {
            Stake::Held { claim: known, lease, metadata } => {
                let until = now + claim.ttl();
                match visit {
                    Visit::Terms => entry.until = until,
                    Visit::Again | Visit::Renewal => entry.until = entry.until.max(until),
                }
                if !matches!(visit, Visit::Renewal) {
                    *known = claim.clone();
                    *metadata = claim.metadata();
                }
                let (lease, until) = (*lease, entry.until);
                self.ends_by(until);
                Found::Held(lease)
            }
            Stake::Rest => Found::Nothing,
            Stake::Waiting(known) => {
                entry.until = now + PLACE_TTL;
                if matches!(visit, Visit::Again) {
                    *known = claim.clone();
                }
                Found::Waiting
            }
        }
    }

    /// Takes out what the claim has. `false`: it has nothing.
    pub(crate) fn leave(
        &mut self,
        claim: &Claim,
        now: Instant,
        tokens: &mut u64,
        pushes: &mut Pushes,
    ) -> bool {
        let Some(index) = self.find(claim) else { return false };
        let entry = &mut self.entries[index];
        let rest = claim.rest();
        if matches!(entry.stake, Stake::Held { .. }) && !rest.is_zero() {
            let until = now + rest;
            entry.owner = None;
            entry.until = until;
            pushes.ended(std::mem::replace(&mut entry.stake, Stake::Rest));
            self.ends_by(until);
            // Those who wait were told another time.
            for entry in &self.entries {
                if let Stake::Waiting(claim) = &entry.stake {
                    pushes.add(Push::Recheck(claim.clone()));
                }
            }
            return true;
        }
        if let Some(entry) = self.entries.remove(index) {
            pushes.ended(entry.stake);
        }
        self.admit(now, tokens, pushes);
        true
    }

    /// Takes back a grant that nobody took.
    pub(crate) fn refuse(
        &mut self,
        claim: &Claim,
        refused: Lease,
        now: Instant,
        tokens: &mut u64,
        pushes: &mut Pushes,
    ) {
        let Some(index) = self.find(claim) else { return };
        let Stake::Held { lease, .. } = &self.entries[index].stake else { return };
        if lease.token() == refused.token() {
            self.entries.remove(index);
            self.admit(now, tokens, pushes);
        }
    }

    /// When it is certain to be worth asking again for the key.
    pub(crate) fn retry_in(&self, now: Instant) -> Option<Duration> {
        let held = self.front().filter(|entry| !matches!(entry.stake, Stake::Waiting(_)));
        held.map(|entry| entry.until - now).min()
    }

    /// For how long one who waits may believe in silence.
    pub(crate) fn recheck(&self, now: Instant) -> Duration {
        self.ends_from.map_or(RECHECK, |first| (first - now).min(RECHECK))
    }

    pub(crate) fn occupancy(&self, now: Instant) -> Occupancy {
        let mut waiting = 0;
        let mut holders = Vec::new();
        for entry in &self.entries {
            let holder = Holder::new(entry.mode).expires_in(entry.until - now);
            match (&entry.stake, entry.owner) {
                (Stake::Held { lease, metadata, .. }, Some(owner)) => {
                    let holder = holder.owner(owner).token(lease.token());
                    holders.push(holder.metadata(&**metadata));
                }
                (Stake::Held { .. } | Stake::Rest, _) => holders.push(holder),
                (Stake::Waiting(_), _) => waiting += 1,
            }
        }
        Occupancy::new(holders).waiting(waiting)
    }

    /// Grants to those who are next.
    fn admit(&mut self, now: Instant, tokens: &mut u64, pushes: &mut Pushes) {
        for index in 0..self.entries.len() {
            let mode = self.entries[index].mode;
            if matches!(self.entries[index].stake, Stake::Waiting(_)) {
                let before = self.entries.iter().take(index).map(|entry| entry.mode);
                if mode.admitted_after(before) {
                    self.grant(index, now, tokens, pushes);
                }
            }
            if mode == Mode::Exclusive {
                return;
            }
        }
    }

    fn grant(&mut self, index: usize, now: Instant, tokens: &mut u64, pushes: &mut Pushes) {
        let awaited =
            self.entries.range(index + 1..).any(|entry| matches!(entry.stake, Stake::Waiting(_)));
        let entry = &mut self.entries[index];
        let Stake::Waiting(claim) = &entry.stake else { return };
        let (claim, lease) = (claim.clone(), draw(tokens, claim));
        if awaited {
            claim.contend();
        }
        // The ttl runs from now, however late the push is.
        pushes.add(Push::Grant(claim.clone(), lease.with_since(now)));
        let until = now + claim.ttl();
        entry.until = until;
        let metadata = claim.metadata();
        entry.stake = Stake::Held { claim, lease, metadata };
        self.ends_by(until);
    }

    /// Those who may hold the key: nobody behind an exclusive entry does.
    fn front(&self) -> impl Iterator<Item = &Entry> {
        let exclusive = self.entries.iter().position(|entry| entry.mode == Mode::Exclusive);
        self.entries.iter().take(exclusive.map_or(self.entries.len(), |index| index + 1))
    }

    fn find(&self, claim: &Claim) -> Option<usize> {
        let owner = Some(claim.owner());
        self.entries.iter().position(|entry| entry.owner == owner)
    }

    fn push(&mut self, claim: &Claim, stake: Stake, until: Instant) {
        let (owner, mode) = (Some(claim.owner()), claim.mode());
        self.entries.push_back(Entry { owner, mode, until, stake });
        self.ends_by(until);
    }

    fn ends_by(&mut self, until: Instant) {
        self.ends_from = Some(self.ends_from.map_or(until, |first| first.min(until)));
    }
}

impl Pushes {
    pub(crate) fn add(&mut self, push: Push) {
        if self.first.is_none() && self.more.is_empty() {
            self.first = Some(push);
        } else {
            self.more.push_back(push);
        }
    }

    pub(crate) fn next(&mut self) -> Option<Push> {
        self.first.take().or_else(|| self.more.pop_front())
    }

    /// Whose stake was taken out, by itself or by somebody else.
    fn ended(&mut self, stake: Stake) {
        match stake {
            Stake::Held { claim, .. } | Stake::Waiting(claim) => {
                self.add(Push::End(claim, LossReason::Gone));
            }
            Stake::Rest => {}
        }
    }
}

/// The next token, with those after it that a process may use by itself.
fn draw(tokens: &mut u64, claim: &Claim) -> Lease {
    let block = claim.block().max(BLOCK);
    let token = *tokens + 1;
    *tokens += u64::from(block);
    Lease::new(FencingToken::new(token)).with_spare(block - 1)
}
