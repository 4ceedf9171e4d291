//! A client at work: asks for locks in every way there is, works, is cancelled, and writes down all of it.

use std::{
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, MutexGuard, PoisonError, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use distlock_checker::{self as checker, Event, Kind};
use distlock_core::{
    Error, Exponential, Guard, LossReason, Mode, Mutex, Owner, Released, RetryStrategy as _,
    simulation,
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    Bug, plan,
    process::{self, Hold, Kit, Process, Sim},
};

/// What a timer and a task may be late.
const TOLERANCE: Duration = Duration::from_millis(10);

/// Works until the simulation stops, or the process is shut down.
pub(crate) async fn work<S: Kit>(sim: Arc<Sim<S>>, process: Arc<Process>, worker: u32) {
    let client = Worker { sim, process, worker };
    while !client.sim.stopped.load(Ordering::Relaxed) {
        sleep(client.sim.world.between(0, 300)).await;
        if !client.once().await {
            return;
        }
    }
}

struct Worker<S: Kit> {
    sim: Arc<Sim<S>>,
    process: Arc<Process>,
    worker: u32,
}

/// What is asked of a lock.
struct Terms {
    mode: Mode,
    ttl: Duration,
    words: &'static str,
    renews: bool,
    max_hold: Option<Duration>,
    min_hold: Duration,
    /// An id of its own.
    owner: Option<Owner>,
}

/// How a call ended.
enum Asked {
    Got(Guard),
    Denied,
    Unknown,
    Closed,
}

impl<S: Kit> Worker<S> {
    /// Asks for a lock, and works if it gets it. `false`: the client is shut down.
    async fn once(&self) -> bool {
        let world = &self.sim.world;
        let number = world.below(u64::from(self.sim.plan.keys));
        let key = format!("lock/{number}");
        let (mutex, terms) = self.mutex(&key);
        self.write(&key, Kind::Invoke, |event| event.mode(told(terms.mode)));
        let asked = match world.chance(0.2) {
            true => match self.cancelled(self.ask(&mutex)).await {
                Some(asked) => asked,
                None => {
                    world.tally("lock cancelled");
                    Asked::Unknown
                }
            },
            false => self.ask(&mutex).await,
        };
        match asked {
            Asked::Got(guard) => self.hold(guard, &key, number as usize, &terms).await,
            Asked::Denied => self.write(&key, Kind::Denied, |event| event),
            Asked::Unknown => self.write(&key, Kind::Unknown, |event| event),
            Asked::Closed => {
                self.write(&key, Kind::Denied, |event| event);
                return false;
            }
        }
        true
    }

    fn mutex(&self, key: &str) -> (Mutex, Terms) {
        let (world, ttl) = (&self.sim.world, self.sim.plan.ttl);
        let mode = self.mode();
        let mut mutex = simulation::in_mode(self.process.client.mutex(key), mode);
        let (renews, max_hold, min_hold) = (true, None, Duration::ZERO);
        let mut terms = Terms { mode, ttl, words: "", renews, max_hold, min_hold, owner: None };
        if world.chance(0.2) {
            let retry = Exponential::new(Duration::from_millis(10), Duration::from_millis(400));
            let limit = 2 + world.below(30) as usize;
            mutex = mutex.retry(retry.jitter().limit(limit));
        }
        match world.below(14) {
            0 | 4 => terms.renews = false,
            1 => terms.max_hold = Some(ttl.mul_f64(0.25 * (1 + world.below(8)) as f64)),
            2 => terms.words = "other",
            3 => terms.ttl = ttl * 2,
            5 => terms.min_hold = ttl.mul_f64(0.25 * (1 + world.below(3)) as f64),
            // A release that is repeated may come once more, when its id is in use again: no store can tell.
            6 if self.sim.plan.repeats_nothing() => {
                terms.owner = Owner::random().ok();
                if let Some(owner) = terms.owner {
                    mutex = mutex.owner(owner);
                }
            }
            _ => {}
        }
        mutex = mutex.ttl(terms.ttl).metadata(terms.words).min_hold(terms.min_hold);
        if let Some(max_hold) = terms.max_hold {
            mutex = mutex.max_hold(max_hold);
        }
        (if terms.renews { mutex } else { mutex.no_renewal() }, terms)
    }

    /// Three of four only read.
    fn mode(&self) -> Mode {
        let world = &self.sim.world;
        match self.sim.plan.kind {
            plan::Kind::RwLock if world.chance(0.75) => Mode::Shared,
            plan::Kind::Mutex | plan::Kind::RwLock => Mode::Exclusive,
            plan::Kind::Semaphore { of } => {
                Mode::Permits { want: 1 + world.below(u64::from(of)) as u32, of }
            }
        }
    }

    async fn ask(&self, mutex: &Mutex) -> Asked {
        let world = &self.sim.world;
        let asked = match world.below(8) {
            0 => match mutex.try_lock().await {
                Ok(None) => return Asked::Denied,
                Ok(Some(guard)) => Ok(guard),
                Err(error) => Err(error),
            },
            1 => mutex.lock_timeout(world.between(0, 4000)).await,
            _ => mutex.lock().await,
        };
        match asked {
            Ok(guard) => Asked::Got(guard),
            Err(Error::Closed) => Asked::Closed,
            Err(Error::Timeout { .. } | Error::RetriesExhausted { .. }) => Asked::Denied,
            Err(_) => Asked::Unknown,
        }
    }

    /// Drops the future after some time, or after some polls, unless it is ready before.
    async fn cancelled<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let world = &self.sim.world;
        let mut future = pin!(future);
        if world.chance(0.5) {
            let limit = sleep(world.between(0, 2000));
            // What comes in the same moment is taken, or never looked at.
            return match world.chance(0.5) {
                true => {
                    tokio::select! { biased; value = future => Some(value), () = limit => None }
                }
                false => {
                    tokio::select! { biased; () = limit => None, value = future => Some(value) }
                }
            };
        }
        let mut polls = world.below(6);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if polls == 0 => Poll::Ready(None),
            Poll::Pending => {
                polls -= 1;
                Poll::Pending
            }
        })
        .await
    }

    async fn hold(&self, guard: Guard, key: &str, number: usize, terms: &Terms) {
        let (sim, world) = (&self.sim, &self.sim.world);
        let token = guard.fencing_token();
        let start = world.now();
        let deadline = world.time_of(guard.expires_at());
        let kept = sim.kept_until(&guard);
        self.write(key, Kind::Granted, |event| {
            event.fence(token.as_u64()).deadline(deadline).value(kept)
        });
        let handed_on = self.judge_hand_over(&guard, terms);
        for (deed, done) in [
            ("lock handed on", handed_on),
            ("lock without renewal", !terms.renews),
            ("lock with a limit", terms.max_hold.is_some()),
            ("lock with a minimum", !terms.min_hold.is_zero()),
            ("lock by an id of its own", terms.owner.is_some()),
        ] {
            if done {
                world.tally(deed);
            }
        }
        if terms.owner.is_some_and(|owner| owner != guard.owner()) {
            world.breach("a lock is held under another id than was asked for", guard.key());
        }
        let guard = Arc::new(guard);
        // Somebody who is told of the end, and asks nothing.
        let watched = Arc::clone(&guard);
        let mut told = Box::pin(async move { watched.lost().await });
        let mut over = None;
        let hold = Hold { guard: Arc::clone(&guard), deadline, stalled: false };
        self.process.guards().insert(self.worker, hold);
        self.write(key, Kind::Enter, |event| event);
        let work = sim.plan.work.as_millis() as u64;
        // Most are quick: it is the others who make them wait.
        let end = Instant::now() + world.between(0, work >> world.below(5));
        let step = (sim.plan.ttl / 10).as_millis() as u64;
        let lost = loop {
            // Tasks set no flag in the moment in which the process goes on.
            let flag = sim.plan.bug == Some(Bug::FlagInsteadOfClock);
            if !flag && !guard.is_held() {
                over = Some(world.now());
                let reason = timeout(Duration::from_secs(60), &mut told).await;
                break Some(reason.unwrap_or(LossReason::Gone));
            }
            self.step(&guard, key);
            if self.process.witness.is_denied(guard.owner()) {
                world
                    .breach("a guard is held of which the store said that it is lost", guard.key());
            }
            if let Some(max_hold) = terms.max_hold {
                let end = start + nanos(max_hold);
                if end + nanos(TOLERANCE) < world.now() && self.process.ran_since(end) {
                    world.breach("a guard is held for longer than allowed", guard.key());
                }
            }
            // On its way to the resource: if the process stops here, what it knew is old when it goes on.
            let longest = if world.chance(0.25) { step } else { 4 };
            let way = sleep(world.between(0, longest));
            let lost = tokio::select! {
                biased;
                reason = &mut told => Some(reason),
                () = way => None,
            };
            // Who shares it only reads: tokens put nobody in order there.
            if terms.mode == Mode::Exclusive {
                let accepted = sim.gates[number].admit(token) || sim.plan.bug == Some(Bug::NoGate);
                self.write(key, Kind::Write, |event| event.value(u64::from(accepted)));
                self.write(key, Kind::Write, |event| event.value(1).name("open"));
            }
            if lost.is_some() {
                break lost;
            }
            if end <= Instant::now() && guard.is_held() {
                break None;
            }
            let pause = async {
                match world.chance(0.08) {
                    true => {
                        let ttl = sim.plan.ttl.mul_f64(0.5 + 0.25 * world.below(5) as f64);
                        self.owners().insert(guard.owner(), None);
                        // No longer than the deadline may go unread.
                        let extended = self.cancelled(guard.extend(ttl));
                        world.tally(match timeout(sim.plan.ttl / 10, extended).await {
                            Ok(Some(Ok(()))) => "lock extended",
                            Ok(Some(Err(_))) => "extension failed",
                            Ok(None) | Err(_) => "extension cancelled",
                        });
                    }
                    false => sleep(world.between(1, step)).await,
                }
            };
            // Not everybody asks first whether the lock is lost.
            let lost = match world.chance(0.5) {
                true => tokio::select! {
                    biased;
                    () = pause => None,
                    reason = &mut told => Some(reason),
                },
                false => tokio::select! {
                    biased;
                    reason = &mut told => Some(reason),
                    () = pause => None,
                },
            };
            if lost.is_some() {
                break lost;
            }
        };
        drop(told);
        let hold = self.process.guards().remove(&self.worker);
        if let Some(reason) = lost {
            self.write(key, Kind::Exit, |event| event);
            let now = world.now();
            let seen = hold.map_or((now, true), |hold| (hold.deadline, hold.stalled));
            // A renewal since the last look moved the deadline; where the clock did not end it, it was held until now.
            let deadline = match (reason, seen, over) {
                (LossReason::Expired, (deadline, _), _) | (_, (deadline, true), _) => deadline,
                // It said so itself before it told.
                (_, (deadline, false), Some(over)) => deadline.min(over),
                (_, (deadline, false), None) => deadline.max(now + 1),
            };
            self.write(key, Kind::Lost, |event| event.deadline(deadline));
            world.tally(match reason {
                LossReason::Expired => "lost by the clock",
                LossReason::Gone => "lost by the store's word",
                LossReason::MaxHold => "lost by its limit",
                LossReason::Shutdown => "lost by a shutdown",
                _ => "lost by its release",
            });
            if reason == LossReason::Expired && terms.renews {
                self.judge_end(&guard);
            }
            return;
        }
        drop(hold);
        self.write(key, Kind::Exit, |event| event);
        self.write(key, Kind::ReleaseInvoke, |event| {
            let event = event.deadline(world.time_of(guard.expires_at()));
            // What is handed on was taken when the one before gave it back, and then changed.
            if handed_on || terms.min_hold.is_zero() {
                return event;
            }
            // By the clock of the store.
            let rest = nanos(terms.min_hold) / 100 * 98;
            event.value((start + rest).saturating_sub(nanos(TOLERANCE)))
        });
        let Some(guard) = Arc::into_inner(guard) else { return };
        if world.chance(0.3) {
            return drop(guard);
        }
        let released = match world.chance(0.1) {
            true => self.cancelled(guard.release()).await,
            false => Some(guard.release().await),
        };
        match released {
            Some(Ok(Released::Released)) => self.write(key, Kind::Released, |event| event),
            Some(Ok(Released::NotHeld)) => world.tally("release too late"),
            Some(Err(_)) => world.tally("release failed"),
            None => world.tally("release cancelled"),
        }
    }

    /// A lock that is handed on inside the process is good for half of its ttl at least. Whether it was.
    fn judge_hand_over(&self, guard: &Guard, terms: &Terms) -> bool {
        let (world, asked) = (&self.sim.world, Some((terms.ttl, terms.words)));
        let before = self.owners().insert(guard.owner(), asked);
        let least = terms.ttl / 2 - (terms.ttl / 100).max(Duration::from_millis(5));
        // Renewed by whoever had it, it had less than this only if the process did not run.
        let ran = self.process.ran_since(world.now().saturating_sub(nanos(terms.ttl)));
        if before == Some(asked) && ran && guard.remaining() < least {
            world.breach("a lock is handed on when it is about to end", guard.key());
        }
        before.is_some()
    }

    /// A lock that is renewed ends by the clock only while the store is asked to keep it, or was a moment ago.
    fn judge_end(&self, guard: &Guard) {
        let (world, ttl) = (&self.sim.world, self.sim.plan.ttl);
        let Some(idle) = self.process.witness.idle_since(guard.owner()) else { return };
        let longest = ttl / 12 + Duration::from_millis(60);
        if idle + nanos(longest) < world.now() && self.process.ran_since(idle) {
            world.breach("a lock ends that nobody tried to keep", guard.key());
        }
    }

    fn owners(&self) -> MutexGuard<'_, BTreeMap<Owner, process::Asked>> {
        self.process.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, guard: &Guard, key: &str) {
        let deadline = self.sim.world.time_of(guard.expires_at());
        if let Some(hold) = self.process.guards().get_mut(&self.worker) {
            (hold.deadline, hold.stalled) = (deadline, false);
        }
        let kept = self.sim.kept_until(guard);
        self.write(key, Kind::Step, |event| event.deadline(deadline).value(kept));
    }

    fn write(&self, key: &str, kind: Kind, more: impl FnOnce(Event) -> Event) {
        let world = &self.sim.world;
        let event = Event::new(world.now(), kind).of(self.process.id, self.worker).key(key);
        world.record(&more(event));
    }
}

/// The mode, as the judge calls it.
fn told(mode: Mode) -> checker::Mode {
    match mode {
        Mode::Permits { want, of } => checker::Mode::Permits { want, of },
        Mode::Shared => checker::Mode::Shared,
        _ => checker::Mode::Exclusive,
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
