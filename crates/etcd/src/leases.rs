//! The leases of this process: one for all locks of a ttl that are renewed, and a small stock of others for those that are not.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Mutex as AsyncMutex, time::Instant};

use crate::{
    error::{Failure, Remedy},
    lease::{Kind, Lease, Use},
    members::Members,
};

/// How many leases of a ttl are kept for the next lock that is not renewed.
const STOCK: usize = 64;

/// A shared lease is given back when nobody has used it for so long.
const IDLE: Duration = Duration::from_secs(300);

/// The leases, and where they come from.
#[derive(Debug)]
pub(crate) struct Leases {
    members: Arc<Members>,
    table: Mutex<Table>,
    /// One shared lease is asked for at a time, so that those who want the same get the same. When that failed the last time, and how.
    granting: AsyncMutex<Option<(Instant, Failure)>>,
}

#[derive(Debug, Default)]
struct Table {
    /// By their seconds.
    shared: HashMap<u64, Arc<Lease>>,
    stock: HashMap<u64, Vec<Arc<Lease>>>,
    /// To be revoked when nobody uses them any more.
    leaving: Vec<Arc<Lease>>,
}

/// What is to be done with leases.
#[derive(Debug, Default)]
pub(crate) struct Chores {
    pub(crate) refresh: Vec<Arc<Lease>>,
    pub(crate) revoke: Vec<Arc<Lease>>,
}

impl Leases {
    pub(crate) fn new(members: Arc<Members>) -> Self {
        Self { members, table: Mutex::default(), granting: AsyncMutex::default() }
    }

    /// A lease for a claim of this ttl: the shared one if it `renews`, else one for it alone.
    pub(crate) async fn take(&self, ttl: Duration, renews: bool) -> Result<Use, Failure> {
        let seconds = seconds(ttl);
        if !renews {
            if let Some(lease) = self.table().stocked(seconds, Instant::now()) {
                return Ok(lease.take());
            }
            return Ok(self.grant(seconds, Kind::Exclusive).await?.take());
        }
        if let Some(lease) = self.table().shared(seconds, Instant::now()) {
            return Ok(lease.take());
        }
        let came = Instant::now();
        let mut failed = self.granting.lock().await;
        if let Some(lease) = self.table().shared(seconds, Instant::now()) {
            return Ok(lease.take());
        }
        // Nobody answered whom it waited for: nor would anybody now, and others wait behind it.
        if let Some((_, failure)) = failed.as_ref().filter(|(at, _)| came < *at) {
            return Err(failure.clone());
        }
        let granted = self.grant(seconds, Kind::Shared).await;
        let silence = |failure: &&Failure| matches!(failure.remedy, Remedy::Move { .. });
        let failure = granted.as_ref().err().filter(silence);
        *failed = failure.map(|failure| (Instant::now(), failure.clone()));
        let lease = granted?;
        let before = self.table().shared.insert(seconds, Arc::clone(&lease));
        self.table().leaving.extend(before);
        Ok(lease.take())
    }

    /// The key of a claim was deleted: its lease is free again.
    pub(crate) fn put_back(&self, used: Use) {
        let lease = Arc::clone(used.lease());
        drop(used);
        if lease.is_shared() {
            return;
        }
        let mut table = self.table();
        if lease.is_usable(Instant::now()) {
            let stock = table.stock.entry(lease.seconds()).or_default();
            if stock.len() < STOCK {
                stock.push(lease);
                return;
            }
        }
        table.leaving.push(lease);
    }

    /// The key of a claim may still be there, or come yet: its lease goes, when nobody else uses it.
    pub(crate) fn retire(&self, used: Use) {
        let lease = used.lease();
        lease.retire();
        if !lease.is_shared() {
            self.table().leaving.push(Arc::clone(lease));
        }
    }

    /// The server does not have it any more.
    pub(crate) fn forget(&self, lease: &Lease) {
        lease.set_gone();
        let mut table = self.table();
        if table.shared.get(&lease.seconds()).is_some_and(|shared| shared.id() == lease.id()) {
            table.shared.remove(&lease.seconds());
        }
    }

    /// What is to be done now.
    pub(crate) fn chores(&self, now: Instant) -> Chores {
        let mut table = self.table();
        let Table { shared, stock, leaving } = &mut *table;
        shared.retain(|_, lease| {
            let idle = lease.idle_since().is_some_and(|since| since + IDLE <= now);
            let leaves = idle || lease.is_retired();
            if leaves {
                leaving.push(Arc::clone(lease));
            }
            !leaves && !lease.is_gone()
        });
        // Leases in stock are not kept alive: what nobody takes ends by itself, or long before that here.
        stock.retain(|_, leases| {
            let (keep, old): (Vec<_>, Vec<_>) =
                leases.drain(..).partition(|lease| lease.is_usable(now) && !is_old(lease, now));
            leaving.extend(old);
            *leases = keep;
            !leases.is_empty()
        });
        leaving.retain(|lease| !lease.is_gone());
        let (revoke, wait): (Vec<_>, Vec<_>) =
            leaving.drain(..).partition(|lease| lease.idle_since().is_some());
        *leaving = wait;
        let due = |lease: &&Arc<Lease>| lease.is_shared() && lease.is_due(now);
        let refresh = shared.values().chain(&*leaving).filter(due).cloned().collect();
        Chores { refresh, revoke }
    }

    /// Gives a lease back, with all that is bound to it.
    pub(crate) async fn revoke(&self, lease: &Lease) -> Result<(), Failure> {
        let id = lease.id();
        let revoked =
            self.members.call(|client| async move { client.lease_client().revoke(id).await }).await;
        match revoked {
            Ok(_) => {}
            Err(failure) if failure.remedy == Remedy::Lease => {}
            Err(failure) => return Err(failure),
        }
        lease.set_gone();
        Ok(())
    }

    /// One that could not be revoked: again later.
    pub(crate) fn again(&self, lease: Arc<Lease>) {
        self.table().leaving.push(lease);
    }

    /// All of them, for the end.
    pub(crate) fn drain(&self) -> Vec<Arc<Lease>> {
        let mut table = self.table();
        let Table { shared, stock, leaving } = std::mem::take(&mut *table);
        shared.into_values().chain(stock.into_values().flatten()).chain(leaving).collect()
    }

    async fn grant(&self, seconds: u64, kind: Kind) -> Result<Arc<Lease>, Failure> {
        let asked = i64::try_from(seconds).unwrap_or(i64::MAX);
        // One that was granted without our hearing of it ends by itself.
        let granted = self
            .members
            .call(|client| async move {
                let since = Instant::now();
                client.lease_client().grant(asked, None).await.map(|granted| (granted, since))
            })
            .await?;
        let (granted, since) = granted.answer;
        let ttl = u64::try_from(granted.ttl()).unwrap_or(0);
        if ttl == 0 {
            return Err(Failure::protocol("a lease without time"));
        }
        let ttl = Duration::from_secs(ttl);
        Ok(Lease::new(granted.id(), seconds, ttl, kind, since))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn shared(&self, seconds: u64, now: Instant) -> Option<&Arc<Lease>> {
        self.shared.get(&seconds).filter(|lease| lease.is_usable(now))
    }

    fn stocked(&mut self, seconds: u64, now: Instant) -> Option<Arc<Lease>> {
        let stock = self.stock.get_mut(&seconds)?;
        while let Some(lease) = stock.pop() {
            if lease.is_usable(now) {
                return Some(lease);
            }
            self.leaving.push(lease);
        }
        None
    }
}

/// Who took a lock without renewal that long ago is not about to take another one.
fn is_old(lease: &Lease, now: Instant) -> bool {
    lease.idle_since().is_none_or(|since| since + Duration::from_secs(10) <= now)
}

/// Leases have whole seconds: rounded up.
fn seconds(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u64::MAX).max(1)
}
