//! What the keeper knows: claims by the time at which they are due, calls to finish, events to tell.

use std::{collections::BTreeMap, task::Waker, time::Duration};

use tokio::time::Instant;

use crate::{
    Claim, Event, Key, LossReason,
    any::BoxFuture,
    claim::{Phase, Terms},
    patience::OUTAGE,
    tenure::End,
};

use super::round::BATCH;

/// A claim's place in the table.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Slot {
    at: Instant,
    serial: u64,
}

impl Slot {
    pub(crate) const fn at(self) -> Instant {
        self.at
    }
}

#[derive(Default)]
pub(super) struct Table {
    due: BTreeMap<Slot, Claim>,
    serial: u64,
    /// When the task wakes by itself; none while it is at work.
    sleeps_until: Option<Instant>,
    pub(super) running: bool,
    /// The client is shut down: nothing is tried again.
    pub(super) stopping: bool,
    /// There is no client any more: the task ends when nothing is left to do.
    pub(super) orphaned: bool,
    pub(super) jobs: Vec<BoxFuture<()>>,
    pub(super) events: Vec<(Key, Event)>,
}

/// What is to be done now, and when to look again; never: the task is to end.
pub(super) struct Round {
    pub(super) work: Work,
    pub(super) wake_at: Option<Instant>,
}

#[derive(Default)]
pub(super) struct Work {
    pub(super) jobs: Vec<BoxFuture<()>>,
    pub(super) events: Vec<(Key, Event)>,
    pub(super) renewals: Vec<Due>,
    pub(super) ends: Vec<(Claim, End)>,
}

/// A claim to renew, as it is at this moment.
pub(super) struct Due {
    pub(super) claim: Claim,
    pub(super) ttl: Duration,
    pub(super) version: u32,
    pub(super) changed: bool,
    /// It is a place in the line, not a lock.
    pub(super) place: bool,
    /// How long ago it was due.
    pub(super) late: Duration,
}

/// How far ahead the task looks when nothing at all is due.
const IDLE: Duration = Duration::from_secs(3600);

impl Table {
    /// Moves a claim to its place. `true`: the task has to know, it would wake too late.
    pub(super) fn place(&mut self, claim: &Claim) -> bool {
        let mut state = claim.state();
        if let Phase::Held(tenure) = &mut state.phase {
            tenure.settle_in((self.due.len() >= BATCH).then(|| fraction(self.serial)));
        }
        let due = state.due();
        if !state.is_misplaced() {
            return false;
        }
        if let Some(slot) = state.slot.take() {
            self.due.remove(&slot);
        }
        let Some(at) = due else { return false };
        self.serial += 1;
        let slot = Slot { at, serial: self.serial };
        state.slot = Some(slot);
        drop(state);
        self.due.insert(slot, claim.clone());
        !self.running || self.sleeps_until.is_some_and(|until| at < until)
    }

    /// What is due by now, and what will be so soon that it goes with it.
    pub(super) fn collect(&mut self, now: Instant, idle: bool) -> Round {
        let mut work = Work {
            jobs: std::mem::take(&mut self.jobs),
            events: std::mem::take(&mut self.events),
            ..Work::default()
        };
        for claim in self.take_due(now) {
            match assess(&claim, now) {
                Verdict::End(end) => work.ends.push((claim, end)),
                Verdict::Renew(due) => {
                    self.place(&claim);
                    work.renewals.push(due);
                }
                Verdict::Wait => {
                    self.place(&claim);
                }
            }
        }
        let done =
            (self.stopping || self.orphaned) && idle && self.due.is_empty() && work.is_empty();
        self.running = !done;
        let wake_at = self.due.first_key_value().map_or(now + IDLE, |(slot, _)| slot.at);
        self.sleeps_until = Some(wake_at);
        Round { work, wake_at: (!done).then_some(wake_at) }
    }

    fn take_due(&mut self, now: Instant) -> Vec<Claim> {
        let Some((first, claim)) = self.due.first_key_value() else { return Vec::new() };
        if now < first.at {
            return Vec::new();
        }
        let horizon = Slot { at: now + slack(claim.ttl()), serial: u64::MAX };
        let mut taken = Vec::new();
        for (slot, claim) in self.due.range(..=horizon) {
            if now < slot.at {
                // Those who are not due yet fill up a batch. More of them would be a burst.
                if taken.len().is_multiple_of(BATCH) {
                    break;
                }
                if !is_soon(claim, now) {
                    continue;
                }
            }
            taken.push(*slot);
        }
        taken
            .iter()
            .filter_map(|slot| self.due.remove(slot))
            .inspect(|claim| claim.state().slot = None)
            .collect()
    }

    /// Forgets everything. What is given back is to be dropped outside of the table's mutex.
    pub(super) fn clear(&mut self) -> Self {
        std::mem::replace(
            self,
            Self { stopping: self.stopping, orphaned: self.orphaned, ..Self::default() },
        )
    }

    /// Ends all claims that it knows.
    pub(super) fn conclude_all(&mut self, reason: LossReason) -> Vec<(Claim, End)> {
        let claims = std::mem::take(&mut self.due).into_values();
        claims
            .filter_map(|claim| {
                let mut state = claim.state();
                state.slot = None;
                let end = state.conclude(reason)?;
                drop(state);
                Some((claim, end))
            })
            .collect()
    }

    /// Whether anything in it waits for its time.
    pub(super) fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    /// Those who wait in a store's line, to be woken outside of the table's mutex.
    pub(super) fn waiting(&self) -> Vec<Waker> {
        let take = |claim: &Claim| match &mut claim.state().phase {
            Phase::Waiting(place) => place.waker.take(),
            _ => None,
        };
        self.due.values().filter_map(take).collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.due.len()
    }
}

impl Work {
    fn is_empty(&self) -> bool {
        self.jobs.is_empty()
            && self.events.is_empty()
            && self.renewals.is_empty()
            && self.ends.is_empty()
    }
}

enum Verdict {
    End(End),
    Renew(Due),
    Wait,
}

/// A number from 0 to 1, so that any row of them is spread evenly: multiples of the golden ratio.
fn fraction(serial: u64) -> f64 {
    let scattered = (serial as u32).wrapping_mul(0x9e37_79b9);
    f64::from(scattered) / f64::from(u32::MAX)
}

/// Renewals that are due within a 48th of the ttl go together.
fn slack(ttl: Duration) -> Duration {
    ttl / 48
}

fn is_soon(claim: &Claim, now: Instant) -> bool {
    let state = claim.state();
    matches!(&state.phase, Phase::Held(tenure) if tenure.wants_renewal(now, slack(state.terms.ttl)))
}

fn assess(claim: &Claim, now: Instant) -> Verdict {
    let mut guard = claim.state();
    let state = &mut *guard;
    let terms = &state.terms;
    let reason = match &mut state.phase {
        Phase::Waiting(place) => match place.recheck.filter(|due| *due <= now) {
            None => return Verdict::Wait,
            Some(due) if !place.renewing => {
                place.recheck = Some(now + OUTAGE);
                (place.renewing, place.again) = (true, false);
                return Verdict::Renew(Due::new(claim, terms, true, now - due));
            }
            Some(due) => {
                place.unsure.get_or_insert(due - OUTAGE);
                LossReason::Gone
            }
        },
        Phase::Granted { lease, since } => {
            let (lease, since) = (*lease, *since);
            if now < state.deadline(&lease, since) {
                return Verdict::Wait;
            }
            LossReason::Expired
        }
        Phase::Held(tenure) if tenure.deadline <= now => LossReason::Expired,
        Phase::Held(tenure) if tenure.max_hold().is_some_and(|max| max <= now) => {
            LossReason::MaxHold
        }
        Phase::Held(tenure) if tenure.wants_renewal(now, slack(terms.ttl)) => {
            tenure.renewing = true;
            let late = tenure.overdue(now);
            return Verdict::Renew(Due::new(claim, terms, false, late));
        }
        _ => return Verdict::Wait,
    };
    state.conclude(reason).map_or(Verdict::Wait, Verdict::End)
}

impl Due {
    fn new(claim: &Claim, terms: &Terms, place: bool, late: Duration) -> Self {
        let Terms { ttl, version, unconfirmed: changed, .. } = *terms;
        Self { claim: claim.clone(), ttl, version, changed, place, late }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FencingToken, Lease, Mode, Owner, lease};

    #[tokio::test(start_paused = true)]
    async fn a_grant_that_nobody_took_is_over_at_its_deadline_and_whenever_that_is_seen() {
        let (ttl, moment) = (Duration::from_secs(10), Duration::from_millis(1));
        let certain = lease::certain(ttl);
        for (after, over) in [(certain - moment, false), (certain, true), (ttl * 2, true)] {
            let key = Key::new("k").unwrap();
            let claim = Claim::new(key, Owner::new(1), Mode::Exclusive, ttl);
            let granted = Instant::now();
            assert!(claim.grant(Lease::new(FencingToken::new(7))));
            let verdict = assess(&claim, granted + after);
            assert_eq!(matches!(verdict, Verdict::End(_)), over, "after {after:?}");
        }
    }
}
