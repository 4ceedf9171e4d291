//! One call of `lock`: through the line of this process, to the store, to a held claim.

mod exchange;

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::OptionFuture;
use tokio::task::coop::consume_budget;

use self::exchange::{Bid, Former, Next};
use crate::{
    Error, Event, Guard, LossReason, Mode, Mutex, Owner,
    client::Inner,
    held::Held,
    line::{Entry, Turn, Wants},
    patience::Patience,
    retry,
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
    mutex: &'a Mutex,
    patience: Patience<'a>,
    turn: Option<Turn>,
    bid: Option<Bid>,
    /// How often the store was asked for it.
    asked: u32,
    /// The store may have something of it.
    engaged: bool,
    /// What it had before under an id of the user's own.
    former: Option<Box<Former>>,
    /// It stood in the store's line once: an outage of the store is borne for a while.
    stood_in_line: bool,
    /// It was told of that it has to wait.
    told: bool,
    /// It counts among the locks of the client, until what it got takes that over.
    seated: bool,
}

impl<'a> Contender<'a> {
    pub(crate) fn new(mutex: &'a Mutex, patience: Patience<'a>) -> Result<Self, Error> {
        mutex.client.take_seat()?;
        Ok(Self {
            mutex,
            patience,
            turn: None,
            bid: None,
            asked: 0,
            engaged: false,
            former: None,
            stood_in_line: false,
            told: false,
            seated: true,
        })
    }

    /// One attempt: `None` when somebody else has the lock, or the turn of this process.
    pub(crate) async fn try_lock(&mut self) -> Result<Option<Guard>, Error> {
        // A store that answers at once must not keep the other tasks of the thread from running.
        consume_budget().await;
        if self.mutex.start_jitter.is_some() {
            Box::pin(self.delay()).await?;
        }
        if self.client().cohort_limit > 0 {
            let Some(turn) = self.client().lines.try_enter(&self.mutex.key) else {
                return Ok(None);
            };
            self.turn = Some(turn);
        }
        loop {
            if self.former.is_some() {
                Box::pin(self.clear()).await?;
            }
            let asked = poll_fn(|cx| Poll::Ready(self.ask_store(false, cx))).await?;
            let error = match asked {
                Poll::Ready(answer) => self.judge_attempt(answer),
                Poll::Pending => {
                    let answer = Box::pin(self.hear_store()).await?;
                    self.judge_attempt(answer)
                }
            };
            let error = match error {
                Ok(held) => return Ok(held.map(|held| self.guard(held))),
                Err(error) => error,
            };
            Box::pin(self.patience.bear(error, false)).await?;
        }
    }

    /// Waits for the lock, as long as patience lasts.
    pub(crate) async fn lock(&mut self) -> Result<Guard, Error> {
        consume_budget().await;
        if self.mutex.start_jitter.is_some() {
            Box::pin(self.delay()).await?;
        }
        loop {
            self.client().check_open()?;
            let held = if self.turn.is_none() && self.client().cohort_limit > 0 {
                self.line_up().await?
            } else {
                Some(self.contend().await?)
            };
            if let Some(held) = held {
                return Ok(self.guard(held));
            }
        }
    }

    /// Lets a random time pass before the first attempt.
    async fn delay(&mut self) -> Result<(), Error> {
        let Some((low, high)) = self.mutex.start_jitter else { return Ok(()) };
        if high < low {
            let problem = format!("is {low:?}..={high:?}, which is empty");
            return Err(Error::invalid("start_jitter", problem));
        }
        self.patience.delay(retry::random_between(low, high)).await
    }

    fn guard(&self, held: Held) -> Guard {
        Guard::new(held, self.mutex.retry.clone())
    }

    /// Waits in the line of this process for its turn, or for the lock from who has it. Neither: that was lost in the moment in which it was handed on, and
    /// the turn with it.
    async fn line_up(&mut self) -> Result<Option<Held>, Error> {
        let Ask { owner, policy, .. } = &self.mutex.ask;
        let wants = Wants { adopts: owner.is_none(), renews: policy.renew_at.is_some() };
        let ticket = match self.client().lines.enter(&self.mutex.key, wants)? {
            Ok(turn) => {
                self.turn = Some(turn);
                return Ok(None);
            }
            Err(ticket) => ticket,
        };
        self.tell_contended();
        let slow = {
            let entry = if self.patience.is_endless() {
                // A shutdown ends the lines too.
                ticket.await
            } else {
                Box::pin(self.patience.wait(ticket)).await?
            };
            match self.succeed(entry) {
                Ok(held) => return held,
                Err(misfit) => Box::pin(self.adapt(misfit)),
            }
        };
        slow.await
    }

    /// Takes what it was sent, if it is as wanted.
    fn succeed(&mut self, entry: Option<Entry>) -> Result<Result<Option<Held>, Error>, Held> {
        match entry {
            Some(Entry::Held(held)) => match self.inherit(&held) {
                Ok(true) => Ok(Ok(Some(self.inherited(held)))),
                Ok(false) => Err(held),
                Err(Error::Lost { .. }) => Ok(Ok(None)),
                Err(error) => Ok(Err(error)),
            },
            Some(Entry::Turn(turn)) => {
                self.turn = Some(turn);
                Ok(Ok(None))
            }
            None => Ok(Ok(None)),
        }
    }

    fn inherit(&self, held: &Held) -> Result<bool, Error> {
        let Ask { ttl, metadata, policy, .. } = &self.mutex.ask;
        held.inherit(*ttl, metadata, *policy)
    }

    /// Has the store write what is asked for in place of what a lease was handed on with.
    async fn adapt(&mut self, held: Held) -> Result<Option<Held>, Error> {
        let Ask { ttl, metadata, .. } = &self.mutex.ask;
        let change = held.change(*ttl, Some(Arc::clone(metadata)));
        match self.patience.bound(change).await.and_then(|changed| changed) {
            Ok(()) => Ok(Some(self.inherited(held))),
            Err(Error::Lost { .. }) => Ok(None),
            Err(Error::Backend(error)) => {
                drop(held);
                self.patience.bear(error, true).await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn inherited(&mut self, mut held: Held) -> Held {
        held.seated = std::mem::take(&mut self.seated);
        self.acquired(held.token());
        held
    }

    /// Asks the store, and waits in its line or between attempts.
    async fn contend(&mut self) -> Result<Held, Error> {
        let queue = self.patience.waits();
        loop {
            if self.former.is_some() {
                Box::pin(self.clear()).await?;
            }
            let way = match poll_fn(|cx| Poll::Ready(self.ask(queue, cx))).await {
                Next::Held(held) => return Ok(held),
                Next::Stand => None,
                next => Some(self.go_on(next)),
            };
            match OptionFuture::from(way).await.transpose()? {
                Some(Next::Held(held)) => return Ok(held),
                Some(Next::Stand) | None => {}
                Some(_) => continue,
            }
            let way = if self.patience.is_endless() {
                // Who waits for ever needs no timer: a shutdown ends what the keeper has, and this it has from now on.
                self.client().check_open()?;
                match poll_fn(|cx| self.poll_line(cx)).await {
                    Next::Held(held) => return Ok(held),
                    next => self.go_on(next),
                }
            } else {
                match Box::pin(self.stand_in_line()).await? {
                    Next::Held(held) => return Ok(held),
                    next => self.go_on(next),
                }
            };
            way.await?;
        }
    }

    /// Waits in the store's line. The keeper looks after the place.
    fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        self.client().keeper.revive();
        let settled = match &self.bid {
            Some(bid) => ready!(bid.claim.poll_settled(cx)),
            None => Err(LossReason::Gone),
        };
        Poll::Ready(self.settle(settled))
    }

    /// Waits in the store's line, as long as patience lasts.
    async fn stand_in_line(&mut self) -> Result<Next, Error> {
        let Self { mutex, bid: Some(Bid { claim, .. }), patience, .. } = self else {
            return Ok(self.settle(Err(LossReason::Gone)));
        };
        let settled = patience.wait(poll_fn(|cx| {
            mutex.client.keeper.revive();
            claim.poll_settled(cx)
        }));
        let settled = settled.await?;
        Ok(self.settle(settled))
    }

    fn client(&self) -> &'a Arc<Inner> {
        &self.mutex.client
    }

    fn tell_contended(&mut self) {
        if !std::mem::replace(&mut self.told, true) {
            self.client().keeper.observe(&self.mutex.key, &Event::Contended);
        }
    }

    fn acquired(&self, token: crate::FencingToken) {
        if self.client().keeper.is_observed() {
            let event = Event::Acquired { token, waited: self.patience.waited() };
            self.client().keeper.observe(&self.mutex.key, &event);
        }
    }
}

impl Drop for Contender<'_> {
    fn drop(&mut self) {
        let mut turn = self.turn.take();
        if let Some((claim, call, until)) = self.give_up() {
            self.client().keeper.give_back(claim, turn.take(), until, call);
        }
        if let Some(Former { claim, call, until }) = self.former.take().map(|former| *former) {
            self.client().keeper.give_back(claim, turn, until, Some(call));
        }
        self.client().closing.stop_asking(self.seated);
    }
}
