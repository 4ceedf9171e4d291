//! What has to be done in time: leases that nobody else keeps alive, claims that nobody renews, keys that could not be deleted.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use distlock_core::LossReason;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    error::Failure,
    lease::{Lease, Use},
    request::{Reply, Request},
    store::Store,
    table::{Phase, Place, Record},
};

/// The longest time between two looks.
const LONGEST: Duration = Duration::from_millis(500);

/// The shortest time between two looks at everything.
const SHORTEST: Duration = Duration::from_millis(5);

/// How long to wait before a key is deleted once more.
const AGAIN: Duration = Duration::from_millis(500);

/// What is left to be done, and when to look next.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    wake: Arc<Notify>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the next look is.
    next: Option<Instant>,
    rubbish: Vec<Rubbish>,
}

/// A key that may still be there, or come yet.
#[derive(Debug)]
pub(crate) struct Rubbish {
    place: Place,
    /// What it is bound to, until it was deleted for the first time.
    uses: Vec<Use>,
    /// A request that was given up may write it again.
    ambiguous: bool,
    /// By which leases it may come, as long as one of them is there.
    ghosts: Vec<Arc<Lease>>,
    next: Instant,
}

impl Upkeep {
    /// Something is to be done by then.
    pub(crate) fn wake_at(&self, at: Instant) {
        let mut state = self.state();
        if state.next.is_none_or(|next| at < next) {
            state.next = Some(at);
            drop(state);
            self.wake.notify_one();
        }
    }

    /// A contender's key could not be deleted: it is deleted again until that is certain.
    pub(crate) fn sweep(&self, place: Place, record: Record) {
        let Record { used, others, ambiguous, .. } = record;
        let uses = others.into_iter().chain([used]).collect();
        self.add(Rubbish { place, uses, ambiguous, ghosts: Vec::new(), next: Instant::now() });
    }

    /// A contender's key was deleted, and may come back by these leases: it is deleted then. Whoever has the same owner id later has it by others.
    pub(crate) fn haunt(&self, place: Place, ghosts: Vec<Arc<Lease>>) {
        let next = Instant::now() + AGAIN;
        self.add(Rubbish { place, uses: Vec::new(), ambiguous: true, ghosts, next });
    }

    fn add(&self, rubbish: Rubbish) {
        let next = rubbish.next;
        self.state().rubbish.push(rubbish);
        self.wake_at(next);
    }

    /// What is asked for from now on may have been overlooked.
    fn begin_look(&self) {
        self.state().next = None;
    }

    /// Nothing that was seen is due before this time. Gives back what is due next.
    fn end_look(&self, next: Instant) -> Instant {
        let mut state = self.state();
        let next = state.next.map_or(next, |sooner| sooner.min(next));
        state.next = Some(next);
        next
    }

    pub(crate) fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does what has to be done, for as long as the store is there.
pub(crate) async fn run(store: Weak<Store>, wake: Arc<Notify>) {
    loop {
        let (next, soonest) = {
            let Some(store) = store.upgrade().filter(|store| store.check_open().is_ok()) else {
                return;
            };
            let now = Instant::now();
            let soonest = now + SHORTEST;
            store.upkeep.begin_look();
            // Whatever goes wrong with one look must not end the next.
            let next = catch_unwind(AssertUnwindSafe(|| store.look_after(now)));
            (store.upkeep.end_look(next.unwrap_or(now + LONGEST)).max(soonest), soonest)
        };
        wait(next, &wake, || Some(store.upgrade()?.upkeep.state().next?.max(soonest))).await;
    }
}

/// Waits until this time, or until what has become due sooner meanwhile.
async fn wait(mut next: Instant, wake: &Notify, due: impl Fn() -> Option<Instant>) {
    while timeout_at(next, wake.notified()).await.is_ok() {
        // Nothing is due any more when there is no store.
        let Some(sooner) = due() else { return };
        next = next.min(sooner);
    }
}

impl Store {
    /// Does what is due, and tells when the next thing is.
    fn look_after(self: &Arc<Self>, now: Instant) -> Instant {
        let mut next = now + LONGEST;
        if let Some(at) = self.watch_settled(now) {
            next = next.min(at);
        }
        next = next.min(self.end_unrenewed(now));
        let chores = self.leases.chores(now);
        for lease in chores.refresh {
            let store = Arc::clone(self);
            self.runtime.spawn(async move {
                // Who uses it finds out by itself.
                let _ = store.refresh(&lease).await;
            });
        }
        for lease in chores.revoke {
            let store = Arc::clone(self);
            self.runtime.spawn(async move {
                let Err(failure) = store.leases.revoke(&lease).await else { return };
                // The next look may be at once. Nor is the store kept for that.
                let waits = Arc::downgrade(&store);
                drop(store);
                sleep(if failure.is_denied() { AGAIN * 10 } else { AGAIN }).await;
                if let Some(store) = waits.upgrade() {
                    store.leases.again(lease);
                }
            });
        }
        let due: Vec<_> = {
            let mut state = self.upkeep.state();
            let (due, later) = state.rubbish.drain(..).partition(|rubbish| rubbish.next <= now);
            state.rubbish = later;
            due
        };
        for rubbish in due {
            let store = Arc::clone(self);
            self.runtime.spawn(async move { store.clear(rubbish).await });
        }
        next
    }

    /// Ends the claims that nobody has renewed for their ttl, as the server would if their leases were theirs alone. Tells when the next one ends.
    fn end_unrenewed(self: &Arc<Self>, now: Instant) -> Instant {
        let mut next = now + LONGEST;
        let mut ended = Vec::new();
        {
            let mut table = self.table();
            for (line, name) in &mut table.names {
                let over = name.records.extract_if(|_, record| {
                    let over = record.until <= now;
                    if !over {
                        next = next.min(record.until);
                    }
                    over
                });
                let place = |nonce| Place { line: Arc::clone(line), nonce };
                ended.extend(over.map(|(nonce, record)| (place(nonce), record)));
            }
            for (place, _) in &ended {
                table.tidy(&place.line);
            }
        }
        for (place, record) in ended {
            if record.phase != Phase::Resting {
                record.claim.end(LossReason::Expired);
            }
            let store = Arc::clone(self);
            self.runtime.spawn(async move { store.cut(&place, record).await });
        }
        next
    }

    /// Deletes the key of a claim that was not renewed, unless another process has it now.
    async fn cut(self: &Arc<Self>, place: &Place, record: Record) {
        let lease = record.used.lease().id();
        let cut = Request::Cut { own: place.own(), lease };
        match self.writer.send(cut).await {
            Ok(answered) if !record.ambiguous && record.others.is_empty() => {
                // One that another process has now stands in the line as before.
                if let Reply::Deleted(true) = answered.answer {
                    self.table().left(place);
                }
                self.leases.put_back(record.used);
            }
            _ => self.upkeep.sweep(place.clone(), record),
        }
    }

    async fn clear(self: &Arc<Self>, mut rubbish: Rubbish) {
        match self.delete(&rubbish).await {
            Ok(ambiguous) => {
                rubbish.ambiguous |= ambiguous;
                for used in rubbish.uses.drain(..) {
                    if rubbish.ambiguous {
                        rubbish.ghosts.push(Arc::clone(used.lease()));
                        self.leases.retire(used);
                    } else {
                        self.leases.put_back(used);
                    }
                }
            }
            Err(failure) if failure.is_denied() => return self.leave_behind(rubbish),
            Err(_) => {}
        }
        rubbish.ghosts.retain(|lease| !lease.is_gone());
        if rubbish.uses.is_empty() && rubbish.ghosts.is_empty() {
            return;
        }
        let lasts = rubbish.ghosts.iter().map(|lease| lease.granted() / 6).min();
        rubbish.next = Instant::now() + lasts.unwrap_or(AGAIN).clamp(AGAIN, AGAIN * 10);
        self.upkeep.add(rubbish);
    }

    /// Nobody here may delete it any more: it ends with its lease, which all others leave for another one.
    fn leave_behind(&self, rubbish: Rubbish) {
        let used = rubbish.uses.iter().map(Use::lease);
        used.chain(&rubbish.ghosts).for_each(|lease| self.leave_lease(lease));
        rubbish.uses.into_iter().for_each(|used| self.leases.retire(used));
    }

    /// Deletes a key of somebody who has left. Tells whether it may come back.
    async fn delete(&self, rubbish: &Rubbish) -> Result<bool, Failure> {
        // An owner id that has come back finds its key, and has it now.
        if self.table().record(&rubbish.place).is_some() {
            return Ok(true);
        }
        let own = rubbish.place.own();
        if rubbish.ghosts.is_empty() {
            return Ok(self.writer.send(Request::Delete { own }).await?.ambiguous);
        }
        // It was deleted once. What is there now may be of one who came back in another process, by another lease.
        for lease in &rubbish.ghosts {
            self.writer.send(Request::Cut { own: own.clone(), lease: lease.id() }).await?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_due_sooner_is_not_overslept_however_often_that_changes() {
        let (started, upkeep) = (Instant::now(), Upkeep::default());
        let at = |ms| started + Duration::from_millis(ms);
        upkeep.state().next = Some(at(500));
        let waiting = wait(at(500), &upkeep.wake, || upkeep.state().next);
        let others = async {
            for sooner in [400, 10] {
                upkeep.wake_at(at(sooner));
                // Whoever waits has heard of one before the next comes.
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::join!(waiting, others);
        assert_eq!(started.elapsed(), Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_up_during_a_look_is_not_forgotten_by_it() {
        let (now, upkeep) = (Instant::now(), Upkeep::default());
        let at = |ms| now + Duration::from_millis(ms);
        upkeep.state().next = Some(now);
        upkeep.begin_look();
        upkeep.wake_at(at(10));
        assert_eq!(upkeep.end_look(at(500)), at(10));
        upkeep.begin_look();
        assert_eq!(upkeep.end_look(at(500)), at(500));
    }
}
