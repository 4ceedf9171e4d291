//! Data that is gone, or that is back: keys deleted, evicted and swapped away, servers that end and begin again. FAULTS B9, C7, E17, E20, F.

mod common;

use common::{client, command, eventually, leftovers, lost_in_time, ms, server, soon};
use distlock_core::{Client, Error, FenceGate, Guard, LossReason};
use distlock_redis::RedisBackend;
use distlock_servers::{proxy::RawProxy, redis::RedisServer};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

const FENCE: &str = "__distlock:f:{k}k";

async fn hold(client: &Client, ttl: u64) -> Guard {
    client.mutex("k").ttl(ms(ttl)).lock().await.unwrap()
}

/// Waits for `k`, looking after its place every second.
async fn wait_for(server: &RedisServer, client: &Client) -> JoinHandle<Guard> {
    let mutex = client.mutex("k").ttl(ms(3000));
    let waiter = tokio::spawn(async move { mutex.lock().await.unwrap() });
    eventually("it waits", || command(server, &["EXISTS", "__distlock:q:{k}k"]) == "1").await;
    waiter
}

/// A held lock disappears at the server. Its holder learns of that by its next renewal, and who waits, or comes, gets it with a higher token.
async fn disappears(how: &[&[&str]]) {
    let server = server();
    let (one, two) = (client(&server).await, client(&server).await);
    for waits in [true, false] {
        let guard = one.mutex("k").ttl(ms(6000)).renew_at(0.05).lock().await.unwrap();
        let waiter = if waits { Some(wait_for(&server, &two).await) } else { None };
        for words in how {
            command(&server, words);
        }
        assert_eq!(soon(guard.lost()).await, LossReason::Gone, "{how:?}");
        let next = match waiter {
            Some(waiter) => soon(waiter).await.unwrap(),
            None => soon(two.mutex("k").lock()).await.unwrap(),
        };
        assert!(guard.fencing_token() < next.fencing_token(), "{how:?}");
        assert!(!guard.is_held() && next.is_held());
        drop(guard);
        soon(next.release()).await.unwrap();
        eventually("nothing is left", || leftovers(&server).is_empty()).await;
    }
}

#[tokio::test]
async fn b09_a_lock_that_is_deleted_by_hand() {
    disappears(&[&["DEL", "k"]]).await;
}

#[tokio::test]
async fn e20_a_database_that_is_emptied_or_swapped_away() {
    disappears(&[&["FLUSHDB"]]).await;
    disappears(&[&["SWAPDB", "0", "1"]]).await;
}

#[tokio::test]
async fn e17_a_lock_that_is_evicted() {
    for policy in ["volatile-lru", "volatile-ttl", "allkeys-lru"] {
        disappears(&[
            &["CONFIG", "SET", "maxmemory-policy", policy],
            &["CONFIG", "SET", "maxmemory", "1"],
            &["EXISTS", "k"],
            &["CONFIG", "SET", "maxmemory", "0"],
        ])
        .await;
    }
}

#[tokio::test]
async fn e20_what_is_only_read_anew_or_is_not_ours_costs_nothing() {
    let server = server();
    let (one, two) = (client(&server).await, client(&server).await);
    let guard = one.mutex("k").ttl(ms(6000)).renew_at(0.05).lock().await.unwrap();
    let waiter = wait_for(&server, &two).await;
    for words in [&["DEBUG", "RELOAD"][..], &["FUNCTION", "FLUSH"], &["SCRIPT", "FLUSH"]] {
        command(&server, words);
        let known = guard.expires_at();
        eventually("it is renewed", || known < guard.expires_at() || !guard.is_held()).await;
        assert!(guard.is_held() && !waiter.is_finished(), "{words:?}");
    }
    guard.release().await.unwrap();
    assert!(soon(waiter).await.unwrap().is_held());
}

/// What no lock survives on a server that forgets, shown: for a while two believe in it. The token tells who is right.
#[tokio::test]
async fn f01_a_server_that_forgets_gives_a_held_lock_again() {
    let server = server();
    let proxy = RawProxy::start(server.port()).unwrap();
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let one = Client::new(RedisBackend::connect(&url).await.unwrap());
    let two = client(&server).await;
    let guard = hold(&one, 30_000).await;
    let gate = FenceGate::new();
    assert!(gate.admit(guard.fencing_token()));
    // Or it might be back sooner than the other one, and look after its lock.
    proxy.blackhole(true);
    server.restart().unwrap();
    let next = soon(async {
        loop {
            match two.mutex("k").lock().await {
                Ok(guard) => return guard,
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
    })
    .await;
    assert!(guard.is_held() && next.is_held(), "neither can know of the other");
    assert!(guard.fencing_token() < next.fencing_token());
    assert!(gate.admit(next.fencing_token()) && !gate.admit(guard.fencing_token()));
    proxy.blackhole(false);
    let extended = soon(async {
        loop {
            match guard.extend(ms(30_000)).await {
                Err(Error::Backend(error)) if error.is_transient() => sleep(ms(5)).await,
                extended => return extended,
            }
        }
    })
    .await;
    assert!(matches!(extended, Err(Error::Lost { reason: LossReason::Gone, .. })), "{extended:?}");
    assert!(!guard.is_held() && next.is_held());
    drop(guard);
    assert!(next.release().await.is_ok());
}

#[tokio::test]
async fn f02_a_server_that_writes_down_what_it_does_keeps_locks_places_and_counters() {
    for fsync in ["everysec", "always"] {
        let server = RedisServer::start(&["--appendonly", "yes", "--appendfsync", fsync]).unwrap();
        let (one, two) = (client(&server).await, client(&server).await);
        let guard = hold(&one, 10_000).await;
        let waiter = wait_for(&server, &two).await;
        let (lock, counter) = (command(&server, &["GET", "k"]), command(&server, &["GET", FENCE]));
        server.restart().unwrap();
        assert_eq!(command(&server, &["GET", "k"]), lock, "{fsync}");
        assert_eq!(command(&server, &["GET", FENCE]), counter, "{fsync}");
        let known = guard.expires_at();
        eventually("it is renewed", || known < guard.expires_at() || !guard.is_held()).await;
        assert!(guard.is_held() && !waiter.is_finished(), "{fsync}");
        soon(guard.release()).await.unwrap();
        assert!(soon(waiter).await.unwrap().is_held(), "{fsync}");
    }
}

#[tokio::test]
async fn f03_the_ttl_runs_while_the_server_is_away() {
    let server = server();
    let one = client(&server).await;
    let guard = one.mutex("k").ttl(ms(6000)).no_renewal().lock().await.unwrap();
    let left = || command(&server, &["PTTL", "k"]).parse::<i64>().unwrap();
    let (before, since) = (left(), Instant::now());
    // It answers by ending.
    assert!(server.command(&["SHUTDOWN", "SAVE"]).is_err());
    sleep(ms(700)).await;
    server.restart().unwrap();
    let (after, passed) = (left(), since.elapsed());
    assert!(after <= before - 700, "{before} ms, {passed:?} later {after} ms");
    let deadline = i64::try_from(guard.remaining().as_millis()).unwrap();
    assert!(deadline <= after, "its holder ends first: {deadline}, {after}");
    assert_eq!(soon(guard.lost()).await, LossReason::Expired);
    drop(soon(client(&server).await.mutex("k").lock()).await.unwrap());
}

/// A grant that its primary took to the grave: whoever gets the lock from the other one has a higher token, and the first is told by his deadline.
#[tokio::test]
async fn f04_a_replica_that_never_heard_of_a_lock_gives_it_again() {
    let primary = RedisServer::start(&["--repl-diskless-sync-delay", "0"]).unwrap();
    let proxy = RawProxy::start(primary.port()).unwrap();
    let port = proxy.port().to_string();
    let replica = RedisServer::start(&["--replicaof", &format!("127.0.0.1 {port}")]).unwrap();
    let one = client(&primary).await;
    hold(&one, 5000).await.release().await.unwrap();
    eventually("it is copied", || command(&replica, &["EXISTS", FENCE]) == "1").await;
    proxy.blackhole(true);
    let guard = hold(&one, 6000).await;
    assert_eq!(command(&replica, &["EXISTS", "k"]), "0");
    primary.kill().unwrap();
    command(&replica, &["REPLICAOF", "NO", "ONE"]);
    let next = client(&replica).await.mutex("k").lock().await.unwrap();
    assert!(guard.is_held() && next.is_held(), "neither can know of the other");
    assert!(guard.fencing_token() < next.fencing_token(), "the counter is lost, the clock is not");
    assert_eq!(lost_in_time(&guard).await, LossReason::Expired);
    assert!(!guard.is_held() && next.is_held());
}

/// FAULTS J7: beyond 2^53 the numbers of a script are not exact, and the same token could come twice.
#[tokio::test]
async fn j07_a_counter_that_cannot_count_on_is_an_error() {
    let server = server();
    let client = client(&server).await;
    for counter in ["9007199254740992", "9007199254740993", "9223372036854775807"] {
        command(&server, &["SET", FENCE, counter]);
        let error = client.mutex("k").lock().await.unwrap_err();
        assert!(!error.is_transient(), "{error}");
        assert!(error.to_string().contains("counter"), "{error}");
        assert_eq!(leftovers(&server), Vec::<String>::new());
        assert_eq!(command(&server, &["GET", FENCE]), counter);
    }
    // Up to there they are.
    command(&server, &["SET", FENCE, "9007199254740990"]);
    let guard = hold(&client, 5000).await;
    assert_eq!(guard.fencing_token().as_u64(), 9_007_199_254_740_991);
    guard.release().await.unwrap();
}
