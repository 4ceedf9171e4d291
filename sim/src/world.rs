//! What all of a simulation shares: its one source of chance, its time, its history.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use distlock_checker::{Event, History, Kind};
use distlock_conformance::Dice;
use distlock_core::Key;
use tokio::time::Instant;

use crate::plan::Rates;

/// What all of a simulation shares.
#[derive(Debug)]
pub(crate) struct World {
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    dice: Dice,
    history: History,
    rates: Rates,
    faults: BTreeMap<String, u64>,
    deeds: BTreeMap<&'static str, u64>,
}

/// What happens to one exchange with the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fate {
    pub(crate) request: bool,
    pub(crate) reply: bool,
    pub(crate) refused: bool,
    /// After so long the connection is cut under it.
    pub(crate) cut: Option<Duration>,
    /// When the request arrives: twice, if it is doubled.
    pub(crate) arrives: [Option<Duration>; 2],
    /// How long the reply takes.
    pub(crate) back: Duration,
}

impl World {
    /// A new one, with a history without events.
    pub(crate) fn new(dice: Dice, rates: Rates) -> Self {
        let (history, faults, deeds) = (History::new(), BTreeMap::new(), BTreeMap::new());
        let state = State { dice, history, rates, faults, deeds };
        Self { start: Instant::now(), state: Mutex::new(state) }
    }

    /// Nanoseconds since the beginning.
    pub(crate) fn now(&self) -> u64 {
        self.time_of(Instant::now())
    }

    /// The same for another time.
    pub(crate) fn time_of(&self, instant: Instant) -> u64 {
        let since = instant.saturating_duration_since(self.start);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn record(&self, event: &Event) {
        self.state().history.push(event);
    }

    /// Counts a fault, and says what it befalls: all keys, if that is empty.
    pub(crate) fn fault(&self, name: &str, key: &str) {
        let event = Event::new(self.now(), Kind::Fault).name(name).key(key);
        let mut state = self.state();
        state.history.push(&event);
        *state.faults.entry(name.to_owned()).or_default() += 1;
    }

    /// A promise was broken that a store and its clients do not see alone.
    pub(crate) fn breach(&self, name: &str, key: &Key) {
        self.record(&Event::new(self.now(), Kind::Breach).name(name).key(key.as_str()));
    }

    /// Counts what a client did, or had, that is in no history.
    pub(crate) fn tally(&self, deed: &'static str) {
        *self.state().deeds.entry(deed).or_default() += 1;
    }

    /// How often each of these happened.
    pub(crate) fn deeds(&self) -> BTreeMap<&'static str, u64> {
        self.state().deeds.clone()
    }

    /// How many faults of this name there were.
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.state().faults.get(name).copied().unwrap_or(0)
    }

    pub(crate) fn chance(&self, share: f64) -> bool {
        self.state().dice.chance(share)
    }

    pub(crate) fn below(&self, limit: u64) -> u64 {
        self.state().dice.below(limit)
    }

    /// A time between the two, in milliseconds.
    pub(crate) fn between(&self, low: u64, high: u64) -> Duration {
        Duration::from_millis(low + self.below(high.saturating_sub(low) + 1))
    }

    pub(crate) fn rates(&self) -> Rates {
        self.state().rates
    }

    /// From now on there are no more faults of the network.
    pub(crate) fn heal(&self) {
        self.state().rates = Rates::default();
        self.record(&Event::new(self.now(), Kind::Heal));
    }

    /// Draws what happens to an exchange, and counts what is a fault.
    pub(crate) fn fate(&self, repeats: bool) -> Fate {
        let Rates {
            lose_request,
            lose_reply,
            delay,
            delay_reply,
            double,
            refuse,
            cut,
            longest,
            usual,
            ..
        } = self.rates();
        let happens = |rate: f64, name: &str| {
            let happens = 0.0 < rate && self.chance(rate);
            if happens {
                self.fault(name, "");
            }
            happens
        };
        let slow = |late: bool| match late {
            // Most are late by little, some by much more than a ttl.
            true => self.between(1, longest >> self.below(4)),
            false => self.between(0, usual.max(3)),
        };
        let request = !happens(lose_request, "request_lost");
        let reply = !happens(lose_reply, "reply_lost");
        let refused = happens(refuse, "refused");
        let first = slow(happens(delay, "request_late"));
        let back = slow(happens(delay_reply, "reply_late"));
        let again = (repeats && happens(double, "request_doubled")).then(|| slow(self.chance(0.5)));
        let cut = happens(cut, "connection_cut").then(|| self.between(0, 20));
        Fate { request, reply, refused, cut, arrives: [Some(first), again], back }
    }

    /// Ends the history, and gives it away.
    pub(crate) fn take_history(&self) -> History {
        std::mem::take(&mut self.state().history)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
