//! Sees every guard, and objects.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use distlock_core::{FencingToken, Guard};
use distlock_servers::net::in_time;
use tokio::time::{Instant, sleep_until};

/// How late the news may be. What it is about takes seconds.
const LATE: Duration = Duration::from_millis(700);

/// Of one lock: who has it, and what was given.
#[derive(Default)]
pub(crate) struct Judge {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    guards: HashMap<u64, Arc<Guard>>,
    last: Option<FencingToken>,
    grants: u64,
    lost: u64,
}

impl Judge {
    /// Somebody got the lock, and keeps it for a while. Whoever had it before must know that he has it no more.
    pub(crate) async fn visit(&self, guard: Guard, stay: Duration) -> Guard {
        let guard = Arc::new(guard);
        let number = self.enter(&guard);
        let in_time = lost_in_time(&guard, stay).await;
        self.leave(number, in_time);
        Arc::into_inner(guard).expect("nobody else keeps it")
    }

    /// How many locks were given, and how many of them were lost.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.grants, state.lost)
    }

    fn enter(&self, guard: &Arc<Guard>) -> u64 {
        let mut state = self.state();
        state.grants += 1;
        let number = state.grants;
        state.guards.insert(number, Arc::clone(guard));
        let held: Vec<_> = state.guards.values().filter(|guard| guard.is_held()).collect();
        assert!(held.len() <= 1, "held at once: {held:?}");
        let token = guard.fencing_token();
        if guard.is_held() {
            assert!(state.last < Some(token), "token {token} after {:?}", state.last);
        }
        state.last = state.last.max(Some(token));
        number
    }

    fn leave(&self, number: u64, kept: bool) {
        let mut state = self.state();
        state.guards.remove(&number);
        state.lost += u64::from(!kept);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a lock for a while, or until it is lost: no later than it was known to end. Whether it was kept.
pub(crate) async fn lost_in_time(guard: &Guard, stay: Duration) -> bool {
    let end = Instant::now() + stay;
    while guard.is_held() {
        let until = end.min(guard.expires_at());
        tokio::select! {
            biased;
            _ = guard.lost() => return false,
            () = sleep_until(until) => {}
        }
        if end <= Instant::now() {
            return guard.is_held();
        }
    }
    in_time(LATE, guard.lost()).await.expect("told long after its deadline");
    false
}
