//! Requests that come up together go to the server together, in one script that does them one after another.
//!
//! Nobody waits for company: a request that finds few others under way leaves at once. Else it leaves when all tasks that can run now have run, which
//! are those that the last answer woke, with whatever these want. Each has its own answer; one that fails is made again by itself, so that
//! nobody gets another one's error. They go in the order in which they came up: none leaves by itself before those that wait have left.

use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
    vec,
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, oneshot},
    task::yield_now,
    time::Instant,
};

use crate::link::{Attempts, Bytes, Link, LinkError, Reply, Script};

/// While so few are under way, each goes by itself: together they would wait for one another's answers, and save little.
const FEW: usize = 8;

/// So many requests go into one script, which keeps the server for as long as the renewal of many locks does.
const MOST: usize = 32;

/// So many scripts for those who came up together are under way at a time. They keep a server busy for longer than its answers take to come, and the driver,
/// whose queue keeps for ever the room that it needed once, needs little.
const SCRIPTS: usize = 48;

/// Each request has the four keys of a lock.
const KEYS: usize = 4;

/// Where the requests for one script come together.
pub(crate) struct Together {
    courier: Courier,
    runtime: Handle,
    gathering: Arc<Gathering>,
}

/// What takes requests to the server.
#[derive(Clone)]
struct Courier {
    link: Link,
    script: &'static Script,
    /// For how long a request may wait until it leaves.
    patience: Duration,
    /// For as many scripts as may be under way.
    room: Arc<Semaphore>,
}

#[derive(Default)]
struct Gathering(Mutex<State>);

#[derive(Default)]
struct State {
    waiting: Vec<Pending>,
    /// How many of those that have left have no answer yet.
    under_way: usize,
    /// A task is about to fetch those who wait, or to send those that it fetched.
    called: bool,
}

struct Pending {
    words: Vec<Bytes>,
    since: Instant,
    reply: oneshot::Sender<Outcome>,
}

/// What becomes of a request that waits.
enum Outcome {
    Answer(Result<Reply, LinkError>),
    /// It is to be made by itself.
    Alone(Vec<Bytes>),
}

impl Together {
    pub(crate) fn new(
        link: Link,
        runtime: Handle,
        script: &'static Script,
        patience: Duration,
    ) -> Self {
        let courier = Courier { link, script, patience, room: Arc::new(Semaphore::new(SCRIPTS)) };
        Self { courier, runtime, gathering: Arc::default() }
    }

    /// Makes a request, which is its keys and then its arguments. It is carried out once at most.
    pub(crate) async fn send(&self, words: Vec<Bytes>) -> Result<Reply, LinkError> {
        let answer = match self.join(words) {
            Ok(answer) => answer,
            Err(words) => {
                let _under_way = UnderWay(Arc::clone(&self.gathering), 1);
                return self.courier.alone(words).await;
            }
        };
        match answer.await {
            Ok(Outcome::Answer(answer)) => answer,
            Ok(Outcome::Alone(words)) => self.courier.alone(words).await,
            // A task that ended with its runtime may have sent it.
            Err(_) => {
                let reason = "the runtime of the connection has ended".to_owned();
                Err(LinkError::Disconnected { reason, sent: true })
            }
        }
    }

    /// Joins those who wait. `Err`: it is to leave at once.
    fn join(&self, words: Vec<Bytes>) -> Result<oneshot::Receiver<Outcome>, Vec<Bytes>> {
        // The keys of two locks are seldom in the same slot of a cluster.
        if self.courier.link.is_cluster() {
            self.gathering.state().under_way += 1;
            return Err(words);
        }
        let (answer, called) = self.gathering.join(words)?;
        if !called {
            let (courier, fetcher) =
                (self.courier.clone(), Fetcher(Some(Arc::clone(&self.gathering))));
            self.runtime.spawn(fetcher.fetch(courier));
        }
        Ok(answer)
    }
}

impl Courier {
    /// In a box: the driver's future has 5 KiB, for which those who wait for company need no room.
    fn alone(&self, words: Vec<Bytes>) -> BoxFuture<'_, Result<Reply, LinkError>> {
        Box::pin(async move {
            let (keys, args) = words.split_at(KEYS);
            self.link.run(self.script, keys, args, Attempts::AtMostOnce).await
        })
    }

    /// Takes requests to the server, and each its answer. It does not take those whose time is over.
    async fn carry_out(&self, mut batch: Vec<Pending>, _under_way: UnderWay) {
        for overdue in batch.extract_if(.., |one| self.patience < one.since.elapsed()) {
            let reason = "the server is too slow for all that is asked of it".to_owned();
            overdue.answer(Err(LinkError::Disconnected { reason, sent: false }));
        }
        if batch.is_empty() {
            return;
        }
        if batch.len() == 1
            && let Some(Pending { words, reply, .. }) = batch.pop()
        {
            let _ = reply.send(Outcome::Answer(self.alone(words).await));
            return;
        }
        let mut keys = Vec::with_capacity(KEYS * batch.len());
        let mut args = Vec::with_capacity(batch.iter().map(|one| one.words.len()).sum());
        for Pending { words, .. } in &batch {
            keys.extend_from_slice(&words[..KEYS]);
            args.extend_from_slice(&words[KEYS..]);
        }
        match self.link.run(self.script, &keys, &args, Attempts::AtMostOnce).await {
            Ok(Reply::Array(replies)) if replies.len() == batch.len() => {
                for (one, reply) in batch.into_iter().zip(replies) {
                    match reply {
                        Reply::Nil => one.leave_alone(),
                        reply => one.answer(Ok(reply)),
                    }
                }
            }
            // Nothing was carried out: one of them has no right to its key, for example.
            Err(LinkError::Server(_)) => batch.into_iter().for_each(Pending::leave_alone),
            Err(error) => batch.into_iter().for_each(|one| one.answer(Err(error.clone()))),
            Ok(_) => {
                let error = LinkError::Protocol("not an answer for each".to_owned());
                batch.into_iter().for_each(|one| one.answer(Err(error.clone())));
            }
        }
    }
}

impl Pending {
    fn answer(self, answer: Result<Reply, LinkError>) {
        // Who does not wait any more gave it up.
        let _ = self.reply.send(Outcome::Answer(answer));
    }

    fn leave_alone(self) {
        let Self { words, reply, .. } = self;
        let _ = reply.send(Outcome::Alone(words));
    }
}

impl Gathering {
    /// Joins those who wait; tells whether somebody is about to fetch them. `Err`: it is to leave at once.
    fn join(&self, words: Vec<Bytes>) -> Result<(oneshot::Receiver<Outcome>, bool), Vec<Bytes>> {
        let mut state = self.state();
        if state.under_way < FEW && !state.called {
            state.under_way += 1;
            return Err(words);
        }
        let (reply, answer) = oneshot::channel();
        state.waiting.push(Pending { words, since: Instant::now(), reply });
        Ok((answer, mem::replace(&mut state.called, true)))
    }

    /// Who is taken is under way. Who comes up before it was sent waits too, and is taken next; nobody is called any more when there is nobody.
    fn take(self: &Arc<Self>) -> Taken {
        let mut state = self.state();
        let waiting = mem::take(&mut state.waiting);
        state.under_way += waiting.len();
        state.called = !waiting.is_empty();
        let under_way = UnderWay(Arc::clone(self), waiting.len());
        Taken { waiting: waiting.into_iter(), under_way }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// So many requests that have left, until it is dropped.
struct UnderWay(Arc<Gathering>, usize);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.state().under_way -= self.1;
    }
}

/// Those who were fetched, to be sent in scripts.
struct Taken {
    waiting: vec::IntoIter<Pending>,
    under_way: UnderWay,
}

impl Taken {
    fn is_empty(&self) -> bool {
        self.waiting.len() == 0
    }
}

impl Iterator for Taken {
    type Item = (Vec<Pending>, UnderWay);

    fn next(&mut self) -> Option<Self::Item> {
        // Not with the room of all the others.
        let batch: Vec<_> = self.waiting.by_ref().take(MOST).collect();
        if batch.is_empty() {
            return None;
        }
        self.under_way.1 -= batch.len();
        let under_way = UnderWay(Arc::clone(&self.under_way.0), batch.len());
        Some((batch, under_way))
    }
}

/// Who is about to fetch those who wait. Dropped before, as when its runtime has ended, it sends them away: nobody else would come.
struct Fetcher(Option<Arc<Gathering>>);

impl Fetcher {
    async fn fetch(mut self, courier: Courier) {
        // Those who were woken together have not all run yet.
        yield_now().await;
        let Some(gathering) = &self.0 else { return };
        let mut sent = FuturesUnordered::new();
        loop {
            let waiting = gathering.take();
            if waiting.is_empty() {
                break;
            }
            for (batch, under_way) in waiting {
                let room = loop {
                    tokio::select! {
                        biased;
                        room = courier.room.acquire() => break room,
                        Some(()) = sent.next() => {}
                    }
                };
                let exchange = courier.carry_out(batch, under_way);
                let mut exchange = Box::pin(exchange.inspect(move |()| drop(room)));
                // The first poll sends it.
                if exchange.as_mut().now_or_never().is_none() {
                    sent.push(exchange);
                }
            }
        }
        self.0 = None;
        sent.for_each(async |()| {}).await;
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        if let Some(gathering) = &self.0 {
            let waiting = {
                let mut state = gathering.state();
                state.called = false;
                mem::take(&mut state.waiting)
            };
            drop(waiting);
        }
    }
}

impl fmt::Debug for Together {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Together").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &'static str) -> Vec<Bytes> {
        vec![Bytes::from_static(name.as_bytes())]
    }

    fn names(taken: Taken) -> Vec<Bytes> {
        taken.flat_map(|(batch, _)| batch).map(|one| one.words[0].clone()).collect()
    }

    #[test]
    fn none_leaves_by_itself_before_those_that_wait_are_sent() {
        let gathering = Arc::new(Gathering::default());
        for _ in 0..FEW {
            assert!(gathering.join(request("alone")).is_err());
        }
        let (_first, called) = gathering.join(request("first")).unwrap();
        assert!(!called);
        // By now all the others have their answers.
        drop(UnderWay(Arc::clone(&gathering), FEW));
        assert_eq!(names(gathering.take()), ["first"]);
        let (_second, called) = gathering.join(request("second")).unwrap();
        assert!(called);
        assert_eq!(names(gathering.take()), ["second"]);
        assert!(gathering.take().is_empty());
        assert!(gathering.join(request("alone")).is_err());
    }

    #[test]
    fn who_waits_for_one_that_does_not_come_is_sent_away() {
        let gathering = Arc::new(Gathering::default());
        gathering.state().under_way = FEW;
        let (mut answer, _) = gathering.join(request("first")).unwrap();
        drop(Fetcher(Some(Arc::clone(&gathering))));
        assert!(answer.try_recv().is_err());
        let (_answer, called) = gathering.join(request("second")).unwrap();
        assert!(!called, "another one is to be called");
    }

    #[test]
    fn who_is_taken_goes_in_scripts_with_no_more_room_than_they_need() {
        let gathering = Arc::new(Gathering::default());
        gathering.state().under_way = FEW;
        let answers: Vec<_> = (0..2 * MOST + 1).map(|_| gathering.join(request("some"))).collect();
        let mut taken = gathering.take();
        for size in [MOST, MOST, 1] {
            let (batch, under_way) = taken.next().unwrap();
            assert_eq!((batch.len(), under_way.1), (size, size));
            assert!(batch.capacity() < 2 * MOST, "room for {}", batch.capacity());
        }
        assert!(taken.next().is_none());
        assert_eq!(gathering.state().under_way, FEW, "they have their answers");
        drop(answers);
    }

    #[test]
    fn those_who_were_taken_and_not_sent_are_under_way_no_more() {
        let gathering = Arc::new(Gathering::default());
        gathering.state().under_way = FEW;
        let answers: Vec<_> = (0..2 * MOST).map(|_| gathering.join(request("some"))).collect();
        let mut taken = gathering.take();
        let first = taken.next();
        assert_eq!(gathering.state().under_way, FEW + 2 * MOST);
        drop(taken);
        assert_eq!(gathering.state().under_way, FEW + MOST);
        drop((first, answers));
        assert_eq!(gathering.state().under_way, FEW);
    }
}
