//! A lease of etcd: what keeps keys alive, and until when that is certain.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client::{LeaseKeepAliveStream, LeaseKeeper};
use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, sleep, timeout},
};

use crate::{
    error::{Failure, Remedy},
    members::{Link, Members},
};

/// How long to wait before another member is asked to keep a lease alive.
const AGAIN: Duration = Duration::from_millis(10);

/// A lease, kept alive by one stream.
pub(crate) struct Lease {
    id: i64,
    /// In whole seconds, as it was asked for.
    seconds: u64,
    granted: Duration,
    kind: Kind,
    state: Mutex<State>,
    stream: AsyncMutex<Option<Stream>>,
}

/// Whose keys are bound to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// One claim's, which it ends with.
    Exclusive,
    /// Those of all claims of the same ttl that renew.
    Shared,
}

struct State {
    /// When the last confirmed keep-alive was sent.
    since: Instant,
    /// Since when nobody uses it.
    idle: Instant,
    users: usize,
    /// How many attempts to keep it alive have ended, and what the last one failed with.
    attempts: u64,
    failed: Option<Failure>,
    /// The server does not have it any more.
    gone: bool,
    /// A request that was given up may still bind a key to it: nobody new uses it, and it is revoked after its last user.
    retired: bool,
}

/// A keep-alive stream, and the member that it leads to.
struct Stream {
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
    link: Link,
}

/// A use of a lease.
#[derive(Debug)]
pub(crate) struct Use(Arc<Lease>);

impl Lease {
    /// One that the server granted to a request that was sent at `since`.
    pub(crate) fn new(
        id: i64,
        seconds: u64,
        granted: Duration,
        kind: Kind,
        since: Instant,
    ) -> Arc<Self> {
        let idle = Instant::now();
        let state =
            State { since, idle, users: 0, attempts: 0, failed: None, gone: false, retired: false };
        let (state, stream) = (Mutex::new(state), AsyncMutex::default());
        Arc::new(Self { id, seconds, granted, kind, state, stream })
    }

    pub(crate) fn take(self: &Arc<Self>) -> Use {
        self.state().users += 1;
        Use(Arc::clone(self))
    }

    pub(crate) const fn id(&self) -> i64 {
        self.id
    }

    pub(crate) const fn seconds(&self) -> u64 {
        self.seconds
    }

    pub(crate) const fn granted(&self) -> Duration {
        self.granted
    }

    pub(crate) const fn is_shared(&self) -> bool {
        matches!(self.kind, Kind::Shared)
    }

    pub(crate) fn since(&self) -> Instant {
        self.state().since
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.state().gone
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.state().retired
    }

    /// Since when nobody uses it.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        (state.users == 0).then_some(state.idle)
    }

    /// Whether it was kept alive so lately that most of this time is left.
    pub(crate) fn is_fresh(&self, now: Instant, ttl: Duration) -> bool {
        now < self.since() + ttl.min(self.granted) / 2
    }

    /// Whether it is time to keep it alive, and nobody is at it. The time that was asked for counts: the server may have given more.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let asked = Duration::from_secs(self.seconds).min(self.granted);
        self.since() + asked / 3 <= now && self.stream.try_lock().is_ok()
    }

    /// Whether new keys may be bound to it. The server may have ended it by itself when most of its time is over.
    pub(crate) fn is_usable(&self, now: Instant) -> bool {
        let state = self.state();
        !state.gone && !state.retired && now < state.since + self.granted / 4 * 3
    }

    pub(crate) fn retire(&self) {
        self.state().retired = true;
    }

    pub(crate) fn set_gone(&self) {
        self.state().gone = true;
    }

    /// Keeps it alive for another ttl. Returns when that was sent: from then on the ttl runs anew, at the earliest.
    ///
    /// Who comes while another one is at it gets that one's answer.
    pub(crate) async fn refresh(&self, members: &Members) -> Result<Instant, Failure> {
        let before = self.state().attempts;
        let mut stream = self.stream.lock().await;
        {
            let state = self.state();
            if state.gone {
                return Err(Failure::lease_gone());
            }
            if state.attempts != before {
                return state.failed.clone().map_or(Ok(state.since), Err);
            }
        }
        let kept = self.keep(&mut stream, members).await;
        let mut state = self.state();
        state.attempts += 1;
        state.failed = kept.as_ref().err().cloned();
        let sent = kept?;
        state.since = sent.max(state.since);
        Ok(state.since)
    }

    async fn keep(
        &self,
        stream: &mut Option<Stream>,
        members: &Members,
    ) -> Result<Instant, Failure> {
        let limit = members.request_timeout().min(self.granted / 6);
        let end = Instant::now() + members.request_timeout() * 2;
        loop {
            let sent = Instant::now();
            // A stream that is not put back ends: no later answer can be taken for that to a later request.
            let failure = match self.beat(stream.take(), limit, members).await {
                Ok(alive) => {
                    *stream = Some(alive);
                    return Ok(sent);
                }
                Err(failure) => failure,
            };
            if failure.remedy == Remedy::Lease {
                self.set_gone();
            }
            if matches!(failure.remedy, Remedy::Fail(_) | Remedy::Lease) || end <= Instant::now() {
                return Err(failure);
            }
            sleep(AGAIN).await;
        }
    }

    /// One keep-alive and its answer.
    async fn beat(
        &self,
        stream: Option<Stream>,
        limit: Duration,
        members: &Members,
    ) -> Result<Stream, Failure> {
        let (link, beat) = match stream {
            Some(Stream { mut keeper, mut answers, link }) => {
                let beat = timeout(limit, async {
                    keeper.keep_alive().await?;
                    let answer = answers.message().await?;
                    Ok(answer.map(|answer| answer.ttl()))
                });
                let beat = beat.await.map(|beat| beat.map(|ttl| (ttl, keeper, answers)));
                (link, beat)
            }
            None => {
                let link = members.link().await?;
                // The first keep-alive is a part of opening the stream, and one that finds nothing is an error then.
                let opened = timeout(limit, link.client.lease_client().keep_alive(self.id)).await;
                let beat = opened.map(|opened| {
                    opened.map(|(keeper, answers)| (Some(i64::MAX), keeper, answers))
                });
                (link, beat)
            }
        };
        let failure = match beat {
            Ok(Ok((Some(ttl), keeper, answers))) if 0 < ttl => {
                return Ok(Stream { keeper, answers, link });
            }
            Ok(Ok((Some(_), ..))) => return Err(Failure::lease_gone()),
            // The stream has ended.
            Ok(Ok((None, ..))) | Err(_) => Failure::timeout(),
            Ok(Err(error)) => Failure::new(&error),
        };
        members.mend(&link, &failure).await;
        Err(failure)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Use {
    pub(crate) const fn lease(&self) -> &Arc<Lease> {
        &self.0
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.users -= 1;
        state.idle = Instant::now();
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("granted", &self.granted)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}
