//! What was found in a history.

use std::{collections::BTreeMap, fmt, time::Duration};

/// So many findings of a check are kept; the others are counted.
const KEPT: usize = 20;

/// What is checked.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[allow(clippy::exhaustive_enums, reason = "a reader of verdicts answers each")]
pub enum Check {
    /// The history contradicts itself.
    Form,
    /// Two guards said that they hold the lock, at the same time.
    Exclusion,
    /// Two were at the work that the lock protects.
    Work,
    /// A token came again, or a later grant had a lower one.
    Fence,
    /// The resource accepted a write of one whom a later holder had followed.
    Stale,
    /// A guard counts on the lock for longer than the store keeps it.
    Truth,
    /// A guard believed in the lock after its deadline, came back to life, or its holder was told too late.
    Late,
    /// A promise was broken that only those see who see both sides.
    Breach,
    /// Something is left behind.
    Leak,
    /// Somebody waits who should have been served.
    Liveness,
    /// The history proves nothing, for too little happened in it.
    Vacuity,
}

/// One thing that is not as it has to be.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Finding {
    /// Which check found it.
    pub check: Check,
    /// When it became so, in nanoseconds.
    pub t: u64,
    /// The lock, where there is one.
    pub key: String,
    /// What it is.
    pub text: String,
}

/// How much happened in a history.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Figures {
    /// Events.
    pub events: u64,
    /// Acquisitions that were asked for.
    pub operations: u64,
    /// Of these, got.
    pub grants: u64,
    /// Of these, by somebody who had to wait for somebody else.
    pub contended: u64,
    /// Of these, of a shared lock.
    pub shared: u64,
    /// Of these, of permits.
    pub permits: u64,
    /// Of these, while others had the lock too, and were to have it.
    pub together: u64,
    /// Holders that were told of a loss.
    pub losses: u64,
    /// Writes that were accepted, and that were refused.
    pub writes: (u64, u64),
    /// Writes of those whom a later holder had followed, to a resource that looks at no token.
    pub open_stale: u64,
    /// Faults, by name.
    pub faults: BTreeMap<String, u64>,
    /// Work that overlapped because a process did not run: what only the token can make harmless.
    pub paused_overlaps: u64,
    /// The longest wait that began before the heal or after, counted from the heal at the earliest.
    pub longest_wait: Duration,
    /// Of these waits, what 99 of 100 do not exceed.
    pub p99_wait: Duration,
    /// From the first event to the last.
    pub span: Duration,
}

/// What was found in a history.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Verdict {
    /// How much happened.
    pub figures: Figures,
    /// What must not be, at most 20 of each check.
    pub violations: Vec<Finding>,
    /// How many there are of each check.
    pub counts: BTreeMap<Check, u64>,
    /// What would be a violation, had no fault explained it.
    pub negatives: BTreeMap<Check, u64>,
    /// What the second judge says of the windows with a violation of exclusion: agrees, and does not.
    pub second_opinion: (u64, u64),
}

impl Verdict {
    /// Whether nothing was found that must not be.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }

    /// How many violations of a check there are.
    #[must_use]
    pub fn count(&self, check: Check) -> u64 {
        self.counts.get(&check).copied().unwrap_or(0)
    }

    pub(crate) fn violation(&mut self, check: Check, t: u64, key: &str, text: String) {
        let count = self.counts.entry(check).or_default();
        *count += 1;
        if *count <= KEPT as u64 {
            self.violations.push(Finding { check, t, key: key.to_owned(), text });
        }
    }

    pub(crate) fn negative(&mut self, check: Check) {
        *self.negatives.entry(check).or_default() += 1;
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check, t, key, text } = self;
        write!(f, "{check:?} at {:.6} s", *t as f64 / 1e9)?;
        if !key.is_empty() {
            write!(f, ", lock {key:?}")?;
        }
        write!(f, ": {text}")
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figures {
            events, operations, grants, contended, losses, writes, paused_overlaps, ..
        } = &self.figures;
        writeln!(f, "{events} events in {:?}", self.figures.span)?;
        writeln!(f, "{operations} acquisitions, {grants} grants, {contended} of them contended")?;
        writeln!(f, "{losses} losses; writes: {} accepted, {} refused", writes.0, writes.1)?;
        writeln!(f, "{} stale writes where no token is looked at", self.figures.open_stale)?;
        writeln!(f, "{paused_overlaps} overlaps of work because a process did not run")?;
        writeln!(f, "longest wait {:?}", self.figures.longest_wait)?;
        for (name, count) in &self.figures.faults {
            writeln!(f, "fault {name}: {count}")?;
        }
        for (check, count) in &self.negatives {
            writeln!(f, "{check:?}: {count} explained by faults that no lock survives")?;
        }
        for finding in &self.violations {
            writeln!(f, "{finding}")?;
        }
        for (check, count) in &self.counts {
            writeln!(f, "{check:?}: {count} violations")?;
        }
        if self.second_opinion != (0, 0) {
            let (agrees, differs) = self.second_opinion;
            writeln!(f, "second opinion on them: {agrees} agree, {differs} do not")?;
        }
        f.write_str(if self.is_clean() { "clean" } else { "VIOLATED" })
    }
}
