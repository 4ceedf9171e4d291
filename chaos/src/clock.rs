//! One clock for all processes of a run: the monotonic one of the system, in nanoseconds.

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// The time now.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither is negative, by the definition of this clock.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// What leads from the instants of this process to the time of all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Anchor {
    instant: Instant,
    t: u64,
}

impl Anchor {
    /// Finds it, to some tens of nanoseconds: of many pairs of readings the one between which least time passed.
    pub(crate) fn new() -> Self {
        let readings = (0..1000).map(|_| (now(), Instant::now(), now()));
        let best = readings.min_by_key(|(before, _, after)| after - before);
        let (before, instant, after) = best.expect("there are a thousand");
        Self { instant, t: before.midpoint(after) }
    }

    /// The time now, by the same reading as the instants.
    pub(crate) fn now(self) -> u64 {
        self.of(Instant::now())
    }

    /// The time of an instant.
    pub(crate) fn of(self, instant: Instant) -> u64 {
        let nanos = |from: Instant, to: Instant| {
            u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
        };
        self.t
            .saturating_add(nanos(self.instant, instant))
            .saturating_sub(nanos(instant, self.instant))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn instants_are_told_in_the_time_of_all() {
        let anchor = Anchor::new();
        let (before, instant, after) = (now(), Instant::now(), now());
        let told = anchor.of(instant);
        // Readings of one clock: the order holds to what the anchor may be wrong by.
        assert!(before < told + 100_000 && told < after + 100_000, "{before} {told} {after}");
        let later = instant + Duration::from_secs(2);
        assert_eq!(anchor.of(later) - told, 2_000_000_000);
    }
}
