//! What writes: one transaction under way at a time, into which goes all that came up during the one before.
//!
//! So many tasks share the cost of one proposal. And a request that finds nothing under way is made on the spot, by the task that has it.

use std::{
    collections::{HashSet, VecDeque},
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{Client, ResponseHeader, Txn, TxnResponse};
use futures_util::FutureExt as _;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, oneshot},
    task::yield_now,
    time::timeout,
};

use crate::{
    error::{Failure, Remedy},
    members::{Answered, Members},
    request::{Reply, Request, deleted, parts},
};

/// How many operations go into one transaction: what a server allows if nothing else was said to it. One that allows less gets them one by one.
const OPERATIONS: usize = 128;

/// How many requests may wait for their turn; who comes then waits to be allowed to wait.
const QUEUE: usize = 4096;

/// For how long a request that was made on the spot keeps others waiting: the task that has it may have stopped to look after it.
const PATIENCE: Duration = Duration::from_millis(20);

/// Where requests are made.
#[derive(Debug)]
pub(crate) struct Writer {
    members: Arc<Members>,
    tx: mpsc::Sender<Pending>,
    line: Arc<Line>,
}

/// What is under way, and what waits for it.
#[derive(Debug)]
struct Line {
    turn: Semaphore,
    queued: AtomicUsize,
    /// Several went into the last transaction: they had their answers at once, and are about to come again together.
    crowded: AtomicBool,
}

/// The lines in which somebody else was seen last: whoever asks there reads them.
#[derive(Debug, Default)]
struct Crowd(HashSet<String>);

impl Crowd {
    /// More of them are not remembered: then it is found out anew.
    const MOST: usize = 4096;

    fn is_at(&self, line: &str) -> bool {
        self.0.contains(line)
    }

    fn learn(&mut self, request: &Request, answer: &Result<Reply, Failure>) {
        let (Some(line), Ok(Reply::Found(found))) = (request.line(), answer) else { return };
        if found.free {
            self.0.remove(line);
        } else if self.0.len() < Self::MOST || self.is_at(line) {
            self.0.insert(line.to_owned());
        } else {
            self.0.clear();
        }
    }
}

#[derive(Debug)]
struct Pending {
    request: Request,
    reply: oneshot::Sender<Result<Answered<Reply>, Failure>>,
}

impl Writer {
    pub(crate) fn start(members: Arc<Members>, runtime: &Handle) -> Self {
        let (tx, rx) = mpsc::channel(QUEUE);
        let line = Arc::new(Line {
            turn: Semaphore::new(1),
            queued: AtomicUsize::new(0),
            crowded: AtomicBool::new(false),
        });
        runtime.spawn(write(Arc::clone(&members), rx, Arc::clone(&line)));
        Self { members, tx, line }
    }

    /// Makes a request, and waits for its answer.
    pub(crate) async fn send(&self, request: Request) -> Result<Answered<Reply>, Failure> {
        // Nobody who came before is overtaken. And the first of many does not go alone: the others would have to wait for it.
        if !self.line.crowded.load(Ordering::Acquire)
            && self.line.queued.load(Ordering::Acquire) == 0
            && let Ok(_turn) = self.line.turn.try_acquire()
        {
            return alone(&self.members, &request).await;
        }
        let (reply, answer) = oneshot::channel();
        self.line.queued.fetch_add(1, Ordering::AcqRel);
        if self.tx.send(Pending { request, reply }).await.is_err() {
            return Err(Failure::closed());
        }
        // A task that ended with its runtime may have sent it.
        answer.await.unwrap_or_else(|_| Err(Failure::closed().after(true)))
    }
}

async fn write(members: Arc<Members>, mut rx: mpsc::Receiver<Pending>, line: Arc<Line>) {
    let (mut waiting, mut crowd) = (VecDeque::new(), Crowd::default());
    while let Some(pending) = rx.recv().await {
        waiting.push_back(pending);
        let _turn = timeout(PATIENCE, line.turn.acquire()).await;
        while !waiting.is_empty() {
            gather(&mut rx, &mut waiting, line.crowded.load(Ordering::Acquire)).await;
            let mut batch = choose(&mut waiting);
            let count = batch.len();
            // Deletes come first, so that who asks in the same transaction does not find what they delete.
            batch.sort_by_key(|pending| pending.request.line().is_some());
            // A server that answers what no server answers must not end this task.
            let carried_out =
                AssertUnwindSafe(carry_out(&members, batch, &mut crowd)).catch_unwind().await;
            drop(carried_out);
            line.crowded.store(1 < count, Ordering::Release);
            line.queued.fetch_sub(count, Ordering::AcqRel);
        }
    }
}

/// Takes in what has come; where many come together, also those who are still on their way.
async fn gather(rx: &mut mpsc::Receiver<Pending>, waiting: &mut VecDeque<Pending>, crowded: bool) {
    loop {
        if crowded {
            yield_now().await;
        }
        let before = waiting.len();
        while waiting.len() < QUEUE {
            let Ok(pending) = rx.try_recv() else { break };
            waiting.push_back(pending);
        }
        if !crowded || waiting.len() == before || OPERATIONS <= waiting.len() {
            return;
        }
    }
}

/// Takes what can go into one transaction, in order: no two requests for the end of the same line, or about the same key.
fn choose(waiting: &mut VecDeque<Pending>) -> Vec<Pending> {
    if waiting.len() == 1 {
        return waiting.drain(..).collect();
    }
    let mut batch: Vec<Pending> = Vec::new();
    let mut left = VecDeque::new();
    let mut operations = 0;
    let mut taken = HashSet::new();
    while let Some(pending) = waiting.pop_front() {
        let request = &pending.request;
        let (own, line) = (request.own().to_owned(), request.line().map(str::to_owned));
        let free = operations + request.operations() <= OPERATIONS
            && !taken.contains(&own)
            && line.as_ref().is_none_or(|line| !taken.contains(line));
        // What is left behind must not be overtaken by a later request about the same.
        taken.insert(own);
        taken.extend(line);
        if free {
            operations += request.operations();
            batch.push(pending);
        } else {
            left.push_back(pending);
        }
    }
    *waiting = left;
    batch
}

async fn carry_out(members: &Members, batch: Vec<Pending>, crowd: &mut Crowd) {
    let (batch, single): (Vec<_>, Vec<_>) =
        batch.into_iter().partition(|pending| pending.request.is_flat());
    if batch.len() < 2 {
        return one_by_one(members, batch.into_iter().chain(single), false).await;
    }
    together(members, batch, crowd).await;
    one_by_one(members, single, false).await;
}

/// Makes several requests in one transaction, first as if nobody were where nobody is expected.
async fn together(members: &Members, batch: Vec<Pending>, crowd: &mut Crowd) {
    let left: HashSet<&str> = batch.iter().filter_map(|one| one.request.leaves()).collect();
    // What is deleted in the same transaction is still there when the conditions are looked at.
    let expected = |request: &Request| {
        request.line().is_some_and(|line| !crowd.is_at(line) && !left.contains(line))
    };
    let mut free: Vec<bool> = batch.iter().map(|one| expected(&one.request)).collect();
    let mut before = false;
    loop {
        let requests = batch.iter().map(|pending| &pending.request);
        let sent = transact(members, || flat(requests.clone().zip(free.iter().copied())));
        match sent.await {
            Ok(Answered { answer, ambiguous }) if answer.succeeded() => {
                let revision = revision(&answer);
                let mut parts = parts(&answer);
                let ambiguous = ambiguous || before;
                for (Pending { request, reply }, free) in batch.into_iter().zip(free) {
                    let answer = match &mut parts {
                        Ok(parts) => request.read_flat(free, parts, revision),
                        Err(failure) => Err(failure.clone()),
                    };
                    crowd.learn(&request, &answer);
                    let _ = reply.send(answer.map(|answer| Answered { answer, ambiguous }));
                }
                return;
            }
            // Somebody is where nobody was expected: the lines will tell where.
            Ok(Answered { ambiguous, .. }) if free.contains(&true) => {
                before |= ambiguous;
                free.fill(false);
            }
            // One that cannot be carried out takes all with it: each has to show for itself.
            Ok(Answered { ambiguous, .. }) => {
                return one_by_one(members, batch, ambiguous || before).await;
            }
            Err(failure) if matches!(failure.remedy, Remedy::Fail(_) | Remedy::Lease) => {
                return one_by_one(members, batch, failure.ambiguous || before).await;
            }
            Err(failure) => {
                let failure = failure.after(before);
                for Pending { reply, .. } in batch {
                    let _ = reply.send(Err(failure.clone()));
                }
                return;
            }
        }
    }
}

/// One transaction of requests, each without a part of its own.
fn flat<'a>(requests: impl IntoIterator<Item = (&'a Request, bool)>) -> Txn {
    let (mut conditions, mut ops) = (Vec::new(), Vec::new());
    for (request, free) in requests {
        let (condition, own) = request.flat(free).unwrap_or_default();
        conditions.extend(condition);
        ops.extend(own);
    }
    Txn::new().when(conditions).and_then(ops)
}

async fn one_by_one(members: &Members, batch: impl IntoIterator<Item = Pending>, ambiguous: bool) {
    for Pending { request, reply } in batch {
        let answer = alone(members, &request).await;
        let _ = reply.send(match answer {
            Ok(answer) => Ok(Answered { ambiguous: answer.ambiguous || ambiguous, ..answer }),
            Err(failure) => Err(failure.after(ambiguous)),
        });
    }
}

async fn alone(members: &Members, request: &Request) -> Result<Answered<Reply>, Failure> {
    if let Request::Delete { own } = request {
        let sent = members.call(|client| {
            let own = own.clone();
            async move { client.kv_client().delete(own, None).await }
        });
        let Answered { answer, ambiguous } = sent.await?;
        return Ok(Answered { answer: deleted(&answer), ambiguous });
    }
    let mut before = false;
    // What succeeds nearly always goes without the part for when it does not, which would cost as much as the rest.
    if request.is_flat() {
        let Answered { answer, ambiguous } = transact(members, || flat([(request, false)])).await?;
        if answer.succeeded() {
            let revision = revision(&answer);
            let answer = request.read_flat(false, &mut parts(&answer)?, revision)?;
            return Ok(Answered { answer, ambiguous });
        }
        before = ambiguous;
    }
    let sent = transact(members, || request.txn()).await;
    let Answered { answer, ambiguous } = sent.map_err(|failure| failure.after(before))?;
    let answer = request.read(&answer, revision(&answer))?;
    Ok(Answered { answer, ambiguous: ambiguous || before })
}

/// Makes a transaction, anew for each attempt.
async fn transact(
    members: &Members,
    txn: impl Fn() -> Txn + Send + Sync,
) -> Result<Answered<TxnResponse>, Failure> {
    let attempt = |client: Arc<Client>| {
        let txn = txn();
        async move { client.kv_client().txn(txn).await }
    };
    members.call(attempt).await
}

fn revision(answer: &TxnResponse) -> i64 {
    answer.header().map_or(0, ResponseHeader::revision)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Ask;

    fn ask(line: &str, own: &str) -> Request {
        let [own, line] = [own, line].map(str::to_owned);
        let (value, lease, queue, again) = (String::new(), 1, true, false);
        Request::Ask(Ask { own, line, value, lease, queue, again })
    }

    fn delete(own: &str) -> Request {
        Request::Delete { own: own.to_owned() }
    }

    fn owns(pending: impl IntoIterator<Item = Pending>) -> Vec<String> {
        pending.into_iter().map(|pending| pending.request.own().to_owned()).collect()
    }

    #[test]
    fn a_transaction_has_one_end_per_line_and_keeps_the_order_of_a_key() {
        let requests = [
            ask("l/", "l/1"),
            ask("m/", "m/1"),
            ask("l/", "l/2"),
            delete("l/3"),
            delete("l/2"),
            delete("m/1"),
        ];
        let mut waiting: VecDeque<_> = requests
            .into_iter()
            .map(|request| Pending { request, reply: oneshot::channel().0 })
            .collect();
        assert_eq!(owns(choose(&mut waiting)), ["l/1", "m/1", "l/3"]);
        assert_eq!(owns(choose(&mut waiting)), ["l/2", "m/1"]);
        assert_eq!(owns(choose(&mut waiting)), ["l/2"]);
        assert!(waiting.is_empty());
    }

    #[test]
    fn a_transaction_stays_within_the_server_s_limit() {
        let mut waiting: VecDeque<_> = (0..150)
            .map(|n| ask(&format!("{n}/"), &format!("{n}/1")))
            .map(|request| Pending { request, reply: oneshot::channel().0 })
            .collect();
        let sizes: Vec<_> = (0..3).map(|_| choose(&mut waiting).len()).collect();
        assert_eq!(sizes, [64, 64, 22]);
    }
}
