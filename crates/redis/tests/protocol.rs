//! What stands in Redis, bent by hand: dead places, forged and lost pieces, clocks that were set.

mod common;

use common::{client, command, eventually, leftovers, ms, server, soon};
use distlock_core::{Client, Guard, Owner};
use distlock_servers::redis::RedisServer;
use tokio::{task::JoinHandle, time::sleep};

const LINE: &str = "__distlock:q:{k}k";
const PLACES: &str = "__distlock:p:{k}k";
const FENCE: &str = "__distlock:f:{k}k";

/// The parts of the lock's value.
fn value(server: &RedisServer) -> Vec<String> {
    command(server, &["GET", "k"]).splitn(7, ':').map(str::to_owned).collect()
}

fn number(server: &RedisServer, args: &[&str]) -> i64 {
    command(server, args).parse().unwrap()
}

fn now(server: &RedisServer) -> i64 {
    let time = command(server, &["TIME"]);
    let parts: Vec<i64> = time.lines().map(|part| part.parse().unwrap()).collect();
    parts[0] * 1_000_000 + parts[1]
}

/// Puts somebody at the end of the line.
fn stand_in_line(server: &RedisServer, owner: &str, process: &str, deadline: i64) {
    let place = command(server, &["HINCRBY", PLACES, "#", "1"]);
    command(server, &["ZADD", LINE, &place, owner]);
    let info = format!("{process}:1:30000:1:");
    let deadline = deadline.to_string();
    command(server, &["HSET", PLACES, owner, &deadline, &format!("{owner}i"), &info]);
}

async fn wait_in_line(client: &Client, server: &RedisServer) -> JoinHandle<Guard> {
    let before = number(server, &["ZCARD", LINE]);
    let mutex = client.mutex("k");
    let waiter = tokio::spawn(async move { mutex.lock().await.unwrap() });
    eventually("it waits", || number(server, &["ZCARD", LINE]) == before + 1).await;
    waiter
}

#[tokio::test]
async fn the_value_reads_as_documented() {
    let server = server();
    let guard = client(&server).await.mutex("k").metadata("a:b").lock().await.unwrap();
    let value = value(&server);
    assert_eq!(value[0], "dl1");
    assert_eq!(value[1], guard.owner().to_string());
    assert_eq!(number(&server, &["PUBLISH", &format!("__distlock:c:{}", value[2]), ""]), 1);
    assert_eq!(value[3], guard.fencing_token().to_string());
    assert_eq!((&value[4], value[5].as_str(), value[6].as_str()), (&value[3], "30000", "a:b"));
    assert_eq!(command(&server, &["GET", FENCE]), value[3]);
    assert!(number(&server, &["PTTL", FENCE]) > 3_600_000, "longer than the lock");
}

#[tokio::test]
async fn a_release_does_not_take_back_the_token_of_a_later_grant() {
    for waits in [false, true] {
        let server = server();
        let (client, other) = (client(&server).await, common::client(&server).await);
        let guard = client.mutex("k").lock().await.unwrap();
        let waiter = if waits { Some(wait_in_line(&other, &server).await) } else { None };
        // A second request of the same owner came late, long after the first grant was given back. The clock is behind the counter.
        let mut parts = value(&server);
        let later = (parts[3].parse::<u64>().unwrap() + 3_600_000_000).to_string();
        (parts[3], parts[4]) = (later.clone(), later.clone());
        command(&server, &["SET", "k", &parts.join(":"), "PX", "30000"]);
        command(&server, &["SET", FENCE, &later]);
        guard.release().await.unwrap();
        match waiter {
            None => assert_eq!(command(&server, &["GET", FENCE]), later),
            Some(waiter) => {
                let next = soon(waiter).await.unwrap().fencing_token().as_u64();
                assert_eq!(next, later.parse::<u64>().unwrap() + 1);
            }
        }
    }
}

#[tokio::test]
async fn dead_places_are_passed_over_however_many_there_are() {
    let server = server();
    let client = client(&server).await;
    let guard = client.mutex("k").lock().await.unwrap();
    let ms_now = now(&server) / 1000;
    for number in 0..1300 {
        // Expired, without their data, and kept alive by a clock that was set back.
        let deadline = [ms_now - 1, ms_now + 3_600_000][number % 2];
        stand_in_line(&server, &format!("{number:032x}"), &"0".repeat(32), deadline);
    }
    command(&server, &["HDEL", PLACES, &format!("{:032x}i", 0)]);
    let other = common::client(&server).await;
    let waiter = wait_in_line(&other, &server).await;
    guard.release().await.unwrap();
    let guard = soon(waiter).await.unwrap();
    guard.release().await.unwrap();
    assert_eq!(leftovers(&server), Vec::<String>::new());
}

#[tokio::test]
async fn a_newcomer_takes_no_free_key_past_the_line() {
    let server = server();
    let client = client(&server).await;
    let process = "f".repeat(32);
    // It is subscribed, and does not answer.
    let mut other = server.connection().unwrap();
    other.command(&["SUBSCRIBE", &format!("__distlock:c:{process}")]).unwrap();
    let (first, deadline) = ("1".repeat(32), now(&server) / 1000 + 15_000);
    stand_in_line(&server, &first, &process, deadline);
    assert!(client.mutex("k").try_lock().await.unwrap().is_none());
    assert_eq!(value(&server)[1], first, "it is granted to who came first");
}

#[tokio::test]
async fn what_is_granted_to_nobody_is_given_back_at_once() {
    let server = server();
    let client = client(&server).await;
    let guard = client.mutex("k").lock().await.unwrap();
    let process = value(&server)[2].clone();
    // As left behind by an acquisition that was given up and carried out later.
    stand_in_line(&server, &"1".repeat(32), &process, now(&server) / 1000 + 15_000);
    guard.release().await.unwrap();
    eventually("it is free again", || leftovers(&server).is_empty()).await;
}

#[tokio::test]
async fn a_push_that_nothing_stands_behind_grants_nothing() {
    let server = server();
    let holder = client(&server).await;
    let guard = holder.mutex("k").lock().await.unwrap();
    let other = client(&server).await;
    let waiter = wait_in_line(&other, &server).await;
    let owner = command(&server, &["ZRANGE", LINE, "0", "0"]);
    let process = command(&server, &["HGET", PLACES, &format!("{owner}i")])[..32].to_owned();
    let channel = format!("__distlock:c:{process}");
    for message in [
        // Older than the answer by which it knows that it waits.
        format!("g:{owner}:{}:1:1:30000:0:k", now(&server) - 60_000_000),
        // From a clock that was set.
        format!("g:{owner}:{}:1:1:30000:0:k", now(&server) + 60_000_000),
        format!("g:{owner}:x:1:1:30000:0:k"),
        format!("g:{}:{}:1:1:30000:0:k", Owner::new(1), now(&server)),
        format!("l:{}", Owner::new(1)),
        "nonsense".to_owned(),
    ] {
        assert_eq!(number(&server, &["PUBLISH", &channel, &message]), 1);
    }
    sleep(ms(100)).await;
    assert!(!waiter.is_finished());
    assert!(guard.is_held());
    guard.release().await.unwrap();
    drop(soon(waiter).await.unwrap());
}

#[tokio::test]
async fn a_ttl_that_outlasts_what_its_holder_counts_with_is_cut() {
    let server = server();
    let (one, two) = (client(&server).await, client(&server).await);
    let guard = one.mutex("k").ttl(ms(20_000)).lock().await.unwrap();
    for change in [&["PERSIST", "k"][..], &["PEXPIRE", "k", "99999999"]] {
        command(&server, change);
        assert!(two.mutex("k").try_lock().await.unwrap().is_none());
        let left = number(&server, &["PTTL", "k"]);
        assert!((1..=20_000).contains(&left), "{left}");
    }
    assert!(guard.is_held());
    guard.extend(ms(60_000)).await.unwrap();
    assert!(two.mutex("k").try_lock().await.unwrap().is_none());
    assert!(number(&server, &["PTTL", "k"]) > 50_000, "an extension is not cut");
}

#[tokio::test]
async fn tokens_rise_whatever_becomes_of_the_counter() {
    let server = server();
    let client = client(&server).await;
    let token = async || {
        let guard = client.mutex("k").lock().await.unwrap();
        let token = guard.fencing_token().as_u64();
        guard.release().await.unwrap();
        token
    };
    let first = token().await;
    command(&server, &["DEL", FENCE]);
    let second = token().await;
    assert!(first < second, "the clock goes on");
    let ahead = now(&server) + 3_600_000_000;
    command(&server, &["SET", FENCE, &ahead.to_string()]);
    assert_eq!(token().await as i64, ahead + 1, "the counter goes on when the clock was set back");
    assert_eq!(token().await as i64, ahead + 2);
}

#[tokio::test]
async fn what_only_looks_like_ours_is_foreign() {
    let server = server();
    let client = client(&server).await;
    for value in ["dl1:", "dl1:x:y:1:1:1:", "dl2:0:0:0:0:0:", ""] {
        command(&server, &["SET", "k", value, "PX", "60000"]);
        assert!(client.mutex("k").try_lock().await.unwrap().is_none(), "`{value}`");
        let seen = client.inspect("k").await.unwrap();
        assert_eq!((seen.holders.len(), seen.holders[0].owner), (1, None), "`{value}`");
        assert!(client.force_release("k").await.is_err(), "`{value}`");
        let waiter = wait_in_line(&client, &server).await;
        waiter.abort();
        eventually("it has left", || command(&server, &["EXISTS", LINE]) == "0").await;
        assert_eq!(command(&server, &["GET", "k"]), value, "left alone");
    }
}

#[tokio::test]
async fn a_place_that_was_evicted_is_taken_anew() {
    let server = server();
    let guard = client(&server).await.mutex("k").lock().await.unwrap();
    let other = client(&server).await;
    let mutex = other.mutex("k").ttl(ms(600));
    let waiter = tokio::spawn(async move { mutex.lock().await.unwrap() });
    eventually("it waits", || number(&server, &["ZCARD", LINE]) == 1).await;
    let first = command(&server, &["ZRANGE", LINE, "0", "0"]);
    command(&server, &["DEL", PLACES]);
    let again = || {
        let owner = command(&server, &["ZRANGE", LINE, "-1", "-1"]);
        !owner.is_empty() && owner != first
    };
    eventually("it stands in line anew, under another id", again).await;
    guard.release().await.unwrap();
    drop(soon(waiter).await.unwrap());
}
