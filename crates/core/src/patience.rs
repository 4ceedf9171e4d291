//! How long one call waits, and how it passes the time.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use tokio::time::{self, Instant};

use crate::{BackendError, Error, RetryStrategy, closing::Closing, retry};

/// How long a store that stops answering is put up with by one who already stood in line, without a strategy that says otherwise.
pub(crate) const OUTAGE: Duration = Duration::from_secs(30);

/// What a delay of nothing is taken for: whoever asks again and again leaves time for others.
pub(crate) const SHORTEST: Duration = Duration::from_millis(1);

/// The patience of one call of `lock`.
///
/// Tens of thousands may wait at a time: what only those need for whom not all goes well is in a box.
pub(crate) struct Patience<'a> {
    strategy: Option<&'a Arc<dyn RetryStrategy>>,
    closing: &'a Closing,
    started: Instant,
    until: Option<Instant>,
    trials: Option<Box<Trials>>,
}

/// How it went so far.
struct Trials {
    delays: Option<Box<dyn Iterator<Item = Duration> + Send>>,
    /// When the present delay of a strategy is over.
    tick: Option<Instant>,
    attempts: u32,
    /// Since when the store does not answer.
    outage: Option<Instant>,
}

impl<'a> Patience<'a> {
    pub(crate) const fn new(
        strategy: Option<&'a Arc<dyn RetryStrategy>>,
        started: Instant,
        until: Option<Instant>,
        closing: &'a Closing,
    ) -> Self {
        Self { strategy, closing, started, until, trials: None }
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
            let wake = self.next_tick()?;
            tokio::select! {
                biased;
                value = &mut something => return Ok(value),
                () = self.closing.closed() => return Err(Error::Closed),
                () = sleep_until(wake) => {
                    self.check_time()?;
                    self.count_attempt();
                }
            }
        }
    }

    /// Waits until the store is to be asked again; `hint`: when that is certain to be worth it.
    pub(crate) async fn pause(&mut self, hint: Option<Duration>) -> Result<(), Error> {
        self.check_time()?;
        let delay = self.next_delay().ok_or_else(|| self.exhausted())?;
        let delay = hint.map_or(delay, |hint| delay.min(hint.max(SHORTEST)));
        self.count_attempt();
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
        let outage = *self.trials().outage.get_or_insert_with(Instant::now);
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
        if since.is_some() {
            let trials = self.trials();
            trials.outage = trials.outage.or(since);
        }
    }

    /// The store answered.
    pub(crate) fn relieve(&mut self) {
        if let Some(trials) = &mut self.trials {
            trials.outage = None;
        }
    }

    /// Whether the time is over.
    pub(crate) fn check_time(&self) -> Result<(), Error> {
        match self.until {
            Some(until) if until <= Instant::now() => Err(Error::Timeout { waited: self.waited() }),
            _ => Ok(()),
        }
    }

    /// Whether the client is shut down.
    pub(crate) const fn closing(&self) -> &'a Closing {
        self.closing
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

    /// When to look again at what comes by itself.
    fn next_tick(&mut self) -> Result<Option<Instant>, Error> {
        if self.strategy.is_some() && self.trials().tick.is_none() {
            let delay = self.next_delay().ok_or_else(|| self.exhausted())?;
            self.trials().tick = Instant::now().checked_add(delay);
        }
        Ok(self.sooner(self.trials.as_ref().and_then(|trials| trials.tick)))
    }

    fn next_delay(&mut self) -> Option<Duration> {
        let strategy = self.strategy;
        let delays = self.trials().delays.get_or_insert_with(|| match strategy {
            Some(strategy) => strategy.delays(),
            None => retry::polling().delays(),
        });
        delays.next().map(|delay| delay.max(SHORTEST))
    }

    fn count_attempt(&mut self) {
        let trials = self.trials();
        trials.tick = None;
        trials.attempts = trials.attempts.saturating_add(1);
    }

    fn trials(&mut self) -> &mut Trials {
        self.trials.get_or_insert_with(|| {
            Box::new(Trials { delays: None, tick: None, attempts: 1, outage: None })
        })
    }

    /// This time or the end of all waiting, whichever comes first.
    fn sooner(&self, time: Option<Instant>) -> Option<Instant> {
        time.into_iter().chain(self.until).min()
    }

    fn exhausted(&self) -> Error {
        let attempts = self.trials.as_ref().map_or(1, |trials| trials.attempts);
        Error::RetriesExhausted { attempts, waited: self.waited() }
    }
}

/// Sleeps; without an end, for ever.
pub(crate) async fn sleep_until(end: Option<Instant>) {
    match end {
        Some(end) => time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}
