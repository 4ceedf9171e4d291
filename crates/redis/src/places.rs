//! Who of this process holds a lock or waits for one, and what the store says to them unasked.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use distlock_core::{Claim, FencingToken, Key, Lease, LossReason, Owner};
use tokio::time::Instant;

use crate::{
    link::Listener,
    pace::{Outlook, Pace},
    push::{Push, Pushed},
    script::{Grant, Taken},
    store::Store,
};

/// A foreign lock without a ttl is an error when it is seen again after so long: others set the ttl with a second command.
const UNENDING: Duration = Duration::from_secs(1);

/// After so long the first sight counts no more.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// So many foreign locks without a ttl are remembered.
const MAX_UNENDING: usize = 1024;

/// All claims of this process that may have something at the store: from their first request to their release.
#[derive(Debug)]
pub(crate) struct Places {
    table: Mutex<Table>,
    serial: AtomicU64,
    unending: Mutex<HashMap<Key, Instant>>,
    any_unending: AtomicBool,
    store: OnceLock<Weak<Store>>,
    pace: Pace,
    place_ttl: Duration,
    /// Asks about every pushed grant, instead of reckoning with the server's clock.
    confirm: bool,
}

/// Each place in a box, as a table has room for far more than it has.
type Table = HashMap<Owner, Owned>;

/// The places of an owner: one, nearly always. An id that the user gave may have one for each of many keys.
#[derive(Debug)]
#[expect(clippy::box_collection, reason = "the room for many must not be that for one")]
enum Owned {
    Many(Box<HashMap<Box<str>, Box<Place>>>),
    One(Box<Place>),
}

/// A table as small as this is kept as it is.
const FEW: usize = 32;

/// The place of an owner for a key.
fn find<'a>(table: &'a mut Table, owner: Owner, key: &str) -> Option<&'a mut Place> {
    match table.get_mut(&owner)? {
        Owned::Many(places) => places.get_mut(key).map(|place| &mut **place),
        Owned::One(place) => (place.claim.key().as_str() == key).then_some(place),
    }
}

fn find_of<'a>(table: &'a mut Table, claim: &Claim) -> Option<&'a mut Place> {
    find(table, claim.owner(), claim.key().as_str())
}

/// Takes a place out. What many claims needed once is given back.
fn forget(table: &mut Table, claim: &Claim) -> Option<Box<Place>> {
    find_of(table, claim)?;
    let place = match table.remove(&claim.owner())? {
        Owned::Many(mut places) => {
            let place = places.remove(claim.key().as_str());
            if !places.is_empty() {
                table.insert(claim.owner(), Owned::Many(places));
            }
            place
        }
        Owned::One(place) => Some(place),
    };
    if table.capacity() / 8 > table.len().max(FEW) {
        table.shrink_to(table.len() * 2);
    }
    place
}

/// What is known of one of them.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) claim: Claim,
    /// Before the first request was sent.
    pub(crate) asked: Instant,
    /// An owner id can come again: which of its claims this is.
    pub(crate) serial: u64,
    /// Nobody has used the owner id before this claim.
    new: bool,
    pub(crate) held: bool,
    /// Until when a request without an answer may still be carried out.
    ghost_until: Option<Instant>,
    anchor: Option<Anchor>,
    /// Something was said that does not fit: its next answer is not to be believed for long.
    suspect: bool,
    /// How often it was looked after.
    polls: u32,
    /// Had by the change that is under way. Made for the first one.
    changing: Option<Arc<tokio::sync::Mutex<()>>>,
}

/// What ties the server's clock to ours: the server's at a call, and ours before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Anchor {
    pub(crate) server: i64,
    pub(crate) local: Instant,
}

/// What a push is worth.
enum Verdict {
    Accept(Claim, Instant),
    /// Let the claim ask.
    Confirm(Claim),
    /// Nobody waits for it.
    Unknown,
}

impl Places {
    pub(crate) fn new(seed: u64, place_ttl: Duration, confirm: bool) -> Self {
        Self {
            table: Mutex::default(),
            serial: AtomicU64::new(0),
            unending: Mutex::default(),
            any_unending: AtomicBool::new(false),
            store: OnceLock::new(),
            pace: Pace::new(seed),
            place_ttl,
            confirm,
        }
    }

    /// Says who gives back what nobody waits for.
    pub(crate) fn serve(&self, store: Weak<Store>) {
        let _ = self.store.set(store);
    }

    pub(crate) fn store(&self) -> Option<Arc<Store>> {
        self.store.get().and_then(Weak::upgrade)
    }

    /// A claim is about to ask. `true`: nobody has asked under its id before.
    pub(crate) fn enter(&self, claim: &Claim) -> (Instant, bool) {
        let now = Instant::now();
        let mut table = self.table();
        if let Some(place) = find_of(&mut table, claim) {
            place.suspect = false;
            place.new &= claim.has_new_owner();
            return (now, false);
        }
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let place = Place {
            claim: claim.clone(),
            asked: now,
            serial,
            new: claim.has_new_owner(),
            held: false,
            ghost_until: None,
            anchor: None,
            suspect: false,
            polls: 0,
            changing: None,
        };
        match table.entry(claim.owner()) {
            Entry::Occupied(mut owned) => owned.get_mut().add(Box::new(place)),
            Entry::Vacant(vacant) => drop(vacant.insert(Owned::One(Box::new(place)))),
        }
        (now, claim.has_new_owner())
    }

    /// Changes of one claim are made one after the other, or an earlier one that was given up could shorten what a later one wrote.
    pub(crate) fn changing(&self, claim: &Claim) -> Option<Arc<tokio::sync::Mutex<()>>> {
        let mut table = self.table();
        let place = find_of(&mut table, claim)?;
        Some(Arc::clone(place.changing.get_or_insert_default()))
    }

    /// A claim is over.
    pub(crate) fn leave(&self, claim: &Claim) -> Option<Box<Place>> {
        forget(&mut self.table(), claim)
    }

    /// The store has nothing any more of the claim that has this number.
    pub(crate) fn leave_as(&self, claim: &Claim, serial: u64) {
        let mut table = self.table();
        if find_of(&mut table, claim).is_some_and(|place| place.serial == serial) {
            forget(&mut table, claim);
        }
    }

    /// What is known of a claim, about to be renewed.
    pub(crate) fn renewing(&self, claim: &Claim) -> Option<(u64, bool)> {
        let mut table = self.table();
        let place = find_of(&mut table, claim)?;
        place.suspect = false;
        Some((place.serial, place.held))
    }

    pub(crate) fn knows(&self, claim: &Claim) -> bool {
        find_of(&mut self.table(), claim).is_some()
    }

    /// A request had no answer; it may be carried out until then.
    pub(crate) fn unanswered(&self, claim: &Claim, until: Instant) {
        if let Some(place) = find_of(&mut self.table(), claim) {
            place.ghost_until = place.ghost_until.max(Some(until));
        }
    }

    /// Until when a request without an answer may still be carried out.
    pub(crate) fn ghost_until(&self, claim: &Claim) -> Option<Instant> {
        find_of(&mut self.table(), claim)?.ghost()
    }

    /// The store says that the claim has the lock.
    pub(crate) fn held(&self, claim: &Claim, awaited: bool) {
        if let Some(place) = find_of(&mut self.table(), claim) {
            place.held = true;
        }
        if awaited {
            claim.contend();
        }
    }

    /// The store says that the claim stands in line. Gives back after which silence it is to be looked after.
    pub(crate) fn queued(&self, claim: &Claim, anchor: Anchor, outlook: Outlook) -> Duration {
        let (polls, suspect) = match find_of(&mut self.table(), claim) {
            Some(place) => {
                if place.anchor.is_none_or(|old| old.local <= anchor.local) {
                    place.anchor = Some(anchor);
                }
                place.polls = place.polls.saturating_add(1);
                (place.polls - 1, std::mem::take(&mut place.suspect))
            }
            None => (0, false),
        };
        if suspect {
            return Duration::from_millis(1);
        }
        self.pace.recheck(outlook, polls, claim.ttl(), self.place_ttl)
    }

    /// Whether a foreign lock without a ttl has been seen before, so long ago that its ttl is not just about to come.
    pub(crate) fn is_unending(&self, key: &Key, lock: Taken) -> bool {
        if !lock.is_unending() {
            if self.any_unending.load(Ordering::Relaxed) {
                let mut unending = self.unending();
                unending.remove(key);
                self.any_unending.store(!unending.is_empty(), Ordering::Relaxed);
            }
            return false;
        }
        let now = Instant::now();
        let mut unending = self.unending();
        if unending.len() >= MAX_UNENDING {
            unending.retain(|_, seen| now - *seen < FORGOTTEN);
            if unending.len() >= MAX_UNENDING {
                unending.clear();
            }
        }
        self.any_unending.store(true, Ordering::Relaxed);
        let seen = unending.entry(key.clone()).or_insert(now);
        if now - *seen >= FORGOTTEN {
            *seen = now;
        }
        now - *seen >= UNENDING
    }

    fn granted(&self, owner: Owner, server: i64, grant: Grant, key: &str) {
        let lease = Lease::new(FencingToken::new(grant.first))
            .with_spare(u32::try_from(grant.last.saturating_sub(grant.first)).unwrap_or(0))
            .with_ttl(grant.ttl);
        match self.judge(owner, key, server, grant.ttl) {
            Verdict::Accept(claim, since) => {
                if grant.awaited {
                    claim.contend();
                }
                if !claim.grant(lease.with_since(since)) {
                    self.give_back(owner, key, grant.ttl);
                }
            }
            Verdict::Confirm(claim) => claim.recheck(),
            Verdict::Unknown => self.give_back(owner, key, grant.ttl),
        }
    }

    /// From when the ttl of a pushed grant runs, if it can be believed.
    fn judge(&self, owner: Owner, key: &str, server: i64, ttl: Duration) -> Verdict {
        let now = Instant::now();
        let mut table = self.table();
        let Some(place) = find(&mut table, owner, key) else { return Verdict::Unknown };
        let since = place.since(server, now, ttl).filter(|_| !self.confirm);
        let margin = (ttl / 100).max(Duration::from_millis(5));
        match since.filter(|&since| now < since + ttl.saturating_sub(margin)) {
            Some(since) => {
                place.held = true;
                Verdict::Accept(place.claim.clone(), since)
            }
            None => {
                place.suspect = true;
                Verdict::Confirm(place.claim.clone())
            }
        }
    }

    fn give_back(&self, owner: Owner, key: &str, ttl: Duration) {
        if let Some(store) = self.store() {
            store.give_back_unknown(owner, key, ttl);
        }
    }

    fn claims(&self, wanted: impl Fn(&Place) -> bool) -> Vec<Claim> {
        let table = self.table();
        let all = table.values().flat_map(Owned::all);
        all.filter(|place| wanted(place)).map(|place| place.claim.clone()).collect()
    }

    /// Those of an owner. Which key is meant is not said.
    fn claims_of(&self, owner: Owner) -> Vec<Claim> {
        let table = self.table();
        let all = table.get(&owner).into_iter().flat_map(Owned::all);
        all.map(|place| place.claim.clone()).collect()
    }

    /// Something was said of an owner that one cannot rely on: it asks.
    fn suspect(&self, owner: Owner) {
        let claims = self.claims_of(owner);
        for claim in claims {
            if let Some(place) = find_of(&mut self.table(), &claim) {
                place.suspect = true;
            }
            claim.recheck();
        }
    }

    /// The lock of an owner was taken from it. Which that is, and that this is not late news of an earlier claim, is certain only of an id that was drawn
    /// for the claim.
    fn taken(&self, owner: Owner) -> Option<Claim> {
        let mut table = self.table();
        let Owned::One(place) = table.get(&owner)? else { return None };
        if !place.new {
            return None;
        }
        let claim = place.claim.clone();
        forget(&mut table, &claim);
        Some(claim)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unending(&self) -> MutexGuard<'_, HashMap<Key, Instant>> {
        self.unending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owned {
    fn all(&self) -> impl Iterator<Item = &Place> {
        let (one, many) = match self {
            Self::Many(places) => (None, Some(places)),
            Self::One(place) => (Some(place), None),
        };
        one.into_iter()
            .chain(many.into_iter().flat_map(|places| places.values()))
            .map(|place| &**place)
    }

    /// Takes in one for another key.
    fn add(&mut self, place: Box<Place>) {
        let named = |place: Box<Place>| (Box::from(place.claim.key().as_str()), place);
        let mut places = match std::mem::replace(self, Self::Many(Box::default())) {
            Self::Many(places) => places,
            Self::One(one) => Box::new(HashMap::from([named(one)])),
        };
        places.extend([named(place)]);
        *self = Self::Many(places);
    }
}

impl Place {
    /// Until when a request without an answer may still be carried out, if it still may.
    pub(crate) fn ghost(&self) -> Option<Instant> {
        self.ghost_until.filter(|&until| Instant::now() < until)
    }

    /// Whether its id may have been used before, or may be again.
    pub(crate) const fn is_reused(&self) -> bool {
        !self.new
    }

    /// From when on our clock a grant runs that was made at a time of the server's clock; none: it fits nothing that we know.
    fn since(&self, server: i64, now: Instant, ttl: Duration) -> Option<Instant> {
        let Some(anchor) = self.anchor else {
            // It came before the first answer. Under a new id, what it grants was asked for by this claim, so not before its first request. Under another
            // one nothing tells it from the late push of an earlier grant.
            return self.new.then_some(self.asked);
        };
        // Older than the last answer, which said that we wait: overtaken by the loss of what it grants.
        let ahead = Duration::from_micros(u64::try_from(server.checked_sub(anchor.server)?).ok()?);
        let elapsed = now.saturating_duration_since(anchor.local);
        if elapsed > ttl {
            // All polls since then failed. A step of the server's clock meanwhile would not show in a push that is late by more than the step.
            return None;
        }
        if ahead > elapsed + elapsed / 100 {
            // More time has passed there than here: its clock was set.
            return None;
        }
        Some((anchor.local + ahead - ahead / 100).min(now))
    }
}

impl Listener for Places {
    fn push(&self, message: &[u8]) {
        let Some(Push { owner, what }) = Push::read(message) else { return };
        match what {
            Pushed::Granted { server, grant, key } => self.granted(owner, server, grant, key),
            Pushed::Contended => self.claims_of(owner).iter().for_each(Claim::contend),
            Pushed::Hold => self.suspect(owner),
            Pushed::Lost => match self.taken(owner) {
                Some(claim) => claim.end(LossReason::Gone),
                None => self.suspect(owner),
            },
        }
    }

    fn resubscribed(&self) {
        for claim in self.claims(|_| true) {
            claim.recheck();
        }
    }

    fn lost(&self) {
        if let Some(store) = self.store() {
            store.clock.forget();
        }
        // Nobody will tell those who wait.
        for claim in self.claims(|place| !place.held) {
            claim.recheck();
        }
    }
}

#[cfg(test)]
mod tests;
