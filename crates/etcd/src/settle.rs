//! What follows from what is known of a line: who is granted the lock, who hears that others wait, who has lost what it had.

use std::sync::Arc;

use distlock_core::{Claim, FencingToken, Lease as Grant, LossReason};
use tokio::time::Instant;

use crate::{
    lease::Lease,
    store::Store,
    table::{Name, Phase, Place, Record},
};

/// How many tokens there are from one create revision to the next: one for the grant, the others for hand-overs inside the process.
const TOKENS: u32 = 1 << 16;

/// Something to be told, when the table is free again.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Others wait for what it holds.
    Contend(Claim),
    /// Its key is gone from etcd.
    Gone(Record),
    /// It stood in line, and has the lock now.
    Grant { claim: Claim, lease: Arc<Lease>, created: i64 },
}

/// The token of a grant: the create revision of its key, with room for hand-overs inside the process.
pub(crate) fn token(created: i64) -> FencingToken {
    FencingToken::new(created.unsigned_abs().saturating_mul(u64::from(TOKENS)))
}

/// The create revision that a token was made of.
pub(crate) fn created(token: FencingToken) -> i64 {
    i64::try_from(token.as_u64() / u64::from(TOKENS)).unwrap_or(i64::MAX)
}

/// A grant, as core is told of it.
pub(crate) fn grant(created: i64, since: Instant, lease: &Lease) -> Grant {
    Grant::new(token(created)).with_spare(TOKENS - 1).with_since(since).with_ttl(lease.granted())
}

impl Name {
    /// Makes holders of those who are admitted. `complete`: all who stand in the line are known, those behind too.
    pub(crate) fn settle(&mut self, complete: bool) -> Vec<Effect> {
        let Self { line, records, .. } = self;
        let mut effects = Vec::new();
        for (nonce, created) in line.admitted() {
            if let Some(record) = records.get_mut(nonce)
                && record.phase == Phase::Waiting
                && record.created == created
            {
                record.phase = Phase::Held;
                let lease = Arc::clone(record.used.lease());
                effects.push(Effect::Grant { claim: record.claim.clone(), lease, created });
            }
        }
        if complete && records.len() < line.len() {
            for record in records.values_mut() {
                if record.phase == Phase::Held && !std::mem::replace(&mut record.contended, true) {
                    effects.push(Effect::Contend(record.claim.clone()));
                }
            }
        }
        effects
    }
}

impl Store {
    /// Tells what is to be told.
    pub(crate) fn carry_out(self: &Arc<Self>, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Contend(claim) => claim.contend(),
                Effect::Gone(record) => {
                    record.claim.end(LossReason::Gone);
                    self.leave(record);
                }
                Effect::Grant { claim, lease, created } => self.grant(claim, lease, created),
            }
        }
    }

    /// Nothing is left of a contender in etcd, or nothing that would last.
    pub(crate) fn leave(&self, record: Record) {
        if record.ambiguous {
            return self.haunt(&Place::new(&self.prefix, &record.claim), record);
        }
        for used in record.others.into_iter().chain([record.used]) {
            if !used.lease().is_shared() {
                self.leases.retire(used);
            }
        }
    }

    /// A claim that asked got nothing, and may not ask again: what it asked for without an answer must not come true.
    pub(crate) fn forsake(&self, place: &Place) {
        let removed = {
            let mut table = self.table();
            let asks = table.record(place).is_some_and(|record| record.phase == Phase::Asking);
            if asks { table.remove(place) } else { None }
        };
        if let Some(record) = removed {
            self.leave(record);
        }
    }

    fn grant(self: &Arc<Self>, claim: Claim, lease: Arc<Lease>, created: i64) {
        let place = Place::new(&self.prefix, &claim);
        self.granted(&place);
        // The ttl of a lock that is not renewed begins with its grant, not while it waited. And a lease that was not heard of for long has to
        // show that it is still there.
        if lease.is_shared() && lease.is_fresh(Instant::now(), claim.ttl()) {
            return self.push(&claim, &place, &lease, created);
        }
        let store = Arc::clone(self);
        self.runtime.spawn(async move {
            match store.refresh(&lease).await {
                Err(failure) if failure.remedy == crate::error::Remedy::Lease => {}
                // It counts from when it was last kept alive.
                _ => store.push(&claim, &place, &lease, created),
            }
        });
    }

    fn push(self: &Arc<Self>, claim: &Claim, place: &Place, lease: &Lease, created: i64) {
        if let Some(record) = self.table().record_mut(place) {
            record.until = record.until.max(lease.since() + record.ttl);
        }
        if claim.grant(grant(created, lease.since(), lease)) {
            return;
        }
        // Nobody waits for it any more.
        let mine = |record: &&Record| record.created == created;
        if self.table().record(place).filter(mine).is_none() {
            return;
        }
        let (store, claim) = (Arc::clone(self), claim.clone());
        self.runtime.spawn(async move {
            // Should it fail, its key is deleted later.
            let _ = store.release(&claim).await;
        });
    }
}
