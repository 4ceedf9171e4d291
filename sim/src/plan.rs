//! What a seed draws before anything runs: which faults there are at all, how often, and who competes for what.

use std::time::Duration;

use distlock_conformance::Dice;

use crate::Bug;

/// In what share of all exchanges, or pushes, a fault happens.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a test names those it wants")]
pub struct Rates {
    /// The request never arrives.
    pub lose_request: f64,
    /// It is carried out, and nobody hears of it.
    pub lose_reply: f64,
    /// It arrives late, and so after others that were sent later.
    pub delay: f64,
    /// The reply comes late.
    pub delay_reply: f64,
    /// It arrives twice.
    pub double: f64,
    /// The server answers with an error at once.
    pub refuse: f64,
    /// The connection is cut, before or after it was carried out.
    pub cut: f64,
    /// A push is lost.
    pub lose_push: f64,
    /// A push comes late.
    pub delay_push: f64,
    /// A push comes twice.
    pub double_push: f64,
    /// The longest delay, in milliseconds.
    pub longest: u64,
    /// How long every request and every reply may take at any rate, in milliseconds.
    pub usual: u64,
}

/// A store whose tokens are not above all before, as where its clock is behind them.
pub(crate) const FENCE_RESET: &str = "fence_reset";

/// A change of a ttl that came too late was carried out, for the server's clock was set back while it was on its way.
pub(crate) const LATE_CHANGE: &str = "late_change";

/// What befalls a process, or the server, from time to time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(clippy::exhaustive_enums, reason = "the nemesis must know each")]
pub enum Wound {
    /// A process does not run for up to three ttls.
    Stall,
    /// A process is no more.
    Crash,
    /// A process shuts its client down.
    Shutdown,
    /// A process loses the connection on which it receives pushes.
    Deafness,
    /// A process cannot reach the server for up to three ttls, and hears nothing.
    Partition,
    /// The server does not run for a while; what was sent waits for it.
    Hang,
    /// The server is away for a while, and keeps its data.
    Restart,
    /// The server's clock is set back.
    StepBack,
    /// The server's clock runs faster or slower, by less than a hundredth.
    Drift,
    /// The server's clock is set forward.
    StepForward,
    /// The server forgets everything.
    DataLoss,
    /// Another server takes its place, which has not heard the latest.
    Failover,
    /// The server drops a key for want of memory.
    Eviction,
    /// Somebody deletes a lock by hand.
    Deletion,
    /// An operator takes a lock away.
    ForceRelease,
    /// A client of another library takes a free lock for a while.
    Stranger,
    /// The server forgets its scripts.
    ScriptFlush,
    /// A process has its watch canceled, as where the revision that it wants to go on from was compacted.
    Compaction,
}

/// What kind of lock all locks of a run are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(clippy::exhaustive_enums, reason = "a client must know each")]
pub enum Kind {
    /// Held by one at a time.
    Mutex,
    /// Held by readers together, or by a writer.
    RwLock,
    /// Held by as many as there are permits for, of which each takes one or more.
    Semaphore {
        /// How many there are.
        of: u32,
    },
}

/// Everything that a seed decides before it starts.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "a test sets what it wants")]
pub struct Plan {
    /// What befalls exchanges and pushes.
    pub rates: Rates,
    /// What befalls servers and processes.
    pub wounds: Vec<Wound>,
    /// How much time passes between two of them, on average.
    pub pause: Duration,
    /// How many processes there are at a time.
    pub processes: u32,
    /// How many clients each of them has.
    pub workers: u32,
    /// How many locks they compete for.
    pub keys: u32,
    /// The ttl of all of them.
    pub ttl: Duration,
    /// After so long an exchange has failed.
    pub request_timeout: Duration,
    /// How long there are faults.
    pub faulty: Duration,
    /// How long it goes on without.
    pub healthy: Duration,
    /// The longest work with a lock.
    pub work: Duration,
    /// How often a lock may be handed on inside a process.
    pub cohort_limit: u32,
    /// What kind of lock they are. Other than a mutex only where nothing is handed on inside a process, and where the store knows it.
    pub kind: Kind,
    /// A bug that is to be caught.
    pub bug: Option<Bug>,
}

impl Wound {
    /// What can befall every store.
    const ALWAYS: [Self; 8] = [
        Self::Stall,
        Self::Crash,
        Self::Shutdown,
        Self::Deafness,
        Self::Partition,
        Self::Hang,
        Self::Restart,
        Self::Stranger,
    ];

    /// What can befall a store that counts by a wall clock.
    const WALL: [Self; 2] = [Self::StepBack, Self::ScriptFlush];

    /// What can befall a store that is watched.
    const WATCHED: [Self; 1] = [Self::Compaction];

    /// What makes a store give a lock to a second holder.
    const FATAL: [Self; 2] = [Self::Deletion, Self::ForceRelease];

    /// What makes a store forget: rare where there is a quorum.
    const OBLIVION: [Self; 2] = [Self::DataLoss, Self::Failover];

    /// The same, for a store with a wall clock and a limited memory.
    const FATAL_WALL: [Self; 2] = [Self::StepForward, Self::Eviction];

    /// The name of the fault in a history.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stall => "stall",
            Self::Crash => "crash",
            Self::Shutdown => "shutdown",
            Self::Deafness => "deafness",
            Self::Partition => "partition",
            Self::Hang => "server_stopped",
            Self::Restart => "restart",
            Self::StepBack => "clock_back",
            Self::Drift => "clock_rate",
            Self::StepForward => "clock_forward",
            Self::DataLoss => "data_loss",
            Self::Failover => "failover",
            Self::Eviction => "eviction",
            Self::Deletion => "deletion",
            Self::ForceRelease => "force_release",
            Self::Stranger => "stranger",
            Self::ScriptFlush => "scripts_flushed",
            Self::Compaction => "watch_canceled",
        }
    }

    /// The names of those that no lock on one server survives: documented, counted, shown.
    pub fn fatal() -> impl Iterator<Item = &'static str> {
        let all = Self::FATAL.iter().chain(&Self::OBLIVION).chain(&Self::FATAL_WALL);
        all.map(|wound| wound.name()).chain([LATE_CHANGE])
    }
}

impl Plan {
    /// Whether no request is sent, or carried out, a second time.
    pub(crate) fn repeats_nothing(&self) -> bool {
        self.rates.double + self.rates.cut <= 0.0
    }

    /// Draws a plan. `wall`: the store's clock can be set, and its memory ends.
    #[must_use]
    pub fn draw(dice: &mut Dice, wall: bool) -> Self {
        let ttl = 800 + dice.below(2200);
        let rate = |dice: &mut Dice| match dice.chance(0.4) {
            true => 0.002 * f64::from(1 << dice.below(6) as u32),
            false => 0.0,
        };
        let rates = Rates {
            lose_request: rate(dice),
            lose_reply: rate(dice),
            delay: rate(dice),
            delay_reply: rate(dice),
            double: rate(dice),
            refuse: rate(dice),
            cut: rate(dice),
            lose_push: 4.0 * rate(dice),
            delay_push: 4.0 * rate(dice),
            double_push: 4.0 * rate(dice),
            longest: ttl * 5 / 2,
            usual: if dice.chance(0.7) { 3 } else { 3 + dice.below(ttl / 10) },
        };
        let mut wounds = Vec::new();
        let mut some = |from: &[Wound], share: f64, dice: &mut Dice| {
            wounds.extend(from.iter().filter(|_| dice.chance(share)));
        };
        some(&Wound::ALWAYS, 0.35, dice);
        some(&[Wound::Drift], 0.35, dice);
        some(if wall { &Wound::WALL } else { &Wound::WATCHED }, 0.35, dice);
        // In half of all runs none: there a second holder is a violation whatever happened.
        if dice.chance(0.5) {
            some(&Wound::FATAL, 0.3, dice);
            some(&Wound::OBLIVION, if wall { 0.3 } else { 0.1 }, dice);
            if wall {
                some(&Wound::FATAL_WALL, 0.3, dice);
            }
        }
        // Shared locks are for stores that know them, which those with a wall clock do not.
        let kind = match dice.below(10) {
            0 | 1 if !wall => Kind::RwLock,
            2 if !wall => Kind::Semaphore { of: 1 + dice.below(5) as u32 },
            _ => Kind::Mutex,
        };
        Self {
            rates,
            wounds,
            pause: Duration::from_millis(500 + dice.below(6000)),
            processes: 1 + dice.below(4) as u32,
            workers: 1 + dice.below(5) as u32,
            keys: 1 + dice.below(2) as u32,
            ttl: Duration::from_millis(ttl),
            request_timeout: Duration::from_millis(100 + dice.below(ttl / 3)),
            faulty: Duration::from_millis(60_000 + dice.below(180_000)),
            healthy: Duration::from_millis(10_000),
            work: Duration::from_millis(20 + dice.below(2 * ttl)),
            bug: None,
            cohort_limit: match dice.chance(0.3) {
                false if kind == Kind::Mutex => 1 + dice.below(32) as u32,
                _ => 0,
            },
            kind,
        }
    }
}
