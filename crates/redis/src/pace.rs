//! How long a waiter believes in silence.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// What a waiter knows of the lock and of its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outlook {
    /// How long the lock will stay without a renewal; none: for ever.
    pub(crate) left: Option<Duration>,
    /// It is one of ours, so that its end is told to the head of the line.
    pub(crate) ours: bool,
    /// How many stand before this one.
    pub(crate) rank: u32,
    /// Pushes arrive.
    pub(crate) hears: bool,
}

/// The head asks so soon at first, and then less and less often, where nobody will tell it.
const SOON: Duration = Duration::from_millis(16);
const SELDOM: Duration = Duration::from_millis(512);

/// Chance, to spread what would happen at the same moment.
#[derive(Debug)]
pub(crate) struct Pace(AtomicU64);

impl Pace {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// After which silence the place is to be looked after: it must not outlast the lock's ttl, a third of the place's, nor a third of the
    /// waiter's own, after which a lost grant is lost for good.
    pub(crate) fn recheck(
        &self,
        outlook: Outlook,
        polls: u32,
        ttl: Duration,
        place_ttl: Duration,
    ) -> Duration {
        let head = outlook.rank == 0;
        let mut recheck = self.less(place_ttl / 3, 8).min(ttl / 3);
        if let Some(left) = outlook.left {
            // The head comes first, the others are there in case that it does not come at all.
            let (pause, spread) = if head { (1, 8) } else { (20, 80) };
            recheck = recheck.min(left + Duration::from_millis(pause + self.chance(spread)));
        }
        if !outlook.hears || (head && !outlook.ours) {
            let growing = if head { SOON * (1 << polls.min(5)) } else { SELDOM };
            recheck = recheck.min(self.less(growing.min(SELDOM), 2));
        }
        recheck.max(Duration::from_millis(1))
    }

    /// Up to one part of so many less.
    fn less(&self, duration: Duration, part: u32) -> Duration {
        duration - (duration / part).mul_f64(self.chance(1024) as f64 / 1024.0)
    }

    /// A number below the limit.
    fn chance(&self, limit: u64) -> u64 {
        // splitmix64: any sequence will do that differs from process to process.
        let mut state = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (state ^ (state >> 31)) % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn range(outlook: Outlook, polls: u32, ttl: Duration) -> (Duration, Duration) {
        let pace = Pace::new(7);
        let all: Vec<_> =
            (0..2000).map(|_| pace.recheck(outlook, polls, ttl, ms(15_000))).collect();
        (*all.iter().min().unwrap(), *all.iter().max().unwrap())
    }

    const HEAD: Outlook = Outlook { left: Some(ms(1000)), ours: true, rank: 0, hears: true };

    #[test]
    fn the_head_is_there_when_the_holder_s_ttl_is_over_and_the_others_shortly_after() {
        let (min, max) = range(HEAD, 0, ms(30_000));
        assert!(ms(1001) <= min && max < ms(1010), "{min:?} {max:?}");
        let (min, max) = range(Outlook { rank: 3, ..HEAD }, 0, ms(30_000));
        assert!(ms(1020) <= min && max < ms(1100) && ms(30) < max - min, "{min:?} {max:?}");
    }

    #[test]
    fn a_third_of_the_place_s_and_of_the_own_ttl_are_the_limits() {
        let far = Outlook { left: Some(ms(60_000)), ..HEAD };
        let (min, max) = range(far, 0, ms(60_000));
        assert!(ms(4375) <= min && max <= ms(5000), "{min:?} {max:?}");
        let (_, max) = range(far, 0, ms(900));
        assert_eq!(max, ms(300));
    }

    #[test]
    fn only_the_head_asks_often_about_a_foreign_lock() {
        let foreign = Outlook { left: Some(ms(60_000)), ours: false, ..HEAD };
        for (polls, limit) in [(0, 16), (1, 32), (5, 512), (40, 512)] {
            let (min, max) = range(foreign, polls, ms(30_000));
            assert!(ms(limit) / 2 <= min && max <= ms(limit), "{polls}: {min:?} {max:?}");
        }
        let (min, _) = range(Outlook { rank: 1, ..foreign }, 0, ms(30_000));
        assert!(ms(4000) < min, "{min:?}");
        let (_, max) = range(Outlook { left: None, ..foreign }, 9, ms(30_000));
        assert!(max <= ms(512), "a lock without an end is asked about too");
    }

    #[test]
    fn everybody_asks_often_whom_no_push_reaches() {
        let (_, max) = range(Outlook { rank: 5, hears: false, ..HEAD }, 0, ms(30_000));
        assert!(max <= ms(512));
        let (_, max) = range(Outlook { hears: false, ..HEAD }, 0, ms(30_000));
        assert!(max <= ms(16));
    }

    #[test]
    fn never_at_once_and_never_all_together() {
        let (min, _) = range(Outlook { left: Some(ms(0)), ..HEAD }, 0, ms(2));
        assert_eq!(min, ms(1));
    }
}
