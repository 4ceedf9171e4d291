//! What the server's clock shows, as far as its replies tell.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// By how much the clocks of the servers are ahead of ours: in a cluster for each slot, for its nodes need not agree.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    /// In microseconds; 0: not known.
    ahead: Box<[AtomicI64]>,
    /// Of the latest reply of any server.
    any: AtomicI64,
}

impl Clock {
    pub(crate) fn new(slots: usize) -> Self {
        let ahead = (0..slots).map(|_| AtomicI64::new(0)).collect();
        Self { start: Instant::now(), ahead, any: AtomicI64::new(0) }
    }

    /// A reply has just come, made when the server's clock showed `server`, in microseconds.
    pub(crate) fn sample(&self, slot: u16, server: i64) {
        // A server may say anything.
        let ahead = server.saturating_sub(micros(self.start.elapsed()));
        self.any.store(ahead, Ordering::Relaxed);
        if let Some(entry) = self.ahead.get(usize::from(slot)) {
            entry.store(ahead, Ordering::Relaxed);
        }
    }

    /// There may be another server now, with another clock.
    pub(crate) fn forget(&self) {
        for ahead in self.ahead.iter().chain([&self.any]) {
            ahead.store(0, Ordering::Relaxed);
        }
    }

    /// What the clock will not show before `patience` is over. A request that runs later than that was given up.
    ///
    /// It counts from the arrival of the latest reply: counted from its request, it could be late by as much as the reply was.
    /// Where nothing is known it is a time long past, and the server will say which it is.
    pub(crate) fn not_after(&self, slot: u16, patience: Duration) -> i64 {
        let known = self.ahead.get(usize::from(slot)).map(|entry| entry.load(Ordering::Relaxed));
        let ahead =
            known.filter(|&ahead| ahead != 0).unwrap_or_else(|| self.any.load(Ordering::Relaxed));
        ahead.saturating_add(micros(self.start.elapsed().saturating_add(patience)))
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_limit_counts_from_the_arrival_of_the_latest_reply_of_the_slot() {
        let clock = Clock::new(2);
        assert_eq!(clock.not_after(0, SECOND), 1_000_000, "nothing is known");
        clock.sample(0, 5_000_000);
        assert_eq!(clock.not_after(0, SECOND), 6_000_000);
        assert_eq!(
            clock.not_after(1, SECOND),
            6_000_000,
            "another slot's reply is better than none"
        );
        tokio::time::advance(SECOND).await;
        clock.sample(1, 9_000_000);
        assert_eq!(clock.not_after(0, SECOND), 7_000_000);
        assert_eq!(clock.not_after(1, SECOND), 10_000_000);
        clock.forget();
        assert_eq!(clock.not_after(1, SECOND), 2_000_000, "long past for any server");
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_a_server_says_its_clock_shows_is_reckoned_with() {
        let clock = Clock::new(1);
        tokio::time::advance(SECOND).await;
        for (server, limit) in [(i64::MIN, i64::MIN + 2_000_000), (i64::MAX, i64::MAX)] {
            clock.sample(0, server);
            assert_eq!(clock.not_after(0, SECOND), limit);
            clock.not_after(0, Duration::MAX);
        }
    }
}
