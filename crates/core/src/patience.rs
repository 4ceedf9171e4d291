//! How long one call waits, and how it passes the time.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use tokio::time::{self, Instant};

use crate::{BackendError, Error, RetryStrategy, closing::Closing, retry};

/// How long a store that stops answering is put up with by one who already stood in line, without a strategy that says otherwise.
pub(crate) const OUTAGE: Duration = Duration::from_secs(30);

/// What a delay of nothing is taken for: whoever asks again and again leaves time for others.
pub(crate) const SHORTEST: Duration = Duration::from_millis(1);

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
        let end = self.sooner(Instant::now().checked_add(delay));
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

    /// Whether it waits for ever.
    pub(crate) const fn is_endless(&self) -> bool {
        self.strategy.is_none() && self.until.is_none()
    }

    /// Waits for something that comes by itself, as long as the strategy and the time allow.
    pub(crate) async fn wait<T>(&mut self, something: impl Future<Output = T>) -> Result<T, Error> {
        let mut something = pin!(something);
        loop {
            if self.strategy.is_some() && self.tick.is_none() {
                let delay = self.next_delay().ok_or_else(|| self.exhausted())?;
                self.tick = Instant::now().checked_add(delay);
            }
            let wake = self.sooner(self.tick);
            tokio::select! {
                biased;
                value = &mut something => return Ok(value),
                () = self.closing.closed() => return Err(Error::Closed),
                () = sleep_until(wake) => {
                    self.check_time()?;
                    self.tick = None;
                    self.attempts = self.attempts.saturating_add(1);
                }
            }
        }
    }

    /// Waits until the store is to be asked again; `hint`: when that is certain to be worth it.
    pub(crate) async fn pause(&mut self, hint: Option<Duration>) -> Result<(), Error> {
        self.check_time()?;
        let delay = self.next_delay().ok_or_else(|| self.exhausted())?;
        let delay = hint.map_or(delay, |hint| delay.min(hint.max(SHORTEST)));
        self.tick = None;
        self.attempts = self.attempts.saturating_add(1);
        let wake = self.sooner(Instant::now().checked_add(delay));
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

    /// The store did not answer for a place in its line since then.
    pub(crate) fn suffer(&mut self, since: Option<Instant>) {
        self.outage = self.outage.or(since);
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

    /// Until when an exchange with the store may last. Who has no time at all may wait for one answer.
    pub(crate) fn limit(&self) -> Option<Instant> {
        self.until.filter(|until| self.started < *until)
    }

    /// Waits for an exchange with the store, as long as the time allows.
    pub(crate) async fn bound<T>(&mut self, exchange: impl Future<Output = T>) -> Result<T, Error> {
        tokio::select! {
            biased;
            value = exchange => Ok(value),
            () = self.closing.closed() => Err(Error::Closed),
            () = sleep_until(self.limit()) => Err(Error::Timeout { waited: self.waited() }),
        }
    }

    fn next_delay(&mut self) -> Option<Duration> {
        let strategy = &self.strategy;
        let delays = self.delays.get_or_insert_with(|| match strategy {
            Some(strategy) => strategy.delays(),
            None => retry::polling().delays(),
        });
        delays.next().map(|delay| delay.max(SHORTEST))
    }

    /// This time or the end of all waiting, whichever comes first.
    fn sooner(&self, time: Option<Instant>) -> Option<Instant> {
        time.into_iter().chain(self.until).min()
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
