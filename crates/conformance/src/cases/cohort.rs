//! Hand-over inside a process, and its bound.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use distlock_core::Owner;
use tokio::{sync::Barrier, task::JoinSet, time::sleep};

use crate::{
    Op, Stage,
    tools::{LONG, Section, Watch, eventually, lease, lock, release, within},
};

/// Whether the store reserves tokens for hand-overs.
async fn hands_over(stage: &Stage) -> bool {
    let claim = stage.long_claim().with_block(64);
    let spare = lease(&stage.backend(), &claim).await.spare();
    assert!(release(&stage.backend(), &claim).await);
    stage.can(0 < spare, "spare tokens")
}

/// Many turns, hardly a call; every guard with a greater token.
pub async fn a_lock_is_handed_on_without_the_store(stage: &Stage) {
    if !hands_over(stage).await {
        return;
    }
    let faulty = stage.faulty();
    let client = stage.client_of(faulty.clone());
    let section = Section::default();
    // Else a busy machine may run one after the other, and nobody would wait.
    let all_there = Arc::new(Barrier::new(10));
    let mut tasks = JoinSet::new();
    for _ in 0..10 {
        let (mutex, section) = (client.mutex(Stage::NAME), section.clone());
        let all_there = Arc::clone(&all_there);
        tasks.spawn(async move {
            all_there.wait().await;
            for _ in 0..10 {
                let guard = mutex.lock().await.expect("an answer");
                section.visit(&guard, true).await;
                guard.release().await.expect("an answer");
            }
        });
    }
    within("everybody comes to his turn", tasks.join_all()).await;
    assert_eq!(section.entries(), 100);
    let calls = faulty.calls(Op::Acquire) + faulty.calls(Op::Release);
    assert!(calls <= 50, "{calls} calls for 100 turns");
}

/// When another process waits, it is served after so many hand-overs.
pub async fn a_cohort_limit_bounds_overtaking(stage: &Stage) {
    if !hands_over(stage).await || !stage.can(stage.capabilities().push, "line") {
        return;
    }
    const LIMIT: u32 = 3;
    let client = stage.builder().cohort_limit(LIMIT).build().expect("valid");
    let other = stage.other_client().await;
    let (turns, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let (mutex, turns, stop) =
            (client.mutex(Stage::NAME), Arc::clone(&turns), Arc::clone(&stop));
        tasks.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let guard = mutex.lock().await.expect("an answer");
                turns.fetch_add(1, Ordering::SeqCst);
                sleep(Duration::from_millis(5)).await;
                guard.release().await.expect("an answer");
            }
        });
    }
    eventually("they are at it", async || 8 < turns.load(Ordering::SeqCst)).await;
    for _ in 0..3 {
        let waiter = tokio::spawn({
            let (other, turns) = (other.clone(), Arc::clone(&turns));
            async move {
                let guard = lock(&other).await;
                (guard, turns.load(Ordering::SeqCst))
            }
        });
        eventually("it stands in line", async || {
            stage.inspect().await.waiting.is_none_or(|waiting| 0 < waiting) || waiter.is_finished()
        })
        .await;
        let before = turns.load(Ordering::SeqCst);
        let (guard, after) = within("it is served", waiter).await.expect("nothing panics");
        // The holder of the moment, and one who was served while the news was on its way.
        assert!(after.saturating_sub(before) <= LIMIT + 2, "{} went before", after - before);
        guard.release().await.expect("an answer");
    }
    stop.store(true, Ordering::SeqCst);
    within("all end", tasks.join_all()).await;
}

/// The heir's own ttl and words are written.
pub async fn an_heir_has_his_own_words(stage: &Stage) {
    let client = stage.client();
    let guard = client.mutex(Stage::NAME).metadata("first").lock().await.expect("free");
    let watch = Watch::default();
    let observed = stage.builder().observer(watch.clone()).build().expect("valid");
    let first = observed.mutex(Stage::NAME).metadata("second");
    let second = observed.mutex(Stage::NAME).metadata("third").ttl(LONG * 2);
    let mut waiters = Vec::new();
    for (n, mutex) in [first, second].into_iter().enumerate() {
        waiters.push(tokio::spawn(async move { mutex.lock().await.expect("an answer") }));
        watch.contended(n + 1).await;
    }
    let mut last = guard.fencing_token();
    guard.release().await.expect("an answer");
    for (waiter, (words, ttl)) in waiters.into_iter().zip([("second", LONG), ("third", LONG * 2)]) {
        let guard = within("it is served", waiter).await.expect("nothing panics");
        assert_eq!(stage.inspect().await.holders[0].metadata, words);
        assert_eq!(&*guard.metadata(), words);
        assert!(ttl / 2 < guard.remaining() && guard.remaining() <= ttl);
        assert!(last < guard.fencing_token() || !stage.capabilities().fencing);
        last = guard.fencing_token();
        guard.release().await.expect("an answer");
    }
}

/// One who brings an owner id of his own gets the lock under it; one who is not renewed is not.
pub async fn an_heir_has_his_own_ways(stage: &Stage) {
    let client = stage.client();
    let id = Owner::random().expect("random bytes");
    let guard = lock(&client).await;
    let named = tokio::spawn({
        let mutex = client.mutex(Stage::NAME).owner(id);
        async move { mutex.lock().await.expect("an answer") }
    });
    tokio::task::yield_now().await;
    let brief = client.mutex(Stage::NAME).ttl(stage.ttl()).no_renewal();
    let brief = tokio::spawn(async move { brief.lock().await.expect("an answer") });
    guard.release().await.expect("an answer");
    let (named, brief) = (async { within("it is served", named).await }, async {
        within("it is served", brief).await
    });
    // Whoever of both came first.
    let check_named = async {
        let guard = named.await.expect("nothing panics");
        assert_eq!(guard.owner(), id);
        guard.release().await.expect("an answer");
    };
    let check_brief = async {
        let guard = brief.await.expect("nothing panics");
        assert!(guard.remaining() <= stage.ttl());
        within("it ends by itself", guard.lost()).await;
    };
    tokio::join!(check_named, check_brief);
}
