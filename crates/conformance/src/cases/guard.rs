//! What a guard promises.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use distlock_core::{Client, Error, Event, FenceGate, LossReason, Mutex, Owner, Released};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    Stage,
    tools::{LONG, Section, Watch, eventually, is_free, lock, within},
};

/// Sixteen tasks of two clients compete: one at a time, with tokens that rise, and everybody comes to his turn.
pub async fn one_holder_at_a_time(stage: &Stage) {
    const ROUNDS: u64 = 8;
    let section = Section::default();
    let fenced = stage.capabilities().fencing;
    let mut tasks = JoinSet::new();
    for client in [stage.client(), stage.other_client().await] {
        for _ in 0..8 {
            let (mutex, section) = (client.mutex(Stage::NAME), section.clone());
            tasks.spawn(async move {
                for _ in 0..ROUNDS {
                    let guard = mutex.lock().await.expect("the store answers");
                    section.visit(&guard, fenced).await;
                    guard.release().await.expect("the store answers");
                }
            });
        }
    }
    within("everybody comes to his turn", tasks.join_all()).await;
    assert_eq!(section.entries(), 16 * ROUNDS);
}

/// A holder that ends by itself, and one that forgets to release: others get in, with greater tokens.
pub async fn one_holder_at_a_time_across_ends(stage: &Stage) {
    let section = Section::default();
    let fenced = stage.capabilities().fencing;
    let mut tasks = JoinSet::new();
    for client in [stage.client(), stage.other_client().await] {
        for round in 0..3 {
            let mutex = client.mutex(Stage::NAME).ttl(stage.lasting_ttl()).no_renewal();
            let section = section.clone();
            tasks.spawn(async move {
                let guard = mutex.lock().await.expect("the store answers");
                section.visit(&guard, fenced).await;
                if round == 0 {
                    guard.lost().await;
                }
            });
        }
    }
    within("everybody comes to his turn", tasks.join_all()).await;
    assert_eq!(section.entries(), 6);
}

/// It is kept far past its ttl, and nobody else gets in.
pub async fn a_guard_is_renewed(stage: &Stage) {
    let watch = Watch::default();
    let client = stage.eager().observer(watch.clone()).build().expect("valid");
    let other = stage.other_client().await;
    let guard = lock(&client).await;
    let token = guard.fencing_token();
    let end = Instant::now() + stage.lasting_ttl() * 2;
    while Instant::now() < end {
        assert!(guard.is_held());
        assert!(other.mutex(Stage::NAME).try_lock().await.expect("an answer").is_none());
        sleep(stage.ttl() / 5).await;
    }
    assert_eq!(guard.fencing_token(), token, "a renewal changes no token");
    assert!(3 <= watch.count(|event| matches!(event, Event::Renewed { .. })));
    assert_eq!(guard.release().await.expect("an answer"), Released::Released);
    assert!(is_free(&other).await);
}

/// Without renewal it ends at its ttl, not later; and it is told.
pub async fn without_renewal_a_guard_ends_at_its_ttl(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let guard = client.mutex(Stage::NAME).ttl(stage.ttl()).no_renewal().lock().await.expect("free");
    let deadline = guard.expires_at();
    assert!(guard.remaining() <= stage.ttl());
    assert_eq!(within("it is lost", guard.lost()).await, LossReason::Expired);
    assert!(deadline <= Instant::now());
    assert!(!guard.is_held());
    assert_eq!(guard.remaining(), Duration::ZERO);
    assert!(guard.lost_token().is_cancelled());
    let next = lock(&other).await;
    assert!(next.is_held() && !guard.is_held(), "lost is final");
    assert_eq!(guard.release().await.expect("an answer"), Released::NotHeld);
    assert!(next.is_held(), "a late release harms no successor");
}

/// Longer, and shorter.
pub async fn extend_sets_the_ttl(stage: &Stage) {
    let client = stage.client();
    let mutex = client.mutex(Stage::NAME).no_renewal();
    let ttl = stage.lasting_ttl();
    let guard = mutex.clone().ttl(ttl).lock().await.expect("free");
    guard.extend(LONG).await.expect("it is held");
    assert!(LONG / 2 < guard.remaining());
    assert!(LONG / 2 < guard.ttl().await.expect("an answer"));
    guard.extend(ttl).await.expect("it is held");
    assert!(guard.remaining() <= ttl);
    assert!(guard.ttl().await.expect("an answer") <= ttl);
    assert_eq!(within("it is lost", guard.lost()).await, LossReason::Expired);
    let next = lock(&stage.other_client().await).await;
    next.release().await.expect("an answer");
}

/// A failed extension neither deletes nor creates.
pub async fn a_lost_guard_is_not_extended(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let guard = client.mutex(Stage::NAME).ttl(stage.ttl()).no_renewal().lock().await.expect("free");
    within("it is lost", guard.lost()).await;
    let next = lock(&other).await;
    let error = guard.extend(LONG).await.expect_err("it is lost");
    assert!(matches!(error, Error::Lost { reason: LossReason::Expired, .. }), "{error:?}");
    drop(guard);
    assert!(next.is_held());
    assert!(!is_free(&client).await);
    next.release().await.expect("an answer");
    assert!(is_free(&client).await);
}

/// Taken away by force: the holder is told at its next renewal at the latest, and somebody else gets in.
pub async fn a_holder_is_told_of_a_forced_release(stage: &Stage) {
    let client = stage.eager().build().expect("valid");
    let other = stage.other_client().await;
    let guard = lock(&client).await;
    assert!(other.force_release(Stage::NAME).await.expect("an answer"));
    assert!(!other.force_release(Stage::NAME).await.expect("an answer"));
    let next = lock(&other).await;
    assert_eq!(within("it is told", guard.lost()).await, LossReason::Gone);
    assert!(!guard.is_held());
    assert!(next.is_held());
    assert!(guard.fencing_token() < next.fencing_token() || !stage.capabilities().fencing);
    assert_eq!(guard.release().await.expect("an answer"), Released::NotHeld);
    assert!(next.is_held());
}

/// However faithfully it is renewed.
pub async fn max_hold_ends_a_guard(stage: &Stage) {
    let watch = Watch::default();
    let client = stage.builder().observer(watch.clone()).build().expect("valid");
    let limit = Duration::from_millis(100);
    let guard = client.mutex(Stage::NAME).max_hold(limit).lock().await.expect("free");
    let since = Instant::now();
    assert_eq!(within("it is over", guard.lost()).await, LossReason::MaxHold);
    assert!(limit / 2 <= since.elapsed());
    lock(&stage.other_client().await).await.release().await.expect("an answer");
    let reached = |event: &Event| matches!(event, Event::MaxHoldReached { held } if limit <= *held);
    assert_eq!(watch.count(reached), 1);
}

/// FAULTS C9: a guard that was leaked is held, and ends by max hold.
pub async fn max_hold_ends_a_leaked_guard(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let mutex = client.mutex(Stage::NAME).max_hold(stage.lasting_ttl());
    std::mem::forget(mutex.lock().await.expect("free"));
    assert!(!is_free(&other).await);
    lock(&other).await.release().await.expect("an answer");
}

/// All that a guard can be asked.
pub async fn a_guard_knows_itself(stage: &Stage) {
    let client = stage.client();
    let mutex = client.mutex(Stage::NAME).metadata("worker-7");
    let before = Instant::now();
    let guard = mutex.lock().await.expect("free");
    assert_eq!(guard.key(), &stage.key());
    assert_eq!(mutex.key(), guard.key().as_str());
    assert_eq!(&*guard.metadata(), "worker-7");
    assert!(guard.is_held());
    assert!(guard.expires_at() <= Instant::now() + LONG && before < guard.expires_at());
    assert!(LONG / 2 < guard.remaining() && guard.remaining() <= LONG);
    let ttl = guard.ttl().await.expect("an answer");
    assert!(LONG / 2 < ttl && ttl <= LONG + stage.capabilities().resolution, "{ttl:?}");
    assert!(!guard.lost_token().is_cancelled());
    let occupancy = client.inspect(Stage::NAME).await.expect("an answer");
    assert_eq!(occupancy.holders[0].owner, Some(guard.owner()));
    assert_eq!(occupancy.holders[0].metadata, "worker-7");
    let shown = format!("{guard:?} {mutex:?} {client:?}");
    assert!(!shown.contains(&guard.owner().to_string()), "an owner id is a secret: {shown}");
    let lost = guard.lost_token();
    assert_eq!(guard.release().await.expect("an answer"), Released::Released);
    assert!(lost.is_cancelled(), "it is canceled by the release, too");
}

/// A dropped guard gives back, wherever it is dropped.
pub async fn a_dropped_guard_gives_back(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    drop(lock(&client).await);
    lock(&other).await.release().await.expect("an answer");
    let guard = lock(&client).await;
    std::thread::spawn(move || drop(guard)).join().expect("nothing panics");
    lock(&other).await.release().await.expect("an answer");
    let guard = lock(&client).await;
    tokio::task::spawn_blocking(move || drop(guard)).await.expect("nothing panics");
    lock(&other).await.release().await.expect("an answer");
}

/// FAULTS I2, I3: without a runtime it ends at its ttl, and nothing panics.
pub async fn a_guard_may_outlive_its_runtime(stage: &Stage) {
    let (connector, prefix, ttl) = (stage.connector(), stage.prefix().to_owned(), stage.ttl());
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let guard = runtime.block_on(async {
            let builder = Client::builder(connector.connect().await).prefix(prefix).ttl(ttl);
            lock(&builder.build().expect("valid")).await
        });
        drop(runtime);
        drop(guard);
    });
    tokio::task::spawn_blocking(|| thread.join().expect("nothing panics")).await.expect("joined");
    lock(&stage.client()).await.release().await.expect("an answer");
}

/// FAULTS C8, C10: a task that panics or is aborted gives back.
pub async fn a_task_that_dies_gives_back(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let mutex = client.mutex(Stage::NAME);
    let panics = tokio::spawn({
        let mutex = mutex.clone();
        async move {
            let _guard = mutex.lock().await.expect("free");
            panic!("as a user's code may");
        }
    });
    assert!(panics.await.is_err_and(|error| error.is_panic()));
    lock(&other).await.release().await.expect("an answer");
    let aborted = tokio::spawn(async move {
        let _guard = mutex.lock().await.expect("free");
        std::future::pending::<()>().await;
    });
    eventually("it is locked", async || !is_free(&other).await).await;
    aborted.abort();
    lock(&other).await.release().await.expect("an answer");
}

/// FAULTS C13: any number of tasks may wait for the loss, before and after it.
pub async fn everybody_hears_of_the_loss(stage: &Stage) {
    let client = stage.client();
    let mutex = client.mutex(Stage::NAME).ttl(stage.ttl()).no_renewal();
    let guard = Arc::new(mutex.lock().await.expect("free"));
    let mut tasks = JoinSet::new();
    for n in 0..1000 {
        let guard = Arc::clone(&guard);
        let task = tasks.spawn(async move { guard.lost().await });
        if n % 10 == 0 {
            task.abort();
        }
    }
    let mut heard = 0;
    while let Some(reason) = within("it is lost", tasks.join_next()).await {
        heard += u32::from(reason.is_ok_and(|reason| reason == LossReason::Expired));
    }
    assert!(900 <= heard);
    assert_eq!(guard.lost().await, LossReason::Expired);
}

/// An id of one's own: whoever comes with it takes the lock over as it is.
pub async fn a_lock_is_resumed_by_its_owner_id(stage: &Stage) {
    let id: Owner = Owner::random().expect("random bytes").to_string().parse().expect("its digits");
    let mutex = |client: &Client| client.mutex(Stage::NAME).owner(id);
    let (client, other) = (stage.client(), stage.other_client().await);
    let before = mutex(&client).lock().await.expect("free");
    assert_eq!(before.owner(), id);
    let after = mutex(&other).metadata("resumed").try_lock().await.expect("an answer");
    let after = after.expect("it is its own holder");
    assert_eq!((after.owner(), after.fencing_token()), (id, before.fencing_token()));
    assert!(!is_free(&stage.other_client().await).await);
    std::mem::forget(before);
    assert_eq!(after.release().await.expect("an answer"), Released::Released);
}

/// The work is dropped as soon as the lock is lost, and the report says for how long it was held.
pub async fn run_ends_with_the_lock(stage: &Stage) {
    let client = stage.client();
    let mutex: Mutex = client.mutex(Stage::NAME);
    let report = mutex.run(async |guard| guard.fencing_token()).await.expect("free");
    assert!(report.held < LONG);
    let dropped = Arc::new(AtomicBool::new(false));
    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let flag = Flag(Arc::clone(&dropped));
    let limited = mutex.clone().max_hold(Duration::from_millis(50));
    let run = limited.run(async move |_| {
        let _flag = flag;
        std::future::pending::<()>().await;
    });
    let error = within("the work is dropped", run).await.expect_err("it was lost");
    assert!(matches!(error, Error::Lost { reason: LossReason::MaxHold, .. }), "{error:?}");
    assert!(dropped.load(Ordering::SeqCst));
    assert!(mutex.try_run(async |_| ()).await.is_ok());
}

/// FAULTS H1: a process stops for longer than its ttl. When it goes on it knows, and what it writes all the same is refused.
pub async fn fault_h1_a_paused_holder_is_refused(stage: &Stage) {
    let gate = Arc::new(FenceGate::new());
    let (stopped, has_stopped) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let holder = std::thread::spawn({
        let (connector, prefix, ttl) = (stage.connector(), stage.prefix().to_owned(), stage.ttl());
        let gate = Arc::clone(&gate);
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let builder = Client::builder(connector.connect().await).prefix(prefix).ttl(ttl);
                let client = builder.build().expect("valid");
                let guard = lock(&client).await;
                gate.admit(guard.fencing_token());
                stopped.send(()).expect("the case waits");
                // Nothing runs on this thread, neither the driver nor the keeper.
                may_go_on.recv().expect("the case goes on");
                (guard.is_held(), gate.admit(guard.fencing_token()))
            })
        }
    });
    tokio::task::spawn_blocking(move || has_stopped.recv()).await.expect("joined").expect("locked");
    let next = lock(&stage.client()).await;
    let admitted = gate.admit(next.fencing_token());
    go_on.send(()).expect("the holder waits");
    let (held, late) = tokio::task::spawn_blocking(|| holder.join().expect("nothing panics"))
        .await
        .expect("joined");
    assert!(!held, "its first look is right");
    assert!(!late, "its write is refused");
    assert_eq!(admitted, stage.capabilities().fencing);
    assert!(next.is_held());
}
