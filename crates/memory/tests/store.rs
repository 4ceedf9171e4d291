//! The store by itself, claim by claim, under the paused clock: what the conformance suite cannot ask of every store.

use std::time::Duration;

use distlock_core::{
    Backend, Claim, FencingToken, Key, Lease, LossReason, Mode, Owner, Renewal, Standing,
};
use distlock_memory::MemoryBackend;
use tokio::time;

const TTL: Duration = Duration::from_secs(10);

fn key() -> Key {
    Key::new("key").unwrap()
}

fn claim_as(mode: Mode) -> Claim {
    Claim::new(key(), Owner::random().unwrap(), mode, TTL)
}

fn claim() -> Claim {
    claim_as(Mode::Exclusive)
}

/// The same claim by another object, as another process would have it.
fn twin(claim: &Claim) -> Claim {
    Claim::new(claim.key().clone(), claim.owner(), claim.mode(), claim.ttl())
}

async fn ask(store: &MemoryBackend, claim: &Claim) -> Standing {
    store.acquire(claim).await.unwrap()
}

async fn lease(store: &MemoryBackend, claim: &Claim) -> Lease {
    match ask(store, claim).await {
        Standing::Held(lease) => lease,
        other => panic!("wanted to hold, is {other:?}"),
    }
}

async fn hold(store: &MemoryBackend, claim: &Claim) -> FencingToken {
    lease(store, claim).await.token()
}

async fn queue(store: &MemoryBackend, claim: &Claim) -> Duration {
    match ask(store, claim).await {
        Standing::Queued { recheck } => recheck,
        other => panic!("wanted to queue, is {other:?}"),
    }
}

async fn renew(store: &MemoryBackend, renewal: Renewal) -> Standing {
    store.renew(&[renewal]).await.remove(0).unwrap()
}

async fn expires_in(store: &MemoryBackend) -> Option<Duration> {
    let holders = store.inspect(&key()).await.unwrap().holders;
    holders.first().and_then(|holder| holder.expires_in)
}

async fn waiting(store: &MemoryBackend) -> u64 {
    store.inspect(&key()).await.unwrap().waiting.unwrap()
}

/// Whether the push is there already: nobody has to wait for it.
fn granted(claim: &Claim) -> Option<FencingToken> {
    let settled = std::pin::pin!(claim.granted());
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match settled.poll(&mut cx) {
        std::task::Poll::Ready(lease) => Some(lease.unwrap().token()),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_at_its_very_millisecond() {
    let (store, first) = (MemoryBackend::new(), claim());
    let token = hold(&store, &first).await;
    time::advance(TTL - Duration::from_millis(1)).await;
    assert_eq!(expires_in(&store).await, Some(Duration::from_millis(1)));
    time::advance(Duration::from_millis(1)).await;
    assert!(store.is_empty());
    let standing = renew(&store, Renewal::new(first.clone())).await;
    assert!(matches!(standing, Standing::Nothing { .. }), "a renewal creates nothing");
    assert!(!store.release(&first).await.unwrap());
    assert_eq!(first.granted().await.unwrap_err(), LossReason::Expired);
    assert!(token < hold(&store, &claim()).await);
}

#[tokio::test(start_paused = true)]
async fn asking_again_gives_the_same_and_a_fresh_ttl() {
    let (store, first) = (MemoryBackend::new(), claim());
    let token = hold(&store, &first).await;
    time::advance(TTL / 2).await;
    let again = twin(&first).with_metadata("resumed");
    assert_eq!(hold(&store, &again).await, token);
    assert_eq!(expires_in(&store).await, Some(TTL));
    assert_eq!(store.inspect(&key()).await.unwrap().holders[0].metadata, "resumed");
    assert!(store.release(&again).await.unwrap());
    assert!(store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn only_a_change_shortens() {
    let (store, first) = (MemoryBackend::new(), claim());
    hold(&store, &first).await;
    let short = Claim::new(key(), first.owner(), Mode::Exclusive, TTL / 5);
    assert!(matches!(ask(&store, &short).await, Standing::Held(_)));
    assert_eq!(expires_in(&store).await, Some(TTL));
    assert!(matches!(renew(&store, Renewal::new(short.clone())).await, Standing::Held(_)));
    assert_eq!(expires_in(&store).await, Some(TTL));
    assert!(matches!(renew(&store, Renewal::changed(short)).await, Standing::Held(_)));
    assert_eq!(expires_in(&store).await, Some(TTL / 5));
    time::advance(TTL / 5).await;
    assert!(store.is_empty(), "the shorter end is found");
}

#[tokio::test(start_paused = true)]
async fn a_release_grants_to_the_next_in_order() {
    let store = MemoryBackend::new();
    let claims: Vec<_> = (0..4).map(|_| claim()).collect();
    let mut last = hold(&store, &claims[0]).await;
    for claim in &claims[1..] {
        queue(&store, claim).await;
    }
    assert_eq!(waiting(&store).await, 3);
    for pair in claims.windows(2) {
        assert_eq!(granted(&pair[1]), None);
        assert!(store.release(&pair[0]).await.unwrap());
        let token = granted(&pair[1]).unwrap();
        assert!(last < token);
        last = token;
    }
    assert!(store.release(&claims[3]).await.unwrap());
    assert!(store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_nobody_takes_passes_on() {
    let store = MemoryBackend::new();
    let (first, gone, next) = (claim(), claim(), claim());
    hold(&store, &first).await;
    queue(&store, &gone).await;
    queue(&store, &next).await;
    gone.end(LossReason::Released);
    assert!(store.release(&first).await.unwrap());
    assert!(granted(&next).is_some());
    assert_eq!(store.inspect(&key()).await.unwrap().holders[0].owner, Some(next.owner()));
    assert_eq!(waiting(&store).await, 0);
}

#[tokio::test(start_paused = true)]
async fn an_expiry_found_by_a_recheck_grants_to_the_next() {
    let store = MemoryBackend::new();
    let (first, second, third) = (claim(), claim(), claim());
    hold(&store, &first).await;
    time::advance(TTL - Duration::from_secs(1)).await;
    assert_eq!(queue(&store, &second).await, Duration::from_secs(1), "until the holder's end");
    queue(&store, &third).await;
    time::advance(Duration::from_secs(1)).await;
    assert!(matches!(
        renew(&store, Renewal::new(third.clone())).await,
        Standing::Queued { recheck } if recheck == Duration::from_secs(5)
    ));
    assert!(granted(&second).is_some());
    assert!(matches!(renew(&store, Renewal::new(second)).await, Standing::Held(_)));
}

#[tokio::test(start_paused = true)]
async fn a_place_that_nobody_renews_dies_and_is_skipped() {
    let store = MemoryBackend::new();
    let (first, dead, alive) = (claim(), claim(), claim());
    hold(&store, &first).await;
    queue(&store, &dead).await;
    queue(&store, &alive).await;
    for _ in 0..4 {
        time::advance(Duration::from_secs(5)).await;
        for claim in [&first, &alive] {
            let _ = renew(&store, Renewal::new(claim.clone())).await;
        }
    }
    assert_eq!(waiting(&store).await, 1);
    assert_eq!(dead.granted().await.unwrap_err(), LossReason::Gone);
    assert!(store.release(&first).await.unwrap());
    assert!(granted(&alive).is_some());
}

#[tokio::test(start_paused = true)]
async fn release_of_a_place_is_a_cancellation() {
    let store = MemoryBackend::new();
    let (first, second) = (claim(), claim());
    hold(&store, &first).await;
    queue(&store, &second).await;
    assert!(store.release(&second).await.unwrap());
    assert!(!store.release(&second).await.unwrap());
    assert_eq!(waiting(&store).await, 0);
    assert!(store.release(&first).await.unwrap());
    assert!(store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_order_holds_between_readers_and_writers() {
    let store = MemoryBackend::new();
    let readers: Vec<_> = (0..4).map(|_| claim_as(Mode::Shared)).collect();
    let writer = claim();
    hold(&store, &readers[0]).await;
    hold(&store, &readers[1]).await;
    queue(&store, &writer).await;
    queue(&store, &readers[2]).await;
    queue(&store, &readers[3]).await;
    assert!(store.release(&readers[0]).await.unwrap());
    assert_eq!(granted(&writer), None);
    assert!(store.release(&readers[1]).await.unwrap());
    assert!(granted(&writer).is_some());
    assert_eq!(granted(&readers[2]), None, "a reader behind a writer waits");
    assert!(store.release(&writer).await.unwrap());
    assert!(granted(&readers[2]).is_some() && granted(&readers[3]).is_some());
    assert_eq!(store.inspect(&key()).await.unwrap().holders.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_writer_that_gives_up_lets_readers_in() {
    let store = MemoryBackend::new();
    let (reader, writer, late) = (claim_as(Mode::Shared), claim(), claim_as(Mode::Shared));
    hold(&store, &reader).await;
    queue(&store, &writer).await;
    queue(&store, &late).await;
    assert!(store.release(&writer).await.unwrap());
    assert!(granted(&late).is_some());
}

#[tokio::test(start_paused = true)]
async fn permits_are_not_overdrawn_and_a_large_want_is_not_starved() {
    let store = MemoryBackend::new();
    let permits = |want| claim_as(Mode::Permits { want, of: 3 });
    let (one, two, large, small) = (permits(1), permits(2), permits(3), permits(1));
    hold(&store, &one).await;
    hold(&store, &two).await;
    queue(&store, &large).await;
    queue(&store, &small).await;
    assert!(store.release(&one).await.unwrap());
    assert!(granted(&large).is_none() && granted(&small).is_none());
    assert!(store.release(&two).await.unwrap());
    assert!(granted(&large).is_some() && granted(&small).is_none());
    assert!(store.release(&large).await.unwrap());
    assert!(granted(&small).is_some());
}

#[tokio::test(start_paused = true)]
async fn one_who_may_not_queue_learns_when_to_come_again() {
    let store = MemoryBackend::new();
    let (first, waiter) = (claim(), claim());
    hold(&store, &first).await;
    queue(&store, &waiter).await;
    time::advance(Duration::from_secs(4)).await;
    let Standing::Nothing { retry_in } = ask(&store, &claim().without_queue()).await else {
        panic!("the key is taken");
    };
    assert_eq!(retry_in, Some(TTL - Duration::from_secs(4)));
    assert_eq!(waiting(&store).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_rest_keeps_the_key_taken_and_nobodys() {
    let store = MemoryBackend::new();
    let first = claim().with_rest(Duration::from_secs(3));
    let next = claim();
    hold(&store, &first).await;
    queue(&store, &next).await;
    assert!(store.release(&first).await.unwrap());
    assert!(!store.release(&first).await.unwrap(), "nothing of its owner id is left");
    let occupancy = store.inspect(&key()).await.unwrap();
    assert_eq!(occupancy.holders.len(), 1);
    assert_eq!((occupancy.holders[0].owner, occupancy.holders[0].token), (None, None));
    assert!(matches!(
        renew(&store, Renewal::new(next.clone())).await,
        Standing::Queued { recheck } if recheck == Duration::from_secs(3)
    ));
    time::advance(Duration::from_secs(3)).await;
    assert!(matches!(renew(&store, Renewal::new(next)).await, Standing::Held(_)));
}

#[tokio::test(start_paused = true)]
async fn a_release_by_somebody_else_is_told() {
    let (store, first) = (MemoryBackend::new(), claim());
    hold(&store, &first).await;
    assert!(store.release(&twin(&first)).await.unwrap());
    assert_eq!(first.granted().await.unwrap_err(), LossReason::Gone);
}

#[tokio::test(start_paused = true)]
async fn blocks_of_tokens_do_not_meet() {
    let store = MemoryBackend::new();
    let first = claim().with_block(1000);
    let lease = lease(&store, &first).await;
    assert!(999 <= lease.spare());
    assert!(store.release(&first).await.unwrap());
    let after = hold(&store, &claim()).await.as_u64();
    assert!(lease.token().as_u64() + u64::from(lease.spare()) < after);
}

#[tokio::test(start_paused = true)]
async fn what_ended_unasked_does_not_pile_up() {
    let store = MemoryBackend::new();
    for batch in 0..50 {
        for n in 0..100 {
            let key = Key::new(format!("key-{batch}-{n}")).unwrap();
            let claim = Claim::new(key, Owner::random().unwrap(), Mode::Exclusive, TTL);
            hold(&store, &claim).await;
        }
        time::advance(TTL).await;
    }
    assert!(store.is_empty());
}

#[tokio::test]
async fn a_name_is_a_store() {
    let (one, same) = (MemoryBackend::named("one"), MemoryBackend::named("one"));
    hold(&one, &claim()).await;
    queue(&same, &claim()).await;
    hold(&MemoryBackend::named("another"), &claim()).await;
    hold(&MemoryBackend::new(), &claim()).await;
    assert_eq!(format!("{one:?}"), "MemoryBackend { name: \"one\", .. }");
}
