//! FAULTS A, B, C, D and I, as far as they can be caused between core and the store.

use std::time::Duration;

use distlock_core::{
    AnyBackend, Backend as _, Client, Error, ErrorKind, Event, Linear, LossReason, Released,
    RetryStrategy as _,
};
use tokio::{
    task::JoinSet,
    time::{self, Instant, sleep},
};

use crate::{
    Fault, Faulty, Op, Rates, Stage,
    tools::{LONG, Section, Watch, eventually, is_free, lock, outlive, within},
};

const BRIEF: Duration = Duration::from_millis(60);

/// A client whose store has faults on demand; what is lost is given up soon.
fn faulty(stage: &Stage) -> (Faulty<AnyBackend>, Client) {
    let faulty = stage.faulty().timeout(BRIEF);
    (faulty.clone(), stage.client_of(faulty))
}

async fn is_gone(stage: &Stage) {
    eventually("nothing is left", async || {
        let occupancy = stage.inspect().await;
        occupancy.holders.is_empty() && occupancy.waiting.unwrap_or(0) == 0
    })
    .await;
}

/// The store granted, and nobody heard of it: an error, and the grant is given back; with a strategy, the same grant is found.
pub async fn fault_a1_acquire_reply_lost(stage: &Stage) {
    let (faulty, client) = faulty(stage);
    let mutex = client.mutex(Stage::NAME);
    faulty.next(Op::Acquire, Fault::LoseReply);
    let error = mutex.lock().await.expect_err("no answer came");
    assert!(error.is_transient(), "{error:?}");
    is_gone(stage).await;
    faulty.next(Op::Acquire, Fault::LoseReply);
    faulty.next(Op::Acquire, Fault::LoseReply);
    let patient = mutex.retry(Linear::new(BRIEF / 3).limit(5));
    let guard = patient.lock().await.expect("the third answer came");
    assert_eq!(stage.inspect().await.holders[0].owner, Some(guard.owner()));
    assert!(guard.is_held());
    assert_eq!(faulty.dropped(), 0);
}

/// The store never heard of it: nothing is left.
pub async fn fault_a2_acquire_request_lost(stage: &Stage) {
    let (faulty, client) = faulty(stage);
    faulty.next(Op::Acquire, Fault::LoseRequest);
    let error = client.mutex(Stage::NAME).try_lock().await.expect_err("no answer came");
    assert!(error.is_transient(), "{error:?}");
    is_gone(stage).await;
    lock(&client).await.release().await.expect("an answer");
}

/// A driver that repeats by itself, or a network that does: one grant.
pub async fn fault_a3_acquire_doubled(stage: &Stage) {
    let (faulty, client) = faulty(stage);
    let other = stage.other_client().await;
    for _ in 0..3 {
        faulty.next(Op::Acquire, Fault::Double);
        let guard = lock(&client).await;
        assert_eq!(stage.inspect().await.holders.len(), 1);
        assert_eq!(guard.release().await.expect("an answer"), Released::Released);
        assert!(is_free(&other).await);
    }
}

/// It reaches the store after its caller has gone: nobody keeps what it got.
pub async fn fault_a4_a_ghost_acquire(stage: &Stage) {
    let (faulty, client) = faulty(stage);
    faulty.next(Op::Acquire, Fault::Hang);
    let error = client.mutex(Stage::NAME).lock_timeout(BRIEF).await.expect_err("it is slow");
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    faulty.heal();
    eventually("it is undone", async || faulty.calls(Op::Release) == 1).await;
    is_gone(stage).await;
    assert_eq!(faulty.calls(Op::Renew), 0, "nobody renews a ghost");
    assert_eq!(faulty.dropped(), 0);
}

/// A grant that arrives after its deadline is none.
pub async fn fault_a6_reply_after_the_deadline(stage: &Stage) {
    let (faulty, client) = faulty(stage);
    faulty.next(Op::Acquire, Fault::DelayReply(stage.ttl() * 3 / 2));
    let mutex = client.mutex(Stage::NAME).ttl(stage.ttl());
    match within("it is given up", mutex.lock()).await {
        Err(error) => assert!(error.is_transient(), "{error:?}"),
        // Told in the same moment by the store that its grant is over, it has begun anew.
        Ok(guard) => {
            assert_eq!(faulty.calls(Op::Acquire), 2, "{guard:?} is of the late grant");
            assert!(guard.is_held());
            guard.release().await.expect("an answer");
        }
    }
    let guard = lock(&stage.other_client().await).await;
    eventually("the late grant is given back", async || 1 <= faulty.calls(Op::Release)).await;
    assert!(guard.is_held());
    assert_eq!(stage.inspect().await.holders[0].owner, Some(guard.owner()));
}

/// Dropped while its request is under way.
pub async fn fault_a7_dropped_in_flight(stage: &Stage) {
    for fault in [Fault::Hang, Fault::HangReply] {
        let (faulty, client) = faulty(stage);
        faulty.next(Op::Acquire, fault);
        let mutex = client.mutex(Stage::NAME);
        // Before the store gives up by itself.
        time::timeout(BRIEF / 2, mutex.lock()).await.expect_err("it hangs");
        faulty.heal();
        is_gone(stage).await;
        lock(&stage.other_client().await).await.release().await.expect("an answer");
        assert_eq!(faulty.dropped(), 0, "a call in flight is polled to its end");
    }
}

/// Two tasks of one process are two.
pub async fn fault_a11_two_tasks_of_a_process(stage: &Stage) {
    let client = stage.client();
    let guard = lock(&client).await;
    assert!(!is_free(&client).await);
    assert!(!is_free(&client.clone()).await);
    guard.release().await.expect("an answer");
    assert!(is_free(&client).await);
}

/// The store let go, and nobody heard of it: an error, and what is tried again harms no successor.
pub async fn fault_b1_release_reply_lost(stage: &Stage) {
    let (faulty, client) = faulty(stage);
    faulty.next(Op::Release, Fault::LoseReply);
    let guard = lock(&client).await;
    let error = guard.release().await.expect_err("no answer came");
    assert!(error.is_transient(), "{error:?}");
    let next = lock(&stage.other_client().await).await;
    eventually("it is tried again", async || 2 <= faulty.calls(Op::Release)).await;
    sleep(BRIEF).await;
    assert_eq!(stage.inspect().await.holders[0].owner, Some(next.owner()));
}

/// The store never heard of it: it is told again, in the background.
pub async fn fault_b1_release_request_lost(stage: &Stage) {
    let (faulty, client) = faulty(stage);
    faulty.next(Op::Release, Fault::LoseRequest);
    let guard = lock(&client).await;
    assert!(guard.release().await.expect_err("no answer came").is_transient());
    lock(&stage.other_client().await).await.release().await.expect("an answer");
    faulty.next(Op::Release, Fault::LoseRequest);
    drop(lock(&client).await);
    lock(&stage.other_client().await).await.release().await.expect("an answer");
}

/// Twice on the wire.
pub async fn fault_b3_release_doubled(stage: &Stage) {
    let (faulty, client) = faulty(stage);
    faulty.next(Op::Release, Fault::Double);
    lock(&client).await.release().await.expect("an answer");
    assert!(is_free(&stage.other_client().await).await);
}

/// Given up by its caller: it goes on, and the guard was over with the call.
pub async fn fault_b5_release_dropped(stage: &Stage) {
    for fault in [Fault::Hang, Fault::HangReply] {
        let (faulty, client) = faulty(stage);
        let guard = lock(&client).await;
        let lost = guard.lost_token();
        faulty.next(Op::Release, fault);
        time::timeout(BRIEF, guard.release()).await.expect_err("it is slow");
        assert!(lost.is_cancelled());
        faulty.heal();
        lock(&stage.other_client().await).await.release().await.expect("an answer");
        eventually("it comes to its end", async || faulty.dropped() == 0).await;
    }
}

/// A renewal that is overtaken by the release brings nothing back.
pub async fn fault_b6_release_overtakes_a_renewal(stage: &Stage) {
    let (faulty, client) = faulty(stage);
    let mutex = client.mutex(Stage::NAME).ttl(stage.lasting_ttl()).renew_at(0.1);
    let guard = mutex.lock().await.expect("free");
    faulty.next(Op::Renew, Fault::Delay(BRIEF * 3));
    eventually("a renewal is under way", async || faulty.calls(Op::Renew) == 1).await;
    assert_eq!(guard.release().await.expect("an answer"), Released::Released);
    sleep(BRIEF * 4).await;
    let occupancy = stage.inspect().await;
    assert!(occupancy.holders.is_empty(), "{occupancy:?}");
    assert_eq!(faulty.calls(Op::Renew), 1, "no renewal after the release");
}

/// A store that refuses for a while is asked again.
pub async fn fault_b8_release_refused_for_a_while(stage: &Stage) {
    let (faulty, client) = faulty(stage);
    let guard = lock(&client).await;
    faulty.always(Op::Release, Fault::Refuse(ErrorKind::Transient));
    assert!(guard.release().await.expect_err("it is refused").is_transient());
    eventually("it is tried again", async || 3 <= faulty.calls(Op::Release)).await;
    assert!(!is_free(&stage.other_client().await).await);
    faulty.heal();
    is_gone(stage).await;
}

/// One renewal fails: there is time for the next.
pub async fn fault_c1_a_renewal_lost(stage: &Stage) {
    for fault in [Fault::LoseRequest, Fault::LoseReply, Fault::Refuse(ErrorKind::Transient)] {
        let (faulty, _) = faulty(stage);
        let watch = Watch::default();
        let builder = stage.builder_of(faulty.clone()).ttl(stage.lasting_ttl()).renew_at(0.1);
        let client = builder.observer(watch.clone()).build().expect("valid");
        let guard = lock(&client).await;
        let deadline = guard.expires_at();
        faulty.next(Op::Renew, fault);
        watch.seen("a failure", 1, |event| matches!(event, Event::RenewalFailed { .. })).await;
        assert!(guard.is_held());
        eventually("it is renewed", async || deadline < guard.expires_at()).await;
        outlive(&guard).await;
        assert!(guard.is_held());
        guard.release().await.expect("an answer");
    }
}

/// The store falls silent: lost by the deadline, as the holder counts it, and nobody else was in before.
pub async fn fault_c2_the_store_hangs(stage: &Stage) {
    let (faulty, client) = faulty(stage);
    let guard = client.mutex(Stage::NAME).ttl(stage.ttl()).lock().await.expect("free");
    faulty.always_all(Fault::Hang);
    let deadline = guard.expires_at();
    let next = tokio::spawn({
        let other = stage.other_client().await;
        async move {
            let next = lock(&other).await;
            (next, Instant::now())
        }
    });
    let reason = within("it is lost", guard.lost()).await;
    let told = Instant::now();
    assert_eq!(reason, LossReason::Expired);
    assert!(!guard.is_held());
    assert!(deadline <= told && told < deadline + Duration::from_secs(2), "{:?}", told - deadline);
    let (next, since) = within("the lease ends", next).await.expect("nothing panics");
    assert!(deadline <= since);
    faulty.heal();
    sleep(BRIEF).await;
    assert!(next.is_held() && !guard.is_held(), "lost is final");
    let error = guard.extend(LONG).await.expect_err("it is lost");
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
}

/// The store did renew, and said so too late: it stays lost, and is given back.
pub async fn fault_c3_a_confirmation_after_the_deadline(stage: &Stage) {
    let (faulty, client) = faulty(stage);
    faulty.always(Op::Renew, Fault::DelayReply(stage.ttl() * 3 / 2));
    let guard = client.mutex(Stage::NAME).ttl(stage.ttl()).lock().await.expect("free");
    assert_eq!(within("it is lost", guard.lost()).await, LossReason::Expired);
    is_gone(stage).await;
    sleep(stage.ttl()).await;
    assert!(!guard.is_held(), "lost is final");
    assert_eq!(guard.release().await.expect("an answer"), Released::NotHeld);
}

/// The store says that it is not ours: lost at once, not at the deadline.
pub async fn fault_c4_a_renewal_finds_nothing(stage: &Stage) {
    let client = stage.builder().renew_at(0.05).build().expect("valid");
    let guard = client.mutex(Stage::NAME).ttl(LONG).lock().await.expect("free");
    let deadline = guard.expires_at();
    let thief =
        distlock_core::Claim::new(stage.key(), guard.owner(), distlock_core::Mode::Exclusive, LONG);
    assert!(stage.other().await.release(&thief).await.expect("an answer"));
    assert_eq!(within("it is told", guard.lost()).await, LossReason::Gone);
    assert!(Instant::now() < deadline);
    // The line of this process is free, too.
    lock(&client).await.release().await.expect("an answer");
}

/// What may pass is waited for until the deadline; what stands in our place is a loss at once.
pub async fn fault_c5_renewals_refused(stage: &Stage) {
    let expected = [
        (ErrorKind::Transient, LossReason::Expired),
        (ErrorKind::Permanent, LossReason::Expired),
        (ErrorKind::Conflict, LossReason::Gone),
    ];
    for (kind, expected) in expected {
        let (faulty, client) = faulty(stage);
        let mutex = client.mutex(Stage::NAME).ttl(stage.lasting_ttl()).renew_at(0.1);
        let guard = mutex.lock().await.expect("free");
        faulty.always(Op::Renew, Fault::Refuse(kind));
        assert_eq!(within("it is lost", guard.lost()).await, expected, "{kind:?}");
        is_gone(stage).await;
    }
}

/// Thousands of locks leave no task behind.
pub async fn fault_c12_many_cycles(stage: &Stage) {
    let client = stage.client();
    let mutex = client.mutex(Stage::NAME);
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    drop(mutex.lock().await.expect("free"));
    let before = tasks();
    let mut last = None;
    for n in 0..1000 {
        let guard = mutex.lock().await.expect("free");
        assert!(last < Some(guard.fencing_token()) || !stage.capabilities().fencing);
        last = Some(guard.fencing_token());
        if n % 2 == 0 {
            guard.release().await.expect("an answer");
        }
    }
    eventually("nobody is left at work", async || tasks() <= before + 2).await;
}

/// One who stands in line bears an outage, and is served after it.
pub async fn fault_d3_a_waiter_survives_an_outage(stage: &Stage) {
    if !stage.can(stage.capabilities().push, "line") {
        return;
    }
    let (faulty, client) = faulty(stage);
    let other = stage.other_client().await;
    let guard = other.mutex(Stage::NAME).ttl(stage.ttl()).lock().await.expect("free");
    let waiter = tokio::spawn(async move { lock(&client).await });
    eventually("it asked", async || faulty.calls(Op::Acquire) == 1).await;
    faulty.always_all(Fault::Refuse(ErrorKind::Transient));
    sleep(BRIEF * 3).await;
    guard.release().await.expect("an answer");
    sleep(BRIEF * 3).await;
    faulty.heal();
    let guard = within("it is served", waiter).await.expect("nothing panics");
    guard.release().await.expect("an answer");
}

/// A store that is away when one comes first: the error at once, or as the strategy says.
pub async fn fault_a_store_that_is_away(stage: &Stage) {
    let (faulty, client) = faulty(stage);
    let mutex = client.mutex(Stage::NAME);
    faulty.always(Op::Acquire, Fault::Refuse(ErrorKind::Transient));
    let error = mutex.lock().await.expect_err("it is away");
    assert!(matches!(&error, Error::Backend(error) if error.is_transient()), "{error:?}");
    assert_eq!(faulty.calls(Op::Acquire), 1);
    // By another name: until the first call is undone, its own is not asked for.
    stage.uses("patient");
    let patient = client.mutex("patient").retry(Linear::new(BRIEF / 10).limit(3));
    let error = patient.lock().await.expect_err("it is away");
    assert!(
        matches!(&error, Error::Backend(_)),
        "what the store said, not that it is held: {error:?}"
    );
    assert_eq!(faulty.calls(Op::Acquire), 1 + 4);
    faulty.heal();
    // Whoever waits has waited for what failed to be undone, however long that takes.
    let is_undone = async || {
        let mutex = client.mutex("patient");
        let guard = within("it is undone", mutex.lock()).await.expect("it is back");
        guard.release().await.expect("an answer");
    };
    is_undone().await;
    faulty.next(Op::Acquire, Fault::Refuse(ErrorKind::Transient));
    patient.lock().await.expect("it is back").release().await.expect("an answer");
    for kind in [ErrorKind::Permanent, ErrorKind::Conflict] {
        let before = faulty.calls(Op::Acquire);
        faulty.next(Op::Acquire, Fault::Refuse(kind));
        let error = patient.lock().await.expect_err("it is refused");
        assert!(matches!(&error, Error::Backend(error) if error.kind() == kind), "{error:?}");
        assert_eq!(faulty.calls(Op::Acquire), before + 1, "{kind:?} is not tried again");
        is_undone().await;
    }
}

/// A failed extension changes nothing for the worse, and the shorter ttl counts.
pub async fn fault_an_extension_without_an_answer(stage: &Stage) {
    let (faulty, client) = faulty(stage);
    let mutex = client.mutex(Stage::NAME).ttl(LONG).no_renewal();
    for fault in [Fault::LoseRequest, Fault::LoseReply] {
        let guard = mutex.lock().await.expect("free");
        faulty.next(Op::Renew, fault);
        assert!(guard.extend(LONG / 4).await.expect_err("no answer came").is_transient());
        assert!(guard.is_held());
        assert!(guard.remaining() <= LONG / 4);
        guard.extend(LONG).await.expect("it is held");
        assert!(LONG / 2 < guard.remaining());
        guard.release().await.expect("an answer");
    }
}

/// Everything at once, by a seed: one holder at a time, tokens rise, everybody comes to his turn, nothing is left.
pub async fn fault_bad_weather(stage: &Stage) {
    let section = Section::default();
    let fenced = stage.capabilities().fencing;
    let mut tasks = JoinSet::new();
    let mut stores = Vec::new();
    for (seed, store) in [(1, stage.backend()), (2, stage.other().await)] {
        let rates = Rates::each(0.05, BRIEF);
        let faulty = Faulty::seeded(store, seed, rates).timeout(BRIEF / 2);
        let client = stage.builder_of(faulty.clone()).cohort_limit(1).build().expect("valid");
        stores.push(faulty);
        for _ in 0..3 {
            let mutex = client.mutex(Stage::NAME).retry(Linear::new(BRIEF / 10));
            let section = section.clone();
            tasks.spawn(async move {
                for _ in 0..8 {
                    let guard = mutex.lock().await.expect("the strategy has no end");
                    section.visit(&guard, fenced).await;
                    let _ = guard.release().await;
                }
            });
        }
    }
    within("everybody comes to his turn", tasks.join_all()).await;
    assert_eq!(section.entries(), 48);
    for faulty in stores {
        faulty.heal();
        assert_eq!(faulty.dropped(), 0, "a call in flight is polled to its end");
    }
}
