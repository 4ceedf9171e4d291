//! A client at work: asks for locks in every way there is, works, is cancelled, and writes down all of it.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use distlock_checker::{Event, Kind};
use distlock_core::{Error, Exponential, Guard, LossReason, Mutex, Released, RetryStrategy as _};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    Bug,
    process::{Hold, Kit, Process, Sim},
};

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
        let mutex = self.mutex(&key);
        self.write(&key, Kind::Invoke, |event| event);
        let asked = match world.chance(0.2) {
            true => self.cancelled(self.ask(&mutex)).await.unwrap_or(Asked::Unknown),
            false => self.ask(&mutex).await,
        };
        match asked {
            Asked::Got(guard) => self.hold(guard, &key, number as usize).await,
            Asked::Denied => self.write(&key, Kind::Denied, |event| event),
            Asked::Unknown => self.write(&key, Kind::Unknown, |event| event),
            Asked::Closed => {
                self.write(&key, Kind::Denied, |event| event);
                return false;
            }
        }
        true
    }

    fn mutex(&self, key: &str) -> Mutex {
        let (world, ttl) = (&self.sim.world, self.sim.plan.ttl);
        let mut mutex = self.process.client.mutex(key);
        if world.chance(0.2) {
            let retry = Exponential::new(Duration::from_millis(10), Duration::from_millis(400));
            let limit = 2 + world.below(30) as usize;
            mutex = mutex.retry(retry.jitter().limit(limit));
        }
        match world.below(12) {
            0 | 4 => mutex.no_renewal(),
            1 => mutex.max_hold(ttl * 2),
            2 => mutex.metadata("other"),
            3 => mutex.ttl(ttl * 2),
            _ => mutex,
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
            let limit = world.between(0, 2000);
            return timeout(limit, future).await.ok();
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

    async fn hold(&self, guard: Guard, key: &str, number: usize) {
        let (sim, world) = (&self.sim, &self.sim.world);
        let token = guard.fencing_token();
        let deadline = world.time_of(guard.expires_at());
        self.write(key, Kind::Granted, |event| event.fence(token.as_u64()).deadline(deadline));
        let guard = Arc::new(guard);
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
                break Some(guard.lost().await);
            }
            self.step(&guard, key);
            // On its way to the resource: if the process stops here, what it knew is old when it goes on.
            let longest = if world.chance(0.25) { step } else { 4 };
            let way = sleep(world.between(0, longest));
            let told = tokio::select! {
                biased;
                reason = guard.lost() => Some(reason),
                () = way => None,
            };
            let accepted = sim.gates[number].admit(token) || sim.plan.bug == Some(Bug::NoGate);
            self.write(key, Kind::Write, |event| event.value(u64::from(accepted)));
            self.write(key, Kind::Write, |event| event.value(1).name("open"));
            if told.is_some() {
                break told;
            }
            if end <= Instant::now() && guard.is_held() {
                break None;
            }
            let pause = async {
                match world.chance(0.03) {
                    true => {
                        let ttl = sim.plan.ttl.mul_f64(0.5 + 0.25 * world.below(5) as f64);
                        // No longer than the deadline may go unread.
                        let extended = self.cancelled(guard.extend(ttl));
                        let _ = timeout(sim.plan.ttl / 10, extended).await;
                    }
                    false => sleep(world.between(1, step)).await,
                }
            };
            tokio::select! {
                biased;
                reason = guard.lost() => break Some(reason),
                () = pause => {}
            }
        };
        let hold = self.process.guards().remove(&self.worker);
        if let Some(reason) = lost {
            self.write(key, Kind::Exit, |event| event);
            let now = world.now();
            let seen = hold.map_or((now, true), |hold| (hold.deadline, hold.stalled));
            // A renewal since the last look moved the deadline; where the clock did not end it, it was held until now.
            let deadline = match (reason, seen) {
                (LossReason::Expired, (deadline, _)) | (_, (deadline, true)) => deadline,
                (_, (deadline, false)) => deadline.max(now + 1),
            };
            self.write(key, Kind::Lost, |event| event.deadline(deadline));
            return;
        }
        drop(hold);
        self.write(key, Kind::Exit, |event| event);
        self.write(key, Kind::ReleaseInvoke, |event| {
            event.deadline(world.time_of(guard.expires_at()))
        });
        let Some(guard) = Arc::into_inner(guard) else { return };
        if world.chance(0.3) {
            return drop(guard);
        }
        let released = match world.chance(0.1) {
            true => self.cancelled(guard.release()).await,
            false => Some(guard.release().await),
        };
        if matches!(released, Some(Ok(Released::Released))) {
            self.write(key, Kind::Released, |event| event);
        }
    }

    fn step(&self, guard: &Guard, key: &str) {
        let deadline = self.sim.world.time_of(guard.expires_at());
        if let Some(hold) = self.process.guards().get_mut(&self.worker) {
            (hold.deadline, hold.stalled) = (deadline, false);
        }
        self.write(key, Kind::Step, |event| event.deadline(deadline));
    }

    fn write(&self, key: &str, kind: Kind, more: impl FnOnce(Event) -> Event) {
        let world = &self.sim.world;
        let event = Event::new(world.now(), kind).of(self.process.id, self.worker).key(key);
        world.record(&more(event));
    }
}
