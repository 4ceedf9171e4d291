//! A claim that is held, until it is given back: by its guard, to the next of this process, or to the store.

use std::{
    future::{Future, poll_fn},
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    Backend as _, BackendError, Claim, Error, Event, FencingToken, Lease, LossReason, Renewal,
    Standing,
    any::BoxFuture,
    claim::Phase,
    client::Inner,
    keeper::{Call, Keeper, nudge},
    lease,
    line::Turn,
    tenure::{Policy, Tenure},
};

/// A held claim. Dropped, it is given back.
pub(crate) struct Held {
    claim: Claim,
    token: FencingToken,
    client: Arc<Inner>,
    /// It counts among the locks of the client.
    pub(crate) seated: bool,
    /// Somebody else has it now, or it was given back.
    done: bool,
}

impl Held {
    /// Takes what the store granted. `Err`: it came too late, or is lost already; the claim is to be given back.
    pub(crate) fn take(
        client: &Arc<Inner>,
        claim: &Claim,
        lease: &Lease,
        since: Instant,
        policy: Policy,
        turn: &mut Option<Turn>,
    ) -> Result<Self, LossReason> {
        let now = Instant::now();
        let before = {
            let mut state = claim.state();
            match state.phase {
                Phase::Over { reason, .. } => return Err(reason),
                Phase::Granted { lease: pushed, .. } if pushed.token() != lease.token() => {
                    return Err(LossReason::Gone);
                }
                Phase::Held(_) => return Err(LossReason::Gone),
                Phase::Granted { .. } | Phase::Waiting(_) => {}
            }
            let deadline = state.deadline(lease, since);
            if deadline <= now {
                return Err(LossReason::Expired);
            }
            let ttl = state.granted_ttl(lease);
            let tenure = Tenure::new(lease, since, deadline, now, ttl, turn.take(), policy);
            mem::replace(&mut state.phase, Phase::Held(tenure))
        };
        // Nobody waits for this claim any more, and who waited may be the last to have a task.
        drop(before);
        client.keeper.place(claim);
        if client.check_open().is_err() {
            // Whether the shutdown has seen it in the keeper's table or not, it is over.
            if let Some(mut end) = claim.conclude(LossReason::Shutdown) {
                *turn = end.take_turn();
                end.settle();
            }
            return Err(LossReason::Shutdown);
        }
        Ok(Self {
            claim: claim.clone(),
            token: lease.token(),
            client: Arc::clone(client),
            seated: false,
            done: false,
        })
    }

    /// Makes a lease that was handed on inside the process one's own, with one's own limits. `false`: the store has it with another ttl or other
    /// words.
    pub(crate) fn inherit(
        &self,
        ttl: Duration,
        metadata: &str,
        policy: Policy,
    ) -> Result<bool, Error> {
        let now = Instant::now();
        let found = {
            let mut guard = self.claim.state();
            let state = &mut *guard;
            match &mut state.phase {
                Phase::Held(tenure) if tenure.token() == self.token && now < tenure.deadline => {
                    tenure.adopt(policy);
                    state.terms.renews = policy.renew_at.is_some();
                    let same = state.terms.ttl == ttl && *state.terms.metadata == *metadata;
                    Some((same, state.is_misplaced()))
                }
                _ => None,
            }
        };
        // It may have ended on its way.
        let Some((same, moved)) = found else {
            return Err(self.lost(self.check().err().unwrap_or(LossReason::Gone)));
        };
        if moved {
            self.keeper().place(&self.claim);
        }
        Ok(same)
    }

    /// Gives the lock another ttl, or other words.
    pub(crate) async fn change(
        &self,
        ttl: Duration,
        metadata: Option<Arc<str>>,
    ) -> Result<(), Error> {
        let sent = Instant::now();
        let (version, old, deadline) = {
            let mut guard = self.claim.state();
            let state = &mut *guard;
            let tenure = match &mut state.phase {
                Phase::Held(tenure) if tenure.token() == self.token && sent < tenure.deadline => {
                    tenure
                }
                Phase::Over { reason, .. } => return Err(self.lost(*reason)),
                _ => return Err(self.lost(LossReason::Expired)),
            };
            // A shorter ttl may count at the store from any moment on; a longer one counts when it is confirmed.
            tenure.shorten(sent, ttl);
            let deadline = tenure.deadline;
            let old = state.terms.ttl;
            state.terms.ttl = ttl;
            if let Some(metadata) = metadata {
                state.terms.metadata = metadata;
            }
            state.terms.version = state.terms.version.wrapping_add(1);
            state.terms.unconfirmed = true;
            (state.terms.version, old, deadline)
        };
        self.keeper().place(&self.claim);
        let renewals = vec![Renewal::changed(self.claim.clone())];
        let call = Call::new(self.keeper(), self.client.backend.start_renew(renewals));
        let answer = match tokio::time::timeout_at(deadline, call).await {
            Ok(answers) => answers.into_iter().next(),
            Err(_) => None,
        };
        let concluded = self.apply_change(sent, ttl, old, version, answer);
        self.keeper().place(&self.claim);
        concluded
    }

    fn apply_change(
        &self,
        sent: Instant,
        ttl: Duration,
        old: Duration,
        version: u32,
        answer: Option<Result<Standing, BackendError>>,
    ) -> Result<(), Error> {
        let end = {
            let mut guard = self.claim.state();
            let state = &mut *guard;
            let current = state.terms.version == version;
            let answer = answer.unwrap_or_else(|| Err(self.unanswered(sent)));
            let stays = matches!(answer, Ok(Standing::Held(_) | Standing::Queued { .. }));
            let tenure = match &mut state.phase {
                Phase::Held(tenure) if tenure.token() == self.token => tenure,
                Phase::Over { reason, .. } => return Err(self.lost(*reason)),
                _ => return Err(self.lost(LossReason::Gone)),
            };
            let reason = if tenure.deadline <= Instant::now() {
                LossReason::Expired
            } else {
                match answer {
                    Ok(Standing::Held(lease)) if lease.token() == tenure.granted => {
                        if current {
                            let since = lease.since().map_or(sent, |since| since.min(sent));
                            tenure
                                .extend(since, lease.ttl().map_or(ttl, |granted| granted.min(ttl)));
                            state.terms.unconfirmed = false;
                        }
                        return Ok(());
                    }
                    Ok(_) => LossReason::Gone,
                    Err(error) => {
                        // Which of both the store has is not known: the shorter one is safe to count with.
                        if current {
                            state.terms.ttl = old.min(ttl);
                            // A renewal under way counts with the other ttl.
                            state.terms.version = state.terms.version.wrapping_add(1);
                        }
                        return Err(error.into());
                    }
                }
            };
            state.conclude(reason).map(|end| (stays, end))
        };
        match end {
            Some((stays, mut end)) => {
                let reason = end.reason;
                end.stays |= stays;
                self.keeper().lost(&self.claim, end);
                Err(self.lost(reason))
            }
            None => Err(self.lost(LossReason::Gone)),
        }
    }

    /// Until when it is certain to be held, if it still is. Reads the clock.
    pub(crate) fn check(&self) -> Result<Instant, LossReason> {
        let end = {
            let mut state = self.claim.state();
            match &state.phase {
                Phase::Held(tenure) if tenure.token() == self.token => {
                    if Instant::now() < tenure.deadline {
                        return Ok(tenure.deadline);
                    }
                    state.conclude(LossReason::Expired)
                }
                Phase::Over { reason, .. } => return Err(*reason),
                _ => return Err(LossReason::Released),
            }
        };
        if let Some(end) = end {
            self.keeper().lost(&self.claim, end);
        }
        Err(LossReason::Expired)
    }

    /// Canceled when it is held no more.
    pub(crate) fn lost_token(&self) -> CancellationToken {
        match &mut self.claim.state().phase {
            Phase::Held(tenure) if tenure.token() == self.token => {
                tenure.lost.get_or_insert_with(CancellationToken::new).clone()
            }
            _ => {
                let token = CancellationToken::new();
                token.cancel();
                token
            }
        }
    }

    pub(crate) const fn claim(&self) -> &Claim {
        &self.claim
    }

    pub(crate) const fn token(&self) -> FencingToken {
        self.token
    }

    pub(crate) const fn client(&self) -> &Arc<Inner> {
        &self.client
    }

    /// Ends the hold now; the store is told by the future.
    pub(crate) fn release(mut self) -> Release {
        self.finish()
    }

    pub(crate) fn lost(&self, reason: LossReason) -> Error {
        Error::Lost { key: self.claim.key().clone(), reason }
    }

    fn unanswered(&self, sent: Instant) -> BackendError {
        let name = self.client.backend.name();
        BackendError::transient(name, format!("gave no answer within {:?}", sent.elapsed()))
    }

    fn keeper(&self) -> &Keeper {
        &self.client.keeper
    }

    fn finish(&mut self) -> Release {
        if std::mem::replace(&mut self.done, true) {
            return Release::Done(false);
        }
        let now = Instant::now();
        if self.client.lines.is_awaited() && self.is_heritable(now) && self.bequeath(now) {
            return Release::Done(true);
        }
        let mut end = {
            let mut guard = self.claim.state();
            let state = &mut *guard;
            let tenure = match &mut state.phase {
                Phase::Held(tenure) if tenure.token() == self.token => tenure,
                _ => return Release::Done(false),
            };
            if let (true, Some(turn)) = (self.claim.is_contended(), &mut tenure.turn) {
                turn.contest(now);
            }
            let reason =
                if tenure.deadline <= now { LossReason::Expired } else { LossReason::Released };
            let Some(end) = state.conclude(reason) else { return Release::Done(false) };
            end
        };
        if end.reason == LossReason::Expired {
            self.keeper().lost(&self.claim, end);
            return Release::Done(false);
        }
        self.keeper().place(&self.claim);
        let until = end.held.map_or(now, |(_, deadline)| deadline);
        if let Some((since, _)) = end.held.filter(|_| self.keeper().is_observed()) {
            self.keeper().observe(self.claim.key(), &Event::Released { held: now - since });
        }
        let turn = end.take_turn();
        end.settle();
        let call = self.client.backend.start_release(self.claim.clone());
        Release::Giving(Giving {
            call: Some(call),
            turn,
            until,
            claim: self.claim.clone(),
            keeper: self.keeper().clone(),
        })
    }

    /// Whether the lease can go to the next of this process as it is.
    fn is_heritable(&self, now: Instant) -> bool {
        let state = self.claim.state();
        let Phase::Held(tenure) = &state.phase else { return false };
        let ttl = state.terms.ttl;
        let contested = tenure.contested || self.claim.is_contended();
        tenure.turn.is_some()
            && tenure.renews()
            && tenure.is_passable()
            && !state.terms.unconfirmed
            && now + ttl / 2 <= tenure.deadline + lease::margin(ttl)
            && (!contested || tenure.passes < self.client.cohort_limit)
            && tenure.rest(now).is_zero()
    }

    /// Hands the lease to the next of this process who waits for it.
    fn bequeath(&mut self, now: Instant) -> bool {
        let mut told = false;
        while let Some(heir) = self.client.lines.next_heir(self.claim.key()) {
            let (since, lost) = {
                let mut guard = self.claim.state();
                let Phase::Held(tenure) = &mut guard.phase else { return false };
                if tenure.token() != self.token {
                    return false;
                }
                let Some(passed) = tenure.pass(now, self.claim.is_contended()) else {
                    return false;
                };
                self.token = tenure.token();
                passed
            };
            if let Some(lost) = lost {
                lost.cancel();
            }
            if self.keeper().is_observed() && !std::mem::replace(&mut told, true) {
                self.keeper().observe(self.claim.key(), &Event::Released { held: now - since });
            }
            let held = Self {
                claim: self.claim.clone(),
                token: self.token,
                client: Arc::clone(&self.client),
                seated: false,
                done: false,
            };
            match heir.inherit(held) {
                Ok(()) => return true,
                Err(mut held) => held.done = true,
            }
        }
        false
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Release::Giving(mut giving) = self.finish() {
            giving.nudge();
        }
        if self.seated {
            self.client.closing.leave_seat();
        }
    }
}

/// A release under way. `true`: it was held.
pub(crate) enum Release {
    /// Without the store.
    Done(bool),
    Giving(Giving),
}

/// The store is being told. Dropped, the keeper goes on.
pub(crate) struct Giving {
    call: Option<BoxFuture<Result<bool, BackendError>>>,
    turn: Option<Turn>,
    until: Instant,
    claim: Claim,
    keeper: Keeper,
}

impl Giving {
    /// Waits for the answer, no longer than the lock would have lasted.
    pub(crate) async fn answer(mut self) -> Result<bool, BackendError> {
        // A store that answers at once costs no timer.
        let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut self).poll(cx))).await;
        if let Poll::Ready(answer) = first {
            return answer;
        }
        let (until, name) = (self.until, self.keeper.store_name());
        let late =
            || BackendError::transient(name, "gave no answer until the lock ended by itself");
        tokio::time::timeout_at(until, self).await.unwrap_or_else(|_| Err(late()))
    }

    /// Sends the request at once, where that can be done.
    fn nudge(&mut self) {
        let Some(call) = &mut self.call else { return };
        match nudge(call) {
            Ok(Poll::Ready(answer)) => self.answered(&answer),
            Ok(Poll::Pending) => {}
            Err(()) => {
                self.call = None;
                let (claim, turn) = (self.claim.clone(), self.turn.take());
                self.keeper.give_back(claim, turn, self.until, None);
            }
        }
    }

    fn answered(&mut self, answer: &Result<bool, BackendError>) {
        self.call = None;
        self.turn = None;
        if matches!(answer, Err(error) if error.is_transient()) {
            self.keeper.give_back(self.claim.clone(), None, self.until, None);
        }
    }
}

impl Future for Giving {
    type Output = Result<bool, BackendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(call) = &mut self.call else { return Poll::Pending };
        let polled = call.as_mut().poll(cx);
        if let Poll::Ready(answer) = &polled {
            self.answered(answer);
        }
        polled
    }
}

impl Drop for Giving {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            self.keeper.give_back(self.claim.clone(), self.turn.take(), self.until, Some(call));
        }
    }
}
