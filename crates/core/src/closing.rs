//! Whether a client is shut down, and who has yet to hear of it.

use std::{
    pin::pin,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::sync::Notify;

use crate::Error;

/// Set once, read on every way. Beside it, how many there are who ask for a lock or have one.
///
/// Who counts himself among them looks whether it is closed after that, and whoever closes it counts them after that: one of both sees the other.
#[derive(Default)]
pub(crate) struct Closing {
    closed: AtomicBool,
    told: Notify,
    /// In the upper half those who ask, in the lower half they and those who have a lock.
    seats: AtomicU64,
    /// The last who asked is gone.
    deserted: Notify,
}

/// One who asks, where those are counted.
const ASKING: u64 = 1 << 32;

impl Closing {
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.told.notify_waiters();
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::SeqCst) { Err(Error::Closed) } else { Ok(()) }
    }

    /// Completes when it is closed.
    pub(crate) async fn closed(&self) {
        let mut told = pin!(self.told.notified());
        told.as_mut().enable();
        if self.check().is_ok() {
            told.await;
        }
    }

    /// Counts one more who asks for a lock.
    pub(crate) fn take_seat(&self, limit: usize) -> Result<(), Error> {
        let taken = self.seats.fetch_add(ASKING + 1, Ordering::SeqCst) % ASKING;
        if usize::try_from(taken).is_ok_and(|taken| taken < limit) {
            return Ok(());
        }
        self.stop_asking(true);
        Err(Error::Overloaded { what: "locks", limit })
    }

    /// Who asked has left nothing that nobody knows of. `seated`: nor has it got a lock.
    pub(crate) fn stop_asking(&self, seated: bool) {
        let seats = self.seats.fetch_sub(ASKING + u64::from(seated), Ordering::SeqCst);
        if seats / ASKING == 1 && self.check().is_err() {
            self.deserted.notify_waiters();
        }
    }

    /// One lock less.
    pub(crate) fn leave_seat(&self) {
        self.seats.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether nobody asks.
    pub(crate) fn is_deserted(&self) -> bool {
        self.seats.load(Ordering::SeqCst) < ASKING
    }

    /// Completes, once it is closed, when nobody asks any more.
    pub(crate) async fn deserted(&self) {
        let mut deserted = pin!(self.deserted.notified());
        loop {
            deserted.as_mut().enable();
            if self.is_deserted() {
                return;
            }
            deserted.as_mut().await;
            deserted.set(self.deserted.notified());
        }
    }
}
