//! Renewals: what is held, what stands in line and what changed, each kind in as few scripts as can be.

use std::collections::HashMap;

use distlock_core::{BackendError, Claim, FencingToken, Lease, Renewal, Standing};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until};

use crate::{
    backend::NAME,
    error::{classify, wrong_type},
    keys::{Names, Side},
    link::{Attempts, LinkError},
    places::Anchor,
    script::{Answer, CHANGE, POLL, RENEW, Renewed, array, int, nonsense},
    store::{GRACE, Store, millis},
    words::Words,
};

/// So many held locks go into one script: about half a millisecond of the server's time.
const HELD: usize = 128;

/// So many places go into one script. Each may have to promote somebody.
const PLACES: usize = 32;

/// A changing request that the server found too late is sent again so often.
const LATE: u32 = 4;

type Answered = Result<Standing, BackendError>;

/// One of the claims to renew: which, and under what number the places know it.
#[derive(Clone, Copy)]
struct Item<'a> {
    index: usize,
    claim: &'a Claim,
    serial: Option<u64>,
}

/// What goes into one exchange.
enum Job<'a> {
    Change(Item<'a>),
    Held(Vec<Item<'a>>),
    Places(Vec<Item<'a>>),
}

impl Store {
    /// Keeps alive what each claim has, and tells what that is.
    pub(crate) async fn renew(&self, renewals: &[Renewal]) -> Vec<Answered> {
        let mut answers: Vec<Option<Answered>> = vec![None; renewals.len()];
        let jobs = self.plan(renewals);
        for answered in join_all(jobs.into_iter().map(|job| self.carry_out(job))).await {
            for (index, answer) in answered {
                answers[index] = Some(answer);
            }
        }
        answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(unanswered()))).collect()
    }

    fn plan<'a>(&self, renewals: &'a [Renewal]) -> Vec<Job<'a>> {
        let mut jobs = Vec::new();
        let mut held: HashMap<u16, Vec<Item<'_>>> = HashMap::new();
        let mut places: HashMap<u16, Vec<Item<'_>>> = HashMap::new();
        for (index, renewal) in renewals.iter().enumerate() {
            let claim = &renewal.claim;
            let known = self.places.renewing(claim);
            let item = Item { index, claim, serial: known.map(|(serial, _)| serial) };
            let Ok(names) = Names::of(claim.key()) else {
                // Refused, and no reason to refuse the others.
                jobs.push(Job::Change(item));
                continue;
            };
            let slot = self.slot(&names);
            match known {
                _ if renewal.changed => jobs.push(Job::Change(item)),
                Some((_, true)) => held.entry(slot).or_default().push(item),
                // A poll finds out what it is.
                _ => places.entry(slot).or_default().push(item),
            }
        }
        for items in held.into_values() {
            jobs.extend(items.chunks(HELD).map(|items| Job::Held(items.to_vec())));
        }
        for items in places.into_values() {
            jobs.extend(items.chunks(PLACES).map(|items| Job::Places(items.to_vec())));
        }
        jobs
    }

    async fn carry_out(&self, job: Job<'_>) -> Vec<(usize, Answered)> {
        match job {
            Job::Change(item) => vec![(item.index, self.change(item).await)],
            Job::Held(items) => spread(&items, self.renew_held(&items).await),
            Job::Places(items) => spread(&items, self.poll(&items).await),
        }
    }

    async fn renew_held(&self, items: &[Item<'_>]) -> Result<Vec<Answered>, BackendError> {
        let mut words = Words::with_capacity(3 * items.len(), 160 * items.len());
        for item in items {
            let names = Names::of(item.claim.key())?;
            names.lock(&mut words);
            names.side(Side::Line, &mut words);
        }
        for item in items {
            words.show(item.claim.owner());
        }
        let words = words.finish();
        let (keys, args) = words.split_at(2 * items.len());
        let reply = self.run(&RENEW, keys, args).await.map_err(classify)?;
        let replies = array(&reply).map_err(classify)?;
        let answers = items.iter().zip(replies).map(|(item, reply)| {
            Ok(match Renewed::read(reply).map_err(classify)? {
                Renewed::Held { first, ttl, awaited } => {
                    if awaited {
                        item.claim.contend();
                    }
                    Standing::Held(Lease::new(FencingToken::new(first)).with_ttl(ttl))
                }
                Renewed::Gone => self.gone(item),
                Renewed::Wrong => return Err(self.wrong(item)),
            })
        });
        Ok(answers.collect())
    }

    async fn poll(&self, items: &[Item<'_>]) -> Result<Vec<Answered>, BackendError> {
        let slot = self.slot(&Names::of(items[0].claim.key())?);
        let mut words = Words::with_capacity(5 * items.len() + 2, 320 * items.len());
        for item in items {
            Names::of(item.claim.key())?.all(&mut words);
        }
        words.flag(!self.link.is_cluster());
        words.show(self.place_ttl.as_millis());
        for item in items {
            words.show(item.claim.owner());
        }
        let words = words.finish();
        let (keys, args) = words.split_at(4 * items.len());
        let sent = Instant::now();
        let reply = self.run(&POLL, keys, args).await.map_err(classify)?;
        let [server, replies @ ..] = array(&reply).map_err(classify)? else {
            return Err(classify(nonsense(&reply)));
        };
        let server = int(server).ok_or_else(|| classify(nonsense(server)))?;
        self.clock.sample(slot, server);
        let answers = items.iter().zip(replies).map(|(item, reply)| {
            let answer = Answer::plain(reply).map_err(classify)?;
            self.stands(item, answer, Anchor { server, local: sent })
        });
        Ok(answers.collect())
    }

    /// Writes another ttl and other metadata. One that was given up must not be carried out later: it could shorten a later ttl.
    async fn change(&self, item: Item<'_>) -> Answered {
        let claim = item.claim;
        let names = Names::of(claim.key())?;
        let slot = self.slot(&names);
        let changing = self.places.changing(claim);
        let _alone = match &changing {
            Some(changing) => Some(changing.lock().await),
            None => None,
        };
        for _ in 0..LATE {
            let metadata = claim.metadata();
            let mut words = Words::with_capacity(10, 512 + metadata.len());
            names.all(&mut words);
            words.show(claim.owner());
            words.show(millis(claim.ttl()));
            words.push(metadata.as_bytes());
            words.show(self.clock.not_after(slot, self.request_timeout));
            words.flag(!self.link.is_cluster());
            words.show(self.place_ttl.as_millis());
            let words = words.finish();
            let (keys, args) = words.split_at(4);
            let sent = Instant::now();
            let reply = match self.link.run(&CHANGE, keys, args, Attempts::AtMostOnce).await {
                Ok(reply) => reply,
                Err(error) => {
                    if self.is_open(&error) {
                        sleep_until(sent + self.request_timeout + GRACE).await;
                    }
                    return Err(classify(error));
                }
            };
            let (answer, server) = Answer::timed(&reply).map_err(classify)?;
            self.clock.sample(slot, server);
            if answer != Answer::Late {
                return self.stands(&item, answer, Anchor { server, local: sent });
            }
        }
        Err(BackendError::transient(NAME, "the requests arrive too late"))
    }

    fn stands(&self, item: &Item<'_>, answer: Answer, anchor: Anchor) -> Answered {
        match answer {
            Answer::Held(grant) => Ok(Standing::Held(self.held(item.claim, &grant))),
            Answer::Queued { lock, rank } => self.queued(item.claim, anchor, lock, rank),
            Answer::Gone => Ok(self.gone(item)),
            Answer::Wrong => Err(self.wrong(item)),
            Answer::Busy(_) | Answer::Late => {
                Err(classify(LinkError::Protocol("an answer to another question".to_owned())))
            }
        }
    }

    fn gone(&self, item: &Item<'_>) -> Standing {
        if let Some(serial) = item.serial {
            self.places.leave_as(item.claim, serial);
        }
        Standing::Nothing { retry_in: None }
    }

    fn wrong(&self, item: &Item<'_>) -> BackendError {
        let _ = self.gone(item);
        wrong_type(item.claim.key().as_str())
    }
}

/// Gives each claim of a batch its answer, or all of them what befell the batch.
fn spread(
    items: &[Item<'_>],
    answers: Result<Vec<Answered>, BackendError>,
) -> Vec<(usize, Answered)> {
    let indexes = items.iter().map(|item| item.index);
    match answers {
        Ok(answers) => indexes.zip(answers).collect(),
        Err(error) => indexes.map(|index| (index, Err(error.clone()))).collect(),
    }
}

fn unanswered() -> BackendError {
    BackendError::permanent(NAME, "the server gave fewer answers than there were questions")
}
