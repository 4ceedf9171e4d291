//! Random numbers that a seed decides.

use std::time::Duration;

/// Small deterministic random numbers (splitmix64): the same seed gives the same run.
///
/// # Examples
/// ```
/// use distlock_conformance::Dice;
///
/// let (mut one, mut same) = (Dice::new(7), Dice::new(7));
/// assert_eq!(one.below(1000), same.below(1000));
/// ```
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Numbers of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below a limit; 0 when that is 0.
    pub const fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { self.roll() % limit }
    }

    /// Whether something happens that does so in this share of all cases, from 0 to 1.
    pub fn chance(&mut self, share: f64) -> bool {
        const PARTS: u32 = 1 << 24;
        let part = u32::try_from(self.roll() >> 40).unwrap_or(PARTS);
        f64::from(part) < share * f64::from(PARTS)
    }

    /// A time up to a limit, in steps of 100 µs.
    pub fn time(&mut self, limit: Duration) -> Duration {
        let steps = u64::try_from(limit.as_micros() / 100).unwrap_or(u64::MAX);
        Duration::from_micros(self.below(steps.saturating_add(1)).saturating_mul(100))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_come_out_as_asked() {
        let mut dice = Dice::new(1);
        let hits = (0..10_000).filter(|_| dice.chance(0.3)).count();
        assert!((2_800..3_200).contains(&hits), "{hits}");
        assert!(!(0..1000).any(|_| dice.chance(0.0)));
        assert!((0..1000).all(|_| dice.chance(1.0)));
        assert!((0..1000).all(|_| dice.time(Duration::from_millis(3)) <= Duration::from_millis(3)));
    }
}
