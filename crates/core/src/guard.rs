//! The guard: proof that a lock is held, for as long as it is.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Backend as _, Error, FencingToken, Key, LossReason, Owner, Report, RetryStrategy,
    held::{Held, Release},
    limits,
    patience::SHORTEST,
};

/// Proof that a lock is held. Dropped, it releases in the background.
///
/// It is renewed until then, unless it was asked not to be. It knows its own deadline: [`lost`](Self::lost) completes and [`is_held`](Self::is_held) is false no later
/// than [`expires_at`](Self::expires_at) by the clock of this process, whatever the network does. A lost guard never comes back to life.
///
/// No lock can stop code that is already running, nor tell a process that does not run. After a pause of the process (a stop signal, a
/// debugger, a busy host) the lock may be somebody else's while the next line of yours runs: ask [`is_held`](Self::is_held) before each step, and give
/// the [`fencing_token`](Self::fencing_token) to the resource, which closes what is left of the window. Where the clock itself stands still, as on a machine that is suspended, only the token helps.
///
/// # Dropping
/// The request to release leaves at once when the guard is dropped inside a tokio runtime, else through the client's own as long as that lives. Without any
/// runtime the lock stays until its ttl is over. Nothing panics.
#[clippy::has_significant_drop]
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct Guard {
    held: Held,
    retry: Option<Arc<dyn RetryStrategy>>,
}

/// What [`Guard::release`] found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(clippy::exhaustive_enums, reason = "a lock was held or it was not")]
pub enum Released {
    /// The lock was held until now.
    Released,
    /// The lock was lost before. Nobody was harmed.
    NotHeld,
}

impl Guard {
    pub(crate) const fn new(held: Held, retry: Option<Arc<dyn RetryStrategy>>) -> Self {
        Self { held, retry }
    }

    /// What is locked, with the client's prefix.
    #[must_use]
    pub fn key(&self) -> &Key {
        self.held.claim().key()
    }

    /// The owner id under which the store has the lock.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.held.claim().owner()
    }

    /// The words that [`inspect`](crate::Client::inspect) shows.
    #[must_use]
    pub fn metadata(&self) -> Arc<str> {
        self.held.claim().metadata()
    }

    /// The token of this grant: greater than that of every earlier grant of the key, and never changed by a renewal.
    ///
    /// [`FencingToken::NONE`] where the store gives none ([`Capabilities::fencing`](crate::Capabilities::fencing)).
    #[must_use]
    pub const fn fencing_token(&self) -> FencingToken {
        self.held.token()
    }

    /// Until when the lock is certain to be held, unless it is renewed; a time in the past once it is lost.
    #[must_use]
    pub fn expires_at(&self) -> Instant {
        self.held.check().unwrap_or_else(|_| Instant::now())
    }

    /// How long it is certain to be held, unless it is renewed; zero once it is lost.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.held
            .check()
            .map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether the lock is held now. Reads the clock, and is right also after the process was paused. No I/O.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.check().is_ok()
    }

    /// Completes when the lock is lost, no later than its deadline; at once, if it is lost already.
    ///
    /// # Cancel safety
    /// Fully: any number of tasks may wait, and none of them misses it.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), distlock_core::Error> {
    /// # let client = distlock_core::Client::new(distlock_memory::MemoryBackend::new());
    /// # async fn work() { tokio::time::sleep(std::time::Duration::from_secs(5)).await }
    /// let guard = client.mutex("invoice/42").lock().await?;
    /// tokio::select! {
    ///     reason = guard.lost() => println!("stop: {reason}"),
    ///     () = work() => println!("done"),
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn lost(&self) -> LossReason {
        let lost = self.held.lost_token();
        loop {
            match self.held.check() {
                Ok(deadline) => {
                    tokio::select! {
                        biased;
                        () = lost.cancelled() => {}
                        () = time::sleep_until(deadline) => {}
                    }
                }
                Err(reason) => return reason,
            }
        }
    }

    /// A token that is canceled when the lock is lost, released or dropped: a tree of tasks under it ends with the lock.
    ///
    /// Each call gives another one: who cancels it himself cancels nothing else.
    #[must_use]
    pub fn lost_token(&self) -> CancellationToken {
        self.held.lost_token().child_token()
    }

    /// How long the store would keep the lock without another renewal; zero when it has it no more. Asks the store.
    ///
    /// # Errors
    /// [`Error::Backend`] when the store fails.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), distlock_core::Error> {
    /// # let client = distlock_core::Client::new(distlock_memory::MemoryBackend::new());
    /// let guard = client.mutex("invoice/42").lock().await?;
    /// assert!(!guard.ttl().await?.is_zero());
    /// client.force_release("invoice/42").await?;
    /// assert!(guard.ttl().await?.is_zero());
    /// # Ok(()) }
    /// ```
    pub async fn ttl(&self) -> Result<Duration, Error> {
        let occupancy = self.held.client().backend.inspect(self.key()).await?;
        let own = occupancy.holders.into_iter().find(|holder| holder.owner == Some(self.owner()));
        Ok(own.and_then(|holder| holder.expires_in).unwrap_or_default())
    }

    /// Gives the lock another ttl from now on, longer or shorter, and renews it by that.
    ///
    /// A transient failure of the store is retried as the mutex's strategy says. A lost lock is never extended, and a failed extension neither deletes nor
    /// creates anything; of the old and the new ttl the shorter one counts from then on.
    ///
    /// # Errors
    /// [`Error::Lost`] when the lock is lost, [`Error::Invalid`] for a ttl outside the limits, [`Error::Backend`] when the store fails.
    ///
    /// # Cancel safety
    /// Dropping the future may or may not have extended the lock; the deadline is right in both cases.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), distlock_core::Error> {
    /// # let client = distlock_core::Client::new(distlock_memory::MemoryBackend::new());
    /// use std::time::Duration;
    ///
    /// let guard = client.mutex("backup").ttl(Duration::from_secs(10)).lock().await?;
    /// guard.extend(Duration::from_secs(60)).await?;
    /// assert!(guard.remaining() > Duration::from_secs(50));
    /// # Ok(()) }
    /// ```
    pub async fn extend(&self, ttl: Duration) -> Result<(), Error> {
        limits::check_ttl(ttl, &self.held.client().capabilities)?;
        let mut delays = self.retry.as_ref().map(|strategy| strategy.delays());
        loop {
            let error = match self.held.change(ttl, None).await {
                Err(Error::Backend(error)) if error.is_transient() => error,
                other => return other,
            };
            let Some(delay) = delays.as_mut().and_then(Iterator::next) else {
                return Err(error.into());
            };
            tokio::select! {
                biased;
                reason = self.lost() => return Err(self.held.lost(reason)),
                () = time::sleep(delay.max(SHORTEST)) => {}
            }
        }
    }

    /// Gives the lock back, and waits until the store was told.
    ///
    /// The lock is not held any more from the call on. When others of this process wait, it may pass to the first of them without the store.
    ///
    /// # Errors
    /// [`Error::Backend`] when the store fails. After a transient failure the release is tried again in the background until the lock would have ended
    /// by itself.
    ///
    /// # Cancel safety
    /// Dropping the future lets the release finish in the background.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), distlock_core::Error> {
    /// # let client = distlock_core::Client::new(distlock_memory::MemoryBackend::new());
    /// use distlock_core::Released;
    ///
    /// let guard = client.mutex("invoice/42").lock().await?;
    /// if guard.release().await? == Released::NotHeld {
    ///     println!("it was lost before: somebody else may have worked at the same time");
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn release(self) -> Result<Released, Error> {
        let held = match self.held.release() {
            Release::Done(held) => held,
            Release::Giving(giving) => giving.answer().await?,
        };
        Ok(if held { Released::Released } else { Released::NotHeld })
    }

    /// Does the work unless, and until, the lock is lost.
    #[allow(
        clippy::future_not_send,
        reason = "it is Send when the work is, which stable Rust cannot state here"
    )]
    pub(crate) async fn run<T, F>(self, work: F) -> Result<Report<T>, Error>
    where
        F: AsyncFnOnce(&Self) -> T,
    {
        let started = Instant::now();
        let value = tokio::select! {
            biased;
            reason = self.lost() => return Err(self.held.lost(reason)),
            value = work(&self) => value,
        };
        let held = started.elapsed();
        // The work is done; should the store not hear of it now, the release goes on in the background.
        let _ = self.release().await;
        Ok(Report { value, held })
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Guard");
        debug.field("key", self.key()).field("token", &self.fencing_token()).finish_non_exhaustive()
    }
}
