//! What this process has in etcd, name by name: its contenders, what it knows of the line, and the watch on it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use distlock_core::Claim;
use tokio::time::Instant;

use crate::{
    layout::{self, Nonce},
    lease::{Lease, Use},
    line::Line,
    request::Reading,
    settle::Effect,
};

/// How many names are watched for the sake of their holders. Those of more locks than that hear of a loss at their next renewal.
const MAX_WATCHED: usize = 4096;

/// Where a contender stands in etcd.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) line: Arc<str>,
    pub(crate) nonce: Nonce,
}

/// All names of which this process has, awaits or watches something.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) names: HashMap<Arc<str>, Name>,
    /// Locks that were granted lately, and when they are to be looked at again.
    pub(crate) recent: VecDeque<(Instant, Place)>,
    /// Names whose watch may have to be opened.
    pub(crate) unwatched: Vec<Arc<str>>,
    pub(crate) watched: usize,
}

/// What is known of one name.
#[derive(Debug)]
pub(crate) struct Name {
    pub(crate) line: Line,
    pub(crate) records: HashMap<Nonce, Record>,
    /// Readings under way.
    pub(crate) asks: usize,
    pub(crate) watch: Watch,
    /// Since when nobody of this process has anything there.
    pub(crate) idle: Instant,
}

/// The watch on a name.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pub(crate) want: Option<Scope>,
    pub(crate) live: Option<(i64, Scope)>,
    pub(crate) opening: Option<(i64, Scope)>,
    /// The line was read after it was opened: since then nothing was missed.
    pub(crate) synced: bool,
}

/// What a watch tells of.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Scope {
    /// Who leaves: all that somebody who waits has to know.
    Leaving,
    /// Who comes, too: for who holds, and would hand on inside the process.
    All,
}

/// A contender of this process.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) claim: Claim,
    pub(crate) used: Use,
    /// Leases that the key may be bound to as well, after a change without an answer.
    pub(crate) others: Vec<Use>,
    /// What was asked for last, and until when somebody has asked for it to be kept.
    pub(crate) ttl: Duration,
    pub(crate) until: Instant,
    /// The revisions of its key; 0 before they are known.
    pub(crate) created: i64,
    pub(crate) modified: i64,
    pub(crate) phase: Phase,
    /// When its key was read last.
    pub(crate) seen: Instant,
    /// A request that was given up may write its key again.
    pub(crate) ambiguous: bool,
    pub(crate) contended: bool,
    /// It is to be written again: somebody else bound its key to another lease, or its own is of no use any more.
    pub(crate) rebound: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    /// Etcd was asked for the first time.
    Asking,
    /// It has the lock.
    Held,
    /// It was released, and stays for the rest of a minimal hold.
    Resting,
    /// It stands in the line.
    Waiting,
}

impl Place {
    pub(crate) fn new(prefix: &str, claim: &Claim) -> Self {
        let nonce = layout::nonce(claim.mode(), claim.owner()).into_bytes().into();
        Self { line: layout::line(prefix, claim.key()).into(), nonce }
    }

    pub(crate) fn own(&self) -> String {
        [&*self.line, &*String::from_utf8_lossy(&self.nonce)].concat()
    }
}

impl Table {
    pub(crate) fn record(&self, place: &Place) -> Option<&Record> {
        self.names.get(&place.line)?.records.get(&place.nonce)
    }

    pub(crate) fn record_mut(&mut self, place: &Place) -> Option<&mut Record> {
        self.names.get_mut(&place.line)?.records.get_mut(&place.nonce)
    }

    pub(crate) fn name(&mut self, line: &Arc<str>) -> &mut Name {
        self.names.entry(Arc::clone(line)).or_insert_with(Name::new)
    }

    /// Etcd is about to be asked for a claim. Gives back the lease that it had until now, if it was another one.
    pub(crate) fn begin(
        &mut self,
        place: &Place,
        claim: &Claim,
        used: Use,
        now: Instant,
    ) -> Option<Use> {
        let ttl = claim.ttl();
        let name = self.name(&place.line);
        name.asks += 1;
        if let Some(record) = name.records.get_mut(&place.nonce) {
            record.claim = claim.clone();
            (record.ttl, record.until) = (ttl, now + ttl);
            return Some(std::mem::replace(&mut record.used, used));
        }
        name.records.insert(place.nonce.clone(), Record::new(claim, used, ttl, now));
        None
    }

    /// What began has ended, in whatever way.
    pub(crate) fn end_ask(&mut self, line: &Arc<str>) {
        if let Some(name) = self.names.get_mut(line) {
            name.asks -= 1;
            if name.asks == 0 {
                name.line.forget();
            }
            self.tidy(line);
        }
    }

    /// Takes a contender out; what it has in etcd is the caller's to end.
    pub(crate) fn remove(&mut self, place: &Place) -> Option<Record> {
        let record = self.names.get_mut(&place.line)?.records.remove(&place.nonce)?;
        self.tidy(&place.line);
        Some(record)
    }

    /// A contender's key was deleted by ourselves.
    pub(crate) fn left(&mut self, place: &Place) {
        if let Some(name) = self.names.get_mut(&place.line) {
            name.line.delete(&place.nonce, i64::MAX, false);
        }
    }

    /// Wants the name to be watched. Returns whether there is something to do for that.
    pub(crate) fn want(&mut self, line: &Arc<str>, scope: Scope) -> bool {
        let watched = self.watched;
        let Some(name) = self.names.get_mut(line) else { return false };
        if Some(scope) <= name.watch.want {
            return false;
        }
        // Who waits needs it; who holds has renewals too.
        let waits = name.records.values().any(|record| record.phase == Phase::Waiting);
        if name.watch.want.is_none() {
            if !waits && MAX_WATCHED <= watched {
                return false;
            }
            self.watched += 1;
        }
        name.watch.want = Some(scope);
        self.unwatched.push(Arc::clone(line));
        true
    }

    /// Forgets a name of which nobody wants anything.
    pub(crate) fn tidy(&mut self, line: &Arc<str>) {
        let Some(name) = self.names.get_mut(line) else { return };
        if !name.records.is_empty() || name.asks != 0 {
            return;
        }
        if name.watch.want.is_none() {
            self.names.remove(line);
        } else {
            name.idle = Instant::now();
        }
    }

    /// The leases that belong to one contender each.
    pub(crate) fn leases(&self) -> Vec<Arc<Lease>> {
        let records = self.names.values().flat_map(|name| name.records.values());
        let uses = records.flat_map(|record| record.others.iter().chain([&record.used]));
        let leases = uses.map(|used| Arc::clone(used.lease()));
        leases.filter(|lease| !lease.is_shared()).collect()
    }

    /// Everything that is bound to a lease is gone.
    pub(crate) fn lease_gone(&mut self, lease: &Lease) -> Vec<Effect> {
        let (mut effects, mut left) = (Vec::new(), Vec::new());
        for (line, name) in &mut self.names {
            let before = effects.len();
            let bound = |record: &mut Record| record.used.lease().id() == lease.id();
            let gone = name.records.extract_if(|_, record| bound(record));
            effects.extend(gone.map(|(_, record)| Effect::Gone(record)));
            if before < effects.len() {
                left.push(Arc::clone(line));
            }
        }
        left.iter().for_each(|line| self.tidy(line));
        effects
    }

    /// Everything that is bound to a lease has to be bound to another one.
    pub(crate) fn leave_lease(&mut self, lease: &Lease) {
        for record in self.names.values_mut().flat_map(|name| name.records.values_mut()) {
            record.rebound |= record.used.lease().id() == lease.id();
        }
    }
}

impl Name {
    fn new() -> Self {
        Self {
            line: Line::default(),
            records: HashMap::new(),
            asks: 0,
            watch: Watch::default(),
            idle: Instant::now(),
        }
    }

    /// Whether all that happens to the name is heard of.
    pub(crate) fn hears_all(&self) -> bool {
        self.watch.synced && matches!(self.watch.live, Some((_, Scope::All)))
    }

    /// The key of somebody who is there already was written.
    pub(crate) fn changed(&mut self, nonce: &[u8], lease: i64) {
        if let Some(record) = self.records.get_mut(nonce) {
            record.rebound |= !record.is_bound_to(lease);
        }
    }

    /// Somebody of this process or of another came. What follows is for [`settle`](Self::settle) to say.
    pub(crate) fn came(&mut self, nonce: &[u8], created: i64) {
        self.line.add(nonce, created);
    }

    /// Somebody left; gives back who it was, if it was one of this process. What follows is for [`settle`](Self::settle) to say, when all is known that
    /// happened at that moment: the end of a lease takes a holder and the one behind it together.
    pub(crate) fn went(&mut self, nonce: &[u8], revision: i64) -> Option<Effect> {
        self.line.delete(nonce, revision, self.asks != 0);
        let known = |record: &Record| record.created != 0 && record.created < revision;
        let ours = self.records.get(nonce).is_some_and(known);
        if ours { self.records.remove(nonce).map(Effect::Gone) } else { None }
    }

    /// The line was read.
    pub(crate) fn read(&mut self, reading: &Reading) -> Vec<Effect> {
        let now = Instant::now();
        let here = reading.by_nonce();
        self.line.merge(reading.revision, &here);
        let gone: Vec<_> = self
            .records
            .extract_if(|nonce, record| {
                let known = record.created != 0 && record.created <= reading.revision;
                match here.get(&**nonce) {
                    // One that was taken over from another process.
                    Some(entry) if record.created == 0 && record.phase == Phase::Waiting => {
                        (record.created, record.seen) = (entry.created, now);
                        false
                    }
                    Some(entry) if entry.created == record.created => {
                        record.rebound |= record.modified < entry.modified;
                        record.seen = now;
                        false
                    }
                    _ => known,
                }
            })
            .collect();
        let mut effects: Vec<_> =
            gone.into_iter().map(|(_, record)| Effect::Gone(record)).collect();
        effects.extend(self.settle(true));
        effects
    }
}

impl Record {
    fn new(claim: &Claim, used: Use, ttl: Duration, now: Instant) -> Self {
        Self {
            claim: claim.clone(),
            used,
            others: Vec::new(),
            ttl,
            until: now + ttl,
            created: 0,
            modified: 0,
            phase: Phase::Asking,
            seen: now,
            ambiguous: false,
            contended: false,
            rebound: false,
        }
    }

    /// Whether this is a lease that its key may be bound to.
    pub(crate) fn is_bound_to(&self, lease: i64) -> bool {
        self.others.iter().chain([&self.used]).any(|used| used.lease().id() == lease)
    }

    /// From when on the ttl of its key runs, at the earliest.
    pub(crate) fn since(&self) -> Instant {
        let since = self.used.lease().since();
        self.others.iter().map(|other| other.lease().since()).fold(since, Instant::min)
    }

    /// The scope of the watch that it is to have while it stands in line.
    pub(crate) fn scope(&self) -> Scope {
        // Others of this process wait behind it, so it may be handed on among them.
        if 1 < self.claim.block() { Scope::All } else { Scope::Leaving }
    }
}
