//! A store of one's own: a remote table that can do no more than read a row, and write it unless somebody else did in the meantime.
//!
//! `docs/adding-a-backend.md` walks through it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use distlock_core::{
    Backend, BackendError, Capabilities, Claim, FencingToken, Holder, Key, Lease, Mode, Occupancy,
    Owner, Renewal, Standing,
};
use tokio::{sync::Mutex, time::Instant};

/// Locks in a table, as if it were remote. Clones are connections to the same table.
#[derive(Clone, Debug, Default)]
pub(crate) struct TableBackend(Arc<Mutex<HashMap<Key, Row>>>);

/// What the table has of a key. It stays when the lock is gone, so that tokens rise.
#[derive(Clone, Debug, Default)]
struct Row {
    version: u64,
    token: u64,
    owner: Option<Owner>,
    ends: Option<Instant>,
    metadata: Arc<str>,
}

impl Row {
    /// For how long the lock is still taken, by the table's own clock.
    fn left(&self) -> Option<Duration> {
        let left = self.ends?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    fn is_held_by(&self, claim: &Claim) -> bool {
        self.left().is_some() && self.owner == Some(claim.owner())
    }

    /// Another ttl from now on, which shortens nothing unless it is to, and the words.
    fn extend(&mut self, claim: &Claim, shorten: bool) -> Standing {
        let ends = Some(Instant::now() + claim.ttl());
        self.ends = if shorten { ends } else { self.ends.max(ends) };
        self.metadata = claim.metadata();
        Standing::Held(Lease::new(FencingToken::new(self.token)))
    }
}

impl TableBackend {
    async fn read(&self, key: &Key) -> Row {
        self.0.lock().await.get(key).cloned().unwrap_or_default()
    }

    /// Changes a row in one atomic step: once more from the start, when somebody else has written it in the meantime.
    async fn update<T: Send>(&self, key: &Key, change: impl Fn(&mut Row) -> T + Send + Sync) -> T {
        loop {
            let mut row = self.read(key).await;
            let answer = change(&mut row);
            let mut table = self.0.lock().await;
            let known = table.entry(key.clone()).or_default();
            if known.version == row.version {
                *known = Row { version: row.version + 1, ..row };
                return answer;
            }
        }
    }
}

impl Backend for TableBackend {
    fn name(&self) -> &'static str {
        "table"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::exclusive(Duration::from_millis(1));
        capabilities.fencing = true;
        capabilities
    }

    async fn acquire(&self, claim: &Claim) -> Result<Standing, BackendError> {
        let take = |row: &mut Row| match (row.is_held_by(claim), row.left()) {
            (false, Some(left)) => Standing::Nothing { retry_in: Some(left) },
            (ours, _) => {
                row.token += u64::from(!ours);
                row.owner = Some(claim.owner());
                row.extend(claim, !ours)
            }
        };
        Ok(self.update(claim.key(), take).await)
    }

    async fn renew(&self, renewals: &[Renewal]) -> Vec<Result<Standing, BackendError>> {
        let mut answers = Vec::new();
        for Renewal { claim, changed, .. } in renewals {
            let renew = |row: &mut Row| match row.is_held_by(claim) {
                true => row.extend(claim, *changed),
                false => Standing::Nothing { retry_in: None },
            };
            answers.push(Ok(self.update(claim.key(), renew).await));
        }
        answers
    }

    async fn release(&self, claim: &Claim) -> Result<bool, BackendError> {
        let give_back = |row: &mut Row| {
            let ours = row.is_held_by(claim);
            if ours {
                (row.owner, row.ends) = (None, Some(Instant::now() + claim.rest()));
            }
            ours
        };
        Ok(self.update(claim.key(), give_back).await)
    }

    async fn inspect(&self, key: &Key) -> Result<Occupancy, BackendError> {
        let row = self.read(key).await;
        let Some(left) = row.left() else { return Ok(Occupancy::default()) };
        let mut holder = Holder::new(Mode::Exclusive).expires_in(left).metadata(&*row.metadata);
        if let Some(owner) = row.owner {
            holder = holder.owner(owner).token(FencingToken::new(row.token));
        }
        Ok(Occupancy::new(vec![holder]))
    }
}
