//! What everybody who does harm needs: chance, the history, and the time.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use distlock_checker::{Event, Kind};
use distlock_conformance::Dice;

use crate::{clock, journal::Journal, plan::Plan};

/// One who does harm, with chance of its own.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) plan: Arc<Plan>,
    pub(crate) dir: PathBuf,
    pub(crate) journal: Arc<Journal>,
    pub(crate) dice: Dice,
    /// Somebody else failed, so all of it ends.
    pub(crate) failed: Arc<AtomicBool>,
}

impl Scene {
    /// Another one.
    pub(crate) fn fork(&mut self) -> Self {
        Self {
            plan: Arc::clone(&self.plan),
            dir: self.dir.clone(),
            journal: Arc::clone(&self.journal),
            dice: Dice::new(self.dice.roll()),
            failed: Arc::clone(&self.failed),
        }
    }

    /// Writes down that a fault begins, or that it ends: what follows may be of it. `key` is empty if it befalls all locks.
    pub(crate) fn fault(&self, name: &str, key: &str) {
        self.write(&Event::new(clock::now(), Kind::Fault).name(name).key(key));
    }

    pub(crate) fn write(&self, event: &Event) {
        self.journal.write(event);
    }

    /// Waits for a time between the two, in milliseconds.
    pub(crate) fn pause(&mut self, low: u64, high: u64) {
        let time = low + self.dice.below(high.saturating_sub(low) + 1);
        thread::sleep(Duration::from_millis(time));
    }

    /// Whether there is to be more harm.
    pub(crate) fn goes_on(&self, until: u64) -> bool {
        clock::now() < until && !self.has_failed()
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// The ttl in milliseconds.
    pub(crate) fn ttl(&self) -> u64 {
        u64::try_from(self.plan.ttl.as_millis()).unwrap_or(u64::MAX)
    }
}
