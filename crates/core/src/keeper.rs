//! The keeper: one task per client that renews what is held, looks after places in lines, notices deadlines, and finishes what its
//! callers left.
//!
//! Lock order: a store's own mutex, the keeper's table, a claim's state. Nobody else's code runs under the last two.

mod round;
mod table;

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{self, Instant},
};

pub(crate) use self::table::Slot;
use self::table::Table;
use crate::{
    AnyBackend, Backend as _, BackendError, Claim, Event, Key, LossReason, Observer,
    any::BoxFuture,
    closing::Closing,
    line::Turn,
    sync::{AtomicUsize, Mutex, MutexGuard, Ordering, PoisonError},
    tenure::End,
};

/// A handle of the keeper.
#[derive(Clone)]
pub(crate) struct Keeper(Arc<Shared>);

struct Shared {
    backend: AnyBackend,
    observer: Option<Arc<dyn Observer>>,
    table: Mutex<Table>,
    /// Something in the table wants the task's attention.
    changed: Notify,
    /// What a shutdown waits for.
    owed: AtomicUsize,
    /// Nothing is owed any more, or the task is gone.
    idle: Notify,
}

/// Something that a shutdown waits for.
struct Owed(Arc<Shared>);

impl Keeper {
    pub(crate) fn new(backend: AnyBackend, observer: Option<Arc<dyn Observer>>) -> Self {
        let table = Mutex::default();
        Self(Arc::new(Shared {
            backend,
            observer,
            table,
            changed: Notify::new(),
            owed: AtomicUsize::new(0),
            idle: Notify::new(),
        }))
    }

    /// Puts a claim where it belongs in time, after each change of its state.
    pub(crate) fn place(&self, claim: &Claim) {
        let mut table = self.0.table();
        if table.place(claim) {
            self.wake(table);
        }
    }

    /// Polls a call to its end that nobody waits for any more.
    pub(crate) fn adopt(&self, job: BoxFuture<()>) {
        let mut table = self.0.table();
        table.jobs.push(job);
        self.wake(table);
    }

    /// Gives back what a claim has at the store, in the background: again and again while that may help and `until` is not over. The turn
    /// is passed on after the first answer; when the store gives none until then, nobody waits for it any longer.
    pub(crate) fn give_back(
        &self,
        claim: Claim,
        turn: Option<Turn>,
        until: Instant,
        call: Option<BoxFuture<Result<bool, BackendError>>>,
    ) {
        let owed = Owed::new(&self.0);
        let shared = Arc::clone(&self.0);
        self.adopt(Box::pin(async move {
            let mut call = call.unwrap_or_else(|| shared.backend.start_release(claim.clone()));
            let mut waited_for = Some((owed, turn));
            let mut pause = Duration::from_millis(16);
            loop {
                let answer = match time::timeout_at(until, &mut call).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        waited_for = None;
                        call.await
                    }
                };
                if let Some((_, turn)) = &mut waited_for {
                    drop(turn.take());
                }
                let again = matches!(&answer, Err(error) if error.is_transient());
                if !again || Instant::now() + pause > until || shared.table().stopping {
                    return;
                }
                time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(512));
                call = shared.backend.start_release(claim.clone());
            }
        }));
    }

    /// A store ended a claim, perhaps under a mutex of its own: the observer is told later.
    pub(crate) fn ended(&self, claim: &Claim, end: End) {
        self.place(claim);
        let event = end.lost_event(Instant::now());
        end.settle();
        if let Some(event) = event.filter(|_| self.0.observer.is_some()) {
            let mut table = self.0.table();
            table.events.push((claim.key().clone(), event));
            self.wake(table);
        }
    }

    /// A claim was found to be lost: tells everybody, and gives back what the store may still have of it.
    pub(crate) fn lost(&self, claim: &Claim, mut end: End) {
        self.place(claim);
        if let Some(event) = end.lost_event(Instant::now()) {
            self.observe(claim.key(), &event);
        }
        let stays = end.stays;
        // The line is freed at the loss, save where the store still has the lock for us.
        let turn = if end.reason == LossReason::Expired { None } else { end.take_turn() };
        end.settle();
        if stays {
            self.give_back(claim.clone(), turn, Instant::now() + claim.ttl(), None);
        }
    }

    pub(crate) fn observe(&self, key: &Key, event: &Event) {
        if let Some(observer) = &self.0.observer {
            // A panic of the observer is told by the panic hook, and is nobody else's matter.
            let _ = catch_unwind(AssertUnwindSafe(|| observer.event(key, event)));
        }
    }

    pub(crate) fn store_name(&self) -> &'static str {
        self.0.backend.name()
    }

    pub(crate) fn is_observed(&self) -> bool {
        self.0.observer.is_some()
    }

    /// Ends every claim for a shutdown.
    pub(crate) fn end_all(&self) {
        let ended = self.0.table().conclude_all(LossReason::Shutdown);
        for (claim, end) in ended {
            self.lost(&claim, end);
        }
        self.0.table().stopping = true;
    }

    /// Has a shutdown wait for those who ask for a lock: what they leave when they hear of it is owed after that. One who does not run is not
    /// waited for.
    pub(crate) fn see_off(&self, closing: &Arc<Closing>) {
        if closing.is_deserted() {
            return;
        }
        let (owed, closing) = (Owed::new(&self.0), Arc::clone(closing));
        self.adopt(Box::pin(async move {
            let _owed = owed;
            let _ = time::timeout(SLOWEST, closing.deserted()).await;
        }));
    }

    /// Waits until the store was told, or would have ended by itself what it was not told of.
    pub(crate) async fn finish(&self) {
        let mut idle = pin!(self.0.idle.notified());
        loop {
            idle.as_mut().enable();
            if self.is_done() {
                return;
            }
            idle.as_mut().await;
            idle.set(self.0.idle.notified());
        }
    }

    /// Whether nothing is owed, or nobody can do it. Else sees to it that it goes on: the task's runtime may be gone, what it left is done in this one.
    fn is_done(&self) -> bool {
        if self.0.owed.load(Ordering::Acquire) == 0 {
            return true;
        }
        let table = self.0.table();
        let lame = !table.running && Handle::try_current().is_err();
        self.wake(table);
        lame
    }

    /// Starts the task anew if its runtime has ended, and there is something to do.
    pub(crate) fn revive(&self) {
        let table = self.0.table();
        if !table.running && !table.is_empty() {
            self.wake(table);
        }
    }

    /// Nobody is left: the task ends when the last job is done. What no task will ever do is dropped.
    pub(crate) fn stop(&self) {
        let mut table = self.0.table();
        table.orphaned = true;
        let dropped = if table.running { None } else { Some(table.clear()) };
        drop(table);
        drop(dropped);
        self.0.changed.notify_one();
    }

    /// Wakes the task; starts it where there is none.
    fn wake(&self, mut table: MutexGuard<'_, Table>) {
        if table.running {
            drop(table);
            self.0.changed.notify_one();
        } else if cfg!(all(test, shuttle)) {
            // There is no task: the tests make its rounds.
        } else if let Ok(handle) = Handle::try_current() {
            table.running = true;
            // A runtime that has ended drops the task at once, which then looks into the table.
            drop(table);
            let task = tend(Running { shared: Arc::clone(&self.0), ended: false });
            #[cfg(feature = "_simulation")]
            let task = crate::simulation::inherit(task);
            handle.spawn(task);
        }
    }

    /// One round of the task, to the end of all that it begins.
    #[cfg(all(test, shuttle))]
    pub(crate) fn round(&self) {
        let round = self.0.table().collect(Instant::now(), true);
        let jobs = self.0.carry_out(round.work);
        jobs.into_iter().for_each(shuttle::future::block_on);
    }

    #[cfg(test)]
    pub(crate) fn census(&self) -> (usize, usize) {
        let table = self.0.table();
        (table.len(), self.0.owed.load(Ordering::Acquire))
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owed {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.owed.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if self.0.owed.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// Tells that the task is gone, also when its runtime ends under it: the next caller starts it anew in his.
struct Running {
    shared: Arc<Shared>,
    /// The task ended by itself, and said so in the table.
    ended: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let mut table = self.shared.table();
            table.running = false;
            let (waiting, dropped) = (table.waiting(), table.orphaned.then(|| table.clear()));
            drop(table);
            drop(dropped);
            // They start it anew in theirs.
            waiting.into_iter().for_each(Waker::wake);
        }
        self.shared.idle.notify_waiters();
    }
}

async fn tend(mut running: Running) {
    let shared = Arc::clone(&running.shared);
    let mut jobs = FuturesUnordered::new();
    loop {
        let now = Instant::now();
        let round = shared.table().collect(now, jobs.is_empty());
        let Some(wake_at) = round.wake_at else {
            running.ended = true;
            return;
        };
        // A store that panics ends its own job only.
        let new = shared.carry_out(round.work).into_iter();
        jobs.extend(new.map(|job| AssertUnwindSafe(job).catch_unwind()));
        let timer = time::sleep_until(wake_at.min(now + FAR));
        tokio::select! {
            biased;
            Some(_) = jobs.next(), if !jobs.is_empty() => {}
            // After the jobs: they must not starve where others change the table again and again.
            () = shared.changed.notified() => {}
            () = timer => {}
        }
    }
}

/// So long after a shutdown a task that asks for a lock has to run.
const SLOWEST: Duration = Duration::from_secs(1);

/// The timer's longest sleep: it must not overflow, and waking once a day costs nothing.
const FAR: Duration = Duration::from_secs(86_400);

/// A call in flight, polled in place by its caller; if the caller goes away, the keeper polls it to its end.
pub(crate) struct Call<T: Send + 'static> {
    future: Option<BoxFuture<T>>,
    keeper: Keeper,
}

impl<T: Send + 'static> Call<T> {
    pub(crate) fn new(keeper: &Keeper, future: BoxFuture<T>) -> Self {
        Self { future: Some(future), keeper: keeper.clone() }
    }
}

impl<T: Send + 'static> Future for Call<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Some(future) = &mut self.future else { return Poll::Pending };
        let polled = future.as_mut().poll(cx);
        if polled.is_ready() {
            self.future = None;
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Call<T> {
    fn drop(&mut self) {
        if let Some(future) = self.future.take() {
            self.keeper.adopt(Box::pin(async move {
                future.await;
            }));
        }
    }
}

/// Polls a call once, so that its request leaves at once, where that can be done. `Err`: it panicked, as it does where the runtime has ended.
pub(crate) fn nudge<T>(future: &mut BoxFuture<T>) -> Result<Poll<T>, ()> {
    if Handle::try_current().is_err() || std::thread::panicking() {
        return Ok(Poll::Pending);
    }
    let mut cx = Context::from_waker(Waker::noop());
    catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut cx))).map_err(drop)
}
