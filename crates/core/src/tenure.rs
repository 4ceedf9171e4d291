//! What a guard has of a claim: its deadline, its token, its turn.

use std::{num::NonZeroU64, task::Waker, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{Event, FencingToken, Lease, LossReason, claim::Phase, lease, line::Turn};

/// A claim in the hands of a guard.
///
/// There may be as many of them as there are locks and waiters: what few ask for is in a box, and nothing is there twice.
pub(crate) struct Tenure {
    /// The token that the store granted. It names the grant.
    pub(crate) granted: FencingToken,
    /// How many tokens after it are reserved.
    spare: u32,
    /// How many of these were handed on with it.
    spent: u32,
    /// From when on it is lost, unless a renewal is confirmed.
    pub(crate) deadline: Instant,
    /// When the present guard got it.
    pub(crate) since: Instant,
    /// After what part of the ttl it is renewed; none: it ends at its deadline.
    renew_at: Option<Part>,
    /// When the next renewal is due.
    renew_due: Instant,
    /// A renewal is under way.
    pub(crate) renewing: bool,
    /// The keeper has not seen it yet.
    new: bool,
    /// For how long the present guard has to hold it, and may.
    limits: Option<Box<Limits>>,
    /// Told when the present guard has it no more. Made for who asks.
    pub(crate) lost: Option<CancellationToken>,
    /// The right of this process to contend for the key; none where every waiter stands in the store's own line.
    pub(crate) turn: Option<Turn>,
    /// Another process waited for what this one held a moment ago, so one is believed to wait for this too.
    pub(crate) contested: bool,
    /// How often it was handed on inside the process since another one waits, or is believed to.
    pub(crate) passes: u32,
}

/// A part of something, above 0: then none of them takes no room of its own.
#[derive(Clone, Copy)]
struct Part(NonZeroU64);

struct Limits {
    /// How long it keeps it taken at least.
    min_hold: Duration,
    /// When it has held it for as long as allowed.
    max_hold: Option<Instant>,
}

impl Part {
    fn new(part: f64) -> Option<Self> {
        NonZeroU64::new(part.to_bits()).map(Self)
    }

    const fn get(self) -> f64 {
        f64::from_bits(self.0.get())
    }
}

impl Limits {
    fn new(policy: Policy, since: Instant) -> Option<Box<Self>> {
        let Policy { max_hold, min_hold, .. } = policy;
        let limited = max_hold.is_some() || !min_hold.is_zero();
        let end = || max_hold.and_then(|max| since.checked_add(max));
        limited.then(|| Box::new(Self { min_hold, max_hold: end() }))
    }
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
        let mut tenure = Self {
            granted: lease.token(),
            spare: lease.spare(),
            spent: 0,
            deadline,
            since: now,
            renew_at: policy.renew_at.and_then(Part::new),
            renew_due: now,
            renewing: false,
            new: true,
            limits: Limits::new(policy, now),
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

    /// The token of the guard that has it now.
    pub(crate) const fn token(&self) -> FencingToken {
        FencingToken::new(self.granted.as_u64().saturating_add(self.spent as u64))
    }

    /// Whether it is renewed.
    pub(crate) const fn renews(&self) -> bool {
        self.renew_at.is_some()
    }

    /// The guard that has it now wants this.
    pub(crate) fn adopt(&mut self, policy: Policy) {
        self.renew_at = policy.renew_at.and_then(Part::new);
        self.limits = Limits::new(policy, self.since);
    }

    /// It goes on to the next guard inside this process. Since when the present one had it, and who is to be told that it has it no more. None: there
    /// is no token left.
    pub(crate) fn pass(
        &mut self,
        now: Instant,
        contested: bool,
    ) -> Option<(Instant, Option<CancellationToken>)> {
        if !self.is_passable() {
            return None;
        }
        self.spent += 1;
        // Nobody renews what nobody has taken yet.
        self.renew_at = None;
        self.limits = None;
        self.passes += u32::from(contested || self.contested);
        Some((std::mem::replace(&mut self.since, now), self.lost.take()))
    }

    /// Whether a token is left for another guard inside this process.
    pub(crate) const fn is_passable(&self) -> bool {
        self.spent < self.spare && self.token().as_u64() < u64::MAX
    }

    /// When the keeper has to look at it.
    pub(crate) fn due(&self) -> Instant {
        let mut due = self.deadline;
        if self.renew_at.is_some() && !self.renewing {
            due = due.min(self.renew_due);
        }
        self.max_hold().map_or(due, |max| due.min(max))
    }

    /// When the present guard has held it for as long as allowed.
    pub(crate) fn max_hold(&self) -> Option<Instant> {
        self.limits.as_ref().and_then(|limits| limits.max_hold)
    }

    /// Whether a renewal is due by now, or would be within `slack`.
    pub(crate) fn wants_renewal(&self, now: Instant, slack: Duration) -> bool {
        self.renew_at.is_some() && !self.renewing && self.renew_due <= now + slack
    }

    /// The next renewal is due when a fraction of the ttl has passed since the last confirmed one was sent.
    pub(crate) fn plan_renewal(&mut self, sent: Instant, ttl: Duration) {
        if let Some(part) = self.renew_at {
            let (wanted, certain) = (ttl.mul_f64(part.get()), lease::certain(ttl));
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

    /// Whether the present guard has to keep it taken for some time.
    pub(crate) fn is_bound(&self) -> bool {
        !self.min_hold().is_zero()
    }

    /// For how long it is to stay taken yet, should it end now.
    pub(crate) fn rest(&self, now: Instant) -> Duration {
        self.min_hold().saturating_sub(now.saturating_duration_since(self.since))
    }

    fn min_hold(&self) -> Duration {
        self.limits.as_ref().map_or(Duration::ZERO, |limits| limits.min_hold)
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
    pub(crate) fn new(reason: LossReason, phase: Phase) -> Self {
        let stays = reason != LossReason::Gone;
        let mut end = Self { reason, stays, held: None, lost: None, turn: None, waker: None };
        match phase {
            Phase::Held(Tenure { since, deadline, lost, turn, .. }) => {
                (end.held, end.lost, end.turn) = (Some((since, deadline)), lost, turn);
            }
            Phase::Waiting(place) => end.waker = place.waker,
            Phase::Granted { .. } | Phase::Over { .. } => {}
        }
        end
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
