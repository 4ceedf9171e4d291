//! The client's side: a lease and a key for each claim. The claims for which those of lower revisions leave room have the lock.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::server::{Deleted, Etcd, Put, Rank};
use crate::{
    Bug,
    net::{Cut, Heard, Link},
};
use distlock_core::{
    BackendError, Capabilities, Claim, FencingToken, Holder, Key, Lease, Occupancy, Owner, Renewal,
    Standing,
};

const NAME: &str = "sim-etcd";

/// So many tokens belong to one revision.
const SPARE_BITS: u32 = 16;

/// A store like etcd.
#[derive(Clone, Debug)]
pub(crate) struct Backend(Arc<Store>);

#[derive(Debug)]
struct Store {
    link: Link<Etcd>,
    bug: Option<Bug>,
    claims: Mutex<BTreeMap<Owner, Entry>>,
}

/// What is known of a claim.
#[derive(Clone, Debug)]
struct Entry {
    claim: Claim,
    lease: u64,
    /// Of the lease, whatever the claim's may be by now.
    ttl: Duration,
}

impl Backend {
    pub(crate) fn new(link: Link<Etcd>, bug: Option<Bug>) -> Self {
        Self(Arc::new(Store { link, bug, claims: Mutex::default() }))
    }

    /// Something came by the watch. It decides nothing: who is concerned asks.
    pub(crate) fn hear(&self, heard: Heard<Deleted>) {
        let claims: Vec<Claim> = {
            let claims = self.0.claims();
            let all = claims.values().map(|entry| &entry.claim);
            let concerned = |claim: &&Claim| match &heard {
                Heard::Push(Deleted { key }) => claim.key().as_str() == key,
                Heard::Lost | Heard::Resubscribed => self.0.bug != Some(Bug::CanceledWatch),
            };
            all.filter(concerned).cloned().collect()
        };
        claims.iter().for_each(Claim::recheck);
    }
}

impl Store {
    fn claims(&self) -> MutexGuard<'_, BTreeMap<Owner, Entry>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease_of(&self, owner: Owner) -> Option<u64> {
        self.claims().get(&owner).map(|entry| entry.lease)
    }

    async fn acquire(&self, claim: &Claim) -> Result<Standing, Cut> {
        let owner = claim.owner();
        let known = match self.lease_of(owner) {
            Some(lease) => {
                let alive = self.link.exchange(move |etcd| etcd.keep_alive(lease)).await?;
                alive.then_some(lease)
            }
            None => None,
        };
        let lease = match known {
            Some(lease) => lease,
            None => {
                let ttl = claim.ttl();
                let micros = i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX);
                let lease = self.link.exchange(move |etcd| etcd.grant_lease(micros)).await?;
                self.claims().insert(owner, Entry { claim: claim.clone(), lease, ttl });
                lease
            }
        };
        let (key, only_if_free) = (claim.key().as_str().to_owned(), !claim.may_queue());
        let who = (owner, claim.mode());
        let put = self.link.exchange(move |etcd| etcd.put(&key, who, lease, only_if_free)).await;
        match put? {
            Put::Stands(rank) => Ok(self.stands(claim, rank)),
            Put::Taken => {
                // Nothing but the lease is there. If this fails, it ends by itself.
                let _ = self.link.exchange(move |etcd| etcd.revoke(lease)).await;
                self.claims().remove(&owner);
                Ok(Standing::Nothing { retry_in: None })
            }
            Put::NoLease => Err(Cut::Refused),
        }
    }

    async fn renew_one(&self, renewal: &Renewal) -> Result<Standing, Cut> {
        let claim = &renewal.claim;
        let owner = claim.owner();
        let gone = Standing::Nothing { retry_in: None };
        let Some(lease) = self.lease_of(owner) else { return Ok(gone) };
        if !self.link.exchange(move |etcd| etcd.keep_alive(lease)).await? {
            if self.bug == Some(Bug::WaiterWithoutLease) {
                return self.first_all_the_same(claim).await;
            }
            if self.bug == Some(Bug::ExpiredWaiterWaits) && claim.last_token().is_none() {
                return Ok(Standing::Queued { recheck: claim.ttl() / 4 });
            }
            return Ok(gone);
        }
        let key = claim.key().as_str().to_owned();
        let rank = self.link.exchange(move |etcd| etcd.rank(&key, owner)).await?;
        Ok(rank.map_or(gone, |rank| self.stands(claim, rank)))
    }

    /// As the server's own lock: those before it are gone, and so it has the lock. Its own key is gone too.
    async fn first_all_the_same(&self, claim: &Claim) -> Result<Standing, Cut> {
        let key = claim.key().as_str().to_owned();
        let (admitted, revision) =
            self.link.exchange(move |etcd| (etcd.is_free(&key), etcd.revision())).await?;
        let rank = Rank { revision, admitted, awaited: false };
        Ok(self.stands(claim, rank))
    }

    fn stands(&self, claim: &Claim, rank: Rank) -> Standing {
        if !rank.admitted {
            let soonest = claim.ttl() / 4;
            return Standing::Queued { recheck: soonest + self.link.between(0, 50) };
        }
        if rank.awaited {
            claim.contend();
        }
        let lease = Lease::new(FencingToken::new(rank.revision << SPARE_BITS));
        let ttl = self.claims().get(&claim.owner()).map_or(Duration::ZERO, |entry| entry.ttl);
        Standing::Held(lease.with_spare(claim.block().max(1) - 1).with_ttl(ttl))
    }
}

impl distlock_core::Backend for Backend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::exclusive(Duration::from_millis(500));
        (capabilities.fair, capabilities.fencing, capabilities.push) = (true, true, true);
        (capabilities.permits, capabilities.shared) = (true, true);
        capabilities
    }

    async fn acquire(&self, claim: &Claim) -> Result<Standing, BackendError> {
        self.0.acquire(claim).await.map_err(|cut| cut.error(NAME))
    }

    async fn renew(&self, renewals: &[Renewal]) -> Vec<Result<Standing, BackendError>> {
        let mut answers = Vec::with_capacity(renewals.len());
        for renewal in renewals {
            answers.push(self.0.renew_one(renewal).await.map_err(|cut| cut.error(NAME)));
        }
        answers
    }

    async fn release(&self, claim: &Claim) -> Result<bool, BackendError> {
        let (owner, key) = (claim.owner(), claim.key().as_str().to_owned());
        if self.0.bug == Some(Bug::ReleaseOfTheSession) {
            let name = claim.key();
            let same = |entry: &&Entry| entry.claim.key() == name;
            let leases: Vec<_> =
                self.0.claims().values().filter(same).map(|one| one.lease).collect();
            for lease in leases {
                let _ = self.0.link.exchange(move |etcd| etcd.revoke(lease)).await;
            }
        }
        let rest = i64::try_from(claim.rest().as_micros()).unwrap_or(i64::MAX);
        let released = match self.0.lease_of(owner) {
            Some(lease) if rest > 0 => {
                let run = move |etcd: &mut Etcd| {
                    let rests = etcd.rest(&key, owner, rest);
                    // What the key was bound to before, if it is not in use any more.
                    etcd.revoke(lease) || rests
                };
                self.0.link.exchange(run).await
            }
            Some(lease) => self.0.link.exchange(move |etcd| etcd.revoke(lease)).await,
            // Somebody else's, taken away by force.
            None => self.0.link.exchange(move |etcd| etcd.delete_owner(&key, owner)).await,
        };
        let released = released.map_err(|cut| cut.error(NAME))?;
        self.0.claims().remove(&owner);
        Ok(released)
    }

    async fn inspect(&self, key: &Key) -> Result<Occupancy, BackendError> {
        let key = key.as_str().to_owned();
        let found = self.0.link.exchange(move |etcd| etcd.inspect(&key)).await;
        let (holders, waiting) = found.map_err(|cut| cut.error(NAME))?;
        let holders = holders.into_iter().map(|(owner, mode, revision)| {
            Holder::new(mode).owner(owner).token(FencingToken::new(revision << SPARE_BITS))
        });
        Ok(Occupancy::new(holders.collect()).waiting(waiting as u64))
    }
}
