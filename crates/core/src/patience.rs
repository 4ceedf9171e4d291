//! How long one call waits, and how it passes the time.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use tokio::time::{self, Instant};

use crate::{BackendError, Error, RetryStrategy, closing::Closing, retry};

/// How long a store that stops answering is put up with by one who already stood in line, without a strategy that says otherwise.
const OUTAGE: Duration = Duration::from_secs(30);

/// The patience of one call of `lock`.
pub(crate) struct Patience {
    strategy: Option<Arc<dyn RetryStrategy>>,
    delays: Option<Box<dyn Iterator<Item = Duration> + Send>>,
    /// When the present delay of a strategy is over.
    tick: Option<Instant>,
    started: Instant,
    until: Option<Instant>,
    attempts: u32,
    closing: Arc<Closing>,
    /// Since when the store does not answer.
    outage: Option<Instant>,
}

impl Patience {
    pub(crate) fn new(
        strategy: Option<Arc<dyn RetryStrategy>>,
        started: Instant,
        until: Option<Instant>,
        closing: Arc<Closing>,
    ) -> Self {
        Self {
            strategy,
            delays: None,
            tick: None,
            started,
            until,
            attempts: 1,
            closing,
            outage: None,
        }
    }

    pub(crate) fn waited(&self) -> Duration {
        self.started.elapsed()
    }

    /// Lets a time pass before the first attempt.
    pub(crate) async fn delay(&mut self, delay: Duration) -> Result<(), Error> {
        let end = Instant::now().checked_add(delay);
        let end = self.until.map_or(end, |until| end.map(|end| end.min(until)));
        tokio::select! {
            biased;
            () = self.closing.closed() => Err(Error::Closed),
            () = sleep_until(end) => Ok(()),
        }
    }

    /// Whether there is any: a strategy without delays, or a time of zero, allows no waiting at all.
    pub(crate) fn waits(&mut self) -> bool {
        self.until.is_none_or(|until| self.started < until)
            && self.strategy.as_ref().is_none_or(|strategy| strategy.delays().next().is_some())
    }

    /// Waits for something that comes by itself, as long as the strategy and the time allow.
    pub(crate) async fn wait<T>(&mut self, something: impl Future<Output = T>) -> Result<T, Error> {
        let mut something = pin!(something);
        loop {
            if self.strategy.is_some() && self.tick.is_none() {
                let delay = self.next_delay().ok_or_else(|| self.exhausted())?;
                self.tick = Instant::now().checked_add(delay);
            }
            let wake = match (self.tick, self.until) {
                (Some(tick), Some(until)) => Some(tick.min(until)),
                (tick, until) => tick.or(until),
            };
            tokio::select! {
                biased;
                value = &mut something => return Ok(value),
                () = self.closing.closed() => return Err(Error::Closed),
                () = sleep_until(wake) => {
                    self.check_time()?;
                    self.tick = None;
                    self.attempts += 1;
                }
            }
        }
    }

    /// Waits until the store is to be asked again; `hint`: when that is certain to be worth it.
    pub(crate) async fn pause(&mut self, hint: Option<Duration>) -> Result<(), Error> {
        self.check_time()?;
        let delay = self.next_delay().ok_or_else(|| self.exhausted())?;
        let delay = hint.map_or(delay, |hint| delay.min(hint.max(Duration::from_millis(1))));
        self.tick = None;
        self.attempts += 1;
        let wake = Instant::now().checked_add(delay);
        let wake = self.until.map_or(wake, |until| wake.map(|wake| wake.min(until)));
        tokio::select! {
            biased;
            () = self.closing.closed() => Err(Error::Closed),
            () = sleep_until(wake) => Ok(()),
        }
    }

    /// A failure of the store: waits where the strategy allows it, or where one stood in line before; else it is the answer.
    pub(crate) async fn bear(
        &mut self,
        error: BackendError,
        stood_in_line: bool,
    ) -> Result<(), Error> {
        self.closing.check()?;
        if !error.is_transient() {
            return Err(error.into());
        }
        let outage = *self.outage.get_or_insert_with(Instant::now);
        if self.strategy.is_none() && !(stood_in_line && outage.elapsed() < OUTAGE) {
            return Err(error.into());
        }
        match self.pause(None).await {
            Err(Error::RetriesExhausted { .. }) => Err(error.into()),
            other => other,
        }
    }

    /// The store answered.
    pub(crate) const fn relieve(&mut self) {
        self.outage = None;
    }

    /// Whether the time is over.
    pub(crate) fn check_time(&self) -> Result<(), Error> {
        match self.until {
            Some(until) if until <= Instant::now() => Err(Error::Timeout { waited: self.waited() }),
            _ => Ok(()),
        }
    }

    /// Whether the client is shut down.
    pub(crate) fn closing(&self) -> &Closing {
        &self.closing
    }

    pub(crate) const fn until(&self) -> Option<Instant> {
        self.until
    }

    fn next_delay(&mut self) -> Option<Duration> {
        let strategy = &self.strategy;
        let delays = self.delays.get_or_insert_with(|| match strategy {
            Some(strategy) => strategy.delays(),
            None => retry::polling().delays(),
        });
        delays.next()
    }

    fn exhausted(&self) -> Error {
        Error::RetriesExhausted { attempts: self.attempts, waited: self.waited() }
    }
}

/// Sleeps; without an end, for ever.
pub(crate) async fn sleep_until(end: Option<Instant>) {
    match end {
        Some(end) => time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}
