//! The scripts of `distlock-redis`, as they are in Lua: each runs as one step.

use distlock_core::Owner;
use tokio::time::Instant;

use super::server::{Grant, IDLE, Keys, PLACE_MAX, Place, Push, Redis, Value};
use crate::Bug;

/// Who asks for what.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) key: String,
    pub(super) owner: Owner,
    pub(super) process: u32,
    pub(super) ttl: i64,
    pub(super) size: u32,
    /// In microseconds of the server's clock.
    pub(super) not_after: i64,
    /// The same in truth, for the judge.
    pub(super) until: Instant,
    pub(super) join: bool,
    pub(super) hears: bool,
    pub(super) place_ttl: i64,
}

/// How an owner stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Held(Grant),
    Queued { left: i64, rank: u32 },
    Busy { left: i64 },
    Gone,
    Late,
}

/// What somebody who asks finds.
enum Found {
    Held(Grant),
    Free,
    Taken { place: bool },
}

impl Redis {
    pub(super) fn acquire(&mut self, asked: &Asked) -> (Answer, i64) {
        let us = self.keys(&asked.key).1;
        if asked.not_after < us {
            return (Answer::Late, us);
        }
        let before = self.keys(&asked.key).0.lock.as_ref().map(|(_, until)| *until);
        let found = self.stand(&asked.key, asked.owner, asked.place_ttl);
        let answer = match found {
            Found::Held(grant) if self.bug == Some(Bug::AgainWithoutRefresh) => {
                if let (Some(before), Some((_, until))) =
                    (before, &mut self.keys(&asked.key).0.lock)
                {
                    *until = before;
                }
                Answer::Held(grant)
            }
            Found::Held(grant) => Answer::Held(self.asked_again(asked, grant)),
            Found::Free => Answer::Held(self.grant_free(asked)),
            Found::Taken { place } => self.line_up(asked, place),
        };
        (answer, us)
    }

    /// Asked again: for the ttl of this time, if that is longer.
    fn asked_again(&mut self, asked: &Asked, mut grant: Grant) -> Grant {
        let (keys, us) = self.keys(&asked.key);
        grant.ttl = grant.ttl.max(asked.ttl);
        if let Some((value, until)) = &mut keys.lock {
            (value.ttl, value.process) = (grant.ttl, asked.process);
            *until = us / 1000 + grant.ttl;
        }
        grant
    }

    fn grant_free(&mut self, asked: &Asked) -> Grant {
        let Asked { owner, process, ttl, size, .. } = *asked;
        let (first, last) = self.put(&asked.key, owner, process, ttl, size, None);
        Grant { first, last, ttl, awaited: false }
    }

    fn line_up(&mut self, asked: &Asked, place: bool) -> Answer {
        let left = self.rest_of(&asked.key);
        let (keys, us) = self.keys(&asked.key);
        if !asked.join {
            return Answer::Busy { left };
        }
        if place {
            return Answer::Queued { left, rank: keys.rank(asked.owner) };
        }
        keys.arrivals += 1;
        let (arrival, ms) = (keys.arrivals, us / 1000);
        keys.line.retain(|(_, owner)| *owner != asked.owner);
        keys.line.push((arrival, asked.owner));
        keys.line.sort_by_key(|(arrival, owner)| (*arrival, *owner));
        let Asked { process, hears, ttl, size, .. } = *asked;
        let deadline = ms + asked.place_ttl;
        keys.places.insert(asked.owner, Place { deadline, process, hears, ttl, size });
        keys.line_until = ms + PLACE_MAX;
        keys.places_until = ms + PLACE_MAX;
        let rank = keys.rank(asked.owner);
        let holder = keys.lock.as_ref().map(|(value, _)| (value.process, value.owner));
        if let (Some((process, Some(holder))), 1) = (holder, keys.line.len()) {
            self.tell(process, Push::Contended(holder));
        }
        Answer::Queued { left, rank }
    }

    pub(super) fn poll(&mut self, key: &str, owner: Owner, place_ttl: i64) -> (Answer, i64) {
        let us = self.keys(key).1;
        let answer = match self.stand(key, owner, place_ttl) {
            Found::Held(grant) => Answer::Held(grant),
            Found::Free | Found::Taken { place: false } => Answer::Gone,
            Found::Taken { place: true } => {
                let left = self.rest_of(key);
                Answer::Queued { left, rank: self.keys(key).0.rank(owner) }
            }
        };
        (answer, us)
    }

    /// Another ttl, which may be shorter. Creates nothing.
    pub(super) fn change(&mut self, asked: &Asked) -> (Answer, i64) {
        let bug = self.bug;
        let (keys, us) = self.keys(&asked.key);
        if asked.not_after < us {
            return (Answer::Late, us);
        }
        if bug == Some(Bug::ChangeCreates) && keys.lock.is_none() && !keys.has_place(asked.owner) {
            let grant = self.write_again(asked);
            self.harms += u64::from(self.keys(&asked.key).0.lock.is_some());
            return (Answer::Held(grant), us);
        }
        self.changes(&asked.key, asked.until);
        let (keys, us) = self.keys(&asked.key);
        let (ms, awaited) = (us / 1000, !keys.line.is_empty());
        if let Some((value, until)) = &mut keys.lock
            && value.owner == Some(asked.owner)
        {
            value.ttl = asked.ttl;
            *until = ms + asked.ttl;
            let Value { first, last, ttl, .. } = *value;
            if keys.fence.is_none_or(|(_, until)| until < ms + ttl + IDLE) {
                keys.fence = Some((last, ms + ttl + IDLE));
            }
            return (Answer::Held(Grant { first, last, ttl, awaited }), us);
        }
        if let Some(place) = keys.places.get_mut(&asked.owner) {
            place.ttl = asked.ttl;
        }
        self.poll(&asked.key, asked.owner, asked.place_ttl)
    }

    /// Extends a held lock to the ttl that stands in it. Creates nothing, shortens nothing.
    fn extend(&mut self, key: &str, owner: Owner) -> Option<Grant> {
        if self.bug == Some(Bug::RenewalCreates) {
            self.create_again(key, owner);
        }
        let (keys, us) = self.keys(key);
        let awaited = !keys.line.is_empty();
        let (value, until) = keys.lock.as_mut().filter(|(value, _)| value.owner == Some(owner))?;
        *until = (*until).max(us / 1000 + value.ttl);
        Some(Grant { first: value.first, last: value.last, ttl: value.ttl, awaited })
    }

    /// Extends a held lock, and looks that nothing else came of it.
    pub(super) fn renew(&mut self, key: &str, owner: Owner) -> Option<Grant> {
        let before = self.keys(key).0.identity();
        let renewed = self.extend(key, owner);
        self.harms += u64::from(self.keys(key).0.identity() != before);
        renewed
    }

    /// Gives back the lock, or the place, and looks that nobody else's is changed.
    pub(super) fn release(
        &mut self,
        key: &str,
        owner: Owner,
        process: u32,
        used: u64,
        rest: i64,
    ) -> bool {
        let before = self.keys(key).0.identity();
        let released = self.give_back(key, owner, process, used, rest);
        let others = before.filter(|(holder, ..)| *holder != Some(owner));
        self.harms += u64::from(others.is_some() && self.keys(key).0.identity() != others);
        released
    }

    /// Gives back the lock, or the place.
    fn give_back(&mut self, key: &str, owner: Owner, process: u32, used: u64, rest: i64) -> bool {
        let anybody = self.bug == Some(Bug::ReleaseOfAnybody);
        let rest = if self.bug == Some(Bug::NoRest) { 0 } else { rest };
        let (keys, us) = self.keys(key);
        let ms = us / 1000;
        let held = keys.lock.as_ref().filter(|(value, _)| anybody || value.owner == Some(owner));
        let Some((value, _)) = held.cloned() else {
            let before = keys.line.len();
            keys.line.retain(|(_, other)| *other != owner);
            let gone = keys.line.len() < before;
            if gone {
                keys.places.remove(&owner);
                if keys.line.is_empty() {
                    keys.forget_places();
                }
            }
            if keys.lock.is_none() {
                self.promote(key, None, None);
            }
            return gone;
        };
        // A token of an earlier grant says nothing of this one.
        let used = if used < value.first { value.last } else { used };
        if rest > 0 {
            let mark = Value { owner: None, last: used, ttl: rest, first: 0, ..value };
            keys.lock = Some((mark, ms + rest));
            keys.fence = Some((used, ms + rest + IDLE));
            let head = keys.line.first().map(|(_, owner)| *owner);
            let waiter = head.and_then(|head| Some((head, keys.places.get(&head)?.process)));
            self.returned(key, value.last, used);
            if let Some((head, waiter)) = waiter {
                self.tell(waiter, Push::Hold(head));
            }
        } else {
            keys.lock = None;
            self.returned(key, value.last, used);
            if !self.promote(key, Some(used), None) {
                let (keys, _) = self.keys(key);
                keys.fence = Some((used, ms + IDLE));
            }
        }
        if value.process != process {
            self.tell(value.process, Push::Lost(owner));
        }
        true
    }

    /// Who holds the key, its token, for how long, and how many wait.
    pub(super) fn inspect(&mut self, key: &str) -> (Option<(Option<Owner>, u64, i64)>, u64) {
        let (keys, us) = self.keys(key);
        let holder = keys.lock.as_ref();
        let holder = holder.map(|(value, until)| (value.owner, value.first, until - us / 1000));
        (holder, keys.line.len() as u64)
    }

    /// What an owner has: keeps it alive, and grants a free lock to the head of the line.
    fn stand(&mut self, key: &str, owner: Owner, place_ttl: i64) -> Found {
        if let Some(grant) = self.renew(key, owner) {
            return Found::Held(grant);
        }
        let ignores = self.bug == Some(Bug::StrangerIgnored);
        let (keys, us) = self.keys(key);
        keys.lock.take_if(|(value, _)| ignores && value.stranger.is_some());
        let ms = us / 1000;
        let in_line = keys.line.iter().any(|(_, other)| *other == owner);
        let place = match keys.places.get_mut(&owner).filter(|_| in_line) {
            Some(place) => {
                place.deadline = ms + place_ttl;
                keys.line_until = ms + PLACE_MAX;
                keys.places_until = ms + PLACE_MAX;
                true
            }
            None => false,
        };
        if keys.lock.is_none() {
            if keys.line.is_empty() {
                return Found::Free;
            }
            if !self.promote(key, None, Some(owner)) {
                return Found::Free;
            }
            let (keys, _) = self.keys(key);
            let awaited = !keys.line.is_empty();
            let mine = keys.lock.as_ref().filter(|(value, _)| value.owner == Some(owner));
            if let Some((Value { first, last, ttl, .. }, _)) = mine {
                return Found::Held(Grant { first: *first, last: *last, ttl: *ttl, awaited });
            }
        }
        Found::Taken { place }
    }

    /// Grants the free lock to the first place that is alive; `me` is, for it asks. `false`: there is none.
    fn promote(&mut self, key: &str, last: Option<u64>, me: Option<Owner>) -> bool {
        loop {
            let listening = self.listening.clone();
            let blocks = self.bug == Some(Bug::DeadHeadBlocks);
            let (keys, us) = self.keys(key);
            let ms = us / 1000;
            if keys.line.is_empty() {
                keys.forget_places();
                return false;
            }
            let (_, owner) = keys.line[0];
            let lives = |place: &Place| listening.contains(&place.process) && ms <= place.deadline;
            if blocks && !keys.places.get(&owner).is_some_and(lives) {
                // It does not pass over the dead, and they never ask.
                return true;
            }
            keys.line.remove(0);
            let Some(place) = keys.places.remove(&owner) else { continue };
            let alive = (ms..=ms + PLACE_MAX).contains(&place.deadline);
            let deaf = place.hears && !listening.contains(&place.process);
            if !alive || (deaf && me != Some(owner)) {
                continue;
            }
            let awaited = !keys.line.is_empty();
            if !awaited {
                keys.forget_places();
            }
            let Place { process, ttl, size, .. } = place;
            let (first, last) = self.put(key, owner, process, ttl, size, last);
            if me != Some(owner) {
                let grant = Grant { first, last, ttl, awaited };
                let key = key.to_owned();
                self.tell(process, Push::Granted { owner, server: us, grant, key });
            }
            return true;
        }
    }

    /// Writes a grant, with the next tokens: a clock that never stands still and never goes back.
    fn put(
        &mut self,
        key: &str,
        owner: Owner,
        process: u32,
        ttl: i64,
        size: u32,
        last: Option<u64>,
    ) -> (u64, u64) {
        let counted = self.bug == Some(Bug::CountedTokens);
        let wall = self.bug == Some(Bug::ClientWallClock);
        let (keys, us) = self.keys(key);
        let before = last.or(keys.fence.map(|(fence, _)| fence)).unwrap_or(0);
        let clock = if counted { 0 } else { u64::try_from(us).unwrap_or(0) };
        let first = clock.max(before + 1);
        let last = first + u64::from(size) - 1;
        let ms = us / 1000;
        keys.fence = Some((last, ms + ttl + IDLE));
        // Clients whose wall clocks differ by up to half a ttl.
        let ahead = if wall { ttl / 4 * (i64::from(process % 5) - 2) } else { 0 };
        let value = Value { owner: Some(owner), stranger: None, process, first, last, ttl };
        keys.before = Some(value.clone());
        keys.lock = Some((value, ms + ttl + ahead));
        self.issued(key, first, last);
        (first, last)
    }

    /// For how long a lock stays. A ttl that a step of the clock made longer than its holder counts with is cut.
    fn rest_of(&mut self, key: &str) -> i64 {
        let (keys, us) = self.keys(key);
        let Some((value, until)) = &mut keys.lock else { return 0 };
        if value.stranger.is_none() {
            *until = (*until).min(us / 1000 + value.ttl);
        }
        *until - us / 1000
    }
}

/// What only a bug needs.
impl Redis {
    /// Writes a lock that is gone as it was.
    fn create_again(&mut self, key: &str, owner: Owner) {
        let (keys, us) = self.keys(key);
        let lives = keys.lock.is_some();
        let before = keys.before.clone().filter(|value| value.owner == Some(owner));
        if let Some(value) = before.filter(|_| !lives) {
            let until = us / 1000 + value.ttl;
            keys.lock = Some((value, until));
        }
    }

    fn write_again(&mut self, asked: &Asked) -> Grant {
        self.create_again(&asked.key, asked.owner);
        let (keys, us) = self.keys(&asked.key);
        let value = keys.lock.as_mut().map(|(value, until)| {
            (value.ttl, *until) = (asked.ttl, us / 1000 + asked.ttl);
            value.clone()
        });
        let (first, last) = value.map_or((0, 0), |value| (value.first, value.last));
        Grant { first, last, ttl: asked.ttl, awaited: false }
    }
}

impl Keys {
    fn has_place(&self, owner: Owner) -> bool {
        self.places.contains_key(&owner)
    }

    fn rank(&self, owner: Owner) -> u32 {
        let rank = self.line.iter().position(|(_, other)| *other == owner);
        rank.and_then(|rank| u32::try_from(rank).ok()).unwrap_or(0)
    }
}
