//! The contract of a store of locks.

use std::{fmt, future::Future, time::Duration};

use crate::{BackendError, Claim, FencingToken, Key, Lease, Mode, Owner};

/// A store of locks. Implement this; users call [`Client`](crate::Client).
///
/// # Contract
/// - A [`Claim`] is known by its key and its owner id, whole. Another `Claim` object with the same two is the same claim.
/// - Every call is one bounded exchange with the store: it ends by itself, with an error if need be, and never waits for a lock.
///   Core never drops a call half-way.
/// - What the store says unasked (a grant, a loss, "somebody else waits") goes to the claim: [`Claim::grant`], [`Claim::end`],
///   [`Claim::contend`], [`Claim::recheck`]. A store that cannot push calls none of them.
/// - Who is admitted is decided by [`Mode::admitted_after`], in every store.
/// - An error says nothing about whether the store carried the call out. Core asks again, or releases.
/// - None of the methods has a default: a wrapper that forgets one does not compile.
///
/// How to write one, step by step: `docs/adding-a-backend.md`. How to prove it: the crate `distlock-conformance`.
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// Short lower-case name for errors, spans and tests.
    fn name(&self) -> &'static str;

    /// What this store can do; the conformance suite tests what is declared.
    fn capabilities(&self) -> Capabilities;

    /// Takes the lock if it is free, else a place in the line if the store has one and [`Claim::may_queue`], in one atomic step.
    ///
    /// Asking again with the same claim, say after a lost reply, gives the same standing and the same token, and a fresh ttl.
    fn acquire(&self, claim: &Claim)
    -> impl Future<Output = Result<Standing, BackendError>> + Send;

    /// Keeps alive for another ttl what each claim has, lease or place, and tells what that is; one answer for each, in order.
    ///
    /// Creates nothing: of a claim that has nothing, says [`Standing::Nothing`]. A place may have become a lease meanwhile.
    /// Shortens nothing, unless [`Renewal::changed`].
    fn renew(
        &self,
        renewals: &[Renewal],
    ) -> impl Future<Output = Vec<Result<Standing, BackendError>>> + Send;

    /// Gives back the lease or the place; `false`: there was none, and nobody was harmed.
    ///
    /// When [`Claim::rest`] is not zero, a lease stays taken for that long, without an owner: nothing of the claim's owner id is left.
    fn release(&self, claim: &Claim) -> impl Future<Output = Result<bool, BackendError>> + Send;

    /// Who holds the key now, and how many wait.
    fn inspect(&self, key: &Key) -> impl Future<Output = Result<Occupancy, BackendError>> + Send;
}

/// What a store can do.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Capabilities {
    /// Grants in the order of arrival.
    pub fair: bool,
    /// Every grant has a token greater than all before it.
    pub fencing: bool,
    /// Claims for permits.
    pub permits: bool,
    /// Grants are pushed.
    pub push: bool,
    /// The shortest ttl, and its step.
    pub resolution: Duration,
    /// Shared claims.
    pub shared: bool,
}

impl Capabilities {
    /// Exclusive claims without line, push or tokens, in steps of `resolution`. Set the fields for what the store can do beyond.
    #[must_use]
    pub const fn exclusive(resolution: Duration) -> Self {
        Self { fair: false, fencing: false, permits: false, push: false, resolution, shared: false }
    }

    /// Whether claims of this mode can be made at all.
    #[must_use]
    pub const fn supports(&self, mode: Mode) -> bool {
        match mode {
            Mode::Exclusive => true,
            Mode::Permits { .. } => self.permits,
            Mode::Shared => self.shared,
        }
    }
}

/// What a claim has at the store.
#[derive(Clone, Copy, Debug)]
#[must_use]
#[allow(clippy::exhaustive_enums, reason = "core must answer each")]
pub enum Standing {
    /// The lock.
    Held(Lease),
    /// Nothing: somebody else holds it, or what the claim had is gone.
    Nothing {
        /// When asking again is certain to be worth it, e.g. when the holder's ttl is over; else the caller's strategy says.
        retry_in: Option<Duration>,
    },
    /// A place in the line. The store pushes the grant; should the push be lost, the place is to be renewed after `recheck`.
    Queued {
        /// The longest silence that is believed.
        recheck: Duration,
    },
}

/// One claim to keep alive.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Renewal {
    /// Which.
    pub claim: Claim,
    /// Ttl or metadata of the claim changed since the store last heard of it: write them too, even if that shortens.
    pub changed: bool,
}

impl Renewal {
    /// Keeps the claim alive as the store knows it.
    #[must_use]
    pub const fn new(claim: Claim) -> Self {
        Self { claim, changed: false }
    }

    /// Writes the claim's ttl and metadata anew.
    #[must_use]
    pub const fn changed(claim: Claim) -> Self {
        Self { claim, changed: true }
    }
}

/// What a key looks like from outside.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Occupancy {
    /// Who holds it.
    pub holders: Vec<Holder>,
    /// How many wait, where the store knows.
    pub waiting: Option<u64>,
}

impl Occupancy {
    /// These holders; who waits is not known.
    #[must_use]
    pub const fn new(holders: Vec<Holder>) -> Self {
        Self { holders, waiting: None }
    }

    /// So many wait.
    #[must_use]
    pub const fn waiting(mut self, waiting: u64) -> Self {
        self.waiting = Some(waiting);
        self
    }
}

/// One holder.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Holder {
    /// How long the store would keep it without another renewal; none for a lock that does not end by itself.
    pub expires_in: Option<Duration>,
    /// Its words.
    pub metadata: String,
    /// How it holds.
    pub mode: Mode,
    /// Its id; none for a lock that another library took, and for the rest of a minimal hold.
    pub owner: Option<Owner>,
    /// Its token.
    pub token: Option<FencingToken>,
}

impl Holder {
    /// A holder of which nothing but the mode is known.
    #[must_use]
    pub const fn new(mode: Mode) -> Self {
        Self { expires_in: None, metadata: String::new(), mode, owner: None, token: None }
    }

    /// With this id.
    #[must_use]
    pub const fn owner(mut self, owner: Owner) -> Self {
        self.owner = Some(owner);
        self
    }

    /// With these words.
    #[must_use]
    pub fn metadata(mut self, metadata: impl Into<String>) -> Self {
        self.metadata = metadata.into();
        self
    }

    /// With this token.
    #[must_use]
    pub const fn token(mut self, token: FencingToken) -> Self {
        self.token = Some(token);
        self
    }

    /// Ending after so long.
    #[must_use]
    pub const fn expires_in(mut self, expires_in: Duration) -> Self {
        self.expires_in = Some(expires_in);
        self
    }
}
