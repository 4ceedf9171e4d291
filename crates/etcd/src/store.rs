//! The transitions of a claim: how it comes to its key in etcd, and how it leaves it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use distlock_core::{Claim, ErrorKind, Standing};
use tokio::{runtime::Handle, sync::Notify, time::Instant};

use crate::{
    error::{Failure, Remedy},
    layout,
    lease::Lease,
    leases::Leases,
    members::{Answered, Members},
    request::{Ask, Found, Own, Reading, Reply, Request, Write},
    settle::{self, Effect},
    table::{Phase, Place, Scope, Table},
    upkeep::Upkeep,
    writer::Writer,
};

/// A place in the line is looked at after this time at the latest, should an event not have come.
const LONGEST_RECHECK: Duration = Duration::from_secs(5);

/// Who has held a lock for so long is told of its loss, and of others who wait, by a watch of its own.
const SETTLED: Duration = Duration::from_millis(10);

/// How often a request is made anew for a reason that should not come again.
pub(crate) const TRIES: usize = 4;

/// All that the clones of a backend share.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) members: Arc<Members>,
    pub(crate) writer: Writer,
    pub(crate) leases: Leases,
    pub(crate) prefix: String,
    pub(crate) runtime: Handle,
    pub(crate) upkeep: Upkeep,
    /// Names want to be watched.
    pub(crate) hub: Arc<Notify>,
    pub(crate) closed: AtomicBool,
    table: Mutex<Table>,
}

/// What came of asking once.
enum Asked {
    Standing(Standing),
    /// What was found is over: once more.
    Again,
}

impl Store {
    pub(crate) fn new(members: Members, prefix: String) -> Arc<Self> {
        let (members, runtime) = (Arc::new(members), Handle::current());
        Arc::new(Self {
            writer: Writer::start(Arc::clone(&members), &runtime),
            leases: Leases::new(Arc::clone(&members)),
            members,
            prefix,
            runtime,
            upkeep: Upkeep::default(),
            hub: Arc::default(),
            closed: AtomicBool::new(false),
            table: Mutex::default(),
        })
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn check_open(&self) -> Result<(), Failure> {
        if self.closed.load(Ordering::Acquire) { Err(Failure::closed()) } else { Ok(()) }
    }

    /// Nobody new is bound to a lease, and whoever is bound to it goes to another one.
    pub(crate) fn leave_lease(&self, lease: &Lease) {
        lease.retire();
        self.table().leave_lease(lease);
    }

    /// Keeps a lease alive; ends what is bound to it if it is gone.
    pub(crate) async fn refresh(self: &Arc<Self>, lease: &Lease) -> Result<Instant, Failure> {
        let refreshed = lease.refresh(&self.members).await;
        match refreshed.as_ref().err().map(|failure| failure.remedy) {
            Some(Remedy::Lease) => self.lease_gone(lease),
            // From 3.5.28 on a server wants the right to every key that is bound to it: one that somebody lost must not cost the others theirs.
            Some(Remedy::Fail(ErrorKind::Permanent)) => self.leave_lease(lease),
            _ => {}
        }
        refreshed
    }

    pub(crate) fn lease_gone(self: &Arc<Self>, lease: &Lease) {
        self.leases.forget(lease);
        let effects = self.table().lease_gone(lease);
        self.carry_out(effects);
    }

    pub(crate) async fn acquire(self: &Arc<Self>, claim: &Claim) -> Result<Standing, Failure> {
        self.check_open()?;
        let place = Place::new(&self.prefix, claim);
        let mut queue = claim.may_queue();
        if !queue && claim.mode() != distlock_core::Mode::Exclusive {
            // Whether those who are there leave room is not for a comparison to say.
            if !self.would_admit(&place, claim).await? {
                return Ok(Standing::Nothing { retry_in: None });
            }
            queue = true;
        }
        let mut failure = None;
        for _ in 0..TRIES {
            match self.ask(claim, &place, &mut queue).await {
                Ok(Asked::Standing(standing)) => return Ok(standing),
                Ok(Asked::Again) => {}
                Err(gone) if gone.remedy == Remedy::Lease => failure = Some(gone),
                Err(failure) => return Err(failure),
            }
        }
        failure.map_or(Ok(Standing::Nothing { retry_in: None }), Err)
    }

    /// Asks once. `queue` becomes true when only the line can tell whether the lock is free.
    async fn ask(
        self: &Arc<Self>,
        claim: &Claim,
        place: &Place,
        queue: &mut bool,
    ) -> Result<Asked, Failure> {
        let started = Instant::now();
        let ttl = claim.ttl();
        let known = {
            let table = self.table();
            match table.record(place) {
                Some(record) if record.phase == Phase::Resting => {
                    let left = record.until.saturating_duration_since(started);
                    return Ok(Asked::Standing(Standing::Nothing { retry_in: Some(left) }));
                }
                Some(record) => Some((record.ttl == ttl, Arc::clone(record.used.lease()))),
                None => None,
            }
        };
        let again = known.is_some();
        let used = match known {
            Some((true, lease)) if !lease.is_gone() => lease.take(),
            _ => self.leases.take(ttl, claim.renews()).await?,
        };
        let lease = Arc::clone(used.lease());
        let stale = again
            || !lease.is_fresh(started, ttl)
            || (!lease.is_shared() && lease.since() < started);
        let before = self.table().begin(place, claim, used, started);
        let value = layout::value(ttl, &claim.metadata());
        let ask = Ask {
            own: place.own(),
            line: place.line.to_string(),
            value: value.clone(),
            lease: lease.id(),
            queue: *queue,
            again,
        };
        let refresh = async { if stale { self.refresh(&lease).await.map(drop) } else { Ok(()) } };
        let (answer, refreshed) = tokio::join!(self.writer.send(Request::Ask(ask)), refresh);
        let asked = match (answer, refreshed) {
            (Ok(answer), Err(failure)) if failure.remedy == Remedy::Lease => {
                self.fail(place, &lease, answer.ambiguous);
                Err(failure)
            }
            (Err(failure), _) => {
                self.fail(place, &lease, failure.ambiguous);
                if failure.remedy == Remedy::Lease {
                    self.lease_gone(&lease);
                }
                Err(failure)
            }
            (Ok(answer), _) => self.found(claim, place, &lease, &value, queue, answer).await,
        };
        let free = {
            let mut table = self.table();
            table.end_ask(&place.line);
            match (before, table.record_mut(place)) {
                // Its key may be bound to either.
                (Some(before), Some(record)) if asked.is_err() => {
                    record.others.push(before);
                    None
                }
                (before, _) => before,
            }
        };
        if let Some(before) = free {
            self.leases.put_back(before);
        }
        asked
    }

    /// Nothing came of asking. What had a place before keeps it.
    fn fail(&self, place: &Place, lease: &Arc<Lease>, ambiguous: bool) {
        if ambiguous {
            // Nobody new is bound to a lease by which that key may come to life.
            lease.retire();
        }
        let removed = {
            let mut table = self.table();
            let Some(record) = table.record_mut(place) else {
                drop(table);
                if ambiguous {
                    self.upkeep.haunt(place.clone(), vec![Arc::clone(lease)]);
                }
                return;
            };
            record.ambiguous |= ambiguous;
            let new = record.phase == Phase::Asking && !record.ambiguous;
            if new { table.remove(place) } else { None }
        };
        if let Some(record) = removed {
            self.leases.put_back(record.used);
        }
    }

    /// Makes a standing of what was found.
    async fn found(
        self: &Arc<Self>,
        claim: &Claim,
        place: &Place,
        lease: &Arc<Lease>,
        value: &str,
        queue: &mut bool,
        answer: Answered<Reply>,
    ) -> Result<Asked, Failure> {
        let Answered { answer: Reply::Found(found), ambiguous } = answer else {
            self.fail(place, lease, true);
            return Err(Failure::protocol("no line"));
        };
        let Found { reading, before, written, .. } = found;
        let mut own = match (written, before) {
            (true, _) => reading.created(&place.nonce).map(|created| Own {
                created,
                modified: reading.revision,
                lease: lease.id(),
                value: value.as_bytes().to_vec(),
            }),
            (false, before) => before,
        };
        if own.as_ref().is_some_and(|own| layout::words(&own.value).rests) {
            self.fail(place, lease, false);
            return Ok(Asked::Standing(Standing::Nothing { retry_in: None }));
        }
        // It had a key before, with another lease or other words.
        for _ in 0..TRIES {
            let Some(known) = &mut own else { break };
            if known.lease == lease.id() && known.value == value.as_bytes() {
                break;
            }
            let write = self.write(place, value, lease, known.modified).await;
            match write.inspect_err(|failure| self.fail(place, lease, failure.ambiguous))? {
                Ok(modified) => {
                    (known.modified, known.lease) = (modified, lease.id());
                    known.value = value.as_bytes().to_vec();
                }
                Err(other) => own = other,
            }
        }
        let Some(own) = own else {
            self.fail(place, lease, ambiguous);
            // Only longer names may have stood in the way of one who does not wait: the line has to tell.
            let free = !*queue && reading.entries.is_empty();
            *queue |= free;
            if free || claim.may_queue() {
                return Ok(Asked::Again);
            }
            self.forsake(place);
            return Ok(Asked::Standing(Standing::Nothing { retry_in: None }));
        };
        let Some((phase, effects)) = self.enlist(claim, place, &own, &reading, ambiguous) else {
            self.fail(place, lease, ambiguous);
            // It was released meanwhile. That may have come before this.
            self.writer.send(Request::Delete { own: place.own() }).await?;
            return Ok(Asked::Standing(Standing::Nothing { retry_in: None }));
        };
        self.carry_out(effects);
        match phase {
            Some(Phase::Held) => {
                self.granted(place);
                let grant = settle::grant(own.created, lease.since(), lease);
                Ok(Asked::Standing(Standing::Held(grant)))
            }
            Some(_) if claim.may_queue() => {
                self.wait(place);
                Ok(Asked::Standing(self.queued(claim.ttl())))
            }
            Some(_) => {
                // It saw the lock free, and somebody was quicker.
                self.release(claim).await?;
                Ok(Asked::Standing(Standing::Nothing { retry_in: None }))
            }
            None => Ok(Asked::Again),
        }
    }

    /// Takes in what was found of a key that is there. Gives back where its claim stands now, and what else follows; nothing if there is no such claim
    /// any more.
    fn enlist(
        &self,
        claim: &Claim,
        place: &Place,
        own: &Own,
        reading: &Reading,
        ambiguous: bool,
    ) -> Option<(Option<Phase>, Vec<Effect>)> {
        let mut table = self.table();
        let name = table.names.get_mut(&place.line)?;
        let gone = name.line.is_gone(&place.nonce, own.created);
        let record = name.records.get_mut(&place.nonce).filter(|_| !gone)?;
        (record.created, record.modified) = (own.created, own.modified);
        record.ambiguous |= ambiguous;
        if ambiguous {
            record.used.lease().retire();
        }
        if record.phase == Phase::Asking {
            record.phase = Phase::Waiting;
        }
        let mut effects = name.read(reading);
        // The answer tells it.
        let told = |granted: &Claim| granted.owner() == claim.owner();
        effects.retain(|effect| !matches!(effect, Effect::Grant { claim, .. } if told(claim)));
        Some((table.record(place).map(|record| record.phase), effects))
    }

    /// Writes a key that is there.
    pub(crate) async fn write(
        &self,
        place: &Place,
        value: &str,
        lease: &Lease,
        modified: i64,
    ) -> Result<Result<i64, Option<Own>>, Failure> {
        let write =
            Write { own: place.own(), value: value.to_owned(), lease: lease.id(), modified };
        let Answered { answer, ambiguous } = self.writer.send(Request::Write(write)).await?;
        match answer {
            Reply::Written(Err(Some(own)))
                if ambiguous && own.value == value.as_bytes() && own.lease == lease.id() =>
            {
                // That was the first attempt.
                Ok(Ok(own.modified))
            }
            Reply::Written(written) => Ok(written),
            _ => Err(Failure::protocol("neither written nor found")),
        }
    }

    /// A lock was granted: should it be held for long, it is watched.
    pub(crate) fn granted(&self, place: &Place) {
        let at = Instant::now() + SETTLED;
        let until = {
            let mut table = self.table();
            table.recent.push_back((at, place.clone()));
            table.record(place).map(|record| record.until)
        };
        self.upkeep.wake_at(until.map_or(at, |until| until.min(at)));
    }

    /// It stands in line: the name has to be watched.
    pub(crate) fn wait(&self, place: &Place) {
        let wanted = {
            let mut table = self.table();
            let Some(record) = table.record(place) else { return };
            let (scope, until) = (record.scope(), record.until);
            (table.want(&place.line, scope), until)
        };
        if wanted.0 {
            self.hub.notify_one();
        }
        self.upkeep.wake_at(wanted.1);
    }

    /// Those who have held a lock for a while are to be told what happens to it.
    pub(crate) fn watch_settled(&self, now: Instant) -> Option<Instant> {
        let mut wanted = false;
        let next = {
            let mut table = self.table();
            loop {
                let Some((at, place)) = table.recent.pop_front() else { break None };
                if now < at {
                    table.recent.push_front((at, place));
                    break Some(at);
                }
                if table.record(&place).is_some_and(|record| record.phase == Phase::Held) {
                    wanted |= table.want(&place.line, Scope::All);
                }
            }
        };
        if wanted {
            self.hub.notify_one();
        }
        next
    }

    pub(crate) fn queued(&self, ttl: Duration) -> Standing {
        Standing::Queued { recheck: (ttl / 3).min(LONGEST_RECHECK) }
    }
}
