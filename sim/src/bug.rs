//! The zoo: bugs that other lock libraries had, each of which can be put into a simulated store, or between it and the core.
//!
//! They are here to be caught. A bug that no run finds would show that the runs look in the wrong place.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use distlock_core::{
    AnyBackend, Backend, BackendError, Capabilities, Claim, Key, Occupancy, Owner, Renewal,
    Standing,
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
    /// Whether a lock is held is told by a flag that a task sets.
    FlagInsteadOfClock,
    /// Release does not look at the owner: redsync 168, etcd 22082.
    ReleaseOfAnybody,
    /// A renewal writes a lock that is gone: redsync 149, `RedLock.net` 93.
    RenewalCreates,
    /// So does a change of the ttl: redlock-rb 36.
    ChangeCreates,
    /// An acquisition that is asked again says "held" and does not refresh the ttl.
    AgainWithoutRefresh,
    /// What was cancelled before it was held is not given back: redisson 2714, redsync 71, etcd-client.
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
}

impl Bug {
    /// All of them, with the store in which each lives.
    pub const ALL: [(Self, Store); 19] = [
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
    ];

    /// Whether it leaves things behind by the way it is made here, so that this alone catches nothing.
    #[must_use]
    pub const fn leaks_by_itself(self) -> bool {
        matches!(self, Self::DeadlineFromReply)
    }

    /// Puts it between a store and the core, if it lives there.
    pub(crate) fn wrap(self, backend: AnyBackend) -> AnyBackend {
        let answers = Arc::default();
        AnyBackend::new(Mutant { bug: self, inner: backend, answers })
    }
}

/// A store with a bug before it.
#[derive(Clone, Debug)]
struct Mutant {
    bug: Bug,
    inner: AnyBackend,
    /// What was answered, and is said when it is asked for again.
    answers: Arc<Mutex<BTreeMap<(Owner, bool), Standing>>>,
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
        standing
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
        let mut answers = Vec::with_capacity(renewals.len());
        for renewal in renewals {
            let asked = (renewal.claim.owner(), true);
            let said = match self.bug {
                Bug::DeadlineFromReply => self.answers().remove(&asked),
                _ => None,
            };
            if let Some(standing) = said {
                answers.push(Ok(standing));
                continue;
            }
            let answer = self.inner.renew(std::slice::from_ref(renewal)).await;
            let answer = answer.into_iter().next().unwrap_or_else(|| Err(self.late()));
            answers.push(match (self.bug, answer) {
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
                (_, answer) => answer.map(|standing| self.patient(standing)),
            });
        }
        answers
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
            _ => {}
        }
        self.inner.release(claim).await
    }

    async fn inspect(&self, key: &Key) -> Result<Occupancy, BackendError> {
        self.inner.inspect(key).await
    }
}
