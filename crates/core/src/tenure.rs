//! What a guard has of a claim: its deadline, its token, its turn.

use std::{task::Waker, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{Event, FencingToken, Lease, LossReason, claim::Phase, lease, line::Turn};

/// A claim in the hands of a guard.
pub(crate) struct Tenure {
    /// The token that the store granted. It names the grant.
    pub(crate) granted: FencingToken,
    /// The token of the guard that has it now.
    pub(crate) token: FencingToken,
    /// The last token of the block.
    last: FencingToken,
    /// From when on it is lost, unless a renewal is confirmed.
    pub(crate) deadline: Instant,
    /// When the present guard got it.
    pub(crate) since: Instant,
    /// After what fraction of the ttl it is renewed; none: it ends at its deadline.
    pub(crate) renew_at: Option<f64>,
    /// When the next renewal is due.
    renew_due: Instant,
    /// A renewal is under way.
    pub(crate) renewing: bool,
    /// The keeper has not seen it yet.
    new: bool,
    /// How long the present guard keeps it taken at least.
    pub(crate) min_hold: Duration,
    /// When the present guard has held it for as long as allowed.
    pub(crate) max_hold: Option<Instant>,
    /// Told when the present guard has it no more. Made for who asks.
    pub(crate) lost: Option<CancellationToken>,
    /// The right of this process to contend for the key; none where every waiter stands in the store's own line.
    pub(crate) turn: Option<Turn>,
    /// Another process waited for what this one held a moment ago, so one is believed to wait for this too.
    pub(crate) contested: bool,
    /// How often it was handed on inside the process since another one waits, or is believed to.
    pub(crate) passes: u32,
}

impl Tenure {
    pub(crate) fn new(
        lease: &Lease,
        asked: Instant,
        deadline: Instant,
        now: Instant,
        ttl: Duration,
        turn: Option<Turn>,
        policy: Policy,
    ) -> Self {
        let last = lease.token().as_u64().saturating_add(u64::from(lease.spare()));
        let mut tenure = Self {
            granted: lease.token(),
            token: lease.token(),
            last: FencingToken::new(last),
            deadline,
            since: now,
            renew_at: policy.renew_at,
            renew_due: now,
            renewing: false,
            new: true,
            min_hold: policy.min_hold,
            max_hold: policy.max_hold.and_then(|max| now.checked_add(max)),
            lost: None,
            contested: turn.as_ref().is_some_and(|turn| turn.is_contested(now)),
            turn,
            passes: 0,
        };
        tenure.plan_renewal(asked, ttl);
        tenure
    }

    pub(crate) const fn lease(&self) -> Lease {
        Lease::new(self.granted)
    }

    /// When the keeper has to look at it.
    pub(crate) fn due(&self) -> Instant {
        let mut due = self.deadline;
        if self.renew_at.is_some() && !self.renewing {
            due = due.min(self.renew_due);
        }
        self.max_hold.map_or(due, |max| due.min(max))
    }

    /// Whether a renewal is due by now, or would be within `slack`.
    pub(crate) fn wants_renewal(&self, now: Instant, slack: Duration) -> bool {
        self.renew_at.is_some() && !self.renewing && self.renew_due <= now + slack
    }

    /// The next renewal is due when a fraction of the ttl has passed since the last confirmed one was sent.
    pub(crate) fn plan_renewal(&mut self, sent: Instant, ttl: Duration) {
        if let Some(fraction) = self.renew_at {
            let (wanted, certain) = (ttl.mul_f64(fraction), lease::certain(ttl));
            // In time in any case.
            let after = if wanted < certain { wanted } else { certain.mul_f64(0.9) };
            self.renew_due = sent + after;
        }
    }

    /// The keeper sees it. In a crowd its first renewal comes earlier, by up to three quarters, so that those who were taken together are not
    /// renewed together for ever.
    pub(crate) fn settle_in(&mut self, crowd: Option<f64>) {
        if let (true, Some(part)) = (std::mem::take(&mut self.new), crowd) {
            let after = self.renew_due.saturating_duration_since(self.since);
            self.renew_due -= after.mul_f64(0.75 * part);
        }
    }

    /// The last renewal failed: another one soon, there is time until the deadline.
    pub(crate) fn retry_renewal(&mut self, now: Instant, ttl: Duration) {
        self.renew_due = now + (ttl / 24).clamp(Duration::from_millis(10), Duration::from_secs(2));
    }

    /// How long ago the renewal was due.
    pub(crate) fn overdue(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.renew_due)
    }

    pub(crate) fn renew_now(&mut self, now: Instant) {
        self.renew_due = self.renew_due.min(now);
    }

    /// A ttl that may be shorter was sent for at `sent`: it counts from now on, and is renewed in time should the answer fail to come.
    pub(crate) fn shorten(&mut self, sent: Instant, ttl: Duration) {
        self.deadline = self.deadline.min(lease::deadline(sent, ttl));
        let due = self.renew_due;
        self.plan_renewal(sent, ttl);
        self.renew_due = self.renew_due.min(due);
    }

    /// A renewal of `ttl` that was sent at `sent` is confirmed: the later of both deadlines counts.
    pub(crate) fn extend(&mut self, sent: Instant, ttl: Duration) {
        self.deadline = self.deadline.max(lease::deadline(sent, ttl));
        self.plan_renewal(sent, ttl);
    }

    /// For how long it is to stay taken yet, should it end now.
    pub(crate) fn rest(&self, now: Instant) -> Duration {
        self.min_hold.saturating_sub(now.saturating_duration_since(self.since))
    }

    /// The token for the next guard inside this process, if one is left.
    pub(crate) fn next_token(&self) -> Option<FencingToken> {
        (self.token < self.last).then(|| FencingToken::new(self.token.as_u64() + 1))
    }
}

/// What a user asked of holding, beyond the claim.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) renew_at: Option<f64>,
    pub(crate) max_hold: Option<Duration>,
    pub(crate) min_hold: Duration,
}

/// What the end of a claim sets free.
#[must_use]
pub(crate) struct End {
    pub(crate) reason: LossReason,
    /// The store may have something for the claim all the same.
    pub(crate) stays: bool,
    /// Since when a guard had it, and until when it could have.
    pub(crate) held: Option<(Instant, Instant)>,
    lost: Option<CancellationToken>,
    turn: Option<Turn>,
    waker: Option<Waker>,
}

impl End {
    pub(crate) fn new(reason: LossReason, phase: Phase, waker: Option<Waker>) -> Self {
        let stays = reason != LossReason::Gone;
        match phase {
            Phase::Held(Tenure { since, deadline, lost, turn, .. }) => {
                Self { reason, stays, held: Some((since, deadline)), lost, turn, waker }
            }
            _ => Self { reason, stays, held: None, lost: None, turn: None, waker },
        }
    }

    /// What to tell of it, if a guard had it and did not give it back itself.
    pub(crate) fn lost_event(&self, now: Instant) -> Option<Event> {
        let (since, deadline) = self.held?;
        let late = match self.reason {
            LossReason::Expired => now.saturating_duration_since(deadline),
            _ => Duration::ZERO,
        };
        Some(Event::Lost { held: now - since, late, reason: self.reason })
    }

    /// The turn, to be kept until the store has been told.
    pub(crate) fn take_turn(&mut self) -> Option<Turn> {
        self.turn.take()
    }

    /// Tells who waits for the end and passes the turn on. Runs no user code: wakers only.
    pub(crate) fn settle(self) {
        if let Some(lost) = self.lost {
            lost.cancel();
        }
        if let Some(waker) = self.waker {
            waker.wake();
        }
        drop(self.turn);
    }
}
