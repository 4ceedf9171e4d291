//! Whether a client is shut down.

use std::{
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

use crate::Error;

/// Set once, read on every way.
#[derive(Default)]
pub(crate) struct Closing {
    closed: AtomicBool,
    told: Notify,
}

impl Closing {
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.told.notify_waiters();
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// Completes when it is closed.
    pub(crate) async fn closed(&self) {
        let mut told = pin!(self.told.notified());
        told.as_mut().enable();
        if self.check().is_ok() {
            told.await;
        }
    }
}
