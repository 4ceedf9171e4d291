//! The server: keys in the order of their revisions, each under a lease, and events for those who watch.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use distlock_core::{Mode, Owner};

use crate::{
    Bug,
    clock::Clock,
    net::Server,
    plan::{FENCE_RESET, Wound},
};

/// Whose a key is for the rest of a minimal hold.
const NOBODY: Owner = Owner::new(0);

/// A server, or a quorum of them, like etcd.
#[derive(Clone, Debug)]
pub(crate) struct Etcd {
    /// Nobody can set it: time counts from the start.
    clock: Clock,
    revision: u64,
    /// The keys of each lock, by revision.
    locks: BTreeMap<String, Vec<Entry>>,
    leases: BTreeMap<u64, Lease>,
    last_lease: u64,
    watching: BTreeSet<u32>,
    events: Vec<(u32, Deleted)>,
    /// The highest revision ever, whatever was restored since.
    highest: u64,
    mishaps: Vec<(&'static str, String)>,
    bug: Option<Bug>,
}

#[derive(Clone, Debug)]
struct Entry {
    revision: u64,
    owner: Owner,
    mode: Mode,
    lease: u64,
}

#[derive(Clone, Debug)]
struct Lease {
    /// In microseconds.
    ttl: i64,
    until: i64,
}

/// A key of this lock is gone.
#[derive(Clone, Debug)]
pub(crate) struct Deleted {
    pub(crate) key: String,
}

/// Where the key of an owner stands among those of its lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rank {
    pub(crate) revision: u64,
    /// Those before it leave room for it.
    pub(crate) admitted: bool,
    /// Somebody stands behind it, and waits.
    pub(crate) awaited: bool,
}

/// What came of a transaction that puts a key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Put {
    Stands(Rank),
    /// There are others, and it was to be put only if they leave room.
    Taken,
    /// Its lease is gone.
    NoLease,
}

impl Etcd {
    pub(crate) fn new(bug: Option<Bug>) -> Self {
        Self {
            bug,
            clock: Clock::new(0),
            revision: 1,
            locks: BTreeMap::new(),
            leases: BTreeMap::new(),
            last_lease: 0,
            watching: BTreeSet::new(),
            events: Vec::new(),
            highest: 0,
            mishaps: Vec::new(),
        }
    }

    pub(crate) fn grant_lease(&mut self, ttl: i64) -> u64 {
        self.last_lease += 1;
        let until = self.clock.micros() + ttl;
        self.leases.insert(self.last_lease, Lease { ttl, until });
        self.last_lease
    }

    /// Whether it is alive, and so for another ttl.
    pub(crate) fn keep_alive(&mut self, lease: u64) -> bool {
        let now = self.clock.micros();
        let Some(lease) = self.leases.get_mut(&lease) else { return false };
        lease.until = now + lease.ttl;
        true
    }

    /// Puts a key for the owner if there is none; where it stands then.
    pub(crate) fn put(
        &mut self,
        key: &str,
        (owner, mode): (Owner, Mode),
        lease: u64,
        only_if_free: bool,
    ) -> Put {
        if let Some(rank) = self.rank(key, owner) {
            return Put::Stands(rank);
        }
        if !self.leases.contains_key(&lease) {
            return Put::NoLease;
        }
        let entries = self.locks.entry(key.to_owned()).or_default();
        let admitted = mode.admitted_after(entries.iter().map(|entry| entry.mode));
        if only_if_free && !admitted {
            return Put::Taken;
        }
        self.revision += 1;
        let revision = self.revision;
        entries.push(Entry { revision, owner, mode, lease });
        if revision <= self.highest {
            self.mishaps.push((FENCE_RESET, key.to_owned()));
        }
        self.highest = self.highest.max(revision);
        match self.rank(key, owner) {
            Some(rank) => Put::Stands(rank),
            None => Put::NoLease,
        }
    }

    pub(crate) fn rank(&self, key: &str, owner: Owner) -> Option<Rank> {
        let entries = self.locks.get(key)?;
        let index = entries.iter().position(|entry| entry.owner == owner)?;
        let mut revision = entries[index].revision;
        if self.bug == Some(Bug::TokenOfTheLatest) {
            revision = self.revision;
        }
        let awaited = (index + 1..entries.len()).any(|behind| !self.admits(entries, behind));
        Some(Rank { revision, admitted: self.admits(entries, index), awaited })
    }

    /// Whether those before an entry leave room for it.
    fn admits(&self, entries: &[Entry], index: usize) -> bool {
        let before = entries[..index].iter().map(|entry| entry.mode);
        match (self.bug, entries[index].mode) {
            (Some(Bug::ReadersPassWriters), Mode::Shared) => true,
            (Some(Bug::PermitsCountHolders), Mode::Permits { of, .. }) => index < of as usize,
            (_, mode) => mode.admitted_after(before),
        }
    }

    /// Who has the lock, in the order of the line.
    fn admitted<'a>(&'a self, entries: &'a [Entry]) -> impl Iterator<Item = &'a Entry> {
        let indices = (0..entries.len()).filter(|index| self.admits(entries, *index));
        indices.map(|index| &entries[index])
    }

    /// The latest revision.
    pub(crate) const fn revision(&self) -> u64 {
        self.revision
    }

    /// Ends a lease with its keys. Whether it had any.
    pub(crate) fn revoke(&mut self, lease: u64) -> bool {
        self.leases.remove(&lease);
        self.delete(|_, entry| entry.lease == lease)
    }

    /// Deletes the key of this owner.
    pub(crate) fn delete_owner(&mut self, key: &str, owner: Owner) -> bool {
        self.delete(|of, entry| of == key && entry.owner == owner)
    }

    /// Leaves the key of this owner to nobody, until its new lease ends.
    pub(crate) fn rest(&mut self, key: &str, owner: Owner, rest: i64) -> bool {
        let lease = self.grant_lease(rest);
        let entry = self.locks.get_mut(key).into_iter().flatten().find(|one| one.owner == owner);
        match entry {
            Some(entry) => (entry.owner, entry.lease) = (NOBODY, lease),
            None => drop(self.leases.remove(&lease)),
        }
        self.leases.contains_key(&lease)
    }

    /// Whether anybody has a key for this lock.
    pub(crate) fn is_free(&self, key: &str) -> bool {
        !self.locks.contains_key(key)
    }

    /// Who has the lock, with its revision, and how many wait.
    pub(crate) fn inspect(&self, key: &str) -> (Vec<(Owner, Mode, u64)>, usize) {
        let entries = self.locks.get(key).map_or(&[][..], Vec::as_slice);
        let holders: Vec<_> =
            self.admitted(entries).map(|entry| (entry.owner, entry.mode, entry.revision)).collect();
        let waiting = entries.len() - holders.len();
        (holders, waiting)
    }

    fn delete(&mut self, which: impl Fn(&str, &Entry) -> bool) -> bool {
        let mut gone = Vec::new();
        self.locks.retain(|key, entries| {
            let before = entries.len();
            entries.retain(|entry| !which(key, entry));
            if entries.len() < before {
                gone.push(key.clone());
            }
            !entries.is_empty()
        });
        for key in &gone {
            for process in &self.watching {
                self.events.push((*process, Deleted { key: key.clone() }));
            }
        }
        !gone.is_empty()
    }

    /// A new leader gives every lease its full ttl again.
    fn restore_ttls(&mut self) {
        let now = self.clock.micros();
        for lease in self.leases.values_mut() {
            lease.until = now + lease.ttl;
        }
    }
}

impl Server for Etcd {
    type Push = Deleted;

    fn pushes(&mut self) -> Vec<(u32, Deleted)> {
        std::mem::take(&mut self.events)
    }

    fn mishaps(&mut self) -> Vec<(&'static str, String)> {
        std::mem::take(&mut self.mishaps)
    }

    fn listens(&mut self, process: u32, listens: bool) {
        if listens {
            self.watching.insert(process);
        } else {
            self.watching.remove(&process);
        }
    }

    fn suffer(&mut self, wound: Wound, key: &str, amount: u64) -> bool {
        match wound {
            Wound::Restart => self.restore_ttls(),
            Wound::Drift => self.clock.drift((amount % 18_001) as i64 - 9_000),
            Wound::DataLoss => {
                self.locks.clear();
                self.leases.clear();
                self.revision = 1;
            }
            Wound::Deletion | Wound::ForceRelease => {
                let holders = self.inspect(key).0;
                let Some((owner, ..)) = holders.get(amount as usize % holders.len().max(1)) else {
                    return false;
                };
                let owner = *owner;
                return owner != NOBODY && self.delete_owner(key, owner);
            }
            _ => return false,
        }
        true
    }

    /// An older snapshot is restored.
    fn replace(&mut self, by: Self) {
        (self.locks, self.leases) = (by.locks, by.leases);
        self.revision = by.revision;
        self.restore_ttls();
    }

    fn tick(&mut self) {
        let now = self.clock.micros();
        let expired = self.leases.iter().filter(|(_, lease)| lease.until < now);
        let expired: Vec<u64> = expired.map(|(lease, _)| *lease).collect();
        for lease in expired {
            self.revoke(lease);
        }
    }

    fn keeps(&mut self, key: &str, owner: Owner) -> Duration {
        let entries = self.locks.get(key).map_or(&[][..], Vec::as_slice);
        let own = self.admitted(entries).find(|entry| entry.owner == owner);
        let lease = own.map(|entry| entry.lease);
        let until = lease.and_then(|lease| self.leases.get(&lease)).map_or(0, |lease| lease.until);
        self.clock.until(until - self.clock.micros())
    }

    fn holders(&mut self) -> Vec<(String, Owner)> {
        let all = self.locks.iter().flat_map(|(name, entries)| {
            self.admitted(entries).map(move |entry| (name.clone(), entry.owner))
        });
        all.filter(|(_, owner)| *owner != NOBODY).collect()
    }

    fn lend(&mut self, key: &str, owner: Owner, ttl: Duration) -> bool {
        if self.locks.contains_key(key) {
            return false;
        }
        let lease = self.grant_lease(i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX));
        matches!(self.put(key, (owner, Mode::Exclusive), lease, true), Put::Stands(_))
    }

    fn take_back(&mut self, key: &str, owner: Owner) {
        let lease = self.locks.get(key).into_iter().flatten().find(|entry| entry.owner == owner);
        if let Some(lease) = lease.map(|entry| entry.lease) {
            self.revoke(lease);
        }
    }

    fn left(&mut self) -> Vec<(&'static str, u64)> {
        let (rests, keys): (Vec<_>, Vec<_>) =
            self.locks.values().flatten().partition(|entry| entry.owner == NOBODY);
        vec![
            ("locks", keys.len() as u64),
            ("locks without an owner", rests.len() as u64),
            ("leases", self.leases.len() as u64),
        ]
    }
}
