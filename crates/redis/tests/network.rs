//! Requests, replies and messages that are lost, late or doubled.

mod common;

use std::time::Duration;

use common::{client, command, eventually, leftovers, ms, server, soon, warm_up};
use distlock_core::{Client, Error, Linear, Owner, Released, RetryStrategy as _};
use distlock_redis::RedisBackend;
use distlock_servers::{
    proxy::{Direction, Matcher, Proxy},
    redis::RedisServer,
    resp::Reply,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

const KEY: &str = "job/7";

/// A client whose connections go through a proxy, and that has used its scripts once.
async fn behind(proxy: &Proxy, request_timeout: &str) -> Client {
    let url = format!("redis://127.0.0.1:{}?timeout={request_timeout}", proxy.port());
    let client = Client::new(RedisBackend::connect(&url).await.unwrap());
    warm_up(&client).await;
    client
}

fn proxy(server: &RedisServer) -> Proxy {
    Proxy::start(server.port()).unwrap()
}

/// Scripts for the lock.
fn about_it() -> Matcher {
    Matcher::command("EVALSHA").and(Matcher::containing(KEY))
}

/// From now on the server records what it carries out.
fn record(server: &RedisServer) {
    command(server, &["CONFIG", "SET", "slowlog-log-slower-than", "0"]);
    command(server, &["SLOWLOG", "RESET"]);
}

/// The acquisition of the lock, as the server has recorded it.
fn recorded(server: &RedisServer) -> Vec<String> {
    let Reply::Array(entries) = server.reply(&["SLOWLOG", "GET", "100"]).unwrap() else { panic!() };
    let args = entries.iter().map(|entry| match entry {
        Reply::Array(parts) => match &parts[3] {
            Reply::Array(args) => args.iter().map(ToString::to_string).collect::<Vec<_>>(),
            _ => panic!(),
        },
        _ => panic!(),
    });
    let is_it = |args: &Vec<String>| {
        args[0] == "EVALSHA"
            && args.iter().any(|arg| arg == KEY)
            && args.iter().any(|arg| arg.starts_with("dl1:"))
    };
    args.rev().find(is_it).expect("it was recorded")
}

/// Carries out an acquisition that was on its way for some seconds.
fn carry_out_late(server: &RedisServer, mut words: Vec<String>) {
    let limit = words.iter_mut().find(|word| word.len() == 16 && word.parse::<u64>().is_ok());
    let limit = limit.unwrap();
    *limit = (limit.parse::<u64>().unwrap() + 3_000_000).to_string();
    let answer = server.command(&words).unwrap();
    assert!(!answer.starts_with("late"), "{answer}");
    assert_eq!(leftovers(server), [KEY], "taken, by nobody");
}

fn waiting(server: &RedisServer) -> String {
    command(server, &["ZCARD", "__distlock:q:{job/7}job/7"])
}

#[tokio::test]
async fn an_acquisition_whose_reply_is_lost_is_recognized() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "1s").await;
    proxy.drop_reply(1, about_it());
    let guard = soon(client.mutex(KEY).lock()).await.unwrap();
    assert!(guard.is_held());
    assert_eq!(proxy.count(about_it()), 2, "asked again once");
    assert!(command(&server, &["GET", KEY]).contains(&guard.owner().to_string()));
    guard.release().await.unwrap();
    assert_eq!(leftovers(&server), Vec::<String>::new());
}

#[tokio::test]
async fn a_request_that_is_lost_is_sent_again() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "1s").await;
    proxy.drop_request(1, about_it());
    let guard = soon(client.mutex(KEY).lock()).await.unwrap();
    proxy.drop_request(1, about_it());
    assert_eq!(soon(guard.release()).await.unwrap(), Released::Released);
    assert_eq!(leftovers(&server), Vec::<String>::new());
}

#[tokio::test]
async fn a_release_whose_reply_is_lost_has_released() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "1s").await;
    let guard = client.mutex(KEY).lock().await.unwrap();
    proxy.drop_reply(1, about_it());
    assert_eq!(soon(guard.release()).await.unwrap(), Released::Released);
    assert_eq!(leftovers(&server), Vec::<String>::new());
}

#[tokio::test]
async fn what_was_given_up_takes_no_lock_later() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "200ms").await;
    // The request arrives long after its caller was told that there was no answer, and after its release.
    proxy.delay(Direction::ToServer, ms(700));
    let Error::Backend(error) = soon(client.mutex(KEY).lock()).await.unwrap_err() else { panic!() };
    assert!(error.is_transient(), "{error}");
    proxy.delay(Direction::ToServer, Duration::ZERO);
    let other = common::client(&server).await;
    sleep(ms(1500)).await;
    eventually("nothing is left", || leftovers(&server).is_empty()).await;
    drop(other.mutex(KEY).try_lock().await.unwrap().expect("nobody has it"));
}

#[tokio::test]
async fn one_that_gives_up_in_the_dark_leaves_nothing() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "300ms").await;
    for round in 0..5 {
        proxy.blackhole(true);
        let lock = client.mutex(KEY);
        let locked = timeout(ms(40 * round), lock.lock()).await;
        assert!(!matches!(locked, Ok(Ok(_))), "{locked:?}");
        sleep(ms(50)).await;
        proxy.blackhole(false);
        sleep(ms(20)).await;
    }
    eventually("nothing is left", || leftovers(&server).is_empty()).await;
    sleep(ms(400)).await;
    assert_eq!(leftovers(&server), Vec::<String>::new());
}

#[tokio::test]
async fn doubled_requests_change_nothing() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "1s").await;
    let guard = client.mutex(KEY).lock().await.unwrap();
    let token = guard.fencing_token();
    proxy.duplicate(1, about_it());
    guard.extend(ms(50_000)).await.unwrap();
    proxy.duplicate(1, about_it());
    assert_eq!(guard.release().await.unwrap(), Released::Released);
    proxy.duplicate(1, about_it());
    let guard = client.mutex(KEY).lock().await.unwrap();
    assert!(token < guard.fencing_token());
    assert!(command(&server, &["GET", KEY]).contains(&guard.fencing_token().to_string()));
    guard.release().await.unwrap();
    assert_eq!(leftovers(&server), Vec::<String>::new());
}

#[tokio::test]
async fn an_extension_without_an_answer_is_an_error_and_the_lock_stays_safe() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "300ms").await;
    let guard = client.mutex(KEY).ttl(ms(6000)).lock().await.unwrap();
    proxy.silence_reply(1, about_it());
    let error = soon(guard.extend(ms(60_000))).await.unwrap_err();
    assert!(matches!(error, Error::Backend(_)), "{error}");
    assert!(guard.is_held());
    assert!(guard.remaining() <= ms(6000), "not by the ttl that nobody confirmed");
    let deadline = guard.expires_at();
    // The next renewal says what counts now.
    eventually("it is renewed", || deadline < guard.expires_at()).await;
    assert!(guard.is_held());
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_waiter_without_a_subscription_hears_of_its_grant_when_it_is_back() {
    let server = server();
    let proxy = proxy(&server);
    let waiter = behind(&proxy, "1s").await;
    let holder = client(&server).await;
    let guard = holder.mutex(KEY).lock().await.unwrap();
    let task = tokio::spawn(async move { waiter.mutex(KEY).lock().await.unwrap() });
    eventually("it waits", || waiting(&server) == "1").await;
    proxy.refuse(true);
    assert_eq!(proxy.cut_where("SUBSCRIBE"), 1);
    guard.release().await.unwrap();
    proxy.refuse(false);
    assert!(soon(task).await.unwrap().is_held());
}

#[tokio::test]
async fn a_holder_and_a_waiter_outlive_cut_connections() {
    let server = server();
    let proxy = proxy(&server);
    let one = behind(&proxy, "500ms").await;
    let two = behind(&proxy, "500ms").await;
    let guard = one.mutex(KEY).ttl(ms(6000)).renew_at(0.05).lock().await.unwrap();
    let mutex = two.mutex(KEY).ttl(ms(6000)).retry(Linear::new(ms(50)).limit(200));
    let task = tokio::spawn(async move { mutex.lock().await.unwrap() });
    eventually("it waits", || waiting(&server) == "1").await;
    for _ in 0..10 {
        let known = guard.expires_at();
        proxy.cut();
        eventually("it is renewed", || known < guard.expires_at() || !guard.is_held()).await;
        assert!(guard.is_held());
    }
    guard.release().await.unwrap();
    assert!(soon(task).await.unwrap().is_held());
}

#[tokio::test]
async fn a_place_is_given_back_also_after_an_outage_longer_than_the_ttl() {
    let server = server();
    let proxy = proxy(&server);
    let waiter = behind(&proxy, "100ms").await;
    let guard = client(&server).await.mutex(KEY).lock().await.unwrap();
    let mutex = waiter.mutex(KEY).ttl(ms(200));
    let task = tokio::spawn(async move { mutex.lock().await.map(drop) });
    eventually("it waits", || waiting(&server) == "1").await;
    proxy.blackhole(true);
    task.abort();
    sleep(ms(1000)).await;
    assert_eq!(waiting(&server), "1");
    proxy.blackhole(false);
    eventually("it has left", || waiting(&server) == "0").await;
    assert!(guard.is_held());
}

#[tokio::test]
async fn what_is_carried_out_late_is_refused() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "2s").await;
    record(&server);
    client.mutex(KEY).lock().await.unwrap().release().await.unwrap();
    let again = recorded(&server);
    sleep(ms(2100)).await;
    let answer = server.command(&again).unwrap();
    assert!(answer.starts_with("late"), "{answer}");
    assert_eq!(leftovers(&server), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_carried_out_after_its_release_is_released_again() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "1s").await;
    record(&server);
    // The first request has no answer, so the server may still have it in store.
    proxy.drop_request(1, about_it());
    let guard = soon(client.mutex(KEY).lock()).await.unwrap();
    guard.release().await.unwrap();
    server.command(&recorded(&server)).unwrap();
    assert_eq!(leftovers(&server), [KEY], "taken, by nobody");
    eventually("it is free long before its ttl", || leftovers(&server).is_empty()).await;
}

#[tokio::test]
async fn a_grant_that_overtakes_the_answer_to_its_only_request_is_given_back_once() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "5s").await;
    let holder = common::client(&server).await.mutex(KEY).lock().await.unwrap();
    proxy.late_reply(1, about_it(), ms(300));
    let mutex = client.mutex(KEY);
    let waiter = tokio::spawn(async move { mutex.lock().await });
    eventually("it waits", || waiting(&server) == "1").await;
    holder.release().await.unwrap();
    soon(waiter).await.unwrap().unwrap().release().await.unwrap();
    soon(client.mutex(KEY).lock()).await.unwrap().release().await.unwrap();
    assert_eq!(proxy.count(about_it()), 4, "two for each");
}

#[tokio::test]
async fn an_owner_id_that_comes_back_is_not_given_back_with_what_it_was_before() {
    let server = server();
    let proxy = proxy(&server);
    let mutex = behind(&proxy, "1s").await.mutex(KEY).owner(Owner::new(7));
    // The first request has no answer, so the server may still have it in store.
    proxy.drop_request(1, about_it());
    soon(mutex.lock()).await.unwrap().release().await.unwrap();
    let again = soon(mutex.lock()).await.unwrap();
    sleep(ms(1500)).await;
    assert_eq!(leftovers(&server), [KEY]);
    assert!(again.release().await.unwrap() == Released::Released);
}

#[tokio::test]
async fn a_repetition_that_is_carried_out_after_its_release_is_released_too() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "6s").await;
    let holder = common::client(&server).await.mutex(KEY).lock().await.unwrap();
    record(&server);
    // The first answer is lost, and so is, three seconds later, the connection; the second request is still on its way when its claim is over.
    let asks = || about_it().and(Matcher::containing("j11"));
    proxy.silence_reply(1, asks());
    proxy.silence_request(2, asks());
    let asked = Instant::now();
    let mutex = client.mutex(KEY);
    let waiter = tokio::spawn(async move { mutex.lock().await });
    eventually("it waits", || waiting(&server) == "1").await;
    let late = recorded(&server);
    sleep(ms(3000)).await;
    proxy.cut_where(asks());
    eventually("it asks again", || proxy.count(asks()) == 2).await;
    holder.release().await.unwrap();
    let guard = soon(waiter).await.unwrap().unwrap();
    let release = tokio::spawn(guard.release());
    sleep(ms(100)).await;
    proxy.cut_where(asks());
    // It is an error if there is no connection again so soon; then the release goes on in the background.
    let _ = soon(release).await.unwrap();
    eventually("it is released", || leftovers(&server).is_empty()).await;
    // Then the first request cannot be carried out any more, and what was to be released for its sake is.
    sleep_until(asked + ms(6500)).await;
    assert_eq!(leftovers(&server), Vec::<String>::new());
    carry_out_late(&server, late);
    eventually("it is free long before its ttl", || leftovers(&server).is_empty()).await;
}
