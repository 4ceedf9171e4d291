//! What the network does to single requests, replies and messages, seen from a lock on a real server. FAULTS A6, B4, C1–C3, D2, D5, H3, H4.

mod common;

use std::{sync::Arc, time::Duration};

use common::{
    Failures, client, command, eventually, leftovers, lost_in_time, ms, server, soon, warm_up,
};
use distlock_core::{Client, Error, Linear, LossReason, Released, RetryStrategy as _};
use distlock_redis::RedisBackend;
use distlock_servers::{
    proxy::{Direction, Matcher, Proxy},
    redis::RedisServer,
    resp::Reply,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

const KEY: &str = "job/7";
const LINE: &str = "__distlock:q:{job/7}job/7";

fn proxy(server: &RedisServer) -> Proxy {
    Proxy::start(server.port()).unwrap()
}

async fn connect(proxy: &Proxy, request_timeout: &str) -> RedisBackend {
    let url = format!("redis://127.0.0.1:{}?timeout={request_timeout}", proxy.port());
    RedisBackend::connect(&url).await.unwrap()
}

/// A client whose connections go through a proxy, and that has used its scripts once.
async fn behind(proxy: &Proxy, request_timeout: &str) -> Client {
    let client = Client::new(connect(proxy, request_timeout).await);
    warm_up(&client).await;
    client
}

/// It has an answer again, and so has heard of all that came before.
async fn heard(client: &Client) {
    let mutex = client.mutex("warm").retry(Linear::new(ms(20)).limit(500));
    drop(soon(mutex.lock()).await.unwrap());
}

/// Scripts for the lock.
fn about_it() -> Matcher {
    Matcher::command("EVALSHA").and(Matcher::containing(KEY))
}

async fn wait_for(
    server: &RedisServer,
    client: &Client,
    ttl: u64,
) -> JoinHandle<distlock_core::Guard> {
    let mutex = client.mutex(KEY).ttl(ms(ttl));
    let waiter = tokio::spawn(async move { mutex.lock().await.unwrap() });
    eventually("it waits", || command(server, &["EXISTS", LINE]) == "1").await;
    waiter
}

#[tokio::test]
async fn a06_a_grant_that_arrives_after_its_deadline_is_given_back() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "5s").await;
    proxy.delay(Direction::ToClient, ms(700));
    let error = soon(client.mutex(KEY).ttl(ms(400)).lock()).await.unwrap_err();
    let Error::Backend(error) = error else { panic!("{error}") };
    assert!(error.is_transient(), "{error}");
    proxy.delay(Direction::ToClient, Duration::ZERO);
    let rival = soon(common::client(&server).await.mutex(KEY).lock()).await.unwrap();
    // The release of the late grant has arrived by then, and has changed nothing.
    proxy.wait_count(about_it(), 2).await.unwrap();
    heard(&client).await;
    assert!(command(&server, &["GET", KEY]).contains(&rival.owner().to_string()));
}

#[tokio::test]
async fn b04_a_release_that_comes_once_more_after_the_next_grant_of_its_client_harms_nobody() {
    let server = server();
    let client = client(&server).await;
    client.mutex(KEY).lock().await.unwrap().release().await.unwrap();
    command(&server, &["CONFIG", "SET", "slowlog-log-slower-than", "0"]);
    let guard = client.mutex(KEY).lock().await.unwrap();
    command(&server, &["SLOWLOG", "RESET"]);
    guard.release().await.unwrap();
    let Reply::Array(entries) = server.reply(&["SLOWLOG", "GET", "100"]).unwrap() else { panic!() };
    let args = entries.iter().filter_map(|entry| match entry {
        Reply::Array(parts) => match &parts[3] {
            Reply::Array(args) => Some(args.iter().map(ToString::to_string).collect::<Vec<_>>()),
            _ => None,
        },
        _ => None,
    });
    let is_it = |args: &Vec<String>| args[0] == "EVALSHA" && args.iter().any(|arg| arg == KEY);
    let again = args.into_iter().find(is_it).expect("it was recorded");
    let next = client.mutex(KEY).lock().await.unwrap();
    let value = command(&server, &["GET", KEY]);
    for _ in 0..2 {
        assert_eq!(server.command(&again).unwrap(), "0", "it has nothing any more");
        assert_eq!(command(&server, &["GET", KEY]), value);
    }
    next.extend(ms(40_000)).await.unwrap();
    assert_eq!(next.release().await.unwrap(), Released::Released);
}

#[tokio::test]
async fn c01_a_renewal_that_is_lost_costs_no_lock() {
    let server = server();
    let proxy = proxy(&server);
    let failures = Failures::default();
    // Each is asked for once, so that it does fail.
    let builder = Client::builder(connect(&proxy, "300ms").await).observer(failures.clone());
    let client = builder.ttl(ms(6000)).renew_at(0.2).build().unwrap();
    let guard = client.mutex(KEY).lock().await.unwrap();
    for is_carried_out in [false, true] {
        let known = guard.expires_at();
        let before = proxy.count(about_it());
        match is_carried_out {
            false => proxy.silence_request(1, about_it()),
            true => proxy.silence_reply(1, about_it()),
        }
        proxy.wait_count(about_it(), before + 1).await.unwrap();
        // Unless we were not there for so long that the next one is on its way.
        let is_next = before + 1 < proxy.count(about_it());
        assert!(is_next || guard.expires_at() == known, "nobody has confirmed it");
        eventually("the next one counts", || known < guard.expires_at() || !guard.is_held()).await;
        assert!(guard.is_held());
    }
    failures.saying("no answer in time").await;
    assert_eq!(soon(guard.release()).await.unwrap(), Released::Released);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c02_a_holder_in_the_dark_is_told_by_its_deadline_and_before_its_successor() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "500ms").await;
    let rival = common::client(&server).await;
    let guard = Arc::new(client.mutex(KEY).ttl(ms(2000)).lock().await.unwrap());
    let mutex = rival.mutex(KEY);
    let successor = tokio::spawn({
        let guard = Arc::clone(&guard);
        async move {
            let rival = mutex.lock().await.unwrap();
            assert!(!guard.is_held(), "two at once");
            assert!(guard.fencing_token() < rival.fencing_token());
            rival
        }
    });
    eventually("it waits", || command(&server, &["EXISTS", LINE]) == "1").await;
    proxy.blackhole(true);
    assert_eq!(lost_in_time(&guard).await, LossReason::Expired);
    let rival = soon(successor).await.unwrap();
    proxy.blackhole(false);
    // What was held back arrives, renewals too.
    drop(guard);
    heard(&client).await;
    assert!(rival.is_held());
    assert!(command(&server, &["GET", KEY]).contains(&rival.owner().to_string()));
}

#[tokio::test]
async fn c03_a_renewal_that_is_confirmed_after_the_deadline_brings_nothing_back() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "5s").await;
    let guard = client.mutex(KEY).ttl(ms(4000)).renew_at(0.2).lock().await.unwrap();
    let (known, before) = (guard.expires_at(), proxy.count(about_it()));
    proxy.delay(Direction::ToClient, ms(4500));
    proxy.wait_count(about_it(), before + 1).await.unwrap();
    let renewed = || {
        let left = command(&server, &["PTTL", KEY]).parse().unwrap_or(0);
        known + ms(300) < Instant::now() + ms(left)
    };
    eventually("the server has renewed it", renewed).await;
    assert_eq!(guard.expires_at(), known, "nobody has heard of that");
    assert_eq!(soon(guard.lost()).await, LossReason::Expired);
    proxy.delay(Direction::ToClient, Duration::ZERO);
    eventually("it is given back", || leftovers(&server).is_empty()).await;
    assert!(!guard.is_held(), "lost is final");
    assert_eq!(guard.release().await.unwrap(), Released::NotHeld);
    heard(&client).await;
}

/// The server never hears of the subscription: so nothing can be pushed, and what was released in the meantime is found by looking.
#[tokio::test]
async fn d02_a_release_before_the_subscription_stands_is_found() {
    let server = server();
    let proxy = proxy(&server);
    let holder = client(&server).await;
    let guard = holder.mutex(KEY).lock().await.unwrap();
    proxy.silence_request(1, "SUBSCRIBE");
    let waiter = Client::new(connect(&proxy, "700ms").await);
    let task = wait_for(&server, &waiter, 60_000).await;
    guard.release().await.unwrap();
    let guard = soon(task).await.unwrap();
    assert!(guard.is_held());
    // And by the next one a push is heard again: this time it looks only every few seconds.
    guard.release().await.unwrap();
    let channels = || command(&server, &["PUBSUB", "CHANNELS", "__distlock:c:*"]).lines().count();
    eventually("it is subscribed after all", || channels() == 2).await;
    let mutex = waiter.mutex(KEY).retry(Linear::new(ms(20)).limit(500));
    drop(soon(mutex.lock()).await.unwrap());
}

#[tokio::test]
async fn d05_a_grant_that_is_told_twice_is_one() {
    let server = server();
    let (one, two) = (client(&server).await, client(&server).await);
    let mut spy = server.connection().unwrap();
    spy.command(&["PSUBSCRIBE", "__distlock:c:*"]).unwrap();
    let guard = one.mutex(KEY).lock().await.unwrap();
    let waiter = wait_for(&server, &two, 30_000).await;
    guard.release().await.unwrap();
    let guard = soon(waiter).await.unwrap();
    let (channel, grant) = loop {
        let Reply::Array(message) = spy.read().unwrap() else { panic!() };
        let text = message[3].to_string();
        if text.starts_with("g:") {
            break (message[2].to_string(), text);
        }
    };
    let tell_again = || command(&server, &["PUBLISH", &channel, &grant]);
    for _ in 0..3 {
        tell_again();
    }
    guard.extend(ms(40_000)).await.unwrap();
    assert!(guard.is_held());
    guard.release().await.unwrap();
    let rival = one.mutex(KEY).lock().await.unwrap();
    let queued = wait_for(&server, &two, 30_000).await;
    for _ in 0..3 {
        tell_again();
    }
    // Both have heard of it when they have had an answer since.
    rival.extend(ms(40_000)).await.unwrap();
    drop(two.mutex("another").lock().await.unwrap());
    assert!(rival.is_held() && !queued.is_finished());
    assert!(command(&server, &["GET", KEY]).contains(&rival.owner().to_string()));
    rival.release().await.unwrap();
    drop(soon(queued).await.unwrap());
    eventually("nothing is left", || leftovers(&server).iter().all(|key| !key.contains(KEY))).await;
}

#[tokio::test]
async fn a01_a_reply_or_a_request_that_is_cut_in_its_middle_is_one_that_is_lost() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "2s").await;
    for bytes in [1, 2, 9, 30] {
        proxy.cut_reply(1, about_it(), bytes);
        let guard = soon(client.mutex(KEY).lock()).await.unwrap();
        proxy.cut_reply(1, about_it(), bytes.min(2));
        assert_eq!(soon(guard.release()).await.unwrap(), Released::Released);
        proxy.cut_request(1, about_it(), bytes * 5);
        let guard = soon(client.mutex(KEY).lock()).await.unwrap();
        proxy.cut_request(1, about_it(), bytes * 5);
        assert_eq!(soon(guard.release()).await.unwrap(), Released::Released);
    }
    eventually("nothing is left", || leftovers(&server).is_empty()).await;
}

#[tokio::test]
async fn whatever_comes_in_single_bytes_is_understood() {
    let server = server();
    let proxy = proxy(&server);
    let (one, two) = (behind(&proxy, "5s").await, behind(&proxy, "5s").await);
    proxy.slice(1);
    let guard = one.mutex(KEY).metadata("é\r\n").lock().await.unwrap();
    let waiter = wait_for(&server, &two, 60_000).await;
    guard.release().await.unwrap();
    let guard = soon(waiter).await.unwrap();
    guard.extend(ms(40_000)).await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Released);
    assert_eq!(leftovers(&server), Vec::<String>::new());
}

#[tokio::test]
async fn d03_resets_cost_neither_a_lock_nor_a_place() {
    let server = server();
    let proxy = proxy(&server);
    let (one, two) = (behind(&proxy, "500ms").await, behind(&proxy, "500ms").await);
    let guard = one.mutex(KEY).ttl(ms(6000)).renew_at(0.1).lock().await.unwrap();
    let waiter = wait_for(&server, &two, 6000).await;
    for _ in 0..4 {
        let known = guard.expires_at();
        proxy.reset();
        eventually("it is renewed", || known < guard.expires_at() || !guard.is_held()).await;
        assert!(guard.is_held() && !waiter.is_finished());
    }
    soon(guard.release()).await.unwrap();
    assert!(soon(waiter).await.unwrap().is_held());
}

/// The renewal of the holder and the request of the rival wait in the same queue while the lock ends.
#[tokio::test]
async fn h03_a_lock_that_ended_while_the_server_stood_still_goes_to_who_asked_meanwhile() {
    let server = server();
    let proxy = proxy(&server);
    let (one, two) = (behind(&proxy, "9s").await, behind(&proxy, "9s").await);
    let guard = one.mutex(KEY).ttl(ms(1200)).lock().await.unwrap();
    let asked = proxy.count(about_it());
    server.stop().unwrap();
    proxy.wait_count(about_it(), asked + 1).await.unwrap();
    let mutex = two.mutex(KEY).ttl(ms(20_000));
    let rival = tokio::spawn(async move { mutex.lock().await.unwrap() });
    proxy.wait_count(about_it(), asked + 2).await.unwrap();
    assert_eq!(soon(guard.lost()).await, LossReason::Expired);
    sleep(ms(100)).await;
    server.cont().unwrap();
    let rival = soon(rival).await.unwrap();
    assert!(!guard.is_held() && rival.is_held());
    assert!(guard.fencing_token() < rival.fencing_token());
    drop(guard);
    heard(&one).await;
    assert!(command(&server, &["GET", KEY]).contains(&rival.owner().to_string()));
}

#[tokio::test]
async fn h04_a_grant_counts_from_its_request_and_not_from_when_the_server_made_it() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "9s").await;
    server.stop().unwrap();
    let ttl = ms(6000);
    let mutex = client.mutex(KEY).ttl(ttl).no_renewal();
    let before = proxy.count(about_it());
    let task = tokio::spawn(async move { mutex.lock().await });
    proxy.wait_count(about_it(), before + 1).await.unwrap();
    let asked = Instant::now();
    sleep(ms(1000)).await;
    server.cont().unwrap();
    let guard = soon(task).await.unwrap().unwrap();
    let left: u64 = command(&server, &["PTTL", KEY]).parse().unwrap();
    let remaining = guard.remaining();
    assert!(guard.expires_at() < asked + ttl, "{:?}", guard.expires_at() - asked);
    assert!(remaining + ms(800) < ms(left), "{remaining:?} of {left} ms");
}

/// What a pushed grant counts from is the last answer to who waits, be it to joining the line or to a later look: from its request, not from its arrival.
#[tokio::test]
async fn h04_a_pushed_grant_counts_from_the_request_of_the_answer_before_it() {
    let server = server();
    let proxy = proxy(&server);
    let (waits, holds) = (behind(&proxy, "9s").await, client(&server).await);
    let ttl = ms(6000);
    proxy.delay(Direction::ToClient, ms(500));
    for looks in [0, 1] {
        let held = holds.mutex(KEY).lock().await.unwrap();
        let mutex = waits.mutex(KEY).ttl(ttl).no_renewal();
        let waiter = tokio::spawn(async move { mutex.lock().await.unwrap() });
        eventually("it waits", || command(&server, &["EXISTS", LINE]) == "1").await;
        let joined = proxy.count(about_it());
        proxy.wait_count(about_it(), joined + looks).await.unwrap();
        // The answer is on its way for half a second, and the next look is two seconds away.
        sleep(ms(800)).await;
        held.release().await.unwrap();
        let granted_by = Instant::now();
        let guard = soon(waiter).await.unwrap();
        let expires_at = guard.expires_at();
        let over = expires_at.saturating_duration_since(granted_by + ttl);
        assert!(over.is_zero(), "the server ends it {over:?} before, after {looks} looks");
        assert!(granted_by + ms(4000) < expires_at, "it is a grant of that ttl");
        guard.release().await.unwrap();
    }
}

/// FAULTS J6: the server may have it for longer than its holder believes, never for less.
#[tokio::test]
async fn j06_a_ttl_is_rounded_up_for_the_server_and_down_for_the_holder() {
    let server = server();
    let client = client(&server).await;
    for nanos in [1, 1_000, 499_999, 500_001, 999_999] {
        let ttl = ms(20_000) + Duration::from_nanos(nanos);
        let asked = Instant::now();
        let guard = client.mutex(KEY).ttl(ttl).no_renewal().lock().await.unwrap();
        let value = command(&server, &["GET", KEY]);
        assert_eq!(value.split(':').nth(5), Some("20001"), "{value}");
        assert!(guard.expires_at() - asked <= ttl - ttl / 100 + asked.elapsed());
        guard.release().await.unwrap();
    }
}
