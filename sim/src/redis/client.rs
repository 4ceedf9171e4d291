//! The client's side: what `distlock-redis` keeps in mind of its claims, and how it reads answers.

mod push;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use distlock_core::{
    BackendError, Capabilities, Claim, FencingToken, Holder, Key, Lease, LossReason, Mode,
    Occupancy, Owner, Renewal, Standing,
};
use tokio::time::{Instant, sleep_until};

use super::{
    scripts::{Answer, Asked},
    server::{Grant, Redis, Script},
};
use crate::{
    Bug,
    net::{Cut, Link},
};

const NAME: &str = "sim-redis";
const PLACE_TTL: Duration = Duration::from_secs(15);
const GRACE: Duration = Duration::from_millis(5);

/// So often an exchange is repeated that was cut off, and one that the server found too late.
const SENDS: u32 = 3;
const LATE: u32 = 4;

/// A store like `distlock-redis`.
#[derive(Clone, Debug)]
pub(crate) struct Backend(Arc<Store>);

#[derive(Debug)]
struct Store {
    link: Link<Redis>,
    bug: Option<Bug>,
    start: Instant,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    places: BTreeMap<Owner, Place>,
    /// By how much the server's clock is ahead of ours, in microseconds.
    ahead: Option<i64>,
}

#[derive(Clone, Debug)]
struct Place {
    claim: Claim,
    /// Before the first request.
    asked: Instant,
    /// Nobody has used the owner id before this claim.
    new: bool,
    held: bool,
    ghost_until: Option<Instant>,
    /// What ties the server's clock to ours: the server's at a call, and ours before it.
    anchor: Option<(i64, Instant)>,
    suspect: bool,
    changing: Arc<tokio::sync::Mutex<()>>,
}

impl Backend {
    pub(crate) fn new(link: Link<Redis>, bug: Option<Bug>) -> Self {
        let (start, table) = (Instant::now(), Mutex::default());
        Self(Arc::new(Store { link, bug, start, table }))
    }
}

impl Store {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sample(&self, server: i64) {
        self.table().ahead = Some(server - micros(self.start.elapsed()));
    }

    fn not_after(&self) -> i64 {
        let ahead = self.table().ahead.unwrap_or(0);
        ahead + micros(self.start.elapsed() + self.link.timeout())
    }

    /// Runs a script, by its digest, and once more by its text if the server does not know it.
    async fn run<T: Send + 'static>(
        &self,
        script: Script,
        run: impl Fn(&mut Redis) -> T + Send + Sync + 'static,
    ) -> Result<T, Cut> {
        let run = Arc::new(run);
        let until = Instant::now() + self.link.timeout();
        for text in [false, true] {
            let run = Arc::clone(&run);
            let evaluate =
                move |redis: &mut Redis| redis.evaluate(script, text, |redis| run(redis));
            // A change is sent once: late, it would shorten a ttl that was extended since.
            let reply = match script {
                Script::Change => self.link.exchange_once(evaluate, until).await,
                _ => self.link.exchange_until(evaluate, until).await,
            };
            if let Some(answer) = reply? {
                return Ok(answer);
            }
        }
        Err(Cut::Refused)
    }

    fn asked(&self, claim: &Claim, join: bool, hears: bool) -> Asked {
        Asked {
            key: claim.key().as_str().to_owned(),
            owner: claim.owner(),
            process: self.link.process,
            ttl: ceil(claim.ttl()),
            size: claim.block().max(1),
            not_after: self.not_after(),
            until: Instant::now() + self.link.timeout(),
            join,
            hears,
            place_ttl: ceil(PLACE_TTL),
        }
    }

    async fn acquire(&self, claim: &Claim) -> Result<Standing, BackendError> {
        let owner = claim.owner();
        let asked = Instant::now();
        {
            let mut table = self.table();
            let place = table.places.entry(owner).or_insert_with(|| Place {
                claim: claim.clone(),
                asked,
                new: true,
                held: false,
                ghost_until: None,
                anchor: None,
                suspect: false,
                changing: Arc::default(),
            });
            place.suspect = false;
            place.new &= claim.has_new_owner();
        }
        let mut hears = self.link.hears();
        let mut join = claim.may_queue() && hears;
        let (mut cuts, mut late) = (0, 0);
        loop {
            let sent = Instant::now();
            let request = self.asked(claim, join, hears);
            let reply = self.run(Script::Acquire, move |redis| redis.acquire(&request)).await;
            let (answer, server) = match reply {
                Ok(answer) => answer,
                Err(cut) => {
                    let mut table = self.table();
                    let place = table.places.get_mut(&owner);
                    let known = place.is_some();
                    if let Some(place) = place.filter(|_| cut != Cut::Refused) {
                        let until = sent + self.link.timeout() + GRACE;
                        place.ghost_until = place.ghost_until.max(Some(until));
                    }
                    drop(table);
                    cuts += 1;
                    if known && self.is_worth_repeating(cut, asked, cuts) {
                        continue;
                    }
                    return Err(cut.error(NAME));
                }
            };
            self.sample(server);
            match answer {
                Answer::Held(grant) => return Ok(self.held(claim, &grant)),
                Answer::Queued { left, rank } => {
                    return Ok(self.queued(claim, (server, sent), left, rank));
                }
                Answer::Busy { left } => {
                    if claim.may_queue() {
                        hears = self.link.hears();
                        join = true;
                        continue;
                    }
                    let ghost = self.table().places.get(&owner).and_then(|place| place.ghost_until);
                    if let Some(until) = ghost.filter(|&until| Instant::now() < until) {
                        sleep_until(until).await;
                        continue;
                    }
                    self.table().places.remove(&owner);
                    return Ok(Standing::Nothing { retry_in: Some(millis(left)) });
                }
                Answer::Late => {
                    late += 1;
                    if late == LATE {
                        return Err(BackendError::transient(NAME, "the requests arrive too late"));
                    }
                }
                Answer::Gone => return Err(BackendError::permanent(NAME, "gone?")),
            }
        }
    }

    fn held(&self, claim: &Claim, grant: &Grant) -> Standing {
        if let Some(place) = self.table().places.get_mut(&claim.owner()) {
            place.held = true;
        }
        if grant.awaited {
            claim.contend();
        }
        Standing::Held(lease(grant))
    }

    fn queued(&self, claim: &Claim, anchor: (i64, Instant), left: i64, rank: u32) -> Standing {
        let mut suspect = false;
        if let Some(place) = self.table().places.get_mut(&claim.owner()) {
            if place.anchor.is_none_or(|(_, local)| local <= anchor.1) {
                place.anchor = Some(anchor);
            }
            suspect = std::mem::take(&mut place.suspect);
        }
        if suspect {
            return Standing::Queued { recheck: Duration::from_millis(1) };
        }
        let pause = if rank == 0 { self.link.between(1, 8) } else { self.link.between(20, 99) };
        let mut recheck = (PLACE_TTL / 3).min(claim.ttl() / 3).min(millis(left) + pause);
        if !self.link.hears() {
            recheck = recheck.min(self.link.between(8, 512));
        }
        Standing::Queued { recheck: recheck.max(Duration::from_millis(1)) }
    }

    /// Sends a release until it is answered, within the time of a request.
    async fn give_back(&self, key: &str, owner: Owner, used: u64, rest: i64) -> Result<bool, Cut> {
        let (start, process) = (Instant::now(), self.link.process);
        let mut cuts = 0;
        loop {
            let key = key.to_owned();
            let run = move |redis: &mut Redis| redis.release(&key, owner, process, used, rest);
            match self.run(Script::Release, run).await {
                // What it does not have any more, an earlier request that was cut off gave back.
                Ok(gave) => return Ok(gave || cuts > 0),
                Err(cut) if self.is_worth_repeating(cut, start, cuts + 1) => cuts += 1,
                Err(cut) => return Err(cut),
            }
        }
    }

    async fn renew_one(&self, renewal: &Renewal) -> Result<Standing, BackendError> {
        let claim = &renewal.claim;
        let owner = claim.owner();
        let known = self.table().places.get_mut(&owner).map(|place| {
            place.suspect = false;
            place.held
        });
        let key = claim.key().as_str().to_owned();
        if renewal.changed {
            return self.change(claim).await;
        }
        let sent = Instant::now();
        if known == Some(true) {
            let renewed = self.run(Script::Renew, move |redis| redis.renew(&key, owner)).await;
            return Ok(match renewed.map_err(|cut| cut.error(NAME))? {
                Some(grant) => self.held(claim, &grant),
                None => self.gone(owner),
            });
        }
        let poll = move |redis: &mut Redis| redis.poll(&key, owner, ceil(PLACE_TTL));
        let polled = self.run(Script::Poll, poll).await;
        let (answer, server) = polled.map_err(|cut| cut.error(NAME))?;
        self.sample(server);
        Ok(self.stands(claim, answer, (server, sent)))
    }

    async fn change(&self, claim: &Claim) -> Result<Standing, BackendError> {
        let changing =
            self.table().places.get(&claim.owner()).map(|place| Arc::clone(&place.changing));
        let _alone = match &changing {
            Some(changing) => Some(changing.lock().await),
            None => None,
        };
        for _ in 0..LATE {
            let sent = Instant::now();
            let request = self.asked(claim, false, false);
            let reply = self.run(Script::Change, move |redis| redis.change(&request)).await;
            let (answer, server) = match reply {
                Ok(answer) => answer,
                Err(cut) => {
                    if cut != Cut::Refused {
                        sleep_until(sent + self.link.timeout() + GRACE).await;
                    }
                    return Err(cut.error(NAME));
                }
            };
            self.sample(server);
            if !matches!(answer, Answer::Late) {
                return Ok(self.stands(claim, answer, (server, sent)));
            }
        }
        Err(BackendError::transient(NAME, "the requests arrive too late"))
    }

    fn stands(&self, claim: &Claim, answer: Answer, anchor: (i64, Instant)) -> Standing {
        match answer {
            Answer::Held(grant) => self.held(claim, &grant),
            Answer::Queued { left, rank } => self.queued(claim, anchor, left, rank),
            Answer::Gone | Answer::Late | Answer::Busy { .. } => self.gone(claim.owner()),
        }
    }

    fn gone(&self, owner: Owner) -> Standing {
        self.table().places.remove(&owner);
        Standing::Nothing { retry_in: None }
    }

    fn is_worth_repeating(&self, cut: Cut, start: Instant, sends: u32) -> bool {
        cut == Cut::Broken && sends < SENDS && start.elapsed() < self.link.timeout()
    }
}

impl distlock_core::Backend for Backend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::exclusive(Duration::from_millis(10));
        (capabilities.fair, capabilities.fencing, capabilities.push) = (true, true, true);
        capabilities
    }

    async fn acquire(&self, claim: &Claim) -> Result<Standing, BackendError> {
        self.0.acquire(claim).await
    }

    async fn renew(&self, renewals: &[Renewal]) -> Vec<Result<Standing, BackendError>> {
        let mut answers = Vec::with_capacity(renewals.len());
        for renewal in renewals {
            answers.push(self.0.renew_one(renewal).await);
        }
        answers
    }

    async fn release(&self, claim: &Claim) -> Result<bool, BackendError> {
        let owner = claim.owner();
        let place = self.0.table().places.remove(&owner);
        let used = claim.last_token().map_or(0, FencingToken::as_u64);
        let (key, rest) = (claim.key().as_str().to_owned(), ceil(claim.rest()));
        if let Some(until) = place.as_ref().and_then(|place| place.ghost_until) {
            let (backend, key) = (self.clone(), key.clone());
            self.later(async move {
                sleep_until(until).await;
                let _ = backend.0.give_back(&key, owner, used, rest).await;
            });
        }
        match self.0.give_back(&key, owner, used, rest).await {
            Ok(gave) => {
                if let Some(place) = place.filter(|_| gave) {
                    place.claim.end(LossReason::Gone);
                }
                Ok(gave)
            }
            Err(cut) => {
                if place.is_some_and(|place| !place.held) {
                    self.give_back_unknown(owner, &key, PLACE_TTL);
                }
                Err(cut.error(NAME))
            }
        }
    }

    async fn inspect(&self, key: &Key) -> Result<Occupancy, BackendError> {
        let key = key.as_str().to_owned();
        let found = self.0.run(Script::Inspect, move |redis| redis.inspect(&key)).await;
        let (holder, waiting) = found.map_err(|cut| cut.error(NAME))?;
        let holders = holder.into_iter().map(|(owner, token, left)| {
            let holder = Holder::new(Mode::Exclusive).expires_in(millis(left));
            match owner {
                Some(owner) => holder.owner(owner).token(FencingToken::new(token)),
                None => holder,
            }
        });
        Ok(Occupancy::new(holders.collect()).waiting(waiting))
    }
}

fn lease(grant: &Grant) -> Lease {
    let spare = u32::try_from(grant.last - grant.first).unwrap_or(0);
    Lease::new(FencingToken::new(grant.first)).with_spare(spare).with_ttl(millis(grant.ttl))
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

fn ceil(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
