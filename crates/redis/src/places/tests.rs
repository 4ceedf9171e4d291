//! What a push is worth, case by case.

use distlock_core::Mode;
use futures_util::FutureExt as _;
use tokio::time::advance;

use super::*;

const TTL: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
const HEAD: Outlook = Outlook { left: Some(TTL), ours: true, rank: 0, hears: true };
/// The server's time when the first claim stands in line.
const START: i64 = 1_000_000_000;

fn claim() -> Claim {
    let owner = Owner::random().unwrap();
    Claim::new(Key::new("k").unwrap(), owner, Mode::Exclusive, TTL)
}

fn places() -> Places {
    Places::new(7, Duration::from_secs(15), false)
}

fn grant(places: &Places, claim: &Claim, server: i64, waiting: u32) {
    let ttl = TTL.as_millis();
    let message = format!("g:{}:{server}:7:9:{ttl}:{waiting}:k", claim.owner());
    places.push(message.as_bytes());
}

fn granted(claim: &Claim) -> Option<Lease> {
    claim.granted().now_or_never().map(Result::unwrap)
}

fn queue(places: &Places, claim: &Claim, server: i64) -> Duration {
    places.queued(claim, Anchor { server, local: Instant::now() }, HEAD)
}

#[tokio::test(start_paused = true)]
async fn a_push_that_overtakes_the_first_answer_counts_from_the_first_request() {
    let (places, claim) = (places(), claim().with_new_owner());
    let (asked, _) = places.enter(&claim);
    advance(SECOND).await;
    // The first one had no answer. Which of them was carried out is not known.
    places.enter(&claim);
    advance(SECOND).await;
    grant(&places, &claim, START, 0);
    let lease = granted(&claim).unwrap();
    assert_eq!(lease.since(), Some(asked));
    assert_eq!((lease.token(), lease.spare()), (FencingToken::new(7), 2));
}

#[tokio::test(start_paused = true)]
async fn a_push_that_overtakes_the_first_answer_is_not_believed_past_the_deadline_of_the_request() {
    let (places, claim) = (places(), claim().with_new_owner());
    places.enter(&claim);
    advance(TTL - SECOND / 5).await;
    grant(&places, &claim, START, 0);
    assert!(granted(&claim).is_none());
}

#[tokio::test(start_paused = true)]
async fn under_an_id_used_before_a_push_that_overtakes_the_first_answer_may_be_of_an_earlier_claim_and_is_not_believed()
 {
    let (places, claim) = (places(), claim());
    places.enter(&claim);
    advance(SECOND).await;
    grant(&places, &claim, START, 0);
    assert!(granted(&claim).is_none());
    // The answer is on its way; if it says that the claim waits, it asks at once.
    assert_eq!(queue(&places, &claim, START), Duration::from_millis(1));
}

#[tokio::test(start_paused = true)]
async fn an_id_is_not_new_any_more_when_another_claim_asks_under_it() {
    let (places, first) = (places(), claim().with_new_owner());
    places.enter(&first);
    places.enter(&Claim::new(first.key().clone(), first.owner(), Mode::Exclusive, TTL));
    grant(&places, &first, START, 0);
    assert!(granted(&first).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_push_counts_from_the_server_s_time_of_the_grant_less_a_hundredth() {
    let (places, claim) = (places(), claim());
    let (asked, _) = places.enter(&claim);
    queue(&places, &claim, START);
    advance(10 * SECOND).await;
    grant(&places, &claim, START + 8_000_000, 0);
    let lease = granted(&claim).unwrap();
    assert_eq!(lease.since().unwrap() - asked, Duration::from_millis(7920));
    assert_eq!((lease.token(), lease.spare()), (FencingToken::new(7), 2));
}

#[tokio::test(start_paused = true)]
async fn a_push_older_than_the_last_answer_is_not_believed() {
    let (places, claim) = (places(), claim());
    places.enter(&claim);
    queue(&places, &claim, START);
    advance(SECOND).await;
    queue(&places, &claim, START + 1_000_000);
    grant(&places, &claim, START + 999_999, 0);
    assert!(granted(&claim).is_none());
    // And the answer to a question that was under way meanwhile is not believed for long.
    assert_eq!(queue(&places, &claim, START + 1_000_000), Duration::from_millis(1));
    assert!(SECOND < queue(&places, &claim, START + 1_000_000));
}

#[tokio::test(start_paused = true)]
async fn a_push_is_not_believed_when_the_server_s_clock_was_not_heard_of_for_a_ttl() {
    let (places, claim) = (places(), claim());
    places.enter(&claim);
    queue(&places, &claim, START);
    advance(TTL + SECOND).await;
    grant(&places, &claim, START + 25_000_000, 0);
    assert!(granted(&claim).is_none());
    // So it asks, and the answer to a question that was under way is not believed for long.
    assert_eq!(queue(&places, &claim, START), Duration::from_millis(1));
}

#[tokio::test(start_paused = true)]
async fn a_push_from_a_clock_that_was_set_is_not_believed() {
    let (places, claim) = (places(), claim());
    places.enter(&claim);
    queue(&places, &claim, START);
    advance(SECOND).await;
    grant(&places, &claim, START + 1_020_000, 0);
    assert!(granted(&claim).is_none(), "1.02 s passed there and 1 s here");
    grant(&places, &claim, START + 1_009_000, 0);
    assert!(granted(&claim).is_some(), "so much the clocks may differ by");
}

#[tokio::test(start_paused = true)]
async fn no_push_is_believed_by_who_wants_all_confirmed() {
    let (places, claim) = (Places::new(7, Duration::from_secs(15), true), claim());
    places.enter(&claim);
    queue(&places, &claim, START);
    grant(&places, &claim, START, 0);
    assert!(granted(&claim).is_none());
    assert_eq!(queue(&places, &claim, START), Duration::from_millis(1));
}

#[tokio::test(start_paused = true)]
async fn a_push_past_its_deadline_is_not_believed() {
    let (places, claim) = (places(), claim());
    places.enter(&claim);
    queue(&places, &claim, START);
    advance(TTL + SECOND).await;
    grant(&places, &claim, START + 1_000_000, 0);
    assert!(granted(&claim).is_none());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_out_of_order_does_not_move_the_anchor_back() {
    let (places, claim) = (places(), claim());
    places.enter(&claim);
    let early = Anchor { server: START, local: Instant::now() };
    advance(SECOND).await;
    queue(&places, &claim, START + 1_000_000);
    places.queued(&claim, early, HEAD);
    grant(&places, &claim, START + 500_000, 0);
    assert!(granted(&claim).is_none());
}

#[tokio::test(start_paused = true)]
async fn who_is_gone_is_not_granted_anything_and_nothing_is_kept_of_it() {
    let (places, claim) = (places(), claim());
    places.enter(&claim);
    assert!(places.leave(&claim).is_some());
    grant(&places, &claim, START, 0);
    assert!(granted(&claim).is_none());
    assert!(places.table().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_taken_away_ends_its_claim() {
    let (places, claim) = (places(), claim().with_new_owner());
    places.enter(&claim);
    places.push(format!("l:{}", claim.owner()).as_bytes());
    assert!(matches!(claim.granted().now_or_never(), Some(Err(LossReason::Gone))));
    assert!(places.table().is_empty());
}

#[tokio::test(start_paused = true)]
async fn under_an_id_used_before_it_asks_whether_its_lock_was_taken_away() {
    let (places, claim) = (places(), claim());
    places.enter(&claim);
    places.push(format!("l:{}", claim.owner()).as_bytes());
    assert!(granted(&claim).is_none());
    assert!(places.knows(&claim));
    assert_eq!(queue(&places, &claim, START), Duration::from_millis(1));
}

#[tokio::test(start_paused = true)]
async fn an_owner_of_several_keys_has_a_place_for_each() {
    let places = places();
    let of = |key: &str| Claim::new(Key::new(key).unwrap(), Owner::new(7), Mode::Exclusive, TTL);
    let (one, two, three) = (of("j"), of("k"), of("l"));
    for claim in [&one, &two, &three] {
        places.enter(claim);
        queue(&places, claim, START);
    }
    grant(&places, &two, START, 0);
    assert!(granted(&one).is_none() && granted(&two).is_some() && granted(&three).is_none());
    // It is about one of them.
    places.push(format!("l:{}", two.owner()).as_bytes());
    for claim in [&one, &three] {
        assert_eq!(queue(&places, claim, START), Duration::from_millis(1));
    }
    let others = |gone: &Claim| places.claims(|place| place.claim.key() != gone.key()).len();
    assert!(places.leave(&two).is_some() && places.leave(&two).is_none());
    assert_eq!(others(&two), 2);
    assert!(places.leave(&three).is_some() && !places.knows(&three) && places.knows(&one));
    assert!(places.leave(&one).is_some() && places.table().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_came_for_an_owner_before_does_not_end_it_when_it_comes_again() {
    let (places, claim) = (places(), claim());
    places.enter(&claim);
    let (serial, _) = places.renewing(&claim).unwrap();
    places.leave(&claim);
    places.enter(&claim);
    places.leave_as(&claim, serial);
    assert!(places.knows(&claim));
}

#[tokio::test(start_paused = true)]
async fn a_foreign_lock_without_a_ttl_is_unending_when_seen_twice_a_second_apart() {
    let (places, key) = (places(), Key::new("k").unwrap());
    let unending = Taken { left: None, ours: false };
    let ending = Taken { left: Some(SECOND), ours: false };
    assert!(!places.is_unending(&key, unending));
    advance(SECOND / 2).await;
    assert!(!places.is_unending(&key, unending));
    advance(SECOND / 2).await;
    assert!(places.is_unending(&key, unending));
    assert!(!places.is_unending(&key, ending), "its ttl came");
    assert!(!places.is_unending(&key, unending), "another one");
    advance(FORGOTTEN).await;
    assert!(!places.is_unending(&key, unending), "too long ago");
    for number in 0..3 * MAX_UNENDING {
        places.is_unending(&Key::new(number.to_string()).unwrap(), unending);
    }
    assert!(places.unending().len() <= MAX_UNENDING);
}
