//! What is asked of the store for one call of `lock`, and what follows from its answers.

use std::{
    future::{Future, poll_fn, ready},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use super::{BLOCK, Contender};
use crate::{
    Backend as _, BackendError, Claim, Error, Lease, LossReason, Mutex, Standing, any::BoxFuture,
    held::Held, lease, patience::sleep_until,
};

/// What it has asked of the store.
pub(super) struct Bid {
    pub(super) claim: Claim,
    pub(super) call: Option<BoxFuture<Result<Standing, BackendError>>>,
    pub(super) sent: Instant,
}

/// A bid that is over, and is being given back. Its id is not used again before that: what comes after would be given back too.
pub(super) struct Former {
    pub(super) claim: Claim,
    pub(super) call: Giving,
    /// The store has nothing of it after that.
    pub(super) until: Instant,
}

/// A release under way.
type Giving = BoxFuture<Result<bool, BackendError>>;

/// What comes next for one who asked the store. What is rare is in a box: the rest goes through many hands.
pub(super) enum Next {
    Again,
    /// The store failed.
    Bear(Box<BackendError>),
    /// There is nothing more to be had.
    End(Box<Error>),
    /// It has not answered yet.
    Hear,
    Held(Held),
    /// It is to be asked again later; at the latest after this.
    Pause(Option<Duration>),
    /// There is a place in its line.
    Stand,
}

/// A way that takes time. In a box, so that it adds nothing to those who wait.
pub(super) type Wait<'a> = Pin<Box<dyn Future<Output = Result<Next, Error>> + Send + 'a>>;

/// How an exchange with the store ended.
pub(super) enum Answer {
    /// The store's answer.
    Store(Result<Standing, BackendError>),
    /// A push came first.
    Settled(Result<(Lease, Instant), LossReason>),
}

impl Contender<'_> {
    /// What an answer means to one who does not wait.
    pub(super) fn judge_attempt(&mut self, answer: Answer) -> Result<Option<Held>, BackendError> {
        let granted = match answer {
            Answer::Settled(granted) => granted,
            Answer::Store(Ok(Standing::Held(lease))) => Ok((lease, self.anchor(&lease))),
            Answer::Store(Ok(Standing::Nothing { .. })) => {
                self.disengage();
                return Ok(None);
            }
            Answer::Store(Ok(Standing::Queued { .. })) => return Ok(None),
            Answer::Store(Err(error)) => return Err(error),
        };
        let taken = granted.and_then(|(lease, since)| self.take(&lease, since));
        taken.map(Some).map_err(|reason| {
            // An owner id that has come to its end is over.
            self.abandon();
            self.in_vain(reason)
        })
    }

    /// Asks the store, and says what comes next.
    pub(super) fn ask(&mut self, queue: bool, cx: &mut Context<'_>) -> Next {
        match self.ask_store(queue, cx) {
            Ok(Poll::Ready(answer)) => self.judge(answer),
            Ok(Poll::Pending) => Next::Hear,
            Err(error) => Next::End(Box::new(error)),
        }
    }

    /// Goes a longer way, to where the lock is held, or there is a place in the line, or the store is to be asked again.
    pub(super) fn go_on(&mut self, next: Next) -> Wait<'_> {
        match next {
            Next::Bear(error) => Box::pin(async {
                self.patience.bear(*error, self.stood_in_line).await?;
                Ok(Next::Again)
            }),
            Next::End(error) => Box::pin(ready(Err(*error))),
            Next::Hear => Box::pin(self.hear()),
            Next::Pause(hint) => Box::pin(async move {
                self.patience.pause(hint).await?;
                Ok(Next::Again)
            }),
            next @ (Next::Again | Next::Held(_) | Next::Stand) => Box::pin(ready(Ok(next))),
        }
    }

    async fn hear(&mut self) -> Result<Next, Error> {
        let way = {
            let answer = self.hear_store().await?;
            match self.judge(answer) {
                next @ (Next::Again | Next::Held(_) | Next::Stand) => return Ok(next),
                next => self.go_on(next),
            }
        };
        way.await
    }

    /// What follows from an answer.
    fn judge(&mut self, answer: Answer) -> Next {
        match answer {
            Answer::Settled(settled) => self.settle(settled),
            Answer::Store(Ok(Standing::Held(lease))) => {
                let since = self.anchor(&lease);
                match self.take(&lease, since) {
                    Ok(held) => Next::Held(held),
                    Err(reason) => Next::Bear(Box::new(self.in_vain(reason))),
                }
            }
            Answer::Store(Ok(Standing::Nothing { retry_in })) => {
                self.tell_contended();
                self.disengage();
                self.patience.relieve();
                Next::Pause(retry_in)
            }
            Answer::Store(Ok(Standing::Queued { recheck })) => {
                self.tell_contended();
                self.patience.relieve();
                let Some(bid) = &self.bid else { return self.settle(Err(LossReason::Gone)) };
                self.stood_in_line = true;
                bid.claim.queued(recheck);
                self.client().keeper.place(&bid.claim);
                Next::Stand
            }
            Answer::Store(Err(error)) => Next::Bear(Box::new(error)),
        }
    }

    /// Answers what the store said unasked.
    pub(super) fn settle(&mut self, settled: Result<(Lease, Instant), LossReason>) -> Next {
        // One that comes and goes at once must not spin.
        let brief =
            self.bid.as_ref().is_some_and(|bid| bid.sent.elapsed() < Duration::from_millis(20));
        match settled {
            Ok((lease, since)) => {
                if let Ok(held) = self.take(&lease, since) {
                    return Next::Held(held);
                }
            }
            Err(LossReason::Shutdown) => return Next::End(Box::new(Error::Closed)),
            Err(_) => {
                let unsure = self.bid.as_ref().and_then(|bid| bid.claim.state().unsure());
                self.patience.suffer(unsure);
            }
        }
        // An owner id whose place is gone is over.
        self.abandon();
        if brief { Next::Pause(Some(Duration::from_millis(16))) } else { Next::Again }
    }

    /// Begins an exchange with the store. It answers at once or is to be heard.
    pub(super) fn ask_store(
        &mut self,
        queue: bool,
        cx: &mut Context<'_>,
    ) -> Result<Poll<Answer>, Error> {
        let Mutex { client, key, ask, .. } = self.mutex;
        client.check_open()?;
        let sent = Instant::now();
        let bid = match &mut self.bid {
            Some(bid) => bid,
            empty => {
                let claim = client.claim(key, ask, queue, self.turn.is_some(), BLOCK)?;
                self.asked = 0;
                empty.insert(Bid { claim, call: None, sent })
            }
        };
        (bid.sent, self.engaged) = (sent, true);
        self.asked = self.asked.saturating_add(1);
        let mut call = client.backend.start_acquire(bid.claim.clone());
        // A store that answers at once costs no timer.
        match call.as_mut().poll(cx) {
            Poll::Ready(answer) => Ok(Poll::Ready(self.check(answer))),
            Poll::Pending => {
                bid.call = Some(call);
                Ok(Poll::Pending)
            }
        }
    }

    /// Waits until what it had before is given back. Where that fails it goes on in the background, and the id is not to be used again.
    pub(super) async fn clear(&mut self) -> Result<(), Error> {
        let Some(former) = &mut self.former else { return Ok(()) };
        let answer = self.patience.bound(former.call.as_mut()).await?;
        let Some(former) = self.former.take() else { return Ok(()) };
        let Err(error) = answer else { return Ok(()) };
        if error.is_transient() {
            self.client().keeper.give_back(former.claim, None, former.until, None);
        }
        Err(error.into())
    }

    /// Waits for the store's answer, or for a push that makes it needless, no longer than that could be of use.
    pub(super) async fn hear_store(&mut self) -> Result<Answer, Error> {
        let Self { mutex, bid: Some(bid), patience, .. } = self else { return Err(Error::Closed) };
        let Bid { claim, call, sent } = bid;
        let sent = *sent;
        let useful = lease::deadline(sent, mutex.ask.ttl);
        let end = patience.limit().map_or(useful, |until| until.min(useful));
        let answer = poll_fn(|cx| {
            if let Some(Poll::Ready(answer)) = call.as_mut().map(|call| call.as_mut().poll(cx)) {
                *call = None;
                return Poll::Ready(Answer::Store(answer));
            }
            claim.poll_settled(cx).map(Answer::Settled)
        });
        tokio::select! {
            biased;
            answer = answer => Ok(match answer {
                Answer::Store(answer) => self.check(answer),
                settled @ Answer::Settled(_) => settled,
            }),
            () = patience.closing().closed() => Err(Error::Closed),
            () = sleep_until(Some(end)) => {
                patience.check_time()?;
                let name = mutex.client.backend.name();
                let late = BackendError::transient(name, format!("gave no answer within {:?}", sent.elapsed()));
                self.abandon();
                Ok(Answer::Store(Err(late)))
            }
        }
    }

    /// A push that came with the answer counts more than the answer.
    fn check(&self, answer: Result<Standing, BackendError>) -> Answer {
        if matches!(answer, Ok(Standing::Held(_))) {
            return Answer::Store(answer);
        }
        let settled = self.bid.as_ref().and_then(|bid| bid.claim.settled());
        settled.map_or(Answer::Store(answer), Answer::Settled)
    }

    fn anchor(&self, lease: &Lease) -> Instant {
        let sent = self.bid.as_ref().map_or_else(Instant::now, |bid| bid.sent);
        lease.since().map_or(sent, |since| since.min(sent))
    }

    /// Makes a grant a held claim, if it came in time.
    fn take(&mut self, lease: &Lease, since: Instant) -> Result<Held, LossReason> {
        let Some(bid) = &self.bid else { return Err(LossReason::Gone) };
        // An id of the user's own is not passed on to others: whoever asks with it is the holder.
        let spare = if self.mutex.ask.owner.is_none() { lease.spare() } else { 0 };
        let lease = &lease.with_spare(spare);
        match Held::take(
            self.client(),
            &bid.claim,
            lease,
            since,
            self.mutex.ask.policy,
            &mut self.turn,
        ) {
            Ok(mut held) => {
                held.seated = std::mem::take(&mut self.seated);
                if let Some(Bid { claim, call: Some(call), .. }) = self.bid.take() {
                    self.outlive(claim, call);
                }
                self.acquired(held.token());
                Ok(held)
            }
            Err(reason) => {
                self.abandon();
                Err(reason)
            }
        }
    }

    /// Sees to an attempt whose answer says nothing new. Should it be carried out after the lock was given back, it is given back again.
    fn outlive(&self, claim: Claim, call: BoxFuture<Result<Standing, BackendError>>) {
        let keeper = self.client().keeper.clone();
        // The grant answered the only attempt there was, or else an earlier one. And an id of the user's own may be in use again by then.
        let again = self.asked > 1 && self.mutex.ask.owner.is_none();
        self.client().keeper.adopt(Box::pin(async move {
            let _ = call.await;
            if again && matches!(claim.settled(), Some(Err(_))) {
                let until = Instant::now() + claim.ttl();
                keeper.give_back(claim, None, until, None);
            }
        }));
    }

    pub(super) fn in_vain(&self, reason: LossReason) -> BackendError {
        let problem = match reason {
            LossReason::Expired => "granted the lock after its deadline",
            _ => "took the lock back in the moment of the grant",
        };
        BackendError::transient(self.client().backend.name(), problem)
    }

    /// The store has nothing of it.
    fn disengage(&mut self) {
        self.engaged = false;
    }

    /// Gives up what it may have at the store, to ask anew.
    pub(super) fn abandon(&mut self) {
        let Some((claim, call, until)) = self.give_up() else { return };
        if self.mutex.ask.owner.is_some() {
            let call = call.unwrap_or_else(|| self.client().backend.start_release(claim.clone()));
            self.former = Some(Box::new(Former { claim, call, until }));
        } else {
            self.client().keeper.give_back(claim, None, until, call);
        }
    }

    /// Ends the bid. What the store may have of it is to be given back: by the call, if something is under way.
    pub(super) fn give_up(&mut self) -> Option<(Claim, Option<Giving>, Instant)> {
        let Bid { claim, call, sent } = self.bid.take()?;
        if let Some(end) = claim.conclude(LossReason::Released) {
            end.settle();
        }
        self.client().keeper.place(&claim);
        if !self.engaged {
            return None;
        }
        let until = sent + claim.ttl();
        let call = call.map(|call| -> Giving {
            let (backend, release) = (self.client().backend.clone(), claim.clone());
            Box::pin(async move {
                // The request in flight must not be overtaken: it would leave behind what the release came too early for.
                let _ = call.await;
                backend.start_release(release).await
            })
        });
        Some((claim, call, until))
    }
}
