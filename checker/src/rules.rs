//! What a history has to keep to.

use std::time::Duration;

/// What a history has to keep to. The default asks for nothing that the history does not speak of.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Rules {
    /// So much later than the deadline a running process may be told of the loss.
    pub tolerance: Duration,
    /// A guard is asked at the moment that is written down, or after it, so that nothing excuses one that is believed in after its deadline.
    pub exact: bool,
    /// Every rise of a deadline is written down, so that nothing excuses a guard that comes back to life. Not so where renewals go on unseen.
    pub rises: bool,
    /// So long a process that has the machine not for itself may not get to run, unnoticed: work overlaps as if it had been stopped, if one of the
    /// two guards said before that it is over. Zero where time is simulated.
    pub starvation: Duration,
    /// So long after the heal, or its own start, an acquisition may take. None: not judged.
    pub bound: Option<Duration>,
    /// Faults after which the store may give a lock to a second holder: what they explain is counted, and is no violation.
    pub excuses: Vec<String>,
    /// So long after such a fault a guard may believe what the fault made false: the longest ttl.
    pub reach: Duration,
    /// So long before a guard was first held its grant was made at the earliest, however long ago it was asked for: the longest ttl. What befell
    /// the store before that explains nothing about the grant. None: it is not known.
    pub lease: Option<Duration>,
    /// Faults after which the store may repeat tokens.
    pub fence_excuses: Vec<String>,
    /// So many grants there must be.
    pub grants: u64,
    /// So many of them to somebody who had to wait for somebody else.
    pub contended: u64,
    /// So many losses.
    pub losses: u64,
    /// So many faults of each of these names.
    pub faults: Vec<(String, u64)>,
    /// The history must say what is left at its end.
    pub leaks_looked_for: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            tolerance: Duration::from_millis(10),
            exact: false,
            rises: false,
            starvation: Duration::ZERO,
            bound: None,
            excuses: Vec::new(),
            reach: Duration::ZERO,
            lease: None,
            fence_excuses: Vec::new(),
            grants: 1,
            contended: 0,
            losses: 0,
            faults: Vec::new(),
            leaks_looked_for: false,
        }
    }
}

impl Rules {
    /// Faults that no lock on one server, or on a store that is set back to an older state, can survive.
    #[must_use]
    pub fn excusing<S: Into<String>>(mut self, faults: impl IntoIterator<Item = S>) -> Self {
        self.excuses.extend(faults.into_iter().map(Into::into));
        self
    }
}
