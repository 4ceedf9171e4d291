//! What the keeper does in a round: ends what is over, renews what is due, tells what came of it.

use std::{sync::Arc, time::Duration, vec};

use tokio::time::Instant;

use super::{
    Keeper, Shared,
    table::{Due, Work},
};
use crate::{
    BackendError, Claim, ErrorKind, Event, LossReason, Renewal, Standing,
    any::BoxFuture,
    claim::{Phase, Place, State},
    patience::OUTAGE,
    tenure::End,
};

/// How many claims go into one call of the store.
pub(super) const BATCH: usize = 256;

/// A place is looked at no more often than that, and no less, whatever the store says.
const SHORTEST_RECHECK: Duration = Duration::from_millis(1);
const LONGEST_RECHECK: Duration = Duration::from_secs(3600);

/// When the store could not say how a place stands, it is asked again after this time.
const RECHECK_AFTER_FAILURE: Duration = Duration::from_millis(100);

impl Shared {
    /// Starts all that a round found to do. What takes time is given back as jobs.
    pub(super) fn carry_out(self: &Arc<Self>, work: Work) -> Vec<BoxFuture<()>> {
        let keeper = Keeper(Arc::clone(self));
        for (key, event) in &work.events {
            keeper.observe(key, event);
        }
        for (claim, end) in work.ends {
            if let (LossReason::MaxHold, Some((since, _))) = (end.reason, end.held) {
                keeper.observe(claim.key(), &Event::MaxHoldReached { held: since.elapsed() });
            }
            keeper.lost(&claim, end);
        }
        let mut jobs = work.jobs;
        let mut renewals = work.renewals.into_iter().peekable();
        while renewals.peek().is_some() {
            let batch: Vec<Due> = renewals.by_ref().take(BATCH).collect();
            jobs.push(self.renew(batch));
        }
        jobs
    }

    fn renew(self: &Arc<Self>, batch: Vec<Due>) -> BoxFuture<()> {
        let keeper = Keeper(Arc::clone(self));
        let sent = Instant::now();
        let renewals = batch
            .iter()
            .map(|Due { claim, changed, .. }| Renewal { claim: claim.clone(), changed: *changed });
        let call = self.backend.start_renew(renewals.collect());
        let mut batch = Batch { keeper, sent, dues: batch.into_iter() };
        Box::pin(async move { batch.answered(call.await) })
    }
}

/// Renewals under way. What is dropped without an answer, with its runtime or by a panic of the store, has failed.
struct Batch {
    keeper: Keeper,
    sent: Instant,
    dues: vec::IntoIter<Due>,
}

impl Batch {
    fn answered(&mut self, answers: Vec<Result<Standing, BackendError>>) {
        let mut answers = answers.into_iter();
        for due in self.dues.by_ref() {
            let answer =
                answers.next().unwrap_or_else(|| Err(unanswered(self.keeper.store_name())));
            self.keeper.renewed(due, self.sent, answer);
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.answered(Vec::new());
    }
}

impl Keeper {
    fn renewed(&self, due: Due, sent: Instant, answer: Result<Standing, BackendError>) {
        let Due { claim, late, .. } = &due;
        let outcome = claim.state().renewed(&due, sent, answer);
        match outcome {
            Outcome::Ended(end) => return self.lost(claim, end),
            Outcome::Failed(error) => self.observe(claim.key(), &Event::RenewalFailed { error }),
            Outcome::Granted(lease, since) => {
                claim.granted_since(lease, since);
            }
            Outcome::Renewed => self.observe(claim.key(), &Event::Renewed { late: *late }),
            Outcome::Unchanged => {}
        }
        self.place(claim);
    }
}

enum Outcome {
    Ended(End),
    Failed(BackendError),
    Granted(crate::Lease, Instant),
    Renewed,
    Unchanged,
}

impl State {
    /// Applies the answer to a renewal that was sent at `sent`.
    fn renewed(
        &mut self,
        due: &Due,
        sent: Instant,
        answer: Result<Standing, BackendError>,
    ) -> Outcome {
        let now = Instant::now();
        let current = self.terms.version == due.version;
        let stays = matches!(answer, Ok(Standing::Held(_) | Standing::Queued { .. }));
        let waits = matches!(self.phase, Phase::Waiting(_));
        if due.place && !waits && !matches!(answer, Ok(Standing::Held(_))) {
            // The grant overtook what the store said of the place that the claim had before.
            return Outcome::Unchanged;
        }
        let reason = match (&mut self.phase, answer) {
            (Phase::Over { .. }, _) => return Outcome::Unchanged,
            (Phase::Waiting(place), Ok(Standing::Held(lease))) => {
                place.rest();
                return Outcome::Granted(
                    lease,
                    lease.since().map_or(sent, |since| since.min(sent)),
                );
            }
            (Phase::Waiting(place), Ok(Standing::Queued { recheck })) => {
                place.unsure = None;
                let after = if place.again { Duration::ZERO } else { recheck };
                place.plan(now, after);
                return Outcome::Unchanged;
            }
            (Phase::Waiting(place), Err(error)) if error.is_transient() => {
                if now < *place.unsure.get_or_insert(sent) + OUTAGE {
                    place.plan(now, RECHECK_AFTER_FAILURE);
                    return Outcome::Failed(error);
                }
                LossReason::Gone
            }
            // The place is gone, or so wrong that its contender has to hear it: it asks anew.
            (Phase::Waiting(_), _) => LossReason::Gone,
            (Phase::Granted { lease, since }, Ok(Standing::Held(again)))
                if lease.token() == again.token() =>
            {
                *since = (*since).max(again.since().unwrap_or(sent).min(sent));
                return Outcome::Unchanged;
            }
            (Phase::Granted { .. }, _) => return Outcome::Unchanged,
            (Phase::Held(tenure), Ok(Standing::Held(lease))) if lease.token() == tenure.granted => {
                tenure.renewing &= due.place;
                if tenure.deadline <= now {
                    LossReason::Expired
                } else {
                    let granted = lease.ttl().map_or(due.ttl, |ttl| ttl.min(due.ttl));
                    if current {
                        self.terms.unconfirmed &= !due.changed;
                        tenure.extend(lease.since().map_or(sent, |since| since.min(sent)), granted);
                    } else {
                        // It did not move the deadline.
                        tenure.retry_renewal(now, self.terms.ttl);
                    }
                    return Outcome::Renewed;
                }
            }
            (Phase::Held(_), Ok(_)) => LossReason::Gone,
            (Phase::Held(_), Err(error)) if error.kind() == ErrorKind::Conflict => LossReason::Gone,
            (Phase::Held(tenure), Err(error)) => {
                tenure.renewing = false;
                tenure.retry_renewal(now, self.terms.ttl);
                return Outcome::Failed(error);
            }
        };
        let Some(mut end) = self.conclude(reason) else { return Outcome::Unchanged };
        end.stays |= stays;
        Outcome::Ended(end)
    }
}

impl Claim {
    /// The store gave it a place.
    pub(crate) fn queued(&self, recheck: Duration) {
        if let Phase::Waiting(place) = &mut self.state().phase {
            place.plan(Instant::now(), recheck);
        }
    }
}

impl Place {
    /// To be looked at again after this time, be it nothing or for ever.
    fn plan(&mut self, now: Instant, after: Duration) {
        self.rest();
        self.recheck = Some(now + after.clamp(SHORTEST_RECHECK, LONGEST_RECHECK));
    }

    /// Not to be looked at any more.
    fn rest(&mut self) {
        (self.recheck, self.renewing, self.again) = (None, false, false);
    }
}

fn unanswered(store: &'static str) -> BackendError {
    BackendError::transient(store, "gave fewer answers than there were renewals")
}

#[cfg(test)]
#[path = "round_tests.rs"]
mod tests;
