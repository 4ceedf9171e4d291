//! Which call gets which fault.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use distlock_core::ErrorKind;
use tokio::sync::watch;

use crate::Dice;

/// What can happen to a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// The request reaches the store so much later.
    Delay(Duration),
    /// The reply comes back so much later.
    DelayReply(Duration),
    /// The store carries it out twice, one after the other; the second answer counts.
    Double,
    /// The request reaches the store when the faults are healed.
    Hang,
    /// The reply comes back when the faults are healed.
    HangReply,
    /// The store carries it out; nobody hears of it.
    LoseReply,
    /// The store never hears of it.
    LoseRequest,
    /// The store answers at once with an error of this kind, and does nothing.
    Refuse(ErrorKind),
}

/// What can be called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(clippy::exhaustive_enums, reason = "the contract has these four calls")]
pub enum Op {
    /// [`Backend::acquire`](distlock_core::Backend::acquire)
    Acquire,
    /// [`Backend::inspect`](distlock_core::Backend::inspect)
    Inspect,
    /// [`Backend::release`](distlock_core::Backend::release)
    Release,
    /// [`Backend::renew`](distlock_core::Backend::renew): a whole batch has one fate.
    Renew,
}

/// In what share of all calls each fault happens, from 0 to 1. Together at most 1.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Rates {
    /// See [`Fault::Delay`].
    pub delay: f64,
    /// See [`Fault::DelayReply`].
    pub delay_reply: f64,
    /// See [`Fault::Double`].
    pub double: f64,
    /// See [`Fault::LoseReply`].
    pub lose_reply: f64,
    /// See [`Fault::LoseRequest`].
    pub lose_request: f64,
    /// See [`Fault::Refuse`], always with a transient error.
    pub refuse: f64,
    /// The longest delay.
    pub longest_delay: Duration,
}

/// The plan, and who waits for its end.
#[derive(Debug)]
pub(super) struct Shared {
    plan: Mutex<Plan>,
    healed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    ops: [Script; 4],
    chance: Option<(Dice, Rates)>,
    faults: u64,
    dropped: u64,
}

/// What one kind of call has before it.
#[derive(Debug, Default)]
struct Script {
    next: VecDeque<Fault>,
    /// By the number of the call.
    nth: Vec<(u64, Fault)>,
    always: Option<Fault>,
    calls: u64,
}

/// A call under way.
pub(super) struct Flight(Option<Arc<Shared>>);

impl Op {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Acquire, Self::Inspect, Self::Release, Self::Renew];
}

impl Rates {
    /// The same rate for each fault.
    #[must_use]
    pub const fn each(rate: f64, longest_delay: Duration) -> Self {
        Self {
            delay: rate,
            delay_reply: rate,
            double: rate,
            lose_reply: rate,
            lose_request: rate,
            refuse: rate,
            longest_delay,
        }
    }

    fn draw(&self, dice: &mut Dice) -> Option<Fault> {
        let mut rest = 1.0;
        // One after the other, each among the calls that are left.
        let mut happens = |rate: f64, dice: &mut Dice| {
            let hit = dice.chance(rate / rest);
            rest -= rate;
            hit
        };
        if happens(self.delay, dice) {
            Some(Fault::Delay(dice.time(self.longest_delay)))
        } else if happens(self.delay_reply, dice) {
            Some(Fault::DelayReply(dice.time(self.longest_delay)))
        } else if happens(self.double, dice) {
            Some(Fault::Double)
        } else if happens(self.lose_reply, dice) {
            Some(Fault::LoseReply)
        } else if happens(self.lose_request, dice) {
            Some(Fault::LoseRequest)
        } else if happens(self.refuse, dice) {
            Some(Fault::Refuse(ErrorKind::Transient))
        } else {
            None
        }
    }
}

impl Shared {
    pub(super) fn new(plan: Plan) -> Self {
        Self { plan: Mutex::new(plan), healed: watch::Sender::new(0) }
    }

    pub(super) fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the next call gets.
    pub(super) fn start(self: &Arc<Self>, op: Op) -> (Option<Fault>, Flight) {
        let fault = self.plan().draw(op);
        (fault, Flight(Some(Arc::clone(self))))
    }

    pub(super) fn healed(&self) -> watch::Receiver<u64> {
        self.healed.subscribe()
    }

    pub(super) fn heal(&self) {
        {
            let mut plan = self.plan();
            plan.chance = None;
            for script in &mut plan.ops {
                *script = Script { calls: script.calls, ..Script::default() };
            }
        }
        self.healed.send_modify(|times| *times += 1);
    }
}

impl Plan {
    pub(super) fn random(dice: Dice, rates: Rates) -> Self {
        Self { chance: Some((dice, rates)), ..Self::default() }
    }

    pub(super) fn next(&mut self, op: Op, fault: Fault) {
        self.script(op).next.push_back(fault);
    }

    pub(super) fn nth(&mut self, op: Op, n: u64, fault: Fault) {
        let script = self.script(op);
        script.nth.push((script.calls + n, fault));
    }

    pub(super) fn always(&mut self, op: Op, fault: Fault) {
        self.script(op).always = Some(fault);
    }

    pub(super) fn calls(&mut self, op: Op) -> u64 {
        self.script(op).calls
    }

    pub(super) const fn faults(&self) -> u64 {
        self.faults
    }

    pub(super) const fn dropped(&self) -> u64 {
        self.dropped
    }

    fn draw(&mut self, op: Op) -> Option<Fault> {
        let script = self.script(op);
        script.calls += 1;
        let nth = script.nth.iter().position(|(call, _)| *call == script.calls);
        let fault = match nth {
            Some(index) => Some(script.nth.swap_remove(index).1),
            None => script.next.pop_front().or(script.always),
        };
        let fault = fault.or_else(|| {
            let (dice, rates) = self.chance.as_mut()?;
            rates.draw(dice)
        });
        self.faults += u64::from(fault.is_some());
        fault
    }

    const fn script(&mut self, op: Op) -> &mut Script {
        &mut self.ops[op as usize]
    }
}

impl Flight {
    /// The call came to its end.
    pub(super) fn landed(mut self) {
        self.0 = None;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            shared.plan().dropped += 1;
        }
    }
}
