//! What the benchmarks share: times, percentiles, reports, what the server counts, and the raw driver as the floor.
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

pub mod raw;
pub mod report;
pub mod server;
mod svg;

use std::{env, future::Future, time::Duration};

use tokio::time::Instant;

/// The Redis server that `cargo xtask bench` started, or one's own.
///
/// # Panics
/// When there is none: a benchmark without its server measures nothing.
#[must_use]
pub fn redis_url() -> String {
    env::var("DISTLOCK_TEST_REDIS_URL")
        .expect("set DISTLOCK_TEST_REDIS_URL, or run `cargo xtask bench`")
}

/// How many rounds a median is of. With `--quick` one, to see that a benchmark works.
#[must_use]
pub fn rounds() -> usize {
    if is_quick() { 1 } else { 5 }
}

/// Whether the benchmark is only to be tried.
#[must_use]
pub fn is_quick() -> bool {
    env::args().any(|arg| arg == "--quick")
}

/// A figure for a table: three digits that count.
#[must_use]
pub fn show(figure: f64) -> String {
    svg::number(figure)
}

/// Times in order, to be asked for percentiles.
#[derive(Debug)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Sorts what was measured.
    #[must_use]
    pub fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// The time that this part of all stays below, from 0 to 1.
    #[must_use]
    pub fn percentile(&self, part: f64) -> Duration {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index of a sample"
        )]
        let index = ((self.0.len() as f64 - 1.0) * part).round() as usize;
        self.0.get(index).copied().unwrap_or_default()
    }

    /// How many are longer.
    #[must_use]
    pub fn count_over(&self, limit: Duration) -> usize {
        self.0.len() - self.0.partition_point(|time| *time <= limit)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The half-way time.
    #[must_use]
    pub fn median(&self) -> Duration {
        self.percentile(0.5)
    }
}

/// The median of some figures.
#[must_use]
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The time of one call when `count` follow one another.
pub async fn each<F: Future>(count: u32, mut call: impl FnMut() -> F) -> Duration {
    let started = Instant::now();
    for _ in 0..count {
        call().await;
    }
    started.elapsed() / count
}

/// Microseconds, for tables.
#[must_use]
pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
