//! A client from its making to its end.

use distlock_core::{Client, Error, Event, LossReason, Released};
use tokio::task::JoinSet;

use crate::{
    Stage,
    tools::{LONG, Watch, is_free, lock, outlive, within},
};

/// PEERS RU20: what is held is given back, and lost; who waits is told; nothing works any more.
pub async fn shutdown_gives_all_back(stage: &Stage) {
    let watch = Watch::default();
    let client = stage.builder().observer(watch.clone()).build().expect("valid");
    stage.uses("other");
    let guards = [lock(&client).await, client.mutex("other").lock().await.expect("free")];
    let mut waiters = JoinSet::new();
    for _ in 0..10 {
        let mutex = client.mutex(Stage::NAME);
        waiters.spawn(async move { mutex.lock().await });
    }
    watch.contended(10).await;
    within("it ends", client.shutdown()).await;
    for waited in within("all are told", waiters.join_all()).await {
        assert!(matches!(waited, Err(Error::Closed)), "{waited:?}");
    }
    for guard in guards {
        assert!(!guard.is_held());
        assert_eq!(guard.lost().await, LossReason::Shutdown);
        assert_eq!(guard.release().await.expect("an answer"), Released::NotHeld);
    }
    let other = stage.other_client().await;
    assert!(is_free(&other).await, "it is free when the shutdown has ended");
    assert!(other.mutex("other").try_lock().await.expect("an answer").is_some());
    assert!(matches!(client.mutex(Stage::NAME).lock().await, Err(Error::Closed)));
    assert!(matches!(client.mutex(Stage::NAME).try_lock().await, Err(Error::Closed)));
    assert!(matches!(client.mutex(Stage::NAME).wait_released(LONG).await, Err(Error::Closed)));
    assert!(matches!(client.inspect(Stage::NAME).await, Err(Error::Closed)));
    assert!(matches!(client.force_release(Stage::NAME).await, Err(Error::Closed)));
    within("again", client.shutdown()).await;
}

/// One who stands in the store's line behind another process gives up his place.
pub async fn shutdown_gives_places_back(stage: &Stage) {
    let (client, other) = (stage.client(), stage.other_client().await);
    let guard = lock(&other).await;
    let waiter = tokio::spawn({
        let mutex = client.mutex(Stage::NAME);
        async move { mutex.lock().await }
    });
    if stage.capabilities().push {
        crate::tools::eventually("it stands in line", async || {
            stage.inspect().await.waiting.is_none_or(|waiting| waiting == 1)
        })
        .await;
    }
    within("it ends", client.shutdown()).await;
    let waited = within("it is told", waiter).await.expect("nothing panics");
    assert!(matches!(waited, Err(Error::Closed)), "{waited:?}");
    crate::tools::eventually("no place is left", async || {
        stage.inspect().await.waiting.unwrap_or(0) == 0
    })
    .await;
    assert!(guard.is_held());
}

/// What an observer is told, in the order of a lock's life.
pub async fn an_observer_is_told(stage: &Stage) {
    let watch = Watch::default();
    let client = stage.eager().observer(watch.clone()).build().expect("valid");
    let guard = lock(&client).await;
    let token = guard.fencing_token();
    let acquired =
        |event: &Event| matches!(event, Event::Acquired { token: told, .. } if *told == token);
    assert_eq!(watch.count(acquired), 1);
    watch.seen("a renewal", 1, |event| matches!(event, Event::Renewed { .. })).await;
    guard.release().await.expect("an answer");
    watch.seen("the release", 1, |event| matches!(event, Event::Released { .. })).await;
    let brief = client.mutex(Stage::NAME).ttl(stage.ttl()).no_renewal().lock().await.expect("free");
    within("it is lost", brief.lost()).await;
    watch
        .seen("the loss", 1, |event| {
            matches!(event, Event::Lost { reason: LossReason::Expired, .. })
        })
        .await;
    let other = lock(&stage.other_client().await).await;
    let mutex = client.mutex(Stage::NAME);
    let waiter = tokio::spawn(async move { mutex.lock().await.map(drop) });
    watch.contended(1).await;
    waiter.abort();
    assert_eq!(watch.count(|event| matches!(event, Event::Contended)), 1);
    drop(other);
}

/// Two prefixes are two worlds.
pub async fn prefixes_keep_clients_apart(stage: &Stage) {
    let with = |more: &str| {
        let prefix = format!("{}{more}", stage.prefix());
        Client::builder(stage.backend()).prefix(prefix).ttl(LONG).build().expect("valid")
    };
    let (a, b) = (with("a-"), with("b-"));
    stage.uses("a-key");
    stage.uses("b-key");
    let (one, two) = (lock(&a).await, lock(&b).await);
    assert_ne!(one.key(), two.key());
    assert!(stage.client().mutex("a-key").try_lock().await.expect("an answer").is_none());
    assert_eq!(stage.client().inspect("b-key").await.expect("an answer").holders.len(), 1);
}

/// A guard keeps its client's work going.
pub async fn a_guard_outlives_its_client(stage: &Stage) {
    let client = stage.eager().build().expect("valid");
    let guard = lock(&client).await;
    drop(client);
    outlive(&guard).await;
    assert!(guard.is_held());
    assert_eq!(guard.release().await.expect("an answer"), Released::Released);
    assert!(is_free(&stage.client()).await);
}
