//! Thousands of locks that were taken together are not renewed together, and none of them later than it would be alone.

mod support;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use distlock_core::{Client, Event, Key};
use support::Bent;
use tokio::time::{Instant, sleep};

const TTL: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Seen {
    /// When each key was renewed.
    renewed: HashMap<Key, Vec<Instant>>,
    late: Duration,
}

#[tokio::test(start_paused = true)]
async fn renewals_of_a_crowd_are_spread_in_full_batches() {
    const COUNT: usize = 10_000;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let noted = Arc::clone(&seen);
    let store = Bent::new();
    let client = Client::builder(store.clone())
        .observer(move |key: &Key, event: &Event| match event {
            Event::Renewed { late } => {
                let mut seen = noted.lock().unwrap();
                seen.renewed.entry(key.clone()).or_default().push(Instant::now());
                seen.late = seen.late.max(*late);
            }
            Event::Lost { .. } | Event::RenewalFailed { .. } => panic!("{event:?}"),
            _ => {}
        })
        .build()
        .unwrap();
    let mut guards = Vec::new();
    for number in 0..COUNT {
        guards.push(client.mutex(number.to_string()).ttl(TTL).lock().await.unwrap());
    }
    let taken = Instant::now();
    sleep(TTL * 2).await;
    assert!(guards.iter().all(|guard| guard.is_held()));
    let [_, calls, _] = store.calls();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.renewed.len(), COUNT);
    let mut seconds = HashMap::<u64, usize>::new();
    for times in seen.renewed.values() {
        for (before, time) in std::iter::once(&taken).chain(times).zip(times) {
            assert!(*time - *before <= TTL / 3 + Duration::from_millis(2), "{:?}", *time - *before);
            *seconds.entry((*time - taken).as_secs()).or_default() += 1;
        }
    }
    let renewals: usize = seconds.values().sum();
    assert!(renewals <= COUNT * 7, "{renewals}");
    assert!(calls * 200 <= renewals, "{calls} calls for {renewals} renewals");
    assert!(seen.late <= Duration::from_millis(2), "{:?}", seen.late);
    // Evenly would be a thousand.
    let most = seconds.values().max().unwrap();
    assert!(*most <= 2_000, "{most} in a second");
}

#[tokio::test(start_paused = true)]
async fn a_few_are_renewed_when_they_said() {
    let store = Bent::new();
    let client = Client::new(store.clone());
    let mut guards = Vec::new();
    for number in 0..10 {
        guards.push(client.mutex(number.to_string()).ttl(TTL).lock().await.unwrap());
    }
    sleep(TTL / 3 - Duration::from_millis(2)).await;
    assert_eq!(store.calls()[1], 0);
    sleep(Duration::from_millis(4)).await;
    assert_eq!(store.calls()[1], 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_due_soon_is_renewed_with_what_is_due_and_what_is_due_later_is_not() {
    let batches = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&batches);
    let client = Client::new(Bent::new().renew(move |store, renewals, _| {
        let keys = renewals.iter().map(|renewal| renewal.claim.key().as_str().to_owned());
        seen.lock().unwrap().push(keys.collect::<Vec<_>>());
        async move { distlock_core::Backend::renew(&store, &renewals).await }
    }));
    let mut guards = Vec::new();
    for name in ["now", "soon", "later"] {
        guards.push(client.mutex(name).ttl(TTL).lock().await.unwrap());
        sleep(TTL / 60).await;
    }
    sleep(TTL / 3).await;
    assert_eq!(*batches.lock().unwrap(), [vec!["now", "soon"], vec!["later"]]);
}

/// A spawned task has what its future has, some hundred bytes, and is rounded up to a multiple of 128: with a mutex that it shares it takes 384 bytes.
#[cfg(target_pointer_width = "64")]
#[test]
fn who_waits_takes_little_room() {
    let mutex = Client::new(Bent::new()).mutex("k");
    let room = size_of_val(&mutex.lock());
    assert!(room <= 256, "{room} bytes");
}
