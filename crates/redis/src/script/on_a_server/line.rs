//! What scripts do with those who wait: whom they pass over, whom they grant the lock, and what they tell.

use super::{A, AHEAD, B, C, IDLE, KEYS, Lock, P, R, from};
use crate::script::{ACQUIRE, CHANGE, INSPECT, POLL, RELEASE, RENEW};

/// For 5 s, with two tokens, in a process that is told nothing.
fn wants(process: &str) -> String {
    format!("{process}:0:50000:2:words")
}

/// The one who holds it, and the last token of its block, after an earlier one that is known to the script.
fn granted(owner: &str, process: &str, first: i64) -> String {
    format!("dl1:{owner}:{process}:{first}:{}:50000:words", first + 1)
}

#[test]
fn a_release_grants_to_the_next() {
    for others in [false, true] {
        let mut lock = Lock::new();
        lock.command(&format!("SET lock dl1:{A}:{P}:{AHEAD}:{}:50000:w PX 50000", AHEAD + 9));
        lock.command("SET fence 1");
        lock.place(B, 1, 50000, &wants(R));
        if others {
            lock.place(C, 2, 50000, &wants(R));
        }
        lock.command("HSET places # 2");
        let mut ears = lock.hear(R);
        let before = lock.now();
        assert_eq!(lock.release(A, &(AHEAD + 4).to_string(), "0", "0"), "1");
        assert_eq!(lock.get("lock"), granted(B, R, AHEAD + 5), "after the last token used");
        lock.lives("lock", 50000);
        assert_eq!(lock.get("fence"), (AHEAD + 6).to_string());
        lock.lives("fence", 50000 + IDLE);
        let heard = ears.heard(&mut lock);
        let [told] = &heard[..] else { panic!("{heard:?}") };
        let words: Vec<&str> = told.split(':').collect();
        let (first, last) = ((AHEAD + 5).to_string(), (AHEAD + 6).to_string());
        let waiting = u8::from(others).to_string();
        assert_eq!(
            [&words[..2], &words[3..]].concat(),
            ["g", B, &first, &last, "50000", &waiting, "lock"]
        );
        let at: i64 = words[2].parse().unwrap();
        assert!(before <= at && at <= lock.now(), "{told}");
        let left = if others {
            (C.to_owned(), format!("# {C} {C}i"))
        } else {
            (String::new(), String::new())
        };
        assert_eq!((lock.line(), lock.places()), left);
    }
}

#[test]
fn a_release_by_another_process_tells_the_holder() {
    let mut lock = Lock::new();
    let mut ears = lock.hear(R);
    for waits in [false, true] {
        for process in [R, P] {
            lock.held(A, process, 50000);
            if waits {
                lock.place(B, 1, 50000, &wants(P));
            }
            assert_eq!(lock.release(A, "", "0", "0"), "1");
            let told = if process == R { vec![format!("l:{A}")] } else { vec![] };
            assert_eq!(ears.heard(&mut lock), told, "{waits}, {process}");
        }
    }
}

#[test]
fn a_release_that_meets_the_dead_deletes_and_gives_tokens_back() {
    let mut lock = Lock::new();
    for (used, long, fence) in [
        ("", "0", "99"),
        ("", "1", "59"),
        ("57", "0", "57"),
        ("59", "0", "99"),
        ("7", "0", "99"),
        ("7", "1", "59"),
        ("49", "0", "99"),
        ("50", "0", "50"),
    ] {
        lock.held(A, P, 50000);
        lock.command("SET fence 99");
        lock.place(B, 1, -1000, &wants(R));
        assert_eq!(lock.release(A, used, "0", long), "1");
        assert_eq!(lock.command("EXISTS lock line places"), "0");
        assert_eq!(lock.get("fence"), fence, "{used}, {long}");
        if fence != "99" {
            lock.lives("fence", IDLE);
        }
    }
}

#[test]
fn so_many_dead_are_passed_over_at_a_time() {
    let mut lock = Lock::new();
    let crowd = |lock: &mut Lock| {
        lock.command("DEL line places");
        for n in 0..600 {
            lock.command(&format!("ZADD line {n} {n:032}"));
        }
        lock.place(B, 600, 50000, &wants(R));
        lock.place(C, 601, 50000, &wants(R));
    };
    // One, and eight times 64.
    let left = (600 + 2 - 513).to_string();
    lock.held(A, P, 50000);
    crowd(&mut lock);
    assert_eq!(lock.release(A, "", "0", "0"), "3", "it had it, and that is to be said again");
    assert_eq!(lock.command("EXISTS lock"), "0");
    assert_eq!(lock.command("ZCARD line"), left);
    assert_eq!(lock.release(A, "", "0", "0"), "0", "it has nothing, and all are looked through");
    assert_eq!(lock.get("lock").split(':').nth(1), Some(B));
    lock.command("DEL lock");
    crowd(&mut lock);
    assert_eq!(lock.release(A, "", "0", "0"), "2");
    lock.command("DEL lock");
    crowd(&mut lock);
    assert_eq!(lock.release(C, "", "0", "0"), "3", "it had a place");
    // Who asks in the meantime waits: the head of the line may be alive.
    crowd(&mut lock);
    let answer = lock.acquire(A, 50000, 1, "j1110000").unwrap();
    assert_eq!(answer.split(' ').next(), Some("queued"), "{answer}");
    assert_eq!(from(&answer, 2), format!("0 1 {left}"));
}

#[test]
fn only_who_is_believed_to_live_is_granted_anything() {
    for (lives, what, is_granted) in [
        (50000, wants(R), true),
        (-1000, wants(R), false),
        (0, wants(R), true),
        (-1, wants(R), false),
        (60_000, wants(R), true),
        (60_001, wants(R), false),
        // As after a step back of the clock.
        (70_000, wants(R), false),
        (50000, "nonsense".to_owned(), false),
        // It is told by a channel on which nobody listens.
        (50000, format!("{R}:1:50000:2:words"), false),
    ] {
        let mut lock = Lock::new();
        lock.time = Some(lock.now());
        lock.held(A, P, 50000);
        lock.place(B, 1, lives, &what);
        lock.place(C, 2, 50000, &wants(P));
        assert_eq!(lock.release(A, "", "0", "0"), "1");
        let next = if is_granted { B } else { C };
        assert_eq!(lock.get("lock").split(':').nth(1), Some(next), "{lives}, {what}");
        assert_eq!(lock.line(), if is_granted { C } else { "" });
        assert_eq!(lock.places(), if is_granted { format!("{C} {C}i") } else { String::new() });
    }
}

#[test]
fn who_listens_is_granted_and_in_a_cluster_nobody_is_asked() {
    let hears = format!("{R}:1:50000:2:words");
    for (exact, listens, is_granted) in [("1", true, true), ("1", false, false), ("0", false, true)]
    {
        let mut lock = Lock::new();
        let ears = listens.then(|| lock.hear(R));
        lock.held(A, P, 50000);
        lock.place(B, 1, 50000, &hears);
        let head = format!("dl1:{A}:{P}:");
        assert_eq!(lock.eval(&RELEASE, &[&head, "", "0", "0", exact]), "1");
        assert_eq!(
            lock.command("EXISTS lock"),
            u8::from(is_granted).to_string(),
            "{exact}, {listens}"
        );
        drop(ears);
    }
}

#[test]
fn who_asks_is_alive_whatever_is_believed() {
    // With nobody who listens.
    let hears = format!("{P}:1:50000:2:words");
    for fence in [0, AHEAD] {
        let mut lock = Lock::new();
        lock.command(&format!("SET fence {fence}"));
        lock.place(B, 1, -1000, &hears);
        lock.place(C, 2, 50000, &hears);
        let answer = lock.acquire(B, 40000, 1, "j1110000").unwrap();
        let now: i64 = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let first = if fence == 0 { now } else { AHEAD + 1 };
        assert_eq!(
            answer,
            format!("held {now} {first} {} 50000 1", first + 1),
            "as the place says"
        );
        assert_eq!(lock.get("lock"), granted(B, P, first));
        assert_eq!((lock.line(), lock.places()), (C.to_owned(), format!("{C} {C}i")));
    }
}

#[test]
fn a_poll_tells_each_what_it_has() {
    let mut lock = Lock::new();
    let keys: Vec<String> = (0..5).flat_map(|n| KEYS.map(|key| format!("{key}{n}"))).collect();
    lock.command(&format!("SET lock0 dl1:{A}:{P}:50:59:50000:w PX 20000"));
    lock.command(&format!("ZADD line0 1 {B}"));
    lock.command(&format!("SET lock1 dl1:{B}:{P}:50:59:50000:w PX 900000"));
    lock.command(&format!("ZADD line1 1 {C} 2 {A}"));
    lock.command(&format!("HSET places1 {A} 1 {A}i {}", wants(P)));
    lock.command("RPUSH lock2 x");
    lock.command(&format!("SET lock4 dl1:{B}:{P}:50:59:50000:w PX 50000"));
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let answer = lock.try_eval(&POLL, &keys, &["1", "10000", A, A, A, A, A]).unwrap();
    let now = answer.split(' ').next().unwrap().to_owned();
    assert_eq!(answer, format!("{now} held 50 59 50000 1 queued 50000 1 1 wrong gone gone"));
    lock.lives("lock0", 50000);
    lock.lives("line1", 60_000);
    lock.lives("places1", 60_000);
    let lives: i64 = lock.command(&format!("HGET places1 {A}")).parse().unwrap();
    assert_eq!(lives, now.parse::<i64>().unwrap() / 1000 + 10_000);
    // The lock is free, and those before it are dead.
    lock.command("DEL lock1");
    let answer = lock.try_eval(&POLL, &keys[4..8], &["1", "10000", A]).unwrap();
    let words: Vec<&str> = answer.split(' ').collect();
    assert_eq!((words[1], &words[4..]), ("held", &["50000", "0"][..]), "{answer}");
    assert_eq!(lock.command("EXISTS line1 places1"), "0");
}

#[test]
fn a_change_writes_what_is_held_and_what_is_waited_for() {
    let mut lock = Lock::new();
    let late = (lock.now() + 9_000_000).to_string();
    let change = |lock: &mut Lock, owner: &str, ttl: &str| {
        let answer = lock.eval(&CHANGE, &[owner, ttl, "new", &late, "1", "10000"]);
        let now = answer.split(' ').nth(1).unwrap().to_owned();
        answer.replace(&now, "NOW")
    };
    for (ttl, fence) in [(20000, "99"), (900_000, "59")] {
        lock.held(A, R, 50000);
        lock.command(&format!("SET fence 99 PX {}", IDLE + 100_000));
        lock.full(true);
        assert_eq!(change(&mut lock, A, &ttl.to_string()), format!("held NOW 50 59 {ttl} 0"));
        lock.full(false);
        assert_eq!(lock.get("lock"), format!("dl1:{A}:{R}:50:59:{ttl}:new"));
        lock.lives("lock", ttl);
        assert_eq!(lock.get("fence"), fence);
        lock.lives("fence", if fence == "99" { 100_000 } else { ttl } + IDLE);
    }
    // Alive, but deaf.
    lock.place(B, 1, 50000, &format!("{P}:1:50000:2:words"));
    lock.place(C, 2, 50000, &format!("{R}:1:50000:7:words"));
    assert_eq!(change(&mut lock, A, "50000"), "held NOW 50 59 50000 2");
    lock.full(true);
    let answer = change(&mut lock, C, "80000");
    lock.full(false);
    let words: Vec<&str> = answer.split(' ').collect();
    assert_eq!((words[0], &words[3..]), ("queued", &["1", "1"][..]), "{answer}");
    assert_eq!(lock.command(&format!("HGET places {C}i")), format!("{R}:1:80000:7:new"));
    lock.lives("places", 60_000);
    lock.lives("line", 60_000);
    let other = "d".repeat(32);
    assert_eq!(change(&mut lock, &other, "80000"), "gone NOW");
    assert_eq!(lock.line(), format!("{B} {C}"));
    // The lock is free, and who stands before it is passed over: it has it as was asked for now.
    lock.command("DEL lock");
    let answer = change(&mut lock, C, "70000");
    let words: Vec<&str> = answer.split(' ').collect();
    assert_eq!((words[0], &words[4..]), ("held", &["70000", "0"][..]), "{answer}");
    assert_eq!(lock.get("lock").split(':').next_back(), Some("new"));
    lock.command("DEL lock");
    assert_eq!(change(&mut lock, C, "70000"), "gone NOW", "it creates nothing");
    assert_eq!(lock.command("EXISTS lock"), "0");
}

#[test]
fn a_rest_leaves_the_lock_to_nobody() {
    for (holder, rest) in [(P, 1), (R, 40000)] {
        let mut lock = Lock::new();
        let (mut waiter, mut other) = (lock.hear(P), lock.hear(R));
        lock.held(A, holder, 50000);
        lock.place(B, 1, 50000, &wants(P));
        lock.place(C, 2, 50000, &wants(R));
        lock.full(true);
        assert_eq!(lock.release(A, "57", &rest.to_string(), "0"), "1");
        lock.full(false);
        if rest > 1 {
            assert_eq!(lock.get("lock"), format!("dl1:{:032}:{holder}:0:57:{rest}:", 0));
            lock.lives("lock", rest);
        }
        assert_eq!(lock.get("fence"), "57");
        lock.lives("fence", rest + IDLE);
        assert_eq!(lock.line(), format!("{B} {C}"), "nobody is granted it");
        assert_eq!(waiter.heard(&mut lock), [format!("h:{B}")]);
        let told = if holder == R { vec![format!("l:{A}")] } else { vec![] };
        assert_eq!(other.heard(&mut lock), told);
    }
    let mut lock = Lock::new();
    lock.held(A, P, 50000);
    assert_eq!(lock.release(A, "7", "40000", "0"), "1");
    assert_eq!(lock.get("fence"), "59", "a token of an earlier grant says nothing");
}

#[test]
fn a_renewal_extends_what_is_its_own() {
    let mut lock = Lock::new();
    let keys: Vec<String> = (0..4).flat_map(|n| [format!("lock{n}"), format!("line{n}")]).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    lock.command(&format!("SET lock0 dl1:{A}:{P}:50:59:50000:w PX 20000"));
    lock.command(&format!("SET lock1 dl1:{A}:{P}:60:69:50000:w PX 900000"));
    lock.command(&format!("ZADD line1 1 {B} 2 {C}"));
    lock.command(&format!("SET lock2 dl1:{B}:{P}:50:59:50000:w PX 1000000"));
    lock.command("RPUSH lock3 x");
    let answer = lock.try_eval(&RENEW, &keys, &[A, A, A, A]).unwrap();
    assert_eq!(answer, "50 50000 0 60 50000 1 0 -1");
    lock.lives("lock0", 50000);
    lock.lives("lock1", 900_000);
    lock.lives("lock2", 1_000_000);
    let gone = lock.try_eval(&RENEW, &["lock", "line"], &[A]).unwrap();
    assert_eq!((gone.as_str(), lock.command("EXISTS lock").as_str()), ("[0]", "0"));
}

#[test]
fn who_looks_on_sees_it_all() {
    let mut lock = Lock::new();
    assert_eq!(lock.try_eval(&INSPECT, &["lock", "line"], &[]).unwrap(), " -2 0");
    lock.held(A, P, 50000);
    lock.place(B, 1, 50000, &wants(P));
    let answer = lock.try_eval(&INSPECT, &["lock", "line"], &[]).unwrap();
    assert_eq!(answer.split(' ').next(), Some(lock.get("lock").as_str()));
    assert_eq!(answer.split(' ').nth(2), Some("1"));
}

#[test]
fn who_comes_when_the_lock_goes_to_another_waits_for_that_one() {
    let mut lock = Lock::new();
    lock.place(B, 1, 50_000, &wants(P));
    let answer = lock.acquire(A, 50_000, 1, "j1110000").unwrap();
    let words: Vec<&str> = answer.split(' ').collect();
    assert_eq!((words[0], &words[3..]), ("queued", &["1", "0"][..]), "{answer}");
    assert!(30_000 < words[2].parse::<i64>().unwrap(), "{answer}");
    assert_eq!(lock.get("lock").split(':').nth(1), Some(B));
}

#[test]
fn a_poll_passes_over_who_cannot_hear() {
    let mut lock = Lock::new();
    lock.command(&format!("SET fence {AHEAD}"));
    lock.place(B, 1, 50_000, &format!("{R}:1:50000:2:words"));
    lock.place(C, 2, 50_000, &wants(P));
    let before = lock.now();
    let answer = lock.eval(&POLL, &["1", "10000", C]);
    let now: i64 = answer.split(' ').next().unwrap().parse().unwrap();
    assert!(before <= now && now <= lock.now(), "{answer}");
    let tokens = (AHEAD + 1, AHEAD + 2);
    assert_eq!(from(&answer, 1), format!("held {} {} 50000 0", tokens.0, tokens.1));
    assert_eq!(lock.get("fence"), tokens.1.to_string());
}

/// The four keys of each of so many locks.
fn keys(locks: usize) -> Vec<String> {
    (0..locks).flat_map(|n| KEYS.map(|key| format!("{key}{n}"))).collect()
}

#[test]
fn of_many_each_is_asked_for_in_its_own_way_and_one_that_fails_takes_no_other_with_it() {
    let mut lock = Lock::new();
    let (keys, hears) = (keys(4), format!("{R}:1:50000:2:words"));
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    lock.command("RPUSH lock1 x");
    for n in 2..4 {
        lock.command(&format!("SET lock{n} dl1:{B}:{P}:50:59:50000:w PX 50000"));
    }
    let (head, late) = (format!("dl1:{A}:{P}:"), (lock.now() + 9_000_000).to_string());
    let asks =
        |ttl, size, words, rest| [head.as_str(), ttl, "90000", size, late.as_str(), words, rest];
    let args = [
        asks("50000", "2", "a", "j1010000"),
        asks("60000", "3", "b", "j1010000"),
        asks("70000", "4", "c", "j1120000"),
        asks("80000", "5", "d", "t1030000"),
    ];
    let answer = lock.try_eval(&ACQUIRE, &keys, &args.concat()).unwrap();
    let answers: Vec<&str> = answer.split(' ').collect();
    assert_eq!((answers[1], answers[2], answers[7]), ("", "queued", "busy"), "{answer}");
    let held = lock.get("lock0");
    let words: Vec<&str> = held.split(':').collect();
    assert_eq!((words[4], &words[5..]), (lock.get("fence0").as_str(), &["50000", "a"][..]));
    lock.lives("fence0", 90_000);
    assert_eq!(lock.command(&format!("HGET places2 {A}i")), format!("{P}:1:70000:4:c"));
    let lives: i64 = lock.command(&format!("HGET places2 {A}")).parse().unwrap();
    assert_eq!(lives, answers[3].parse::<i64>().unwrap() / 1000 + 20_000);
    assert_eq!(lock.command("ZCARD line2"), "1");
    assert_eq!(lock.command("EXISTS line0 line1 line3 places0 places3"), "0");
    lock.command("FLUSHALL");
    lock.command("RPUSH lock1 x");
    for n in [0, 2, 3] {
        lock.command(&format!("SET lock{n} dl1:{A}:{P}:50:59:50000:w PX 50000"));
        lock.command(&format!("SET fence{n} 99"));
        let until = lock.now() / 1000 + 50_000;
        lock.command(&format!("ZADD line{n} 1 {B}"));
        lock.command(&format!("HSET places{n} {B} {until} {B}i {hears}"));
    }
    let args = [
        // Nobody who hears: the rest of its tokens is given back.
        [head.as_str(), "57", "0", "0", "1"],
        [&head, "", "0", "0", "1"],
        // In a cluster, where it is not known who hears.
        [&head, "58", "0", "0", "0"],
        [&head, "56", "40000", "0", "1"],
    ];
    assert_eq!(lock.try_eval(&RELEASE, &keys, &args.concat()).unwrap(), "1  1 1");
    assert_eq!((lock.get("lock0").as_str(), lock.get("fence0").as_str()), ("", "57"));
    assert_eq!(lock.command("EXISTS line0 places0 line2 places2"), "0");
    let granted = lock.get("lock2");
    let words: Vec<&str> = granted.split(':').collect();
    assert_eq!((words[1], words[4]), (B, lock.get("fence2").as_str()), "{granted}");
    assert!(lock.get("lock3").ends_with(":56:40000:"));
    assert_eq!(
        (lock.get("fence3"), lock.command("ZCARD line3")),
        ("56".to_owned(), "1".to_owned())
    );
    // And whether the counter may have expired.
    for n in [0, 1] {
        lock.command(&format!("DEL lock{n}"));
        lock.command(&format!("SET lock{n} dl1:{A}:{P}:50:59:50000:w PX 50000"));
        lock.command(&format!("SET fence{n} 99"));
    }
    let args = [[head.as_str(), "", "0", "1", "1"], [&head, "", "0", "0", "1"]];
    assert_eq!(lock.try_eval(&RELEASE, &keys[..8], &args.concat()).unwrap(), "1 1");
    assert_eq!((lock.get("fence0"), lock.get("fence1")), ("59".to_owned(), "99".to_owned()));
}
