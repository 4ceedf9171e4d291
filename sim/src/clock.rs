//! A server's clock: it runs at its own rate, and somebody may set it.

use std::time::Duration;

use tokio::time::Instant;

/// A clock in microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    anchor: Instant,
    shows: i64,
    /// Millionths that it is too fast.
    too_fast: i64,
}

impl Clock {
    pub(crate) fn new(shows: i64) -> Self {
        Self { anchor: Instant::now(), shows, too_fast: 0 }
    }

    pub(crate) fn micros(&self) -> i64 {
        let passed = i64::try_from(self.anchor.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.shows + passed + passed * self.too_fast / 1_000_000
    }

    /// How long it takes in truth until this clock has gone on by so much.
    pub(crate) fn until(&self, micros: i64) -> Duration {
        let real = micros.max(0) * 1_000_000 / (1_000_000 + self.too_fast);
        Duration::from_micros(u64::try_from(real).unwrap_or(0))
    }

    pub(crate) fn step(&mut self, by: i64) {
        *self = Self { anchor: Instant::now(), shows: self.micros() + by, too_fast: self.too_fast };
    }

    pub(crate) fn drift(&mut self, too_fast: i64) {
        *self = Self { anchor: Instant::now(), shows: self.micros(), too_fast };
    }
}
