//! The deadline rule, case by case, on the state of a claim.

use std::time::Duration;

use tokio::time::{Instant, advance};

use super::{super::table::Due, Outcome};
use crate::{
    BackendError, Claim, FencingToken, Key, Lease, LossReason, Mode, Owner, Standing,
    claim::{Phase, Place},
    lease,
    patience::OUTAGE,
    tenure::{Policy, Tenure},
};

const TTL: Duration = Duration::from_secs(10);

/// A claim that was granted just now with token 7, and the time at which it was asked for.
fn held() -> (Claim, Instant) {
    let claim = Claim::new(Key::new("k").unwrap(), Owner::new(1), Mode::Exclusive, TTL);
    let now = Instant::now();
    let policy = Policy { renew_at: Some(1.0 / 3.0), max_hold: None, min_hold: Duration::ZERO };
    let tenure = Tenure::new(&grant(7), now, lease::deadline(now, TTL), now, TTL, None, policy);
    claim.state().phase = Phase::Held(tenure);
    (claim, now)
}

fn grant(token: u64) -> Lease {
    Lease::new(FencingToken::new(token))
}

fn due(claim: &Claim, version: u32) -> Due {
    Due {
        claim: claim.clone(),
        ttl: TTL,
        version,
        changed: false,
        place: false,
        late: Duration::ZERO,
    }
}

fn deadline(claim: &Claim) -> Option<Instant> {
    match &claim.state().phase {
        Phase::Held(tenure) => Some(tenure.deadline),
        _ => None,
    }
}

fn answer(claim: &Claim, sent: Instant, answer: Result<Standing, BackendError>) -> Outcome {
    claim.state().renewed(&due(claim, 0), sent, answer)
}

#[tokio::test(start_paused = true)]
async fn a_confirmed_renewal_counts_from_when_it_was_sent() {
    let (claim, _) = held();
    advance(Duration::from_secs(3)).await;
    let sent = Instant::now();
    advance(Duration::from_secs(2)).await;
    assert!(matches!(answer(&claim, sent, Ok(Standing::Held(grant(7)))), Outcome::Renewed));
    assert_eq!(deadline(&claim), Some(sent + TTL - TTL / 100));
}

#[tokio::test(start_paused = true)]
async fn an_unconfirmed_renewal_changes_nothing() {
    let (claim, asked) = held();
    advance(Duration::from_secs(3)).await;
    let error = BackendError::transient("test", "away");
    assert!(matches!(answer(&claim, Instant::now(), Err(error)), Outcome::Failed(_)));
    assert_eq!(deadline(&claim), Some(asked + TTL - TTL / 100));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_confirmed_after_the_deadline_is_a_loss() {
    let (claim, _) = held();
    advance(Duration::from_secs(3)).await;
    let sent = Instant::now();
    advance(Duration::from_secs(7)).await;
    let Outcome::Ended(end) = answer(&claim, sent, Ok(Standing::Held(grant(7)))) else {
        panic!("still held")
    };
    assert_eq!(end.reason, LossReason::Expired);
    assert!(deadline(&claim).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_confirmed_renewal_never_shortens() {
    let (claim, asked) = held();
    let early = asked - Duration::from_secs(2);
    let answered = Ok(Standing::Held(grant(7).with_since(early)));
    assert!(matches!(answer(&claim, Instant::now(), answered), Outcome::Renewed));
    assert_eq!(deadline(&claim), Some(asked + TTL - TTL / 100));
}

#[tokio::test(start_paused = true)]
async fn the_smaller_of_the_asked_and_the_granted_ttl_counts() {
    let (claim, _) = held();
    advance(Duration::from_secs(3)).await;
    let sent = Instant::now();
    let longer = Ok(Standing::Held(grant(7).with_ttl(TTL * 2)));
    assert!(matches!(answer(&claim, sent, longer), Outcome::Renewed));
    assert_eq!(deadline(&claim), Some(sent + TTL - TTL / 100));
}

#[tokio::test(start_paused = true)]
async fn another_token_a_place_or_nothing_is_a_loss_at_once() {
    let others = [
        Standing::Held(grant(8)),
        Standing::Nothing { retry_in: None },
        Standing::Queued { recheck: Duration::from_secs(1) },
    ];
    for other in others {
        let (claim, _) = held();
        let Outcome::Ended(end) = answer(&claim, Instant::now(), Ok(other)) else {
            panic!("still held")
        };
        assert_eq!(end.reason, LossReason::Gone, "{other:?}");
    }
    let (claim, _) = held();
    let conflict = Err(BackendError::conflict("test", "a list"));
    assert!(matches!(answer(&claim, Instant::now(), conflict), Outcome::Ended(_)));
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_older_terms_does_not_raise_the_deadline() {
    let (claim, asked) = held();
    advance(Duration::from_secs(3)).await;
    claim.state().terms.version = 1;
    let sent = Instant::now();
    assert!(matches!(answer(&claim, sent, Ok(Standing::Held(grant(7)))), Outcome::Renewed));
    assert_eq!(deadline(&claim), Some(asked + TTL - TTL / 100));
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_older_terms_is_followed_by_another_renewal_soon() {
    let (claim, _) = held();
    advance(Duration::from_secs(7)).await;
    claim.state().terms.version = 1;
    assert!(matches!(
        answer(&claim, Instant::now(), Ok(Standing::Held(grant(7)))),
        Outcome::Renewed
    ));
    let due = claim.state().due().unwrap() - Instant::now();
    assert!(due < Duration::from_secs(1), "in {due:?}, and the lock ends in 2.9 s");
}

#[tokio::test(start_paused = true)]
async fn what_is_over_stays_over() {
    let (claim, _) = held();
    claim.end(LossReason::Gone);
    assert!(matches!(
        answer(&claim, Instant::now(), Ok(Standing::Held(grant(7)))),
        Outcome::Unchanged
    ));
    assert!(!claim.grant(grant(7)), "nobody waits for it any more");
    assert!(deadline(&claim).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_place_that_became_a_lease_is_granted_from_when_the_renewal_was_sent() {
    let claim = Claim::new(Key::new("k").unwrap(), Owner::new(1), Mode::Exclusive, TTL);
    claim.queued(Duration::from_secs(1));
    let sent = Instant::now();
    advance(Duration::from_secs(2)).await;
    let outcome = answer(&claim, sent, Ok(Standing::Held(grant(9))));
    assert!(
        matches!(outcome, Outcome::Granted(lease, since) if lease.token().as_u64() == 9 && since == sent)
    );
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_to_be_looked_at_while_it_is_being_looked_at_is_so_once_more() {
    let claim = Claim::new(Key::new("k").unwrap(), Owner::new(1), Mode::Exclusive, TTL);
    let now = Instant::now();
    for again in [false, true] {
        let place = Place { recheck: Some(now + TTL), renewing: true, ..Place::default() };
        claim.state().phase = Phase::Waiting(place);
        if again {
            claim.recheck();
        }
        let queued = Ok(Standing::Queued { recheck: Duration::from_secs(5) });
        let due = Due { place: true, ..due(&claim, 0) };
        assert!(matches!(claim.state().renewed(&due, now, queued), Outcome::Unchanged));
        let after = if again { Duration::from_millis(1) } else { Duration::from_secs(5) };
        assert_eq!(claim.state().due(), Some(now + after));
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_that_the_store_cannot_look_at_is_kept_for_as_long_as_an_outage_is_borne() {
    let claim = Claim::new(Key::new("k").unwrap(), Owner::new(1), Mode::Exclusive, TTL);
    claim.queued(Duration::from_secs(1));
    let due = Due { place: true, ..due(&claim, 0) };
    let look = |answer| claim.state().renewed(&due, Instant::now(), answer);
    let away = || Err(BackendError::transient("test", "away"));
    // The second outage has nothing to do with the first one.
    for _ in 0..2 {
        assert!(matches!(look(away()), Outcome::Failed(_)));
        assert_eq!(claim.state().due(), Some(Instant::now() + Duration::from_millis(100)));
        advance(OUTAGE - Duration::from_millis(1)).await;
        assert!(matches!(look(away()), Outcome::Failed(_)));
        let queued = Ok(Standing::Queued { recheck: Duration::from_secs(1) });
        assert!(matches!(look(queued), Outcome::Unchanged));
    }
    assert!(matches!(look(away()), Outcome::Failed(_)));
    advance(OUTAGE).await;
    let Outcome::Ended(end) = look(away()) else { panic!("it still stands there") };
    assert_eq!(end.reason, LossReason::Gone);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_nobody_took_yet_counts_from_its_last_confirmation() {
    let claim = Claim::new(Key::new("k").unwrap(), Owner::new(1), Mode::Exclusive, TTL);
    let due = Due { place: true, ..due(&claim, 0) };
    let certain = lease::certain(TTL);
    let granted = Instant::now();
    assert!(claim.grant(grant(7)));
    advance(Duration::from_secs(1)).await;
    let look = |sent, token| claim.state().renewed(&due, sent, Ok(Standing::Held(grant(token))));
    let sent = Instant::now();
    advance(Duration::from_secs(1)).await;
    assert!(matches!(look(sent, 8), Outcome::Unchanged));
    assert_eq!(claim.state().due(), Some(granted + certain), "that is another grant");
    assert!(matches!(look(sent, 7), Outcome::Unchanged));
    assert_eq!(claim.state().due(), Some(sent + certain));
    assert!(matches!(look(granted, 7), Outcome::Unchanged));
    assert_eq!(claim.state().due(), Some(sent + certain), "a late answer takes nothing away");
}

#[tokio::test(start_paused = true)]
async fn a_change_is_confirmed_by_a_renewal_that_carried_it_and_by_no_other() {
    let (claim, sent) = held();
    let renewed = |changed| {
        let due = Due { changed, ..due(&claim, 0) };
        let outcome = claim.state().renewed(&due, sent, Ok(Standing::Held(grant(7))));
        assert!(matches!(outcome, Outcome::Renewed));
        claim.state().terms.unconfirmed
    };
    claim.state().terms.unconfirmed = true;
    assert!(renewed(false));
    assert!(!renewed(true));
    assert!(!renewed(false));
}
