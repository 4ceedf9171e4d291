//! What a backend does: asks the scripts, and keeps in mind what they may still do.

use std::{sync::Arc, time::Duration};

use distlock_core::{
    BackendError, Claim, FencingToken, Holder, Key, Lease, LossReason, Mode, Occupancy, Owner,
    Standing,
};
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    backend::NAME,
    clock::Clock,
    error::{classify, unending},
    keys::{Names, Side},
    link::{Attempts, Bytes, Link, LinkError, Reply, Script},
    pace::Outlook,
    places::{Anchor, Places},
    script::{Answer, Grant, INSPECT, Taken, array, int, nonsense},
    together::Together,
    words::Words,
};

/// So often an exchange that was cut off is repeated within the time of one request.
const SENDS: u32 = 3;

/// So often a request is sent again that the server found too late.
const LATE: u32 = 4;

/// After a request's time is over, it is carried out no more: this much later at the latest.
pub(crate) const GRACE: Duration = Duration::from_millis(5);

/// A release says it again so often, when there are only dead ones in the line: as many as it holds, 512 at a time.
const MORE: u32 = 64;

/// The fence counter outlives its lock by this.
const IDLE: Duration = Duration::from_secs(3600);

/// After so long a hold the fence counter may have expired.
const LONG_HOLD: Duration = Duration::from_secs(1800);

/// So many releases that nobody waits for may be under way; the locks of others end with their ttl.
const BACKGROUND: usize = 1024;

/// The connections of a backend, and what it has in mind.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) link: Link,
    pub(crate) acquires: Together,
    pub(crate) releases: Together,
    pub(crate) places: Arc<Places>,
    pub(crate) clock: Clock,
    /// 32 hex digits: where this process is told things.
    pub(crate) process: String,
    pub(crate) request_timeout: Duration,
    pub(crate) place_ttl: Duration,
    pub(crate) runtime: Handle,
    pub(crate) background: Arc<Semaphore>,
}

impl Store {
    pub(crate) fn background() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(BACKGROUND))
    }

    /// Takes the lock if it is free, else a place in the line.
    pub(crate) async fn acquire(&self, claim: &Claim) -> Result<Standing, BackendError> {
        if claim.mode() != Mode::Exclusive {
            return Err(BackendError::permanent(NAME, "only exclusive locks are supported"));
        }
        let names = Names::of(claim.key())?;
        let slot = self.slot(&names);
        let (asked, first) = self.places.enter(claim);
        // Who cannot be told yet that it is granted does not join before that is decided.
        let mut hears = self.link.is_subscribed();
        let mut join = claim.may_queue() && hears;
        let (mut cuts, mut late) = (0, 0);
        // Who is over while it asks was granted the lock by a push. Its only request was carried out before that, and so before the release; what another one
        // gets is to be given back too.
        let is_left = |cuts| !(first && cuts == 0 || self.places.knows(claim));
        loop {
            let sent = Instant::now();
            let words = self.acquire_words(claim, &names, slot, join, hears);
            let reply = match self.acquires.send(words).await {
                Ok(reply) => reply,
                Err(error) => {
                    if self.is_open(&error) {
                        let until = sent + self.request_timeout + GRACE;
                        self.places.unanswered(claim, until);
                        if is_left(cuts) {
                            self.release_later(self.undoing(&names, claim.owner()), until);
                        }
                    }
                    cuts += 1;
                    if self.is_worth_repeating(&error, asked, cuts) && self.places.knows(claim) {
                        continue;
                    }
                    return Err(classify(error));
                }
            };
            let (answer, server) = Answer::acquired(&reply, claim.ttl()).map_err(classify)?;
            self.clock.sample(slot, server);
            match answer {
                Answer::Held(grant) => {
                    let lease = self.held(claim, &grant);
                    if is_left(cuts) {
                        self.undo(claim);
                    }
                    return Ok(Standing::Held(lease));
                }
                Answer::Queued { lock, rank } => {
                    if is_left(cuts) {
                        self.undo(claim);
                    }
                    let anchor = Anchor { server, local: sent };
                    return self.queued(claim, anchor, lock, rank);
                }
                Answer::Busy(lock) => {
                    if self.places.is_unending(claim.key(), lock) {
                        return Err(unending(claim.key().as_str()));
                    }
                    if join {
                        // Who joins is never told that: asking for ever would not help.
                        return Err(classify(nonsense(&reply)));
                    }
                    if claim.may_queue() {
                        hears = self.link.subscribed().await.is_ok();
                        join = true;
                        continue;
                    }
                    if let Some(until) = self.places.ghost_until(claim) {
                        // An earlier request may still take the lock: this answer is not the last word.
                        sleep_until(until).await;
                        continue;
                    }
                    self.places.leave(claim);
                    return Ok(Standing::Nothing { retry_in: lock.left });
                }
                Answer::Late => {
                    late += 1;
                    if late == LATE {
                        return Err(BackendError::transient(NAME, "the requests arrive too late"));
                    }
                }
                Answer::Gone | Answer::Wrong => return Err(classify(nonsense(&reply))),
            }
        }
    }

    fn acquire_words(
        &self,
        claim: &Claim,
        names: &Names<'_>,
        slot: u16,
        join: bool,
        hears: bool,
    ) -> Vec<Bytes> {
        let metadata = claim.metadata();
        let mut words =
            Words::with_capacity(11, 384 + 8 * claim.key().as_str().len() + metadata.len());
        names.all(&mut words);
        words.show(format_args!("dl1:{}:{}:", claim.owner(), self.process));
        let ttl = millis(claim.ttl());
        words.show(ttl);
        words.show(ttl + IDLE.as_millis());
        words.show(claim.block().max(1));
        words.show(self.clock.not_after(slot, self.request_timeout));
        words.push(metadata.as_bytes());
        let (mode, exact) = (if join { 'j' } else { 't' }, u8::from(!self.link.is_cluster()));
        words.show(format_args!("{mode}{exact}{}{}", u8::from(hears), self.place_ttl.as_millis()));
        words.finish()
    }

    /// Gives back the lock or the place.
    pub(crate) async fn release(&self, claim: &Claim) -> Result<bool, BackendError> {
        let names = Names::of(claim.key())?;
        let place = self.places.leave(claim);
        let long = place.as_ref().is_none_or(|place| LONG_HOLD < place.asked.elapsed());
        let used = claim.last_token().map(FencingToken::as_u64);
        // Of one token nothing is left to be given back.
        let used =
            if claim.block() <= 1 && used.is_some() { None } else { Some(used.unwrap_or(0)) };
        let words = self.release_words(&names, claim.owner(), used, claim.rest(), long);
        let ghost = place.as_ref().and_then(|place| Some((place.ghost()?, place.is_reused())));
        if let Some((until, false)) = ghost {
            self.release_later(words.clone(), until);
        }
        let gave = match self.give_back(&words).await {
            Err(error)
                if error.is_transient() && place.as_ref().is_some_and(|place| !place.held) =>
            {
                // A lock ends with its ttl, and so long core tries again. A place stays for longer.
                self.give_back_until(words, Instant::now() + self.place_ttl);
                return Err(error);
            }
            answer => answer?,
        };
        if let Some((until, true)) = ghost {
            // The id may come again as soon as this is over, and a later release would end what it has then.
            sleep_until(until).await;
            self.give_back(&words).await?;
        }
        if let Some(place) = place.filter(|_| gave) {
            // Nothing new to whoever gives back what is its own, but it may be taken by force.
            place.claim.end(LossReason::Gone);
        }
        Ok(gave)
    }

    fn release_words(
        &self,
        names: &Names<'_>,
        owner: Owner,
        used: Option<u64>,
        rest: Duration,
        long: bool,
    ) -> Vec<Bytes> {
        let mut words = Words::with_capacity(9, 640);
        names.all(&mut words);
        words.show(format_args!("dl1:{owner}:{}:", self.process));
        match used {
            Some(used) => words.show(used),
            None => words.push(b""),
        }
        words.show(millis(rest));
        words.flag(long);
        words.flag(!self.link.is_cluster());
        words.finish()
    }

    /// Sends a release until it is answered, within the time of a request.
    async fn give_back(&self, words: &[Bytes]) -> Result<bool, BackendError> {
        let start = Instant::now();
        let (mut cuts, mut said) = (0, 0);
        let mut gave = false;
        loop {
            match self.releases.send(words.to_vec()).await {
                Ok(reply) => {
                    let answer = int(&reply).ok_or_else(|| classify(nonsense(&reply)))?;
                    // What it does not have any more, an earlier request that was cut off gave back.
                    gave |= answer & 1 == 1 || 0 < cuts;
                    said += 1;
                    if answer & 2 == 0 || said == MORE {
                        return Ok(gave);
                    }
                }
                Err(error) => {
                    let open = self.is_open(&error);
                    if !self.is_worth_repeating(&error, start, cuts + 1) {
                        return Err(classify(error));
                    }
                    cuts += u32::from(open);
                }
            }
        }
    }

    /// Releases once more, when what was not answered cannot be carried out any more.
    fn release_later(&self, words: Vec<Bytes>, until: Instant) {
        let Some(store) = self.places.store() else { return };
        let Ok(permit) = Arc::clone(&self.background).try_acquire_owned() else { return };
        self.runtime.spawn(async move {
            sleep_until(until).await;
            let _ = store.give_back(&words).await;
            drop(permit);
        });
    }

    /// Releases what was granted to an owner that is over.
    pub(crate) fn give_back_unknown(&self, owner: Owner, key: &str, ttl: Duration) {
        let Ok(key) = Key::new(key) else { return };
        let Ok(names) = Names::of(&key) else { return };
        self.give_back_until(self.undoing(&names, owner), Instant::now() + ttl);
    }

    /// Releases what a request got that was answered after its claim was over.
    fn undo(&self, claim: &Claim) {
        self.give_back_unknown(claim.owner(), claim.key().as_str(), claim.ttl());
    }

    /// A release of which nothing is known but the owner.
    fn undoing(&self, names: &Names<'_>, owner: Owner) -> Vec<Bytes> {
        self.release_words(names, owner, Some(0), Duration::ZERO, true)
    }

    /// Sends a release in the background until it is answered, or not worth it any more.
    fn give_back_until(&self, words: Vec<Bytes>, end: Instant) {
        let Some(store) = self.places.store() else { return };
        let Ok(permit) = Arc::clone(&self.background).try_acquire_owned() else { return };
        self.runtime.spawn(async move {
            let mut pause = Duration::from_millis(16);
            while let Err(error) = store.give_back(&words).await {
                if !error.is_transient() || end < Instant::now() + pause {
                    break;
                }
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(512));
            }
            drop(permit);
        });
    }

    /// Who holds the key, and how many wait.
    pub(crate) async fn inspect(&self, key: &Key) -> Result<Occupancy, BackendError> {
        let names = Names::of(key)?;
        let mut words = Words::default();
        names.lock(&mut words);
        names.side(Side::Line, &mut words);
        let reply = self.run(&INSPECT, &words.finish(), &[]).await.map_err(classify)?;
        let [value, left, waiting] = array(&reply).map_err(classify)? else {
            return Err(classify(nonsense(&reply)));
        };
        let holders = match value {
            Reply::Bulk(value) => vec![holder(value, int(left))],
            _ => Vec::new(),
        };
        let waiting = int(waiting).and_then(|waiting| u64::try_from(waiting).ok()).unwrap_or(0);
        Ok(Occupancy::new(holders).waiting(waiting))
    }

    /// Runs a script that may as well run twice.
    pub(crate) async fn run(
        &self,
        script: &Script,
        keys: &[Bytes],
        args: &[Bytes],
    ) -> Result<Reply, LinkError> {
        self.link.run(script, keys, args, Attempts::Repeatable).await
    }

    /// The claim has the lock.
    pub(crate) fn held(&self, claim: &Claim, grant: &Grant) -> Lease {
        self.places.held(claim, grant.awaited);
        grant.lease()
    }

    /// The claim has a place in the line.
    pub(crate) fn queued(
        &self,
        claim: &Claim,
        anchor: Anchor,
        lock: Taken,
        rank: u32,
    ) -> Result<Standing, BackendError> {
        let outlook =
            Outlook { left: lock.left, ours: lock.ours, rank, hears: self.link.is_subscribed() };
        let recheck = self.places.queued(claim, anchor, outlook);
        if self.places.is_unending(claim.key(), lock) {
            return Err(unending(claim.key().as_str()));
        }
        Ok(Standing::Queued { recheck })
    }

    /// The slot, where there are several.
    pub(crate) fn slot(&self, names: &Names<'_>) -> u16 {
        if self.link.is_cluster() { names.slot() } else { 0 }
    }

    /// Whether a request may still be carried out, some time later. One that the server answered, however, is over.
    pub(crate) fn is_open(&self, error: &LinkError) -> bool {
        !matches!(error, LinkError::Server(_)) && error.may_have_run()
    }

    fn is_worth_repeating(&self, error: &LinkError, start: Instant, sends: u32) -> bool {
        matches!(error, LinkError::Disconnected { sent: true, .. })
            && sends < SENDS
            && start.elapsed() < self.request_timeout
    }
}

impl Grant {
    pub(crate) fn lease(&self) -> Lease {
        let spare = u32::try_from(self.last.saturating_sub(self.first)).unwrap_or(0);
        Lease::new(FencingToken::new(self.first)).with_spare(spare).with_ttl(self.ttl)
    }
}

/// A duration for the server, rounded up.
pub(crate) fn millis(duration: Duration) -> u128 {
    duration.as_nanos().div_ceil(1_000_000)
}

fn holder(value: &[u8], left: Option<i64>) -> Holder {
    let mut holder = Holder::new(Mode::Exclusive);
    if let Some(left) = left.and_then(|left| u64::try_from(left).ok()) {
        holder = holder.expires_in(Duration::from_millis(left));
    }
    let Some((owner, first, metadata)) = str::from_utf8(value).ok().and_then(parse) else {
        return holder;
    };
    if owner.as_u128() == 0 {
        // The rest of a minimal hold.
        return holder;
    }
    holder.owner(owner).token(FencingToken::new(first)).metadata(metadata)
}

/// `dl1:<owner>:<process>:<first token>:<last token>:<ttl>:<metadata>`
fn parse(value: &str) -> Option<(Owner, u64, &str)> {
    let mut parts = value.strip_prefix("dl1:")?.splitn(6, ':');
    let owner = parts.next()?.parse().ok()?;
    let first = parts.nth(1)?.parse().ok()?;
    Some((owner, first, parts.nth(2)?))
}
