//! What happens to locks, for those who watch.

use std::{sync::Arc, time::Duration};

use crate::{BackendError, FencingToken, Key, LossReason};

/// Is told what happens to the locks of a client. Any `Fn(&Key, &Event)` is one.
///
/// It is called on the way, by whoever finds the event, and should return at once.
pub trait Observer: Send + Sync + 'static {
    /// Something happened to a lock.
    fn event(&self, key: &Key, event: &Event);
}

impl<F: Fn(&Key, &Event) + Send + Sync + 'static> Observer for F {
    fn event(&self, key: &Key, event: &Event) {
        self(key, event);
    }
}

impl Observer for Arc<dyn Observer> {
    fn event(&self, key: &Key, event: &Event) {
        (**self).event(key, event);
    }
}

/// What happened to a lock.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A guard got it.
    Acquired {
        /// The guard's token.
        token: FencingToken,
        /// How long that took.
        waited: Duration,
    },
    /// Somebody asked for it and has to wait.
    Contended,
    /// It was lost.
    Lost {
        /// How long the guard had it.
        held: Duration,
        /// How long after its deadline that was found; zero when the store told it.
        late: Duration,
        /// Why.
        reason: LossReason,
    },
    /// It was held for as long as [`Mutex::max_hold`](crate::Mutex::max_hold) allows, and is given back.
    MaxHoldReached {
        /// How long the guard had it.
        held: Duration,
    },
    /// It was given back.
    Released {
        /// How long the guard had it.
        held: Duration,
    },
    /// A renewal failed; there is time until the deadline for another one.
    RenewalFailed {
        /// What the store says.
        error: BackendError,
    },
    /// A renewal was confirmed.
    Renewed {
        /// How long after its due time it was sent.
        late: Duration,
    },
}

/// Writes every event as a `tracing` event with target `distlock`: losses and failures as warnings, the rest for debugging.
#[cfg(feature = "tracing")]
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct TracingObserver;

#[cfg(feature = "tracing")]
impl Observer for TracingObserver {
    fn event(&self, key: &Key, event: &Event) {
        const TARGET: &str = "distlock";
        match event {
            Event::Acquired { token, waited } => {
                tracing::debug!(target: TARGET, %key, %token, ?waited, "acquired");
            }
            Event::Contended => tracing::debug!(target: TARGET, %key, "contended"),
            Event::Lost { held, late, reason } => {
                tracing::warn!(target: TARGET, %key, ?held, ?late, %reason, "lost");
            }
            Event::MaxHoldReached { held } => {
                tracing::warn!(target: TARGET, %key, ?held, "max hold reached")
            }
            Event::Released { held } => tracing::debug!(target: TARGET, %key, ?held, "released"),
            Event::RenewalFailed { error } => {
                tracing::warn!(target: TARGET, %key, %error, "renewal failed")
            }
            Event::Renewed { late } => tracing::trace!(target: TARGET, %key, ?late, "renewed"),
        }
    }
}
