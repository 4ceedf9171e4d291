//! A lease of etcd: what keeps keys alive, and until when that is certain.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client::{LeaseKeepAliveStream, LeaseKeeper};
use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, timeout},
};

use crate::{
    error::{Failure, Remedy},
    members::{Link, Members},
};

/// How long to wait before another attempt to keep a lease alive.
const PAUSE: Duration = Duration::from_millis(20);

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
    refreshes: u64,
    /// What the last of them came to, if to nothing.
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
        let state = State {
            since,
            idle,
            users: 0,
            refreshes: 0,
            failed: None,
            gone: false,
            retired: false,
        };
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

    /// Whether a keep-alive of it was confirmed within this part of its time.
    pub(crate) fn is_fresh(&self, now: Instant, part: u32) -> bool {
        now < self.since() + self.granted / part
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
        let before = self.state().refreshes;
        let mut stream = self.stream.lock().await;
        {
            let state = self.state();
            if state.gone {
                return Err(Failure::lease_gone());
            }
            if state.refreshes != before {
                return state.failed.clone().map_or(Ok(state.since), Err);
            }
        }
        let refreshed = self.keep_alive(&mut stream, members).await;
        let mut state = self.state();
        state.refreshes += 1;
        state.failed = refreshed.as_ref().err().cloned();
        if let Ok(sent) = refreshed {
            state.since = sent.max(state.since);
        }
        refreshed.map(|_| state.since)
    }

    async fn keep_alive(
        &self,
        stream: &mut Option<Stream>,
        members: &Members,
    ) -> Result<Instant, Failure> {
        let limit = members.request_timeout().min(self.granted / 6);
        let end = Instant::now() + members.request_timeout() * 2;
        loop {
            let sent = Instant::now();
            let turn = stream.as_ref().map_or_else(|| members.turn(), |stream| stream.link.turn());
            // A stream that is not put back ends: no later answer can be taken for that to a later request.
            let failure = match timeout(limit, beat(stream.take(), self.id, members)).await {
                Ok(Ok(alive)) => {
                    *stream = Some(alive);
                    return Ok(sent);
                }
                Ok(Err((failure, turn))) => {
                    if let (Some(turn), Remedy::Move { .. }) = (turn, failure.remedy) {
                        members.leave(turn);
                    }
                    failure
                }
                Err(_) => {
                    members.hang_up(turn).await;
                    Failure::timeout()
                }
            };
            match failure.remedy {
                Remedy::Lease => {
                    self.set_gone();
                    return Err(failure);
                }
                Remedy::Login => {
                    if let Ok(link) = members.link().await {
                        members.mend(&link, &failure).await;
                    }
                }
                _ => {}
            }
            if matches!(failure.remedy, Remedy::Fail(_)) || end <= Instant::now() {
                return Err(failure);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One keep-alive and its answer. A failure comes with what to leave: the member that it is the fault of.
async fn beat(
    stream: Option<Stream>,
    id: i64,
    members: &Members,
) -> Result<Stream, (Failure, Option<usize>)> {
    if let Some(mut stream) = stream {
        let turn = Some(stream.link.turn());
        let failed = |error| (Failure::new(&error), turn);
        stream.keeper.keep_alive().await.map_err(failed)?;
        return match stream.answers.message().await.map_err(failed)? {
            Some(answer) if 0 < answer.ttl() => Ok(stream),
            Some(_) => Err((Failure::lease_gone(), None)),
            None => Err((Failure::timeout(), turn)),
        };
    }
    let mut link = members.link().await.map_err(|failure| (failure, None))?;
    // The first keep-alive is a part of opening the stream.
    match link.client.lease_keep_alive(id).await {
        Ok((keeper, answers)) => Ok(Stream { keeper, answers, link }),
        Err(error) => Err((Failure::new(&error), Some(link.turn()))),
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
