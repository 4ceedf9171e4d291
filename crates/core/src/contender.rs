//! One call of `lock`: through the line of this process, to the store, to a held claim.

use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use tokio::time::Instant;

use crate::{
    Backend as _, BackendError, Claim, Error, Event, Key, Lease, LossReason, Mode, Owner, Standing,
    any::BoxFuture,
    client::Inner,
    held::Held,
    lease,
    line::{Entry, Turn, Wants},
    patience::{Patience, sleep_until},
    tenure::Policy,
};

/// How many tokens are asked for when others of this process wait: as many hand-overs need no store.
const BLOCK: u32 = 256;

/// What a call of `lock` asks for, besides a key.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) mode: Mode,
    pub(crate) owner: Option<Owner>,
    pub(crate) ttl: Duration,
    pub(crate) metadata: Arc<str>,
    pub(crate) policy: Policy,
}

/// Who asks. Dropped at any moment, it leaves nothing behind: what it may have at the store is given back, its turn passes on.
///
/// Tens of thousands may wait: a way that is long but rarely gone has its future in a box, so that it adds nothing to all the others. What has been
/// answered is out of scope before the next wait, for the same reason.
pub(crate) struct Contender<'a> {
    client: &'a Arc<Inner>,
    key: &'a Key,
    ask: &'a Ask,
    patience: Patience,
    turn: Option<Turn>,
    bid: Option<Bid>,
    /// What it had before under an id of the user's own.
    former: Option<Box<Former>>,
    /// It stood in the store's line once: an outage of the store is borne for a while.
    stood_in_line: bool,
    /// It was told of that it has to wait.
    told: bool,
    /// It counts among the locks of the client, until what it got takes that over.
    seated: bool,
}

/// What it has asked of the store.
struct Bid {
    claim: Claim,
    call: Option<BoxFuture<Result<Standing, BackendError>>>,
    sent: Instant,
    /// The store may have something of it.
    engaged: bool,
    /// How often the store was asked.
    asked: u32,
}

/// A bid that is over, and is being given back. Its id is not used again before that: what comes after would be given back too.
struct Former {
    claim: Claim,
    call: Giving,
    /// The store has nothing of it after that.
    until: Instant,
}

/// A release under way.
type Giving = BoxFuture<Result<bool, BackendError>>;

/// How an exchange with the store ended.
enum Answer {
    /// The store's answer.
    Store(Result<Standing, BackendError>),
    /// A push came first.
    Settled(Result<(Lease, Instant), LossReason>),
}

impl<'a> Contender<'a> {
    pub(crate) fn new(
        client: &'a Arc<Inner>,
        key: &'a Key,
        ask: &'a Ask,
        patience: Patience,
    ) -> Result<Self, Error> {
        client.take_seat()?;
        Ok(Self {
            client,
            key,
            ask,
            patience,
            turn: None,
            bid: None,
            former: None,
            stood_in_line: false,
            told: false,
            seated: true,
        })
    }

    /// Lets a time pass before the first attempt.
    pub(crate) async fn delay(&mut self, delay: Duration) -> Result<(), Error> {
        self.patience.delay(delay).await
    }

    /// One attempt: `None` when somebody else has the lock, or the turn of this process.
    pub(crate) async fn try_lock(&mut self) -> Result<Option<Held>, Error> {
        if self.client.cohort_limit > 0 {
            let Some(turn) = self.client.lines.try_enter(self.key) else { return Ok(None) };
            self.turn = Some(turn);
        }
        loop {
            let granted = match self.ask_store(false).await? {
                Answer::Settled(granted) => granted,
                Answer::Store(Ok(Standing::Held(lease))) => Ok((lease, self.anchor(&lease))),
                Answer::Store(Ok(Standing::Nothing { .. })) => {
                    self.disengage();
                    return Ok(None);
                }
                Answer::Store(Ok(Standing::Queued { .. })) => return Ok(None),
                Answer::Store(Err(error)) => {
                    Box::pin(self.patience.bear(error, false)).await?;
                    continue;
                }
            };
            match granted.and_then(|(lease, since)| self.take(&lease, since)) {
                Ok(held) => return Ok(Some(held)),
                Err(reason) => {
                    // An owner id that has come to its end is over.
                    self.abandon();
                    Box::pin(self.patience.bear(self.in_vain(reason), false)).await?;
                }
            }
        }
    }

    /// Waits for the lock, as long as patience lasts.
    pub(crate) async fn lock(&mut self) -> Result<Held, Error> {
        loop {
            self.client.check_open()?;
            if self.turn.is_none() && self.client.cohort_limit > 0 {
                if let Some(held) = self.succeed().await? {
                    return Ok(held);
                }
                if self.turn.is_none() {
                    continue;
                }
            }
            if let Some(held) = self.contend().await? {
                return Ok(held);
            }
        }
    }

    /// Waits for the turn of this process, or for the lock from who has it. Neither: that was lost in the moment in which it was handed on, and the turn with it.
    async fn succeed(&mut self) -> Result<Option<Held>, Error> {
        let held = match self.line_up().await? {
            Some(Entry::Held(held)) => held,
            Some(Entry::Turn(turn)) => {
                self.turn = Some(turn);
                return Ok(None);
            }
            None => return Ok(None),
        };
        match self.inherit(held).await {
            Ok(held) => Ok(Some(held)),
            Err(Error::Lost { .. }) => Ok(None),
            Err(Error::Backend(error)) => {
                Box::pin(self.patience.bear(error, true)).await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Stands in the line of this process.
    async fn line_up(&mut self) -> Result<Option<Entry>, Error> {
        let wants =
            Wants { adopts: self.ask.owner.is_none(), renews: self.ask.policy.renew_at.is_some() };
        let ticket = match self.client.lines.enter(self.key, wants)? {
            Ok(turn) => return Ok(Some(Entry::Turn(turn))),
            Err(ticket) => ticket,
        };
        self.tell_contended();
        // A shutdown ends the lines too.
        if self.patience.is_endless() {
            return Ok(ticket.await);
        }
        Box::pin(self.patience.wait(ticket)).await
    }

    async fn inherit(&mut self, mut held: Held) -> Result<Held, Error> {
        let Ask { ttl, metadata, policy, .. } = self.ask;
        if !held.inherit(*ttl, metadata, *policy)? {
            let change = held.change(*ttl, Some(Arc::clone(metadata)));
            Box::pin(self.patience.bound(change)).await??;
        }
        held.seated = std::mem::take(&mut self.seated);
        self.acquired(held.token());
        Ok(held)
    }

    /// Asks the store, and waits in its line or between attempts. `None`: what it had there is gone, and it has to begin anew.
    async fn contend(&mut self) -> Result<Option<Held>, Error> {
        let queue = self.patience.waits();
        let settled = loop {
            let answer = match self.ask_store(queue).await? {
                Answer::Store(answer) => answer,
                Answer::Settled(settled) => break settled,
            };
            match answer {
                Ok(Standing::Held(lease)) => {
                    let since = self.anchor(&lease);
                    match self.take(&lease, since) {
                        Ok(held) => return Ok(Some(held)),
                        Err(reason) => {
                            let error = self.in_vain(reason);
                            Box::pin(self.patience.bear(error, self.stood_in_line)).await?;
                        }
                    }
                }
                Ok(Standing::Nothing { retry_in }) => {
                    self.tell_contended();
                    self.disengage();
                    self.patience.relieve();
                    Box::pin(self.patience.pause(retry_in)).await?;
                }
                Ok(Standing::Queued { recheck }) => {
                    self.tell_contended();
                    self.patience.relieve();
                    break self.stand_in_line(recheck).await?;
                }
                Err(error) => Box::pin(self.patience.bear(error, self.stood_in_line)).await?,
            }
        };
        Box::pin(self.settle(settled)).await
    }

    /// Waits in the store's line. The keeper looks after the place.
    async fn stand_in_line(
        &mut self,
        recheck: Duration,
    ) -> Result<Result<(Lease, Instant), LossReason>, Error> {
        let Self { bid: Some(bid), patience, client, .. } = self else {
            return Ok(Err(LossReason::Gone));
        };
        self.stood_in_line = true;
        bid.claim.queued(recheck);
        client.keeper.place(&bid.claim);
        let claim = &bid.claim;
        let settled = poll_fn(|cx| {
            client.keeper.revive();
            claim.poll_settled(cx)
        });
        // Who waits for ever needs no timer: a shutdown ends what the keeper has, and this it has from now on.
        if patience.is_endless() {
            client.check_open()?;
            return Ok(settled.await);
        }
        Box::pin(patience.wait(settled)).await
    }

    /// Answers what the store said unasked.
    async fn settle(
        &mut self,
        settled: Result<(Lease, Instant), LossReason>,
    ) -> Result<Option<Held>, Error> {
        // One that comes and goes at once must not spin.
        let brief =
            self.bid.as_ref().is_some_and(|bid| bid.sent.elapsed() < Duration::from_millis(20));
        match settled {
            Ok((lease, since)) => {
                if let Ok(held) = self.take(&lease, since) {
                    return Ok(Some(held));
                }
            }
            Err(LossReason::Shutdown) => return Err(Error::Closed),
            Err(_) => {
                let unsure = self.bid.as_ref().and_then(|bid| bid.claim.state().unsure);
                self.patience.suffer(unsure);
            }
        }
        // An owner id whose place is gone is over.
        self.abandon();
        if brief {
            Box::pin(self.patience.pause(Some(Duration::from_millis(16)))).await?;
        }
        Ok(None)
    }

    /// One exchange with the store, in which a push may come first. It lasts no longer than its answer could be of use.
    async fn ask_store(&mut self, queue: bool) -> Result<Answer, Error> {
        self.client.check_open()?;
        if self.former.is_some() {
            Box::pin(self.clear()).await?;
        }
        let sent = Instant::now();
        let bid = match &mut self.bid {
            Some(bid) => bid,
            empty => {
                let claim =
                    self.client.claim(self.key, self.ask, queue, self.turn.is_some(), BLOCK)?;
                empty.insert(Bid { claim, call: None, sent, engaged: true, asked: 0 })
            }
        };
        (bid.sent, bid.engaged) = (sent, true);
        bid.asked = bid.asked.saturating_add(1);
        let mut call = self.client.backend.start_acquire(bid.claim.clone());
        {
            // A store that answers at once costs no timer.
            let first = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
            if let Poll::Ready(answer) = first {
                return Ok(self.check(answer));
            }
        }
        bid.call = Some(call);
        Box::pin(self.hear_store(sent)).await
    }

    /// Waits until what it had before is given back. Where that fails it goes on in the background, and the id is not to be used again.
    async fn clear(&mut self) -> Result<(), Error> {
        let Some(former) = &mut self.former else { return Ok(()) };
        let answer = self.patience.bound(former.call.as_mut()).await?;
        let Some(former) = self.former.take() else { return Ok(()) };
        let Err(error) = answer else { return Ok(()) };
        if error.is_transient() {
            self.client.keeper.give_back(former.claim, None, former.until, None);
        }
        Err(error.into())
    }

    /// Waits for the store's answer, or for a push that makes it needless.
    async fn hear_store(&mut self, sent: Instant) -> Result<Answer, Error> {
        let useful = lease::deadline(sent, self.ask.ttl);
        let end = self.patience.limit().map_or(useful, |until| until.min(useful));
        let Self { bid: Some(bid), patience, client, .. } = self else { return Err(Error::Closed) };
        let Bid { claim, call, .. } = bid;
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
                let name = client.backend.name();
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
        let spare = if self.ask.owner.is_none() { lease.spare() } else { 0 };
        let lease = &lease.with_spare(spare);
        match Held::take(self.client, &bid.claim, lease, since, self.ask.policy, &mut self.turn) {
            Ok(mut held) => {
                held.seated = std::mem::take(&mut self.seated);
                if let Some(Bid { claim, call: Some(call), asked, .. }) = self.bid.take() {
                    self.outlive(claim, call, asked);
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
    fn outlive(&self, claim: Claim, call: BoxFuture<Result<Standing, BackendError>>, asked: u32) {
        let keeper = self.client.keeper.clone();
        // The grant answered the only attempt there was, or else an earlier one. And an id of the user's own may be in use again by then.
        let again = asked > 1 && self.ask.owner.is_none();
        self.client.keeper.adopt(Box::pin(async move {
            let _ = call.await;
            if again && matches!(claim.settled(), Some(Err(_))) {
                let until = Instant::now() + claim.ttl();
                keeper.give_back(claim, None, until, None);
            }
        }));
    }

    fn tell_contended(&mut self) {
        if !std::mem::replace(&mut self.told, true) {
            self.client.keeper.observe(self.key, &Event::Contended);
        }
    }

    fn acquired(&self, token: crate::FencingToken) {
        if self.client.keeper.is_observed() {
            let event = Event::Acquired { token, waited: self.patience.waited() };
            self.client.keeper.observe(self.key, &event);
        }
    }

    fn in_vain(&self, reason: LossReason) -> BackendError {
        let problem = match reason {
            LossReason::Expired => "granted the lock after its deadline",
            _ => "took the lock back in the moment of the grant",
        };
        BackendError::transient(self.client.backend.name(), problem)
    }

    /// The store has nothing of it.
    fn disengage(&mut self) {
        if let Some(bid) = &mut self.bid {
            bid.engaged = false;
        }
    }

    /// Gives up what it may have at the store, to ask anew.
    fn abandon(&mut self) {
        let Some((claim, call, until)) = self.give_up() else { return };
        if self.ask.owner.is_some() {
            let call = call.unwrap_or_else(|| self.client.backend.start_release(claim.clone()));
            self.former = Some(Box::new(Former { claim, call, until }));
        } else {
            self.client.keeper.give_back(claim, None, until, call);
        }
    }

    /// Ends the bid. What the store may have of it is to be given back: by the call, if something is under way.
    fn give_up(&mut self) -> Option<(Claim, Option<Giving>, Instant)> {
        let Bid { claim, call, sent, engaged, .. } = self.bid.take()?;
        if let Some(end) = claim.conclude(LossReason::Released) {
            end.settle();
        }
        self.client.keeper.place(&claim);
        if !engaged {
            return None;
        }
        let until = sent + claim.ttl();
        let call = call.map(|call| -> Giving {
            let (backend, release) = (self.client.backend.clone(), claim.clone());
            Box::pin(async move {
                // The request in flight must not be overtaken: it would leave behind what the release came too early for.
                let _ = call.await;
                backend.start_release(release).await
            })
        });
        Some((claim, call, until))
    }
}

impl Drop for Contender<'_> {
    fn drop(&mut self) {
        let mut turn = self.turn.take();
        if let Some((claim, call, until)) = self.give_up() {
            self.client.keeper.give_back(claim, turn.take(), until, call);
        }
        if let Some(Former { claim, call, until }) = self.former.take().map(|former| *former) {
            self.client.keeper.give_back(claim, turn, until, Some(call));
        }
        self.client.closing.stop_asking(self.seated);
    }
}
