//! Hooks for the deterministic simulation of many processes in one thread. Not for users, and without any promise of stability.
//!
//! A simulated process is a [`Gate`]: its tasks run only while the gate is open, those that core starts by itself too. Chance comes from a seed.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use crate::{Claim, Mode, Mutex as Lock, claim::Phase};

thread_local! {
    static CHANCE: Cell<Option<u64>> = const { Cell::new(None) };
    static GATE: RefCell<Option<Gate>> = const { RefCell::new(None) };
}

/// From now on everything random in this thread comes from this seed: owner ids, and jitter.
pub fn seed(seed: u64) {
    CHANCE.set(Some(seed));
}

/// Fills the bytes, if there is a seed.
pub(crate) fn fill(bytes: &mut [u8]) -> bool {
    let Some(mut state) = CHANCE.get() else { return false };
    for chunk in bytes.chunks_mut(8) {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
    CHANCE.set(Some(state));
    true
}

/// Lets the tasks of one process run, or not.
#[derive(Clone, Default)]
pub struct Gate(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    shut: bool,
    waiting: Vec<Waker>,
}

impl Gate {
    /// An open gate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing behind it runs any more, as if the process were stopped.
    pub fn shut(&self) {
        self.state().shut = true;
    }

    /// All that would have run by now does.
    pub fn open(&self) {
        let mut state = self.state();
        state.shut = false;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Puts a task behind the gate, with all tasks that core starts from it.
    pub fn hold<F: Future + Send + 'static>(
        &self,
        task: F,
    ) -> impl Future<Output = F::Output> + Send + use<F> {
        Gated { gate: Some(self.clone()), task: Box::pin(task) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admits(&self, cx: &Context<'_>) -> bool {
        let mut state = self.state();
        if state.shut {
            state.waiting.push(cx.waker().clone());
        }
        !state.shut
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("shut", &self.state().shut).finish_non_exhaustive()
    }
}

/// Whether nobody waits for the claim any more and no guard has it, as the core sees it: what a store is not told.
#[must_use]
pub fn is_over(claim: &Claim) -> bool {
    matches!(claim.state().phase, Phase::Over { .. })
}

/// Asks for the lock in this mode.
///
/// For clients with a cohort limit of 0, where every contender has a place of its own in the store's line: the lines of a process know exclusive
/// claims only.
pub const fn in_mode(mutex: Lock, mode: Mode) -> Lock {
    mutex.in_mode(mode)
}

/// Puts a task behind the gate of the task that starts it.
pub fn inherit<F: Future + Send + 'static>(task: F) -> impl Future<Output = F::Output> + Send {
    Gated { gate: GATE.with_borrow(Clone::clone), task: Box::pin(task) }
}

struct Gated<T> {
    gate: Option<Gate>,
    task: Pin<Box<dyn Future<Output = T> + Send>>,
}

impl<T> Future for Gated<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Some(gate) = self.gate.clone() else { return self.task.as_mut().poll(cx) };
        if !gate.admits(cx) {
            return Poll::Pending;
        }
        let before = GATE.replace(Some(gate));
        let polled = self.task.as_mut().poll(cx);
        GATE.set(before);
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Owner;

    #[test]
    fn a_seed_decides_what_is_random_in_its_thread() {
        let draw = |from| {
            seed(from);
            let owners = [Owner::random().unwrap(), Owner::random().unwrap()];
            CHANCE.set(None);
            owners
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_ne!(draw(1)[0], draw(1)[1]);
        assert_ne!(Owner::random().unwrap(), Owner::random().unwrap());
    }

    #[test]
    fn a_seed_of_today_is_the_same_run_tomorrow() {
        let mut bytes = [0; 20];
        seed(0);
        assert!(fill(&mut bytes));
        CHANCE.set(None);
        // The first numbers of splitmix64, as published.
        let words = [0xe220_a839_7b1d_cdaf_u64, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f];
        let expected: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).take(20).collect();
        assert_eq!(bytes.as_slice(), expected);
        assert!(!fill(&mut bytes), "without a seed chance is the system's");
        assert_eq!(bytes.as_slice(), expected);
    }

    #[test]
    fn a_gate_shows_whether_it_is_shut() {
        let gate = Gate::new();
        assert!(format!("{gate:?}").contains("shut: false"));
        gate.shut();
        assert!(format!("{gate:?}").contains("shut: true"));
    }

    #[test]
    fn a_claim_is_over_when_it_was_ended() {
        let (key, ttl) = (crate::Key::new("k").unwrap(), std::time::Duration::from_secs(1));
        let claim = Claim::new(key, Owner::new(1), Mode::Exclusive, ttl);
        assert!(!is_over(&claim));
        claim.end(crate::LossReason::Gone);
        assert!(is_over(&claim));
    }
}
