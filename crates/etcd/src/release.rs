//! How a claim leaves its key: deleted, or left to nobody for the rest of a minimal hold.

use std::{collections::hash_map::Entry, sync::Arc, time::Duration};

use distlock_core::Claim;
use tokio::time::Instant;

use crate::{
    error::Failure,
    layout,
    lease::{Lease, Use},
    members::Answered,
    request::{Reply, Request},
    store::{Store, TRIES},
    table::{Phase, Place, Record},
};

impl Store {
    pub(crate) async fn release(self: &Arc<Self>, claim: &Claim) -> Result<bool, Failure> {
        let place = Place::new(&self.prefix, claim);
        let rest = claim.rest();
        let record = {
            let mut table = self.table();
            if table.record(&place).is_some_and(|record| record.phase == Phase::Resting) {
                return Ok(false);
            }
            table.remove(&place)
        };
        if !rest.is_zero() && record.as_ref().is_none_or(|record| record.phase == Phase::Held) {
            return self.rest(claim, &place, rest, record).await;
        }
        let known = record.as_ref().is_some_and(|record| record.created != 0);
        let deleted = self.writer.send(Request::Delete { own: place.own() }).await;
        if deleted.is_ok() {
            self.table().left(&place);
        }
        match deleted {
            Ok(Answered { answer: Reply::Deleted(deleted), ambiguous }) => {
                if let Some(record) = record {
                    self.deleted(&place, record);
                }
                // An attempt without an answer deleted it, if it was there.
                Ok(deleted || ambiguous && known)
            }
            other => {
                if let Some(record) = record {
                    self.upkeep.sweep(place.clone(), record);
                }
                Err(other.err().unwrap_or_else(|| Failure::protocol("no delete")))
            }
        }
    }

    /// Its key is deleted: what it was bound to is free.
    fn deleted(&self, place: &Place, record: Record) {
        if record.ambiguous {
            return self.haunt(place, record);
        }
        for used in record.others.into_iter().chain([record.used]) {
            self.leases.put_back(used);
        }
    }

    /// Its key is gone, and a request that was given up may make it again.
    pub(crate) fn haunt(&self, place: &Place, record: Record) {
        let uses: Vec<_> = record.others.into_iter().chain([record.used]).collect();
        let ghosts = uses.iter().map(|used| Arc::clone(used.lease())).collect();
        uses.into_iter().for_each(|used| self.leases.retire(used));
        self.upkeep.haunt(place.clone(), ghosts);
    }

    /// Leaves the key to nobody, for the rest of a minimal hold.
    async fn rest(
        self: &Arc<Self>,
        claim: &Claim,
        place: &Place,
        rest: Duration,
        record: Option<Record>,
    ) -> Result<bool, Failure> {
        let started = Instant::now();
        let modified = record.as_ref().map_or(0, |record| record.modified);
        let written = match self.take_whole(rest, started).await {
            Ok(used) => {
                let value = layout::resting(rest);
                let written = self.overwrite(place, &value, used.lease(), modified).await;
                written.map(|written| written.then_some(used))
            }
            Err(failure) => Err(failure),
        };
        match written {
            Ok(Some(used)) => {
                // A late request may still bind the key to those leases: they go with it, when the rest is over.
                let late = record.and_then(|record| {
                    if record.ambiguous {
                        return Some(record);
                    }
                    self.deleted(place, record);
                    None
                });
                let mut table = self.table();
                let before = table.begin(place, claim, used, started);
                if let Some(resting) = table.record_mut(place) {
                    (resting.phase, resting.until) = (Phase::Resting, started + rest);
                    if let Some(Record { used, others, .. }) = late {
                        resting.ambiguous = true;
                        resting.others = others.into_iter().chain([used]).collect();
                    }
                }
                table.end_ask(&place.line);
                drop(table);
                drop(before);
                self.upkeep.wake_at(started + rest);
                Ok(true)
            }
            Ok(None) => {
                if let Some(record) = record {
                    self.leave(record);
                }
                Ok(false)
            }
            Err(failure) => {
                if let Some(record) = record {
                    self.keep(place, record);
                }
                Err(failure)
            }
        }
    }

    /// A lease of its own, with all of its time: one from the stock has had some of it already.
    async fn take_whole(
        self: &Arc<Self>,
        rest: Duration,
        started: Instant,
    ) -> Result<Use, Failure> {
        let used = self.leases.take(rest, false).await?;
        if started <= used.lease().since() {
            return Ok(used);
        }
        match self.refresh(used.lease()).await {
            Ok(_) => Ok(used),
            Err(failure) => {
                self.leases.retire(used);
                Err(failure)
            }
        }
    }

    /// It could not be left to nobody, and must not be free before its time: it stays as it is, to be released once more or to end with its ttl.
    fn keep(&self, place: &Place, record: Record) {
        let until = record.until;
        let came_back = {
            let mut table = self.table();
            match table.name(&place.line).records.entry(place.nonce.clone()) {
                Entry::Occupied(_) => Some(record),
                Entry::Vacant(vacant) => {
                    vacant.insert(record);
                    None
                }
            }
        };
        match came_back {
            Some(record) => self.upkeep.sweep(place.clone(), record),
            None => self.upkeep.wake_at(until),
        }
    }

    /// Writes a key that is there, whatever is known of it, unless it rests already.
    async fn overwrite(
        &self,
        place: &Place,
        value: &str,
        lease: &Lease,
        mut modified: i64,
    ) -> Result<bool, Failure> {
        for _ in 0..TRIES {
            let known = if modified == 0 {
                self.own(place).await?
            } else {
                match self.write(place, value, lease, modified).await? {
                    Ok(_) => return Ok(true),
                    Err(known) => known,
                }
            };
            match known {
                Some(own) if !layout::words(&own.value).rests => modified = own.modified,
                _ => break,
            }
        }
        Ok(false)
    }
}
