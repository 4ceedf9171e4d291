//! One lock after the other, on one real server.

mod common;

use common::{backend, client, command, eventually, leftovers, ms, server, soon};
use distlock_core::{Client, Owner};
use distlock_redis::{RedisBackend, RedisConfig};
use tokio::time::Instant;

#[tokio::test]
async fn a_lock_is_held_by_one_at_a_time_and_tokens_rise() {
    let server = server();
    let (one, two) = (client(&server).await, client(&server).await);
    let guard = one.mutex("k").lock().await.unwrap();
    assert!(two.mutex("k").try_lock().await.unwrap().is_none());
    let first = guard.fencing_token();
    guard.release().await.unwrap();
    let guard = two.mutex("k").try_lock().await.unwrap().unwrap();
    assert!(first < guard.fencing_token());
    guard.release().await.unwrap();
    assert_eq!(leftovers(&server), Vec::<String>::new());
}

#[tokio::test]
async fn a_waiter_of_another_client_is_granted_the_lock_by_the_release() {
    let server = server();
    let (one, two) = (client(&server).await, client(&server).await);
    let guard = one.mutex("k").lock().await.unwrap();
    let waiter = tokio::spawn(async move { two.mutex("k").lock().await.unwrap() });
    eventually("it waits", || command(&server, &["ZCARD", "__distlock:q:{k}k"]) == "1").await;
    let first = guard.fencing_token();
    guard.release().await.unwrap();
    let guard = soon(waiter).await.unwrap();
    assert!(first < guard.fencing_token());
    assert!(guard.is_held());
}

#[tokio::test]
async fn it_is_renewed_past_its_ttl() {
    let server = server();
    let client = client(&server).await;
    let guard = client.mutex("k").ttl(ms(2000)).renew_at(0.1).lock().await.unwrap();
    let first = guard.expires_at();
    eventually("its first end is past", || first + ms(200) < Instant::now()).await;
    assert!(guard.is_held());
    assert!(guard.remaining() > ms(0));
    guard.extend(ms(60_000)).await.unwrap();
    assert!(command(&server, &["PTTL", "k"]).parse::<u64>().unwrap() > 50_000);
    guard.extend(ms(2_000)).await.unwrap();
    assert!(command(&server, &["PTTL", "k"]).parse::<u64>().unwrap() <= 2_000);
    guard.release().await.unwrap();
}

#[tokio::test]
async fn who_is_killed_by_force_is_told() {
    let server = server();
    let (one, two) = (client(&server).await, client(&server).await);
    let guard = one.mutex("k").metadata("w").lock().await.unwrap();
    let seen = two.inspect("k").await.unwrap();
    assert_eq!(seen.holders[0].metadata, "w");
    assert_eq!(seen.holders[0].owner, Some(guard.owner()));
    assert_eq!(seen.holders[0].token, Some(guard.fencing_token()));
    assert!(two.force_release("k").await.unwrap());
    soon(guard.lost()).await;
    assert!(!guard.is_held());
    let guard = one.mutex("k").lock().await.unwrap();
    assert!(one.force_release("k").await.unwrap());
    soon(guard.lost()).await;
}

#[tokio::test]
async fn closing_ends_every_call() {
    let server = server();
    let backend = backend(&server).await;
    let client = Client::new(backend.clone());
    let guard = client.mutex("k").lock().await.unwrap();
    soon(client.shutdown()).await;
    assert!(!guard.is_held());
    assert_eq!(leftovers(&server), Vec::<String>::new());
    soon(backend.close()).await;
    let error = soon(Client::new(backend).mutex("k").lock()).await.unwrap_err();
    assert!(!error.is_transient(), "{error}");
}

#[tokio::test]
async fn words_of_any_kind_come_through_a_hand_over() {
    let server = server();
    let (one, two) = (client(&server).await, client(&server).await);
    for key in ["k", "käse:{t}", "a}b", "{}", "nul\0 \r\n$5\r\n"] {
        let words = "a:b\n\0\r\n%s dl1:é\u{1f512}";
        let guard = one.mutex(key).lock().await.unwrap();
        let waiter = {
            let mutex = two.mutex(key).metadata(words);
            tokio::spawn(async move { mutex.lock().await.unwrap() })
        };
        let waits = async {
            while one.inspect(key).await.unwrap().waiting != Some(1) {
                tokio::time::sleep(ms(5)).await;
            }
        };
        soon(waits).await;
        guard.release().await.unwrap();
        let guard = soon(waiter).await.unwrap();
        let seen = one.inspect(key).await.unwrap();
        assert_eq!(seen.holders[0].metadata, words);
        assert_eq!(seen.holders[0].owner, Some(guard.owner()));
        guard.release().await.unwrap();
    }
    assert_eq!(leftovers(&server), Vec::<String>::new());
}

#[tokio::test]
async fn pushes_that_are_confirmed_hand_over_too() {
    let server = server();
    let url = server.url();
    let config = RedisConfig::from_url(&url).unwrap().confirm_pushes();
    let careful = Client::new(RedisBackend::connect_with(config).await.unwrap());
    let guard = client(&server).await.mutex("k").lock().await.unwrap();
    let waiter = tokio::spawn(async move { careful.mutex("k").lock().await.unwrap() });
    eventually("it waits", || command(&server, &["ZCARD", "__distlock:q:{k}k"]) == "1").await;
    guard.release().await.unwrap();
    assert!(soon(waiter).await.unwrap().is_held());
}

#[tokio::test]
async fn a_lock_is_resumed_by_its_owner_id() {
    let server = server();
    let (one, two) = (client(&server).await, client(&server).await);
    let owner = Owner::random().unwrap();
    let guard = one.mutex("k").owner(owner).lock().await.unwrap();
    let token = guard.fencing_token();
    std::mem::forget(guard);
    let guard = two.mutex("k").owner(owner).metadata("again").lock().await.unwrap();
    assert_eq!(guard.fencing_token(), token, "the same grant");
    assert_eq!(two.inspect("k").await.unwrap().holders[0].metadata, "again");
    // What is to be told of it is told to whom it belongs now.
    assert!(client(&server).await.force_release("k").await.unwrap());
    soon(guard.lost()).await;
}
