//! All lines of a store, behind one mutex.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
};

use distlock_core::{Claim, Key, Occupancy, Renewal, Standing};
use tokio::time::Instant;

use crate::line::{Found, Line, Push, Pushes, Visit};

/// How many empty lines are kept for the next keys, and how many entries they may have had.
const KEPT_LINES: usize = 32;
const KEPT_ENTRIES: usize = 4;

/// Fewer lines than this are never looked through.
const FEW_LINES: usize = 64;

#[derive(Default)]
pub(crate) struct Store(Mutex<State>);

#[derive(Default)]
struct State {
    /// A key has a line while somebody holds it or waits for it.
    lines: HashMap<Key, Line>,
    /// The last token given.
    tokens: u64,
    /// Emptied lines, so that an uncontended lock allocates nothing for its own.
    kept: Vec<Line>,
    /// All lines are looked through for what has ended when there are so many.
    sweep_at: usize,
}

impl Store {
    pub(crate) fn acquire(&self, claim: &Claim) -> Standing {
        let now = Instant::now();
        let mut pushes = Pushes::default();
        let standing = self.state().acquire(claim, now, &mut pushes);
        self.deliver(pushes);
        standing
    }

    pub(crate) fn renew(&self, renewals: &[Renewal]) -> Vec<Standing> {
        let now = Instant::now();
        let mut pushes = Pushes::default();
        let standings = {
            let mut state = self.state();
            let renew = |renewal| state.renew(renewal, now, &mut pushes);
            renewals.iter().map(renew).collect()
        };
        self.deliver(pushes);
        standings
    }

    pub(crate) fn release(&self, claim: &Claim) -> bool {
        let now = Instant::now();
        let mut pushes = Pushes::default();
        let released = self.state().line(claim.key(), |line, tokens| {
            line.expire(now, tokens, &mut pushes);
            line.leave(claim, now, tokens, &mut pushes)
        });
        self.deliver(pushes);
        released.unwrap_or(false)
    }

    pub(crate) fn inspect(&self, key: &Key) -> Occupancy {
        let now = Instant::now();
        let mut pushes = Pushes::default();
        let occupancy = self.state().line(key, |line, tokens| {
            line.expire(now, tokens, &mut pushes);
            line.occupancy(now)
        });
        self.deliver(pushes);
        occupancy.unwrap_or_else(|| Occupancy::new(Vec::new()).waiting(0))
    }

    /// How many keys have a line with somebody in it.
    pub(crate) fn len(&self) -> usize {
        let mut pushes = Pushes::default();
        let len = {
            let mut state = self.state();
            state.sweep(Instant::now(), &mut pushes);
            state.lines.len()
        };
        self.deliver(pushes);
        len
    }

    /// Tells claims what happened to them. A grant that nobody takes goes to the next.
    fn deliver(&self, mut pushes: Pushes) {
        while let Some(push) = pushes.next() {
            match push {
                Push::End(claim, reason) => claim.end(reason),
                Push::Grant(claim, lease) => {
                    if !claim.grant(lease) {
                        let now = Instant::now();
                        self.state().line(claim.key(), |line, tokens| {
                            line.refuse(&claim, lease, now, tokens, &mut pushes);
                        });
                    }
                }
                Push::Recheck(claim) => claim.recheck(),
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn acquire(&mut self, claim: &Claim, now: Instant, pushes: &mut Pushes) -> Standing {
        if self.sweep_at.max(FEW_LINES) <= self.lines.len() {
            self.sweep(now, pushes);
        }
        let entry = self.lines.entry(claim.key().clone());
        let line = entry.or_insert_with(|| self.kept.pop().unwrap_or_else(Line::for_one));
        line.expire(now, &mut self.tokens, pushes);
        let found = line.enter(claim, now, &mut self.tokens);
        let standing = standing(&found, line, now);
        // Nothing was found, and nobody else is there: the claim can never be admitted.
        if line.is_empty() {
            self.lines.remove(claim.key());
        }
        standing
    }

    fn renew(&mut self, renewal: &Renewal, now: Instant, pushes: &mut Pushes) -> Standing {
        let claim = &renewal.claim;
        let visit = if renewal.changed { Visit::Terms } else { Visit::Renewal };
        let standing = self.line(claim.key(), |line, tokens| {
            line.expire(now, tokens, pushes);
            match line.visit(claim, visit, now) {
                Found::Nothing => Standing::Nothing { retry_in: None },
                found => standing(&found, line, now),
            }
        });
        standing.unwrap_or(Standing::Nothing { retry_in: None })
    }

    /// Does something with the line of a key, if there is one, and forgets it when nobody is left in it.
    fn line<T>(&mut self, key: &Key, visit: impl FnOnce(&mut Line, &mut u64) -> T) -> Option<T> {
        let Entry::Occupied(mut entry) = self.lines.entry(key.clone()) else { return None };
        let value = visit(entry.get_mut(), &mut self.tokens);
        if entry.get().is_empty() {
            let line = entry.remove();
            if self.kept.len() < KEPT_LINES {
                self.kept.extend(line.recycled(KEPT_ENTRIES));
            }
            // What many keys needed once is given back.
            if self.lines.capacity() / 8 > self.lines.len().max(FEW_LINES) {
                self.lines.shrink_to(self.lines.len() * 2);
            }
        }
        Some(value)
    }

    /// Forgets what ended while nobody asked for its key. Done when the lines have doubled since the last time, so it costs each little.
    fn sweep(&mut self, now: Instant, pushes: &mut Pushes) {
        self.lines.retain(|_, line| {
            line.expire(now, &mut self.tokens, pushes);
            !line.is_empty()
        });
        self.sweep_at = self.lines.len() * 2;
    }
}

fn standing(found: &Found, line: &Line, now: Instant) -> Standing {
    match found {
        Found::Held(lease) => Standing::Held(*lease),
        Found::Nothing => Standing::Nothing { retry_in: line.retry_in(now) },
        Found::Waiting => Standing::Queued { recheck: line.recheck(now) },
    }
}
