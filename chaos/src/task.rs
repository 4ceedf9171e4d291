//! A task of a worker: asks for locks in every way there is, works, is cancelled, and writes down all of it.

use std::{
    fs, io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use distlock::{Error, Exponential, Guard, LossReason, Mutex, Released, RetryStrategy as _};
use distlock_checker::{Event, Kind};
use distlock_conformance::Dice;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    ledger::Ledger,
    setup::{Setup, kept_file, lock_name},
    worker::{Shared, give_up},
};

/// One client of the history.
#[derive(Debug)]
pub(crate) struct Task {
    shared: Arc<Shared>,
    number: u32,
    dice: Dice,
    ledgers: Vec<Ledger>,
}

/// How a call ended.
enum Asked {
    Got(Guard),
    Denied,
    Unknown,
}

/// What was seen of a guard that is held.
#[derive(Clone, Copy)]
struct Look {
    /// A moment at which it was held for sure.
    t: u64,
    /// Its deadline.
    d: u64,
}

impl Task {
    pub(crate) fn new(shared: Arc<Shared>, number: u32, dice: Dice) -> io::Result<Self> {
        let ledgers = (0..shared.setup.locks).map(|lock| Ledger::open(&shared.setup.dir, lock));
        let ledgers = ledgers.collect::<io::Result<_>>()?;
        Ok(Self { shared, number, dice, ledgers })
    }

    /// Works until the process is told to stop.
    pub(crate) async fn run(mut self) {
        while !self.shared.orders.is_stopping() {
            let longest = match (self.dice.chance(0.05), self.shared.setup.hurry) {
                (true, _) => 1000,
                (false, true) => 10,
                (false, false) => 60,
            };
            sleep(self.dice.time(Duration::from_millis(longest))).await;
            self.once().await;
        }
    }

    /// Asks for a lock, and works if it gets it.
    async fn once(&mut self) {
        let number = self.dice.below(self.shared.setup.locks as u64) as usize;
        let key = lock_name(number);
        let mutex = self.mutex(&key);
        self.note(&key, Kind::Invoke);
        let cancelled = self.dice.chance(0.2);
        let patience = self.dice.time(self.shared.setup.ttl * 2);
        let way = self.dice.below(8);
        let limit = self.dice.time(self.shared.setup.ttl * 3);
        let asked = ask(&mutex, way, limit);
        let asked = match cancelled {
            true => timeout(patience, asked).await.unwrap_or(Asked::Unknown),
            false => asked.await,
        };
        match asked {
            Asked::Got(guard) => self.hold(guard, &key, number).await,
            Asked::Denied => self.note(&key, Kind::Denied),
            Asked::Unknown => {
                self.note(&key, Kind::Unknown);
                sleep(Duration::from_millis(20)).await;
            }
        }
    }

    fn mutex(&mut self, key: &str) -> Mutex {
        let ttl = self.shared.setup.ttl;
        let mut mutex = self.shared.client.mutex(key);
        if self.dice.chance(0.2) {
            let retry = Exponential::new(Duration::from_millis(10), Duration::from_millis(400));
            let limit = 2 + self.dice.below(30) as usize;
            mutex = mutex.retry(retry.jitter().limit(limit));
        }
        match self.dice.below(12) {
            0 | 4 => mutex.no_renewal(),
            1 => mutex.max_hold(ttl * 2),
            2 => mutex.metadata("other"),
            3 => mutex.ttl(ttl * 2),
            _ => mutex,
        }
    }

    async fn hold(&mut self, guard: Guard, key: &str, number: usize) {
        let token = guard.fencing_token().as_u64();
        let Some(mut seen) = self.look(&guard) else {
            // It was over before this process got to look, so nobody believed in it.
            return self.note(key, Kind::Unknown);
        };
        self.write(seen.t, key, Kind::Granted, |event| event.fence(token).deadline(seen.d));
        self.note(key, Kind::Enter);
        let end = Instant::now() + self.length();
        let end = if self.is_to_keep() { end + self.shared.setup.ttl * 4 } else { end };
        let lost = loop {
            let Some(look) = self.look(&guard) else { break Some(guard.lost().await) };
            seen = look;
            self.write(seen.t, key, Kind::Step, |event| event.deadline(seen.d));
            if let Some(reason) = self.on_the_way(&guard).await {
                self.use_resource(&guard, key, number).await;
                break Some(reason);
            }
            self.use_resource(&guard, key, number).await;
            let Some(look) = self.look(&guard) else { break Some(guard.lost().await) };
            seen = look;
            if end <= Instant::now() || self.shared.orders.is_stopping() {
                break None;
            }
            if self.dice.chance(0.03) {
                seen = self.extend(&guard, key, seen).await;
                continue;
            }
            let pause = self.dice.time(self.step());
            if let Ok(reason) = timeout(pause, guard.lost()).await {
                break Some(reason);
            }
        };
        self.note(key, Kind::Exit);
        match lost {
            Some(reason) => self.lost(key, reason, seen),
            None => self.give_back(guard, key, seen).await,
        }
    }

    /// Reads what a guard says of itself. The time is read before, and the deadline counts only if the guard is held after it was read: so the
    /// guard was held at `t`, and `d` is a deadline that it had, however long the process did not run in between.
    fn look(&self, guard: &Guard) -> Option<Look> {
        let t = self.shared.anchor.now();
        let deadline = guard.expires_at();
        guard.is_held().then(|| Look { t, d: self.shared.anchor.of(deadline) })
    }

    /// Most work is quick; some takes longer than a lease.
    fn length(&mut self) -> Duration {
        let (share, usual) = if self.shared.setup.hurry { (0.003, 2) } else { (0.04, 20) };
        let longest = match self.dice.chance(share) {
            true => self.shared.setup.ttl * 2,
            false => Duration::from_millis(usual),
        };
        self.dice.time(longest)
    }

    /// So long nobody looks at a guard.
    fn step(&self) -> Duration {
        self.shared.setup.ttl / 10
    }

    /// From the look at the guard to the resource it takes some time: if the process stops here, what it knew is old when it goes on.
    async fn on_the_way(&mut self, guard: &Guard) -> Option<LossReason> {
        let share = if self.shared.setup.hurry { 0.01 } else { 0.1 };
        let longest = match self.dice.chance(share) {
            true => self.step(),
            false => Duration::from_millis(1),
        };
        timeout(self.dice.time(longest), guard.lost()).await.ok()
    }

    async fn use_resource(&mut self, guard: &Guard, key: &str, number: usize) {
        let token = guard.fencing_token();
        let ledger = &self.ledgers[number];
        let failed = |error| -> ! { give_up(&format!("the ledger failed: {error}")) };
        for _ in 0..20 {
            let now = || self.shared.anchor.now();
            match ledger.write(token, now).unwrap_or_else(|error| failed(error)) {
                Some((t, accepted)) => {
                    let accepted = u64::from(accepted);
                    self.write(t, key, Kind::Write, |event| event.value(accepted));
                    break;
                }
                None => sleep(Duration::from_millis(1)).await,
            }
        }
        let t = self.shared.anchor.now();
        ledger.write_unasked(token).unwrap_or_else(|error| failed(error));
        self.write(t, key, Kind::Write, |event| event.value(1).name("open"));
    }

    /// Asks for another ttl, and says what can be believed meanwhile: a shorter one counts from when it was sent.
    async fn extend(&mut self, guard: &Guard, key: &str, seen: Look) -> Look {
        let ttl = self.shared.setup.ttl.mul_f64(0.5 + 0.25 * self.dice.below(5) as f64);
        let t = self.shared.anchor.now();
        // Less than a hundredth, or 5 ms, is taken off it.
        let least = t + ttl.mul_f64(0.9).as_nanos() as u64;
        let seen = Look { t: seen.t, d: seen.d.min(least) };
        self.write(seen.t, key, Kind::Step, |event| event.deadline(seen.d));
        let patience = self.dice.time(self.step());
        // Its answer changes nothing: what became of it, the guard knows.
        let _ = timeout(patience, guard.extend(ttl)).await;
        seen
    }

    /// It was held when it was looked at; and if the clock ended it, until the deadline that it had then, or a later one.
    fn lost(&self, key: &str, reason: LossReason, seen: Look) {
        let until = if reason == LossReason::Expired { seen.d } else { seen.t };
        let reason = format!("{reason:?}");
        self.write(self.shared.anchor.now(), key, Kind::Lost, |event| {
            event.deadline(until).name(reason)
        });
    }

    async fn give_back(&mut self, guard: Guard, key: &str, seen: Look) {
        let t = self.shared.anchor.now();
        self.write(t, key, Kind::ReleaseInvoke, |event| event.deadline(seen.d));
        if self.dice.chance(0.3) {
            return drop(guard);
        }
        let cancelled = self.dice.chance(0.1);
        let patience = self.dice.time(Duration::from_millis(5));
        let released = match cancelled {
            true => timeout(patience, guard.release()).await.ok(),
            false => Some(guard.release().await),
        };
        match released {
            Some(Ok(Released::Released)) => self.note(key, Kind::Released),
            Some(Err(Error::Backend(error))) if !error.is_transient() => {
                give_up(&format!("release of {key}: {error}"))
            }
            _ => {}
        }
    }

    /// Whether the driver waits for somebody to have a lock, who is told that this is so.
    fn is_to_keep(&self) -> bool {
        let keeps = self.shared.orders.keep.swap(false, Ordering::Relaxed);
        if keeps {
            let Setup { dir, process, .. } = &self.shared.setup;
            let told = fs::write(kept_file(dir, *process), "");
            told.unwrap_or_else(|error| give_up(&format!("the driver cannot be told: {error}")));
        }
        keeps
    }

    fn note(&self, key: &str, kind: Kind) {
        self.write(self.shared.anchor.now(), key, kind, |event| event);
    }

    fn write(&self, t: u64, key: &str, kind: Kind, more: impl FnOnce(Event) -> Event) {
        let event = Event::new(t, kind).of(self.shared.setup.process, self.number).key(key);
        self.shared.journal.write(&more(event));
    }
}

async fn ask(mutex: &Mutex, way: u64, limit: Duration) -> Asked {
    let asked = match way {
        0 => mutex.try_lock().await,
        1 => mutex.lock_timeout(limit).await.map(Some),
        _ => mutex.lock().await.map(Some),
    };
    match asked {
        Ok(Some(guard)) => Asked::Got(guard),
        Ok(None) | Err(Error::Timeout { .. } | Error::RetriesExhausted { .. }) => Asked::Denied,
        Err(error) if error.is_transient() => Asked::Unknown,
        // Nobody shuts the client down before its tasks have ended, and the servers are as they have to be.
        Err(error) => give_up(&format!("asking for {}: {error}", mutex.key())),
    }
}
