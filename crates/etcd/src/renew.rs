//! Keeping alive what claims have: one keep-alive for all that share a lease, and a look at what no watch would have told.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use distlock_core::{BackendError, Claim, Renewal, Standing};
use futures_util::future::join_all;
use tokio::time::{Duration, Instant, timeout};

use crate::{
    error::{Failure, Remedy},
    layout,
    lease::Lease,
    read::Unread,
    settle,
    store::{Store, TRIES},
    table::{Name, Phase, Place, Record},
};

/// How a renewal is carried out.
enum Plan {
    /// It is known here; its leases are kept alive, and perhaps its line is read. `blind`: only a reading can tell what it has.
    Known { place: Place, leases: Vec<Arc<Lease>>, blind: bool },
    /// By itself: it is to be written, or was taken by another process.
    Alone,
}

/// What a batch of renewals takes.
struct Plans {
    /// One for each renewal.
    plans: Vec<Plan>,
    /// To be kept alive.
    leases: HashMap<i64, Arc<Lease>>,
    /// To be read.
    lines: Vec<Arc<str>>,
}

impl Store {
    pub(crate) async fn renew(
        self: &Arc<Self>,
        renewals: &[Renewal],
    ) -> Vec<Result<Standing, BackendError>> {
        let started = Instant::now();
        if let Err(failure) = self.check_open() {
            return renewals.iter().map(|_| Err(failure.clone().into())).collect();
        }
        let Plans { plans, leases, lines } = self.plan(renewals, started);
        // A reading that is slow to come must not cost others of the batch their locks.
        let patience =
            leases.values().map(|lease| lease.granted() / 6).min().unwrap_or(Duration::MAX);
        let see = async {
            if lines.is_empty() {
                return Unread::new();
            }
            let late =
                |_| lines.iter().map(|line| (Arc::clone(line), Failure::timeout())).collect();
            timeout(patience, self.take_in(&lines)).await.unwrap_or_else(late)
        };
        let refreshes = leases.into_values().map(|lease| async move {
            let refreshed = self.refresh(&lease).await.map(drop);
            (lease.id(), refreshed)
        });
        let alone = renewals.iter().zip(&plans).map(|(renewal, plan)| async move {
            match plan {
                Plan::Known { .. } => None,
                Plan::Alone => Some(self.renew_alone(renewal, started).await),
            }
        });
        let (refreshes, unread, alone) = tokio::join!(join_all(refreshes), see, join_all(alone));
        let refreshes: HashMap<_, _> = refreshes.into_iter().collect();
        let answers = renewals.iter().zip(plans).zip(alone).map(|((renewal, plan), alone)| async {
            let Plan::Known { place, leases, blind } = plan else {
                return alone.unwrap_or_else(|| Err(Failure::closed()));
            };
            let rebound = self.table().record(&place).is_some_and(|record| record.rebound);
            if rebound {
                return self.renew_alone(renewal, started).await;
            }
            let failed = leases.iter().find_map(|lease| refreshes.get(&lease.id())?.clone().err());
            let failed = failed.or_else(|| unread.get(&place.line).filter(|_| blind).cloned());
            self.standing(&renewal.claim, &place, started, failed)
        });
        let answers = join_all(answers).await;
        answers.into_iter().map(|answer| answer.map_err(Into::into)).collect()
    }

    /// How each renewal is carried out, and what that takes.
    fn plan(&self, renewals: &[Renewal], started: Instant) -> Plans {
        let (mut leases, mut lines) = (HashMap::new(), HashSet::new());
        let table = self.table();
        let plans = renewals
            .iter()
            .map(|renewal| {
                let place = Place::new(&self.prefix, &renewal.claim);
                let known = |record: &&Record| !renewal.changed && !record.rebound;
                let Some(record) = table.record(&place).filter(known) else {
                    return Plan::Alone;
                };
                let watched = table.names.get(&place.line).is_some_and(Name::hears_all);
                let blind = match record.phase {
                    // A place may have become a lease without a word.
                    Phase::Waiting => true,
                    Phase::Held => !watched,
                    Phase::Asking | Phase::Resting => false,
                };
                // Some servers lose an event.
                let look = blind || record.seen + record.ttl <= started;
                if look {
                    lines.insert(Arc::clone(&place.line));
                }
                let used = record.others.iter().chain([&record.used]);
                let used: Vec<_> = used.map(|used| Arc::clone(used.lease())).collect();
                leases.extend(used.iter().map(|lease| (lease.id(), Arc::clone(lease))));
                Plan::Known { place, leases: used, blind }
            })
            .collect();
        Plans { plans, leases, lines: lines.into_iter().collect() }
    }

    /// What a claim has, after its leases were kept alive, or were not.
    fn standing(
        &self,
        claim: &Claim,
        place: &Place,
        started: Instant,
        failed: Option<Failure>,
    ) -> Result<Standing, Failure> {
        let mut table = self.table();
        let Some(record) = table.record_mut(place) else {
            return Ok(Standing::Nothing { retry_in: None });
        };
        if let Some(failure) = failed.filter(|failure| failure.remedy != Remedy::Lease) {
            return Err(failure);
        }
        match record.phase {
            Phase::Resting => Ok(Standing::Nothing { retry_in: None }),
            // It was never answered, so it may have nothing yet.
            Phase::Asking => Err(Failure::timeout()),
            phase => {
                record.until = record.until.max(started + record.ttl);
                if phase == Phase::Waiting {
                    return Ok(self.queued(claim.ttl()));
                }
                let lease = Arc::clone(record.used.lease());
                Ok(Standing::Held(settle::grant(record.created, record.since(), &lease)))
            }
        }
    }

    async fn renew_alone(
        self: &Arc<Self>,
        renewal: &Renewal,
        started: Instant,
    ) -> Result<Standing, Failure> {
        let claim = &renewal.claim;
        let place = Place::new(&self.prefix, claim);
        let nothing = Ok(Standing::Nothing { retry_in: None });
        if self.table().record(&place).is_some_and(|record| record.phase == Phase::Resting) {
            return nothing;
        }
        let known = self.table().record(&place).map(|record| (record.modified, record.ttl));
        let kept = known.map(|(_, ttl)| ttl);
        let mut known = known.map(|(modified, _)| modified);
        for _ in 0..TRIES {
            let modified = match known {
                Some(modified) if modified != 0 && renewal.changed => modified,
                _ => match self.own(&place).await? {
                    Some(own) if layout::words(&own.value).rests => return nothing,
                    Some(own) if !renewal.changed && kept.is_none() => {
                        return self.adopt(claim, &place, &own, started).await;
                    }
                    Some(own) => own.modified,
                    None => {
                        self.gone(&place);
                        return nothing;
                    }
                },
            };
            // What somebody else did to it is undone.
            let ttl = kept.filter(|_| !renewal.changed).unwrap_or_else(|| claim.ttl());
            let value = layout::value(ttl, &claim.metadata());
            if self.bind(claim, &place, ttl, &value, modified, started).await? {
                return self.after_bind(claim, &place, started).await;
            }
            known = None;
        }
        Err(Failure::timeout())
    }

    /// Takes over a key that another process made, as it is.
    async fn adopt(
        self: &Arc<Self>,
        claim: &Claim,
        place: &Place,
        own: &crate::request::Own,
        started: Instant,
    ) -> Result<Standing, Failure> {
        let words = layout::words(&own.value);
        let ttl = words.ttl.map_or(claim.ttl(), |ttl| ttl.max(claim.ttl()));
        let value = layout::value(ttl, &words.metadata);
        if self.bind(claim, place, ttl, &value, own.modified, started).await? {
            return self.after_bind(claim, place, started).await;
        }
        Err(Failure::timeout())
    }

    /// Binds a key that is there to a lease for this ttl. `false`: it is not as it was known.
    async fn bind(
        self: &Arc<Self>,
        claim: &Claim,
        place: &Place,
        ttl: Duration,
        value: &str,
        modified: i64,
        started: Instant,
    ) -> Result<bool, Failure> {
        let used = self.leases.take(ttl, claim.renews()).await?;
        let lease = Arc::clone(used.lease());
        let refresh = async {
            if lease.since() < started { self.refresh(&lease).await.map(drop) } else { Ok(()) }
        };
        let (written, refreshed) =
            tokio::join!(self.write(place, value, &lease, modified), refresh);
        let written = match written {
            Ok(written) => written,
            Err(failure) => {
                if failure.remedy == Remedy::Lease {
                    self.lease_gone(&lease);
                }
                let mut table = self.table();
                match table.record_mut(place).filter(|_| failure.ambiguous) {
                    // It may be bound to either.
                    Some(record) => record.others.push(used),
                    None if failure.ambiguous => {
                        drop(table);
                        self.leases.retire(used);
                    }
                    None => {
                        drop(table);
                        self.leases.put_back(used);
                    }
                }
                return Err(failure);
            }
        };
        let Ok(modified) = written else {
            self.leases.put_back(used);
            return Ok(false);
        };
        let before = {
            let mut table = self.table();
            let new = table.record(place).is_none();
            let before = table.begin(place, claim, used, started);
            let mut before: Vec<_> = before.into_iter().collect();
            if let Some(record) = table.record_mut(place) {
                (record.modified, record.rebound) = (modified, false);
                (record.ttl, record.until) = (ttl, started + ttl);
                before.append(&mut record.others);
                if new {
                    record.phase = Phase::Waiting;
                }
            }
            table.end_ask(&place.line);
            before
        };
        before.into_iter().for_each(|used| self.leases.put_back(used));
        refreshed.map(|()| true)
    }

    /// What a key has that was just written.
    async fn after_bind(
        self: &Arc<Self>,
        claim: &Claim,
        place: &Place,
        started: Instant,
    ) -> Result<Standing, Failure> {
        let held = self.table().record(place).map(|record| record.phase) == Some(Phase::Held);
        if !held {
            self.take_in_one(&place.line).await?;
            self.wait(place);
        }
        self.standing(claim, place, started, None)
    }

    /// There is no key of a contender that is known here.
    fn gone(self: &Arc<Self>, place: &Place) {
        let removed = {
            let mut table = self.table();
            let known = table.record(place).is_some_and(|record| record.created != 0);
            if known { table.remove(place) } else { None }
        };
        self.carry_out(removed.map(settle::Effect::Gone).into_iter().collect());
    }
}
