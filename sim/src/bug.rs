//! The zoo: bugs that other lock libraries had, each of which can be put into a simulated store, or between it and the core.
//!
//! They are here to be caught. A bug that no run finds would show that the runs look in the wrong place.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use distlock_core::{
    AnyBackend, Backend, BackendError, Capabilities, Claim, FencingToken, Key, Lease, Occupancy,
    Owner, Renewal, Standing,
};

use crate::Store;

/// A bug of the field.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(clippy::exhaustive_enums, reason = "the table of the zoo has all of them")]
pub enum Bug {
    /// A grant counts from the reply, not from before the request: node-redlock 169, 296.
    DeadlineFromReply,
    /// The same for a pushed grant.
    DeadlineFromPush,
    /// A renewal without an answer counts as confirmed: redisson 3636, libkv 156.
    UnconfirmedRenewal,
    /// Whether a lock is held is told by a flag that a task sets: redsync 71, 72, etcd3 110.
    FlagInsteadOfClock,
    /// Release does not look at the owner: redsync 168, etcd 22082.
    ReleaseOfAnybody,
    /// A renewal writes a lock that is gone: redsync 149, `RedLock.net` 93.
    RenewalCreates,
    /// So does a change of the ttl: redlock-rb 36.
    ChangeCreates,
    /// An acquisition that is asked again says "held" and does not refresh the ttl.
    AgainWithoutRefresh,
    /// What was cancelled before it was held is not given back: redisson 2714, open-match 1576, etcd-client.
    CancelledIsKept,
    /// A lock that is given back is renewed all the same: redisson 7272, `RedLock.net` 68.
    RenewedForEver,
    /// Who waits believes in pushes alone: redisson 1763, 5761.
    NoRecheck,
    /// A dead waiter at the head of the line blocks it: redisson 3730, 5019.
    DeadHeadBlocks,
    /// Tokens are counted, and begin again when the count is lost: 1.6 of every library that uses INCR.
    CountedTokens,
    /// The token is not fixed at the grant: redisson's fenced lock.
    TokenOfTheLatest,
    /// A waiter whose lease ended is told that it has the lock: etcd 9921, 11456.
    WaiterWithoutLease,
    /// The watch was canceled, and nobody noticed.
    CanceledWatch,
    /// The resource looks at no token.
    NoGate,
    /// Renewals end with the first failure: cozy-stack 4911, etcd-rs 59.
    RenewalStops,
    /// After one failure, no later lock of that name is renewed: redisson 3194, 3714.
    RenewalStopsForName,
    /// The end of a lock is told by the client's own wall clock: rueidislock, redlock-rb 50.
    ClientWallClock,
    /// A release that finds nothing is tried for ever: node-redlock 168, 313.
    ReleaseForEver,
    /// A waiter whose lease ended waits on: etcd 19597, etcd-client 87.
    ExpiredWaiterWaits,
    /// A release ends whatever the process has of that name: etcd 22082.
    ReleaseOfTheSession,
    /// Who waits asks every millisecond: discourse 17886.
    BusyWait,
    /// Who has waited for long goes on without the lock: appstrate 1417.
    RunsUnlocked,
    /// The minimal hold ends with the release.
    NoRest,
    /// What another library wrote counts for nothing.
    StrangerIgnored,
    /// A renewal that finds another grant than the holder's takes it for its own.
    AnotherGrant,
    /// Who reads looks at no writer.
    ReadersPassWriters,
    /// Who wants permits counts the holders before it, not their permits.
    PermitsCountHolders,
}

impl Bug {
    /// All of them, with the store in which each lives.
    pub const ALL: [(Self, Store); 36] = [
        (Self::DeadlineFromReply, Store::Redis),
        (Self::DeadlineFromReply, Store::Etcd),
        (Self::DeadlineFromPush, Store::Redis),
        (Self::UnconfirmedRenewal, Store::Redis),
        (Self::UnconfirmedRenewal, Store::Etcd),
        (Self::FlagInsteadOfClock, Store::Redis),
        (Self::ReleaseOfAnybody, Store::Redis),
        (Self::RenewalCreates, Store::Redis),
        (Self::ChangeCreates, Store::Redis),
        (Self::AgainWithoutRefresh, Store::Redis),
        (Self::CancelledIsKept, Store::Redis),
        (Self::RenewedForEver, Store::Redis),
        (Self::NoRecheck, Store::Redis),
        (Self::DeadHeadBlocks, Store::Redis),
        (Self::CountedTokens, Store::Redis),
        (Self::TokenOfTheLatest, Store::Etcd),
        (Self::WaiterWithoutLease, Store::Etcd),
        (Self::CanceledWatch, Store::Etcd),
        (Self::NoGate, Store::Redis),
        (Self::RenewalStops, Store::Redis),
        (Self::RenewalStops, Store::Etcd),
        (Self::RenewalStopsForName, Store::Redis),
        (Self::RenewalStopsForName, Store::Etcd),
        (Self::ClientWallClock, Store::Redis),
        (Self::ReleaseForEver, Store::Redis),
        (Self::ExpiredWaiterWaits, Store::Etcd),
        (Self::ReleaseOfTheSession, Store::Etcd),
        (Self::BusyWait, Store::Redis),
        (Self::BusyWait, Store::Etcd),
        (Self::RunsUnlocked, Store::Redis),
        (Self::RunsUnlocked, Store::Etcd),
        (Self::NoRest, Store::Redis),
        (Self::StrangerIgnored, Store::Redis),
        (Self::AnotherGrant, Store::Redis),
        (Self::ReadersPassWriters, Store::Etcd),
        (Self::PermitsCountHolders, Store::Etcd),
    ];

    /// Whether it leaves things behind by the way it is made here, so that this alone catches nothing.
    #[must_use]
    pub const fn leaks_by_itself(self) -> bool {
        matches!(self, Self::DeadlineFromReply)
    }

    /// Puts it between a store and the core, if it lives there.
    pub(crate) fn wrap(self, backend: AnyBackend) -> AnyBackend {
        let (answers, failed) = (Arc::default(), Arc::default());
        let (polls, tokens) = (Arc::default(), Arc::default());
        AnyBackend::new(Mutant { bug: self, inner: backend, answers, failed, polls, tokens })
    }
}

/// A store with a bug before it.
#[derive(Clone, Debug)]
struct Mutant {
    bug: Bug,
    inner: AnyBackend,
    /// What was answered, and is said when it is asked for again.
    answers: Arc<Mutex<BTreeMap<(Owner, bool), Standing>>>,
    /// What is not renewed any more, by owner or by name.
    failed: Arc<Mutex<BTreeSet<String>>>,
    /// How often a waiter was told to wait.
    polls: Arc<Mutex<BTreeMap<Owner, u32>>>,
    /// What a renewal found first.
    tokens: Arc<Mutex<BTreeMap<Owner, FencingToken>>>,
}

impl Mutant {
    fn answers(&self) -> MutexGuard<'_, BTreeMap<(Owner, bool), Standing>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn late(&self) -> BackendError {
        BackendError::transient(self.inner.name(), "asks for it once more")
    }

    /// Who waits looks after its place no more.
    fn patient(&self, standing: Standing) -> Standing {
        let waits = matches!(standing, Standing::Queued { .. });
        if waits && matches!(self.bug, Bug::NoRecheck | Bug::CanceledWatch) {
            return Standing::Queued { recheck: Duration::from_secs(3600) };
        }
        if waits && self.bug == Bug::BusyWait {
            return Standing::Queued { recheck: Duration::from_millis(1) };
        }
        standing
    }

    /// It has waited for long enough, and does what it was about to do.
    fn go_on(&self, claim: &Claim, standing: Standing) -> Standing {
        let mut polls = self.polls.lock().unwrap_or_else(PoisonError::into_inner);
        let polls = polls.entry(claim.owner()).or_default();
        *polls += u32::from(matches!(standing, Standing::Queued { .. }));
        match *polls {
            0..=3 => standing,
            _ => Standing::Held(Lease::new(FencingToken::new(1))),
        }
    }

    /// What it finds is what it had.
    fn same(&self, owner: Owner, standing: Standing) -> Standing {
        let Standing::Held(lease) = standing else { return standing };
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let token = *tokens.entry(owner).or_insert_with(|| lease.token());
        let same = Lease::new(token).with_spare(lease.spare());
        let same = lease.ttl().map_or(same, |ttl| same.with_ttl(ttl));
        Standing::Held(lease.since().map_or(same, |since| same.with_since(since)))
    }

    /// What a renewal is answered without the store.
    fn said(&self, renewal: &Renewal) -> Option<Result<Standing, BackendError>> {
        if self.bug == Bug::DeadlineFromReply
            && let Some(standing) = self.answers().remove(&(renewal.claim.owner(), true))
        {
            return Some(Ok(standing));
        }
        let mark = self.mark(&renewal.claim)?;
        self.failed().contains(&mark).then(|| Err(self.late()))
    }

    /// What becomes of the store's answer to a renewal.
    fn bend(
        &self,
        renewal: &Renewal,
        answer: Result<Standing, BackendError>,
    ) -> Result<Standing, BackendError> {
        let owner = renewal.claim.owner();
        let asked = (owner, true);
        if let (Some(mark), Err(_)) = (self.mark(&renewal.claim), &answer) {
            self.failed().insert(mark);
        }
        match (self.bug, answer) {
            (Bug::DeadlineFromReply, Ok(standing @ Standing::Held(_))) => {
                self.answers().insert(asked, standing);
                Err(self.late())
            }
            (Bug::UnconfirmedRenewal, Ok(standing @ Standing::Held(_))) => {
                self.answers().insert(asked, standing);
                Ok(standing)
            }
            (Bug::UnconfirmedRenewal, Err(error)) => {
                self.answers().get(&asked).copied().ok_or(error)
            }
            (Bug::AnotherGrant, Ok(standing)) => Ok(self.same(owner, standing)),
            (Bug::RunsUnlocked, Ok(standing)) => Ok(self.go_on(&renewal.claim, standing)),
            (_, answer) => answer.map(|standing| self.patient(standing)),
        }
    }

    /// What stands for a held lock whose renewal failed once; none where that does not matter.
    fn mark(&self, claim: &Claim) -> Option<String> {
        claim.last_token()?;
        match self.bug {
            Bug::RenewalStops => Some(claim.owner().to_string()),
            Bug::RenewalStopsForName => Some(claim.key().as_str().to_owned()),
            _ => None,
        }
    }

    fn failed(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for Mutant {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn acquire(&self, claim: &Claim) -> Result<Standing, BackendError> {
        if self.bug == Bug::DeadlineFromReply {
            let asked = (claim.owner(), false);
            if let Some(standing) = self.answers().remove(&asked) {
                return Ok(standing);
            }
            let standing = self.inner.acquire(claim).await?;
            if !matches!(standing, Standing::Held(_)) {
                return Ok(standing);
            }
            // The core asks again, and counts from then.
            self.answers().insert(asked, standing);
            return Ok(Standing::Nothing { retry_in: Some(Duration::from_millis(1)) });
        }
        self.inner.acquire(claim).await.map(|standing| self.patient(standing))
    }

    async fn renew(&self, renewals: &[Renewal]) -> Vec<Result<Standing, BackendError>> {
        let said: Vec<_> = renewals.iter().map(|renewal| self.said(renewal)).collect();
        let asked = renewals.iter().zip(&said).filter(|(_, said)| said.is_none());
        let asked: Vec<Renewal> = asked.map(|(renewal, _)| renewal.clone()).collect();
        // All at once, as they came: who is asked late for one of them has nothing to do with a bug.
        let answers = match asked.is_empty() {
            true => Vec::new(),
            false => self.inner.renew(&asked).await,
        };
        let mut answers = answers.into_iter();
        let all = renewals.iter().zip(said);
        all.map(|(renewal, said)| {
            let mut answer = || answers.next().unwrap_or_else(|| Err(self.late()));
            said.unwrap_or_else(|| self.bend(renewal, answer()))
        })
        .collect()
    }

    async fn release(&self, claim: &Claim) -> Result<bool, BackendError> {
        match self.bug {
            Bug::CancelledIsKept if claim.last_token().is_none() => return Ok(true),
            Bug::RenewedForEver => {
                let (inner, claim) = (self.inner.clone(), claim.clone());
                // One in a hundred: the renewal was armed in the moment of the release.
                if claim.owner().as_u128() % 100 == 0 {
                    tokio::spawn(async move {
                        loop {
                            tokio::time::sleep(claim.ttl() / 3).await;
                            let renewal = Renewal::new(claim.clone());
                            let _ = inner.renew(&[renewal]).await;
                        }
                    });
                    return Ok(true);
                }
            }
            Bug::ReleaseForEver => {
                while !self.inner.release(claim).await? {
                    tokio::time::sleep(claim.ttl()).await;
                }
                return Ok(true);
            }
            _ => {}
        }
        self.inner.release(claim).await
    }

    async fn inspect(&self, key: &Key) -> Result<Occupancy, BackendError> {
        self.inner.inspect(key).await
    }
}
