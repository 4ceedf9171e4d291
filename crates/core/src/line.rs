//! The line of this process for each key: who may contend for it at the store, and who is next.
//!
//! At most one contender of a process and key goes to the store. The right to is a [`Turn`], which passes itself on when it is dropped. A
//! waiter is sent either the turn or a lease that is still held; whoever drops what it was sent, at any moment, passes it on.

use std::{
    collections::{VecDeque, hash_map},
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use crate::{
    Error, Key,
    held::Held,
    key::KeyMap,
    sync::{AtomicUsize, Mutex, MutexGuard, Ordering, PoisonError},
};

/// All lines of a client.
#[derive(Clone)]
pub(crate) struct Lines(Arc<Shared>);

struct Shared {
    /// A key has a line while somebody has its turn.
    table: Mutex<Table>,
    /// How many wait, for all keys.
    waiting: AtomicUsize,
    max_waiters: usize,
}

#[derive(Default)]
struct Table {
    lines: KeyMap<Line>,
    /// The client is shut down: nobody waits any more.
    closed: bool,
}

#[derive(Default)]
struct Line {
    waiters: VecDeque<Waiter>,
    /// How many of them do not wait any more.
    gone: usize,
}

/// Somebody who waits.
pub(crate) struct Waiter {
    tx: oneshot::Sender<Entry>,
    wants: Wants,
}

/// What a waiter asks of a lease that is handed on to it.
#[derive(Clone, Copy)]
pub(crate) struct Wants {
    /// It takes a lease under another owner id than one of its own choice.
    pub(crate) adopts: bool,
    /// It keeps the lease renewed.
    pub(crate) renews: bool,
}

/// What a waiter is sent.
pub(crate) enum Entry {
    /// The lock itself, still held at the store.
    Held(Held),
    /// The right to contend.
    Turn(Turn),
}

/// The right to contend for a key. Dropped, it goes to the next who waits.
pub(crate) struct Turn(Option<Right>);

struct Right {
    lines: Lines,
    key: Key,
    /// When somebody of another process was last known to wait for what this process held.
    contested: Option<Instant>,
}

/// A place in a line. Dropped, it is given up.
pub(crate) struct Ticket<'a> {
    rx: oneshot::Receiver<Entry>,
    lines: &'a Lines,
    key: &'a Key,
}

impl Lines {
    pub(crate) fn new(max_waiters: usize) -> Self {
        Self(Arc::new(Shared {
            table: Mutex::default(),
            waiting: AtomicUsize::new(0),
            max_waiters,
        }))
    }

    /// The turn, if nobody has it.
    pub(crate) fn try_enter(&self, key: &Key) -> Option<Turn> {
        let mut table = self.table();
        let hash_map::Entry::Vacant(entry) = table.lines.entry(key.clone()) else { return None };
        entry.insert(Line::default());
        Some(self.turn(key))
    }

    /// The turn, or a place to wait for it.
    pub(crate) fn enter<'a>(
        &'a self,
        key: &'a Key,
        wants: Wants,
    ) -> Result<Result<Turn, Ticket<'a>>, Error> {
        let mut table = self.table();
        let full = self.0.waiting.load(Ordering::Relaxed) >= self.0.max_waiters;
        let closed = table.closed;
        let line = match table.lines.entry(key.clone()) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hash_map::Entry::Vacant(entry) => {
                entry.insert(Line::default());
                return Ok(Ok(self.turn(key)));
            }
        };
        if full {
            return Err(Error::Overloaded { what: "waiters", limit: self.0.max_waiters });
        }
        if closed {
            return Err(Error::Closed);
        }
        let (tx, rx) = oneshot::channel();
        line.waiters.push_back(Waiter { tx, wants });
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        Ok(Err(Ticket { rx, lines: self, key }))
    }

    /// Whether anybody of this process waits for the key.
    pub(crate) fn awaited(&self, key: &Key) -> bool {
        if !self.is_awaited() {
            return false;
        }
        let table = self.table();
        table
            .lines
            .get(key)
            .is_some_and(|line| line.waiters.iter().any(|waiter| !waiter.tx.is_closed()))
    }

    /// Whether anybody of this process waits for any key. A waiter that comes in this moment is found by its turn.
    pub(crate) fn is_awaited(&self) -> bool {
        self.0.waiting.load(Ordering::Relaxed) > 0
    }

    /// The next in line, if a held lease can be handed to it.
    pub(crate) fn next_heir(&self, key: &Key) -> Option<Waiter> {
        self.table().pop(key, |wants| wants.adopts && wants.renews)
    }

    /// Ends the wait of everybody.
    pub(crate) fn close(&self) {
        let waiters: Vec<_> = {
            let mut table = self.table();
            table.closed = true;
            let mut lines: Vec<_> = table.lines.iter_mut().collect();
            // Who is woken first must not depend on how a table is laid out.
            lines.sort_unstable_by_key(|(key, _)| *key);
            lines.into_iter().flat_map(|(_, line)| std::mem::take(&mut line.waiters)).collect()
        };
        drop(waiters);
    }

    /// How many keys have a line, and how many wait in all of them.
    #[cfg(test)]
    pub(crate) fn census(&self) -> (usize, usize) {
        let table = self.table();
        (table.lines.len(), self.0.waiting.load(Ordering::Relaxed))
    }

    fn turn(&self, key: &Key) -> Turn {
        Turn(Some(Right { lines: self.clone(), key: key.clone(), contested: None }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A table as small as this is kept as it is.
const FEW_LINES: usize = 32;

impl Table {
    /// Nobody has the turn any more, and nobody wants it. What many keys needed once is given back.
    fn forget(&mut self, key: &Key) {
        self.lines.remove(key);
        if self.lines.capacity() / 8 > self.lines.len().max(FEW_LINES) {
            self.lines.shrink_to(self.lines.len() * 2);
        }
    }

    /// Takes the first who still waits out of the line, if it fits.
    fn pop(&mut self, key: &Key, fits: impl Fn(Wants) -> bool) -> Option<Waiter> {
        let line = self.lines.get_mut(key)?;
        while let Some(waiter) = line.waiters.front() {
            if waiter.tx.is_closed() {
                line.waiters.pop_front();
                line.gone = line.gone.saturating_sub(1);
            } else if fits(waiter.wants) {
                return line.waiters.pop_front();
            } else {
                return None;
            }
        }
        None
    }
}

impl Waiter {
    /// Hands the lock over; gives it back when nobody waits here any more.
    pub(crate) fn inherit(self, held: Held) -> Result<(), Held> {
        match self.tx.send(Entry::Held(held)) {
            Err(Entry::Held(held)) => Err(held),
            _ => Ok(()),
        }
    }
}

impl Right {
    fn pass(mut self) {
        loop {
            let waiter = {
                let mut table = self.lines.table();
                let waiter = table.pop(&self.key, |_| true);
                if waiter.is_none() {
                    table.forget(&self.key);
                }
                waiter
            };
            let Some(waiter) = waiter else { return };
            let Err(Entry::Turn(mut turn)) = waiter.tx.send(Entry::Turn(Turn(Some(self)))) else {
                return;
            };
            let Some(right) = turn.0.take() else { return };
            self = right;
        }
    }
}

/// For so long it is believed that other processes want what they wanted.
const CONTESTED: Duration = Duration::from_secs(1);

impl Turn {
    /// Whether other processes are likely to wait for the key, though that is not known yet of what is held now.
    pub(crate) fn is_contested(&self, now: Instant) -> bool {
        let contested = self.0.as_ref().and_then(|right| right.contested);
        contested.is_some_and(|at| now < at + CONTESTED)
    }

    /// Somebody of another process waits for what this process held until now.
    pub(crate) const fn contest(&mut self, now: Instant) {
        if let Some(right) = &mut self.0 {
            right.contested = Some(now);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(right) = self.0.take() {
            right.pass();
        }
    }
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Turn")
    }
}

impl Future for Ticket<'_> {
    /// None: the lock was lost in the moment in which it was to be handed on. Enter again.
    type Output = Option<Entry>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.rx).poll(cx).map(Result::ok)
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.lines.0.waiting.fetch_sub(1, Ordering::Relaxed);
        if self.rx.is_terminated() {
            // It was called.
            return;
        }
        self.rx.close();
        let sent = self.rx.try_recv();
        let mut table = self.lines.table();
        if sent.is_err()
            && let Some(line) = table.lines.get_mut(self.key)
        {
            line.gone += 1;
            if line.gone * 2 > line.waiters.len() {
                line.waiters.retain(|waiter| !waiter.tx.is_closed());
                line.waiters.shrink_to(line.waiters.len() * 2);
                line.gone = 0;
            }
        }
        drop(table);
        drop(sent);
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::LazyLock};

    use super::*;

    const WANTS: Wants = Wants { adopts: true, renews: true };

    fn key() -> &'static Key {
        static KEY: LazyLock<Key> = LazyLock::new(|| Key::new("k").unwrap());
        &KEY
    }

    fn ticket(lines: &Lines) -> Ticket<'_> {
        lines.enter(key(), WANTS).unwrap().map(drop).expect_err("somebody has the turn")
    }

    #[tokio::test]
    async fn a_turn_goes_to_those_who_wait_in_their_order() {
        let lines = Lines::new(9);
        let turn = lines.try_enter(key()).unwrap();
        assert!(lines.try_enter(key()).is_none());
        let (first, second) = (ticket(&lines), ticket(&lines));
        drop(turn);
        let Some(Entry::Turn(turn)) = first.await else { panic!("no turn") };
        let mut second = Box::pin(second);
        let polled = poll_fn(|cx| Poll::Ready(second.as_mut().poll(cx).is_ready())).await;
        assert!(!polled, "the second waits for the first");
        drop(turn);
        assert!(matches!(second.await, Some(Entry::Turn(_))));
        assert_eq!(lines.census(), (0, 0));
    }

    #[tokio::test]
    async fn who_is_dropped_with_its_turn_unread_passes_it_on() {
        let lines = Lines::new(9);
        let turn = lines.try_enter(key()).unwrap();
        let (first, second) = (ticket(&lines), ticket(&lines));
        drop(turn);
        drop(first);
        let Some(Entry::Turn(turn)) = second.await else { panic!("no turn") };
        drop(turn);
        assert_eq!(lines.census(), (0, 0));
    }

    #[test]
    fn those_who_leave_are_forgotten() {
        let lines = Lines::new(1000);
        let turn = lines.try_enter(key()).unwrap();
        let mut tickets: Vec<_> = (0..1000).map(|_| ticket(&lines)).collect();
        assert!(lines.awaited(key()));
        let full = lines.enter(key(), WANTS).err().unwrap();
        assert!(matches!(full, Error::Overloaded { limit: 1000, .. }), "{full}");
        let places = || lines.table().lines[key()].waiters.len();
        tickets.truncate(10);
        assert!(places() <= 20, "{} places for 10", places());
        assert!(lines.awaited(key()));
        drop(tickets);
        assert!(!lines.awaited(key()));
        assert_eq!(lines.census(), (1, 0));
        assert!(places() < 3, "{} places of nobody", places());
        drop(turn);
        assert_eq!(lines.census(), (0, 0));
    }

    #[tokio::test]
    async fn a_lease_goes_only_to_whom_it_fits() {
        let lines = Lines::new(9);
        let turn = lines.try_enter(key()).unwrap();
        let own_id =
            lines.enter(key(), Wants { adopts: false, renews: true }).unwrap().err().unwrap();
        let other = ticket(&lines);
        assert!(
            lines.next_heir(key()).is_none(),
            "the first in line does not take it, and is not passed by"
        );
        drop(own_id);
        assert!(lines.next_heir(key()).is_some());
        assert!(other.await.is_none(), "it was taken out of the line and sent nothing");
        drop(turn);
    }

    #[test]
    fn what_many_keys_needed_once_is_given_back_and_what_a_few_need_is_kept() {
        let lines = Lines::new(9);
        let enter = |count: usize| -> Vec<Turn> {
            let key = |number| Key::new(format!("k{number}")).unwrap();
            (0..count).map(|number| lines.try_enter(&key(number)).unwrap()).collect()
        };
        let capacity = || lines.table().lines.capacity();
        drop(enter(FEW_LINES));
        let few = capacity();
        assert!(FEW_LINES <= few, "it is not made anew for each of them");
        drop(enter(10_000));
        assert!(capacity() < 20 * FEW_LINES, "room for {}", capacity());
    }

    #[tokio::test(start_paused = true)]
    async fn that_others_wait_is_believed_for_a_while_by_each_who_gets_the_turn() {
        let lines = Lines::new(9);
        let mut turn = lines.try_enter(key()).unwrap();
        let now = Instant::now();
        assert!(!turn.is_contested(now), "nobody said so");
        turn.contest(now);
        let next = ticket(&lines);
        drop(turn);
        let Some(Entry::Turn(turn)) = next.await else { panic!("no turn") };
        let millisecond = Duration::from_millis(1);
        assert!(turn.is_contested(now) && turn.is_contested(now + CONTESTED - millisecond));
        assert!(!turn.is_contested(now + CONTESTED));
        drop(turn);
        assert!(!lines.try_enter(key()).unwrap().is_contested(now), "it goes with the turn");
    }
}
