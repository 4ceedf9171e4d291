//! What comes unasked: grants, losses, and word of the connection.

use std::time::Duration;

use distlock_core::{Claim, LossReason, Owner, simulation};
use tokio::time::{Instant, sleep};

use super::{
    super::server::{Grant, Push},
    Backend, Place, Table, lease, millis,
};
use crate::{Bug, net::Heard};

impl Backend {
    /// Something came on the second connection.
    pub(crate) fn hear(&self, heard: Heard<Push>) {
        match heard {
            Heard::Push(push) => self.push(push),
            Heard::Lost => {
                self.0.table().ahead = None;
                self.recheck(|place| !place.held);
            }
            Heard::Resubscribed => self.recheck(|_| true),
        }
    }

    fn recheck(&self, wanted: impl Fn(&Place) -> bool) {
        let claims: Vec<_> = {
            let table = self.0.table();
            let wanted = table.places.values().filter(|place| wanted(place));
            wanted.map(|place| place.claim.clone()).collect()
        };
        claims.iter().for_each(Claim::recheck);
    }

    fn push(&self, push: Push) {
        let mut table = self.0.table();
        match push {
            Push::Granted { owner, server, grant, key } => {
                drop(table);
                self.granted(owner, server, grant, &key);
            }
            Push::Contended(owner) => {
                let claim = table.places.get(&owner).map(|place| place.claim.clone());
                drop(table);
                if let Some(claim) = claim {
                    claim.contend();
                }
            }
            Push::Hold(owner) => {
                let claim = table.suspect(owner);
                drop(table);
                if let Some(claim) = claim {
                    claim.recheck();
                }
            }
            Push::Lost(owner) => {
                let place = table.places.remove(&owner);
                drop(table);
                if let Some(place) = place {
                    place.claim.end(LossReason::Gone);
                }
            }
        }
    }

    fn granted(&self, owner: Owner, server: i64, grant: Grant, key: &str) {
        let now = Instant::now();
        let ttl = millis(grant.ttl);
        let mut table = self.0.table();
        let Some(place) = table.places.get_mut(&owner) else {
            drop(table);
            return self.give_back_unknown(owner, key, ttl);
        };
        let claim = place.claim.clone();
        let margin = (ttl / 100).max(Duration::from_millis(5));
        let since = match self.0.bug {
            Some(Bug::DeadlineFromPush) => Some(now),
            _ => place.since(server, now, ttl),
        };
        match since.filter(|&since| now < since + ttl.saturating_sub(margin)) {
            Some(since) => {
                place.held = true;
                drop(table);
                if grant.awaited {
                    claim.contend();
                }
                if !self.0.link.grant(&claim, lease(&grant).with_since(since)) {
                    self.give_back_unknown(owner, key, ttl);
                }
            }
            None => {
                place.suspect = true;
                drop(table);
                claim.recheck();
            }
        }
    }

    /// Sends a release in the background until it is answered.
    pub(super) fn give_back_unknown(&self, owner: Owner, key: &str, ttl: Duration) {
        let (backend, key) = (self.clone(), key.to_owned());
        let end = Instant::now() + ttl;
        self.later(async move {
            let mut pause = Duration::from_millis(16);
            while backend.0.give_back(&key, owner, 0, 0).await.is_err()
                && Instant::now() + pause < end
            {
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(512));
            }
        });
    }

    pub(super) fn later(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(simulation::inherit(task));
    }
}

impl Table {
    fn suspect(&mut self, owner: Owner) -> Option<Claim> {
        let place = self.places.get_mut(&owner)?;
        place.suspect = true;
        Some(place.claim.clone())
    }
}

impl Place {
    /// From when on our clock a grant runs that was made at a time of the server's clock.
    fn since(&self, server: i64, now: Instant, ttl: Duration) -> Option<Instant> {
        let Some((shown, local)) = self.anchor else { return self.new.then_some(self.asked) };
        let ahead = Duration::from_micros(u64::try_from(server.checked_sub(shown)?).ok()?);
        let elapsed = now.saturating_duration_since(local);
        if elapsed > ttl || ahead > elapsed + elapsed / 100 {
            return None;
        }
        Some((local + ahead - ahead / 100).min(now))
    }
}
