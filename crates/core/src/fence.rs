//! Fencing: tokens that only rise, and the gate that refuses who comes late.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

/// A number fixed in the same atomic step as a grant, greater than that of every earlier grant of the same key.
///
/// Give it to the resource that the lock protects; the resource refuses a number lower than one it has seen, as [`FenceGate`] does.
/// It never changes while the lock is held.
///
/// See Martin Kleppmann, "How to do distributed locking" (2016), for why a lock with a timeout needs one.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct FencingToken(u64);

impl FencingToken {
    /// What a guard has when its store gives no tokens. No [`FenceGate`] admits it.
    pub const NONE: Self = Self(0);

    /// A token of this value, for stores and for resources that keep tokens as numbers.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The token as a number, as it goes to the resource.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a resource asks before it accepts a write: refuses tokens lower than the highest it has seen.
///
/// One gate per resource. Asking and writing must be one step for the resource (one mutex, one transaction), else a late writer
/// slips in between. The gate lives in memory: a resource that survives restarts stores [`FenceGate::highest`] with its data
/// and starts from it by [`FenceGate::starting_at`].
///
/// # Examples
/// ```
/// use distlock_core::{FenceGate, FencingToken};
///
/// let gate = FenceGate::new();
/// assert!(gate.admit(FencingToken::new(33)));
/// assert!(gate.admit(FencingToken::new(34)));
/// assert!(!gate.admit(FencingToken::new(33)), "the holder of 33 was paused and lost the lock");
/// ```
#[derive(Debug, Default)]
pub struct FenceGate {
    highest: AtomicU64,
}

impl FenceGate {
    /// A gate that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { highest: AtomicU64::new(0) }
    }

    /// A gate that has seen this token before.
    #[must_use]
    pub const fn starting_at(token: FencingToken) -> Self {
        Self { highest: AtomicU64::new(token.0) }
    }

    /// Whether a write with this token is to be accepted: no higher token was seen, and the token is not [`FencingToken::NONE`].
    pub fn admit(&self, token: FencingToken) -> bool {
        token != FencingToken::NONE && self.highest.fetch_max(token.0, Ordering::AcqRel) <= token.0
    }

    /// The highest token seen.
    #[must_use]
    pub fn highest(&self) -> FencingToken {
        FencingToken(self.highest.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_refuses_what_is_late_and_what_is_unfenced() {
        let gate = FenceGate::starting_at(FencingToken::new(7));
        assert!(!gate.admit(FencingToken::new(6)));
        assert!(gate.admit(FencingToken::new(7)), "the same holder writes twice");
        assert!(gate.admit(FencingToken::new(u64::MAX)));
        assert!(!gate.admit(FencingToken::new(7)));
        assert!(!FenceGate::new().admit(FencingToken::NONE));
        assert_eq!(gate.highest(), FencingToken::new(u64::MAX));
    }

    #[test]
    fn a_token_is_shown_as_a_number() {
        assert_eq!(FencingToken::new(7).to_string(), "7");
    }
}
