//! Values outside their limits, and loads beyond them.

use std::{collections::HashMap, time::Duration};

use distlock_core::{Client, Error, Key, Mutex};
use futures_util::future::join_all;

use crate::{
    Dice, Op, Stage, stage,
    tools::{LONG, Watch, eventually, lock, within},
};

/// DESIGN 9, FAULTS C11, J1, J2, J6, PEERS SD01, SD02, RL34: an error that names the value and the limit, and nothing is sent.
pub async fn values_outside_their_limits(stage: &Stage) {
    let faulty = stage.faulty();
    let client = stage.client_of(faulty.clone());
    let mutex = || client.mutex(Stage::NAME);
    let days = Duration::from_secs(24 * 86_400);
    let long_key = "x".repeat(Key::MAX_LEN + 1);
    let resolution = stage.capabilities().resolution;
    let table: Vec<(Mutex, &str, &str)> = vec![
        (Client::new(faulty.clone()).mutex(""), "key", "empty"),
        (client.mutex(&long_key), "key", "1024"),
        (mutex().ttl(Duration::ZERO), "ttl", "0"),
        (mutex().ttl(resolution - Duration::from_nanos(1)), "ttl", "shortest"),
        (mutex().ttl(days + Duration::from_millis(1)), "ttl", "24 days"),
        (mutex().ttl(Duration::MAX), "ttl", "24 days"),
        (mutex().metadata("x".repeat(4097)), "metadata", "4096"),
        (mutex().renew_at(0.0), "renew_at", "above 0"),
        (mutex().renew_at(1.0), "renew_at", "below 1"),
        (mutex().renew_at(-0.5), "renew_at", "-0.5"),
        (mutex().renew_at(f64::NAN), "renew_at", "NaN"),
        (mutex().no_renewal().min_hold(LONG), "min_hold", "below"),
        (mutex().min_hold(days), "min_hold", "below"),
        (mutex().max_hold(Duration::ZERO), "max_hold", "0"),
        (mutex().min_hold(LONG / 2).max_hold(LONG / 4), "max_hold", "min_hold"),
        (mutex().start_jitter(LONG..=LONG / 2), "start_jitter", "empty"),
    ];
    for (mutex, value, limit) in table {
        for error in [
            mutex.lock().await.expect_err(value),
            mutex.try_lock().await.expect_err(value),
            mutex.lock_timeout(LONG).await.expect_err(value),
            mutex.run(async |_| ()).await.expect_err(value),
        ] {
            let told = error.to_string();
            assert!(matches!(error, Error::Invalid { what, .. } if what == value), "{told}");
            assert!(told.contains(value) && told.contains(limit), "{told} names {value}, {limit}");
            assert!(!error.is_transient());
        }
    }
    assert_eq!(faulty.calls(Op::Acquire), 0, "nothing was sent");
    let guard = mutex().metadata("x".repeat(4096)).lock().await.expect("within the limits");
    for ttl in [Duration::ZERO, Duration::MAX] {
        let error = guard.extend(ttl).await.expect_err("it is outside the limits");
        assert!(matches!(error, Error::Invalid { what: "ttl", .. }), "{error:?}");
    }
    assert_eq!(faulty.calls(Op::Renew), 0, "nothing was sent");
    assert!(guard.is_held());
}

/// A builder names what is wrong, too.
pub async fn settings_outside_their_limits(stage: &Stage) {
    let builder = || stage.builder();
    for (builder, value) in [
        (builder().ttl(Duration::ZERO), "ttl"),
        (builder().renew_at(2.0), "renew_at"),
        (builder().prefix("x".repeat(Key::MAX_LEN)), "prefix"),
    ] {
        let error = builder.build().expect_err(value);
        assert!(matches!(error, Error::Invalid { what, .. } if what == value), "{error:?}");
    }
    let client = stage.client();
    for name in ["", &"x".repeat(Key::MAX_LEN)] {
        let client = if name.is_empty() { Client::new(stage.backend()) } else { client.clone() };
        assert!(matches!(client.inspect(name).await, Err(Error::Invalid { .. })));
        assert!(matches!(client.force_release(name).await, Err(Error::Invalid { .. })));
        let waited = client.mutex(name).wait_released(LONG).await;
        assert!(matches!(waited, Err(Error::Invalid { .. })));
    }
}

/// FAULTS D10: a full line is an error at once.
pub async fn fault_d10_too_many_waiters(stage: &Stage) {
    let watch = Watch::default();
    let builder = stage.builder().max_waiters(3).observer(watch.clone());
    let client = builder.build().expect("valid");
    let guard = lock(&client).await;
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            tokio::spawn({
                let client = client.clone();
                async move { lock(&client).await.release().await }
            })
        })
        .collect();
    watch.contended(3).await;
    let error = client.mutex(Stage::NAME).lock().await.expect_err("the line is full");
    assert!(matches!(error, Error::Overloaded { limit: 3, .. }), "{error:?}");
    assert!(error.is_transient());
    guard.release().await.expect("an answer");
    for waiter in join_all(waiters).await {
        waiter.expect("nothing panics").expect("an answer");
    }
    lock(&client).await.release().await.expect("there is room again");
}

/// No more locks at a time than allowed.
pub async fn too_many_locks(stage: &Stage) {
    let client = stage.builder().max_locks(2).build().expect("valid");
    stage.uses("other");
    let (one, two) = (lock(&client).await, client.mutex("other").lock().await.expect("free"));
    let error = client.mutex("third").try_lock().await.expect_err("there are two");
    assert!(matches!(error, Error::Overloaded { limit: 2, .. }), "{error:?}");
    drop(two);
    let third = client.mutex("other").lock().await.expect("there is room again");
    drop((one, third));
}

/// FAULTS J2, J3: names and words by chance, of all that could be taken for something else; each is a lock of its own, and comes back as it was.
pub async fn any_names_and_any_words(stage: &Stage) {
    const PARTS: [&str; 24] = [
        "a",
        "b",
        "/",
        "//",
        ":",
        "::",
        "{",
        "}",
        "{}",
        "\0",
        "\r\n",
        "\n",
        " ",
        "%",
        "*",
        "__distlock:",
        "f:{a}",
        "w0123",
        "\u{e9}",
        "\u{1f512}",
        "\u{202e}",
        "dl1:",
        "$1",
        "-",
    ];
    let seed = Dice::new(u64::try_from(stage::owner().as_u128() >> 64).unwrap_or(0)).roll();
    let mut dice = Dice::new(seed);
    let mut text = |longest: usize| {
        let mut text = String::new();
        let most = if dice.chance(0.1) { longest as u64 } else { 8 };
        let wanted = 1 + dice.below(most);
        for _ in 0..wanted {
            let part = PARTS[usize::try_from(dice.below(24)).unwrap_or(0)];
            if text.len() + part.len() <= longest {
                text.push_str(part);
            }
        }
        text
    };
    let (client, other) = (stage.client(), stage.other_client().await);
    let longest = Key::MAX_LEN - stage.prefix().len();
    let locks: HashMap<String, String> = (0..40).map(|_| (text(longest), text(4096))).collect();
    let mut guards = Vec::new();
    for (name, words) in &locks {
        let guard = client.mutex(name).metadata(&**words).try_lock().await;
        let guard = guard.unwrap_or_else(|error| panic!("seed {seed}: {name:?}: {error}"));
        guards.push(guard.unwrap_or_else(|| panic!("seed {seed}: {name:?} is free")));
    }
    for (guard, (name, words)) in guards.iter().zip(&locks) {
        assert!(other.mutex(name).try_lock().await.expect("an answer").is_none(), "{name:?}");
        let occupancy = other.inspect(name).await.expect("an answer");
        assert_eq!(occupancy.holders.len(), 1, "seed {seed}: {name:?}");
        assert_eq!(occupancy.holders[0].owner, Some(guard.owner()), "seed {seed}: {name:?}");
        assert_eq!(&occupancy.holders[0].metadata, words, "seed {seed}: {name:?}");
    }
    for guard in guards {
        guard.release().await.expect("an answer");
    }
    for name in locks.keys() {
        let left = other.inspect(name).await.expect("an answer");
        assert!(left.holders.is_empty(), "seed {seed}: {name:?}");
    }
}

/// FAULTS J4, J5: very many locks of one process, each held, each given back.
pub async fn very_many_locks(stage: &Stage) {
    let client = stage.client();
    let names: Vec<_> = (0..300).map(|n| format!("many-{n}")).collect();
    let locks = names.iter().map(|name| {
        let mutex = client.mutex(name).ttl(LONG);
        async move { mutex.lock().await.expect("free") }
    });
    let guards = within("all are locked", join_all(locks)).await;
    assert!(guards.iter().all(distlock_core::Guard::is_held));
    for released in
        within("all are released", join_all(guards.into_iter().map(distlock_core::Guard::release)))
            .await
    {
        released.expect("an answer");
    }
    let other = stage.other_client().await;
    for name in ["many-0", "many-150", "many-299"] {
        eventually("it is free", async || {
            other.mutex(name).try_lock().await.expect("an answer").is_some()
        })
        .await;
    }
}
