//! Under load, on several threads: how many of one process may go before another one's waiter, and what 0 means.

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use distlock_core::{Backend as _, Claim, Client, Owner, Standing};
use support::Bent;
use tokio::{task::JoinSet, time::sleep};

const TASKS: usize = 16;
const TURNS: usize = 50;

/// After so many turns of the other process it is known that there is one.
const WARM_UP: usize = 4;

/// Turns of everybody, and how many there were when the other process was given its place.
#[derive(Default)]
struct Course {
    turns: AtomicUsize,
    placed_at: Mutex<Option<usize>>,
    /// The most turns that went before a place.
    most: AtomicUsize,
}

/// Tasks of one process on one store take turns, and a waiter of another process on another is served again and again.
async fn overtake(store: Bent, other: Bent, limit: u32, warm_up: usize) -> Arc<Course> {
    let course = Arc::new(Course::default());
    let placed = Arc::clone(&course);
    // The process that is overtaken.
    let other = other.acquire(move |store, claim, _| {
        let placed = Arc::clone(&placed);
        async move {
            let standing = store.acquire(&claim).await?;
            if matches!(standing, Standing::Queued { .. }) {
                let turns = placed.turns.load(Ordering::SeqCst);
                *placed.placed_at.lock().unwrap() = Some(turns);
            }
            Ok(standing)
        }
    });
    let stop = Arc::new(AtomicBool::new(false));
    let client = Client::builder(store).cohort_limit(limit).build().unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (mutex, course, stop) = (client.mutex("k"), Arc::clone(&course), Arc::clone(&stop));
        tasks.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let guard = mutex.lock().await.unwrap();
                course.turns.fetch_add(1, Ordering::SeqCst);
                guard.release().await.unwrap();
            }
        });
    }
    // One waiter has nobody to hand on to: each of its turns stood in the store's line, or found the lock free.
    let other = Client::new(other).mutex("k");
    let mut places = 0;
    while places < TURNS + warm_up {
        let guard = other.lock().await.unwrap();
        let turns = course.turns.load(Ordering::SeqCst);
        if let Some(before) = course.placed_at.lock().unwrap().take() {
            if warm_up <= places {
                course.most.fetch_max(turns - before, Ordering::SeqCst);
            }
            places += 1;
        }
        guard.release().await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    tasks.join_all().await;
    course
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_limit_bounds_how_many_go_before_another_process() {
    for limit in [1, 4, 32] {
        let store = Bent::new();
        let course = overtake(store.clone(), store, limit, 0).await;
        let most = course.most.load(Ordering::SeqCst);
        // The one who had the lock at that moment, and had not counted its turn yet.
        assert!(most <= limit as usize + 1, "{most} went before, the limit is {limit}");
        assert!(0 < most, "nobody was overtaken: this shows nothing");
    }
}

/// A store whose news that another process waits reaches us of every second grant only.
fn silent(store: Bent) -> Bent {
    let grants = Arc::new(AtomicUsize::new(0));
    store.acquire(move |store, claim, _| {
        let grants = Arc::clone(&grants);
        async move {
            if grants.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
                return store.acquire(&claim).await;
            }
            // What the store has to say unasked it says to another one, who passes on the grant alone.
            let deaf = Claim::new(claim.key().clone(), claim.owner(), claim.mode(), claim.ttl())
                .with_block(claim.block())
                .with_renewal();
            let standing = store.acquire(&deaf).await?;
            if matches!(standing, Standing::Queued { .. }) {
                tokio::spawn(async move {
                    if let Ok(lease) = deaf.granted().await {
                        claim.grant(lease);
                    }
                });
            }
            Ok(standing)
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_limit_is_kept_before_the_news_that_somebody_waits() {
    let limit = 4;
    let store = Bent::new();
    let course = overtake(silent(store.clone()), store, limit, WARM_UP).await;
    let most = course.most.load(Ordering::SeqCst);
    assert!(most <= limit as usize + 1, "{most} went before, the limit is {limit}");
    assert!(0 < most, "nobody was overtaken: this shows nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_a_cohort_all_are_served_in_the_order_of_their_arrival() {
    let arrived = Arc::new(Mutex::new(Vec::<Owner>::new()));
    let served = Arc::new(Mutex::new(Vec::<Owner>::new()));
    let line = Arc::new(tokio::sync::Mutex::new(()));
    let noted = Arc::clone(&arrived);
    let store = Bent::new().acquire(move |store, claim, _| {
        let (noted, line) = (Arc::clone(&noted), Arc::clone(&line));
        async move {
            // Nobody comes in between the store's answer and its being noted.
            let _alone = line.lock().await;
            let standing = store.acquire(&claim).await;
            noted.lock().unwrap().push(claim.owner());
            standing
        }
    });
    let mut tasks = JoinSet::new();
    for _ in 0..2 {
        let client = Client::builder(store.clone()).cohort_limit(0).build().unwrap();
        for _ in 0..TASKS {
            let (mutex, served) = (client.mutex("k"), Arc::clone(&served));
            tasks.spawn(async move {
                for _ in 0..TURNS {
                    let guard = mutex.lock().await.unwrap();
                    served.lock().unwrap().push(guard.owner());
                    guard.release().await.unwrap();
                }
            });
        }
    }
    tasks.join_all().await;
    assert_eq!(*served.lock().unwrap(), *arrived.lock().unwrap());
}

#[tokio::test(start_paused = true)]
async fn so_many_of_one_process_go_before_another_one_and_no_more() {
    let store = Bent::new();
    let order = Arc::new(Mutex::new(Vec::new()));
    let client = Client::builder(store.clone()).cohort_limit(2).build().unwrap();
    let other = Client::new(store);
    let held = client.mutex("k").lock().await.unwrap();
    let mut tasks = JoinSet::new();
    for (name, client) in [("other", &other), ("1", &client), ("2", &client), ("3", &client)] {
        let (mutex, order) = (client.mutex("k"), Arc::clone(&order));
        tasks.spawn(async move {
            let guard = mutex.lock().await.unwrap();
            order.lock().unwrap().push(name);
            guard.release().await.unwrap();
        });
        sleep(Duration::from_millis(1)).await;
    }
    held.release().await.unwrap();
    tasks.join_all().await;
    assert_eq!(*order.lock().unwrap(), ["1", "2", "other", "3"]);
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_handed_on_while_half_of_its_time_is_left() {
    let ttl = Duration::from_secs(30);
    for (held, handed_on) in [(ttl / 2, true), (ttl / 2 + Duration::from_millis(1), false)] {
        let store = Bent::new();
        let mutex = Client::new(store.clone()).mutex("k").ttl(ttl).renew_at(0.9);
        let guard = mutex.lock().await.unwrap();
        let waiting = tokio::spawn(async move { mutex.lock().await.map(drop) });
        sleep(held).await;
        guard.release().await.unwrap();
        let calls = if handed_on { [1, 0, 0] } else { [1, 0, 1] };
        assert_eq!(store.calls(), calls, "after {held:?}");
        waiting.await.unwrap().unwrap();
    }
}
