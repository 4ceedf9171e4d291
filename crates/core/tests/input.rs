//! Whatever values are asked for: a lock, or an error that names the value and the limit; never a panic.

use std::time::Duration;

use distlock_core::{Client, Error, Exponential, Key, Linear, Owner, RetryStrategy as _};
use distlock_memory::MemoryBackend;
use proptest::prelude::*;

/// So long a lock is waited for, by the paused clock.
const PATIENCE: Duration = Duration::from_secs(600);

/// Times at all ends, and between them.
fn time() -> impl Strategy<Value = Duration> {
    prop_oneof![
        1 => Just(Duration::ZERO),
        1 => Just(Duration::MAX),
        1 => Just(Duration::from_millis(1)),
        1 => (0..2_000_000_u64).prop_map(Duration::from_nanos),
        6 => (10..100_000_u64).prop_map(Duration::from_millis),
        1 => (0..60_u64).prop_map(|days| Duration::from_secs(days * 86_400)),
        1 => any::<u64>().prop_map(Duration::from_secs),
        1 => (any::<u64>(), 0..1_000_000_000_u32).prop_map(|(s, ns)| Duration::new(s, ns)),
    ]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        1 => Just(String::new()),
        6 => "\\PC{1,20}|[\\x00-\\x20{}/:]{1,20}",
        1 => (1000..1100_usize).prop_map(|length| "x".repeat(length)),
        1 => (500..520_usize).prop_map(|length| "\u{e9}".repeat(length)),
    ]
}

fn metadata() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[\\PC\\x00\\r\\n]{0,40}",
        1 => (4090..4100_usize).prop_map(|length| "x".repeat(length)),
        1 => (1020..1030_usize).prop_map(|length| "\u{1f512}".repeat(length)),
    ]
}

fn fraction() -> impl Strategy<Value = f64> {
    prop_oneof![
        1 => 0.01..0.99,
        1 => any::<f64>(),
        1 => Just(0.0),
        1 => Just(1.0),
        1 => Just(f64::NAN),
        1 => Just(f64::MIN_POSITIVE)
    ]
}

/// All that can be said about a lock.
#[derive(Clone, Debug)]
struct Asked {
    prefix: String,
    name: String,
    metadata: String,
    ttl: Duration,
    renew_at: Option<f64>,
    max_hold: Option<Duration>,
    min_hold: Duration,
    jitter: Option<(Duration, Duration)>,
    limit: Duration,
    extend: Duration,
    retry: Option<(Duration, usize)>,
    counts: (u32, usize, usize),
    owner: Option<u128>,
}

fn asked() -> impl Strategy<Value = Asked> {
    let words = (prop_oneof![6 => Just(String::new()), 1 => name()], name(), metadata());
    let times = (time(), time(), time());
    // What is out of the ordinary now and then, or little would ever be locked.
    let rare = (
        prop::option::weighted(0.15, fraction()),
        prop::option::weighted(0.2, time()),
        prop_oneof![9 => Just(Duration::ZERO), 1 => time()],
        prop::option::weighted(0.2, (time(), time())),
        prop::option::weighted(0.3, (time(), 0..4_usize)),
        (any::<u32>(), 0..4_usize, 0..6_usize),
        prop::option::of(any::<u128>()),
    );
    (words, times, rare).prop_map(|(words, times, rare)| {
        let ((prefix, name, metadata), (ttl, limit, extend)) = (words, times);
        let (renew_at, max_hold, min_hold, jitter, retry, counts, owner) = rare;
        Asked {
            prefix,
            name,
            metadata,
            ttl,
            renew_at,
            max_hold,
            min_hold,
            jitter,
            limit,
            extend,
            retry,
            counts,
            owner,
        }
    })
}

/// An error about a value says what it is and what would be right.
fn told(error: &Error) {
    match error {
        Error::Invalid { what, problem } => {
            let limit = ["limit", "shortest", "longest", "must", "empty"];
            assert!(limit.iter().any(|word| problem.contains(word)), "{what} {problem}");
            assert!(problem.len() < 200, "it shows the value, not all of it: {problem}");
            assert!(!error.is_transient());
        }
        Error::Overloaded { .. }
        | Error::Timeout { .. }
        | Error::RetriesExhausted { .. }
        | Error::Lost { .. } => {}
        other => panic!("{other:?}"),
    }
}

/// Makes a lock as asked for, and does all that can be done with it.
async fn lock(asked: &Asked) -> Result<(), Error> {
    let (cohort, waiters, locks) = asked.counts;
    let client = Client::builder(MemoryBackend::new())
        .prefix(&*asked.prefix)
        .ttl(asked.ttl)
        .cohort_limit(cohort)
        .max_waiters(waiters)
        .max_locks(locks)
        .build()?;
    let mut mutex = client.mutex(&asked.name).metadata(&*asked.metadata).min_hold(asked.min_hold);
    if let Some(fraction) = asked.renew_at {
        mutex = mutex.renew_at(fraction);
    }
    if let Some(max_hold) = asked.max_hold {
        mutex = mutex.max_hold(max_hold);
    }
    if let Some((low, high)) = asked.jitter {
        mutex = mutex.start_jitter(low..=high);
    }
    if let Some(owner) = asked.owner {
        mutex = mutex.owner(Owner::new(owner));
    }
    if let Some((delay, count)) = asked.retry {
        mutex = match count % 2 {
            0 => mutex.retry(Linear::new(delay).jitter().limit(count)),
            _ => mutex.retry(Exponential::new(delay, delay / 2).jitter().limit(count)),
        };
    }
    let _ = mutex.try_lock().await?.map(drop);
    let guard = mutex.lock_timeout(asked.limit).await?;
    assert!(guard.remaining() <= asked.ttl);
    let name = asked.prefix.clone() + &asked.name;
    assert_eq!(guard.key().as_str(), name);
    assert!(!name.is_empty() && name.len() <= Key::MAX_LEN && asked.metadata.len() <= 4096);
    // A ttl of a moment may be over by now, whatever the clock.
    if guard.is_held() {
        let occupancy = client.inspect(&asked.name).await?;
        assert_eq!(occupancy.holders[0].metadata, asked.metadata);
        assert_eq!(occupancy.holders[0].owner, Some(guard.owner()));
    }
    if let Err(error) = guard.extend(asked.extend).await {
        told(&error);
    }
    assert!(guard.remaining() <= asked.ttl.max(asked.extend));
    guard.release().await?;
    client.mutex(&asked.name).wait_released(asked.limit).await?;
    Ok(())
}

/// It would be granted, and over, again and again.
#[tokio::test(start_paused = true)]
async fn a_ttl_that_leaves_nothing_above_the_margin_for_clocks_is_refused() {
    let client = Client::new(MemoryBackend::new());
    let millis = Duration::from_millis;
    let shortest = client.mutex("k").ttl(millis(6)).lock().await.unwrap();
    assert_eq!(shortest.remaining(), millis(1));
    for ttl in [millis(1), millis(5)] {
        let refused = [
            client.mutex("k").ttl(ttl).lock().await.map(drop),
            shortest.extend(ttl).await,
            Client::builder(MemoryBackend::new()).ttl(ttl).build().map(drop),
        ];
        for result in refused {
            let error = result.expect_err("it ends in the moment in which it begins");
            assert_eq!(
                error.to_string(),
                format!("ttl is {ttl:?}, it must be above the margin for clocks, 5ms")
            );
            told(&error);
        }
    }
    assert!(shortest.is_held(), "nothing was changed");
}

#[test]
fn whatever_is_asked_for_is_had_or_refused_by_name() {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let locked = std::cell::Cell::new(0);
    let result = runner.run(&asked(), |asked| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        // Who was asked to wait for years waits, and is left to it.
        let lock = async { tokio::time::timeout(PATIENCE, lock(&asked)).await };
        match runtime.block_on(lock) {
            Ok(Ok(())) => locked.set(locked.get() + 1),
            Ok(Err(error)) => told(&error),
            Err(_) => {}
        }
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(100 < locked.get(), "{} of them were locked: it proves little", locked.get());
}
