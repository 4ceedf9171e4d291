//! The server's data: what the keys of each lock hold, and until when by its wall clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use distlock_core::Owner;
use tokio::time::Instant;

use crate::{
    Bug,
    clock::Clock,
    net::Server,
    plan::{FENCE_RESET, LATE_CHANGE, Wound},
};

/// A place stays for no longer, in milliseconds.
pub(super) const PLACE_MAX: i64 = 60_000;

/// A fence counter outlives its lock by so long.
pub(super) const IDLE: i64 = 3_600_000;

/// A server like Redis.
#[derive(Clone, Debug)]
pub(crate) struct Redis {
    pub(super) clock: Clock,
    pub(super) locks: BTreeMap<String, Keys>,
    pub(super) listening: BTreeSet<u32>,
    pub(super) pushes: Vec<(u32, Push)>,
    pub(super) bug: Option<Bug>,
    /// Those it knows by their digest.
    scripts: BTreeSet<Script>,
    /// The highest token of each key, whatever the server itself forgot.
    highest: BTreeMap<String, u64>,
    mishaps: Vec<(&'static str, String)>,
    /// How often a request changed a lock that was not its own to change.
    pub(super) harms: u64,
}

/// The four keys of a lock.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    pub(super) lock: Option<(Value, i64)>,
    pub(super) fence: Option<(u64, i64)>,
    /// Owners by arrival.
    pub(super) line: Vec<(u64, Owner)>,
    pub(super) line_until: i64,
    pub(super) places: BTreeMap<Owner, Place>,
    pub(super) arrivals: u64,
    pub(super) places_until: i64,
    /// The latest value of the lock, which only bugs look at.
    pub(super) before: Option<Value>,
}

/// What stands in the lock's key.
#[derive(Clone, Debug)]
pub(super) struct Value {
    /// None: the rest of a minimal hold, or what another library wrote.
    pub(super) owner: Option<Owner>,
    /// Who wrote it, if it is none of ours.
    pub(super) stranger: Option<Owner>,
    pub(super) process: u32,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) ttl: i64,
}

/// What stands in a place.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) deadline: i64,
    pub(super) process: u32,
    pub(super) hears: bool,
    pub(super) ttl: i64,
    pub(super) size: u32,
}

/// One of the scripts.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Script {
    Acquire,
    Change,
    Inspect,
    Poll,
    Release,
    Renew,
}

/// A grant, as the server words it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Grant {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) ttl: i64,
    pub(crate) awaited: bool,
}

/// What is said on the channel of a process.
#[derive(Clone, Debug)]
pub(crate) enum Push {
    Granted { owner: Owner, server: i64, grant: Grant, key: String },
    Contended(Owner),
    Hold(Owner),
    Lost(Owner),
}

impl Redis {
    pub(crate) fn new(bug: Option<Bug>) -> Self {
        Self {
            bug,
            clock: Clock::new(1_700_000_000_000_000),
            locks: BTreeMap::new(),
            listening: BTreeSet::new(),
            scripts: BTreeSet::new(),
            pushes: Vec::new(),
            highest: BTreeMap::new(),
            mishaps: Vec::new(),
            harms: 0,
        }
    }

    /// The keys of a lock, without what has expired; and the time, in microseconds.
    pub(super) fn keys(&mut self, key: &str) -> (&mut Keys, i64) {
        let us = self.clock.micros();
        let ms = us / 1000;
        let keys = self.locks.entry(key.to_owned()).or_default();
        keys.lock.take_if(|(_, until)| *until < ms);
        keys.fence.take_if(|(_, until)| *until < ms);
        if keys.line_until < ms {
            keys.line.clear();
        }
        if keys.places_until < ms {
            keys.forget_places();
        }
        (keys, us)
    }

    /// The judge is to know when a token may not be above all before it.
    pub(super) fn issued(&mut self, key: &str, first: u64, last: u64) {
        let us = u64::try_from(self.clock.micros()).unwrap_or(0);
        let highest = self.highest.entry(key.to_owned()).or_default();
        // What a clock that is behind makes it repeat is not promised; what it repeats by itself is a bug.
        if first <= *highest && us <= *highest {
            self.mishaps.push((FENCE_RESET, key.to_owned()));
        }
        *highest = (*highest).max(last);
    }

    /// A change should not be carried out that its sender has given up, but a clock that was set back lets it pass.
    pub(super) fn changes(&mut self, key: &str, until: Instant) {
        if until + Duration::from_millis(10) < Instant::now() {
            self.mishaps.push((LATE_CHANGE, key.to_owned()));
        }
    }

    /// What was given back of the latest block may be used again.
    pub(super) fn returned(&mut self, key: &str, last: u64, used: u64) {
        if let Some(highest) = self.highest.get_mut(key).filter(|highest| **highest == last) {
            *highest = used;
        }
    }

    /// Runs a script if it is sent along, or known from before.
    pub(super) fn evaluate<T>(
        &mut self,
        script: Script,
        sent: bool,
        run: impl FnOnce(&mut Self) -> T,
    ) -> Option<T> {
        if sent {
            self.scripts.insert(script);
        }
        self.scripts.contains(&script).then(|| run(self))
    }

    pub(super) fn tell(&mut self, process: u32, push: Push) {
        if self.listening.contains(&process) {
            self.pushes.push((process, push));
        }
    }
}

impl Keys {
    /// Whose lock it is, and which of the grants.
    pub(super) fn identity(&self) -> Option<(Option<Owner>, Option<Owner>, u64)> {
        self.lock.as_ref().map(|(value, _)| (value.owner, value.stranger, value.first))
    }

    pub(super) fn forget_places(&mut self) {
        self.places.clear();
        self.arrivals = 0;
    }
}

impl Server for Redis {
    type Push = Push;

    fn pushes(&mut self) -> Vec<(u32, Push)> {
        std::mem::take(&mut self.pushes)
    }

    fn mishaps(&mut self) -> Vec<(&'static str, String)> {
        std::mem::take(&mut self.mishaps)
    }

    fn listens(&mut self, process: u32, listens: bool) {
        if listens {
            self.listening.insert(process);
        } else {
            self.listening.remove(&process);
        }
    }

    fn suffer(&mut self, wound: Wound, key: &str, amount: u64) -> bool {
        let seconds = (amount % 60) as i64 + 1;
        match wound {
            Wound::StepBack => self.clock.step(-seconds * 1_000_000),
            Wound::StepForward => self.clock.step(seconds * 100_000),
            Wound::Drift => self.clock.drift((amount % 18_001) as i64 - 9_000),
            Wound::DataLoss => {
                self.locks.clear();
                self.scripts.clear();
            }
            Wound::Restart | Wound::ScriptFlush => self.scripts.clear(),
            Wound::ForceRelease => {
                let holder = self.keys(key).0.lock.as_ref().and_then(|(value, _)| value.owner);
                return holder.is_some_and(|owner| self.release(key, owner, 0, 0, 0));
            }
            Wound::Deletion => return self.keys(key).0.lock.take().is_some(),
            Wound::Eviction => {
                let (keys, _) = self.keys(key);
                match amount % 4 {
                    0 => return keys.lock.take().is_some(),
                    1 => return keys.fence.take().is_some(),
                    2 => keys.line.clear(),
                    _ => keys.forget_places(),
                }
            }
            _ => return false,
        }
        true
    }

    fn replace(&mut self, by: Self) {
        (self.locks, self.scripts) = (by.locks, BTreeSet::new());
    }

    fn keeps(&mut self, key: &str, owner: Owner) -> Duration {
        let (keys, us) = self.keys(key);
        let lock = keys.lock.as_ref().filter(|(value, _)| value.owner == Some(owner));
        // It ends when this millisecond is over.
        let left = lock.map_or(0, |(_, until)| (until + 1) * 1000 - us);
        self.clock.until(left)
    }

    fn holders(&mut self) -> Vec<(String, Owner)> {
        let names: Vec<_> = self.locks.keys().cloned().collect();
        let holder = |name: String| {
            let owner = self.keys(&name).0.lock.as_ref().and_then(|(value, _)| value.owner)?;
            Some((name, owner))
        };
        names.into_iter().filter_map(holder).collect()
    }

    /// `SET key value NX PX ttl`: it knows of no line, and of no fence.
    fn lend(&mut self, key: &str, owner: Owner, ttl: Duration) -> bool {
        let (keys, us) = self.keys(key);
        if keys.lock.is_some() {
            return false;
        }
        let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        let (first, last) = (0, 0);
        let value = Value { owner: None, stranger: Some(owner), process: 0, first, last, ttl };
        keys.lock = Some((value, us / 1000 + ttl));
        true
    }

    /// Deleted if it is still there. Nobody in the line is told.
    fn take_back(&mut self, key: &str, owner: Owner) {
        self.keys(key).0.lock.take_if(|(value, _)| value.stranger == Some(owner));
    }

    fn tick(&mut self) {}

    fn left(&mut self) -> Vec<(&'static str, u64)> {
        let (mut locks, mut rests, mut places) = (0, 0, 0);
        for key in self.locks.keys().cloned().collect::<Vec<_>>() {
            let (keys, _) = self.keys(&key);
            let owned = keys.lock.as_ref().map(|(value, _)| value.owner.is_some());
            locks += u64::from(owned == Some(true));
            rests += u64::from(owned == Some(false));
            places += keys.line.len().max(keys.places.len()) as u64;
        }
        vec![
            ("locks", locks),
            ("locks without an owner", rests),
            ("places", places),
            ("harmed locks", self.harms),
        ]
    }
}
