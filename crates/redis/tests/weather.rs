//! Servers that are stopped, full, busy, empty again, or not what they should be.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use common::{backend, client, command, eventually, leftovers, lost_in_time, ms, server, soon};
use distlock_core::{
    BackendError, Client, Error, ErrorKind, FencingToken, Linear, LossReason, RetryStrategy as _,
};
use distlock_redis::RedisBackend;
use distlock_servers::redis::RedisServer;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

fn kind(error: &Error) -> ErrorKind {
    match error {
        Error::Backend(error) => error.kind(),
        other => panic!("an error of the store is expected, not {other}"),
    }
}

/// What stands in the way at the store, when nobody of this process does any more.
async fn try_lock_error(client: &Client, name: &str) -> Error {
    let attempts = async {
        loop {
            match client.mutex(name).try_lock().await {
                Ok(None) => sleep(ms(5)).await,
                Ok(Some(_)) => panic!("`{name}` is not free"),
                Err(error) => return error,
            }
        }
    };
    soon(attempts).await
}

fn waiting(server: &RedisServer) -> usize {
    command(server, &["ZCARD", "__distlock:q:{k}k"]).parse().unwrap()
}

#[tokio::test]
async fn a_stopped_server_does_not_make_a_loss_late() {
    let server = server();
    let client = client(&server).await;
    let guard = client.mutex("k").ttl(ms(3000)).lock().await.unwrap();
    server.stop().unwrap();
    let stopped = Instant::now();
    assert_eq!(lost_in_time(&guard).await, LossReason::Expired);
    assert!(!guard.is_held());
    sleep_until(stopped + ms(5000)).await;
    server.cont().unwrap();
    eventually("what it asked for meanwhile is given back", || leftovers(&server).is_empty()).await;
    drop(soon(client.mutex("k").lock()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_empty_serves_all_who_wait_one_at_a_time() {
    let server = server();
    let first = client(&server).await.mutex("k").lock().await.unwrap();
    let token = first.fencing_token();
    let inside = Arc::new(AtomicUsize::new(0));
    let tokens = Arc::new(std::sync::Mutex::new(Vec::<FencingToken>::new()));
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        let client = client(&server).await;
        let (inside, tokens) = (Arc::clone(&inside), Arc::clone(&tokens));
        tasks.spawn(async move {
            let guard = client.mutex("k").lock().await.unwrap();
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
            tokens.lock().unwrap().push(guard.fencing_token());
            sleep(ms(5)).await;
            assert!(guard.is_held());
            inside.fetch_sub(1, Ordering::SeqCst);
            guard.release().await.unwrap();
        });
    }
    eventually("all of them wait", || waiting(&server) == 20).await;
    server.kill().unwrap();
    drop(first);
    server.restart().unwrap();
    while let Some(done) = soon(tasks.join_next()).await {
        done.unwrap();
    }
    let tokens = std::mem::take(&mut *tokens.lock().unwrap());
    assert_eq!(tokens.len(), 20);
    assert!(token < tokens[0] && tokens.is_sorted_by(|one, two| one < two), "{tokens:?}");
    eventually("nothing is left", || leftovers(&server).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgotten_scripts_are_sent_again() {
    let server = Arc::new(server());
    let going = Arc::new(AtomicBool::new(true));
    let flusher = {
        let (server, going) = (Arc::clone(&server), Arc::clone(&going));
        thread::spawn(move || {
            while going.load(Ordering::Relaxed) {
                command(&server, &["SCRIPT", "FLUSH"]);
                thread::sleep(ms(1));
            }
        })
    };
    let inside = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let (client, inside) = (client(&server).await, Arc::clone(&inside));
        tasks.spawn(async move {
            let mut last = FencingToken::new(0);
            for _ in 0..100 {
                let guard = client.mutex("k").lock().await.unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                assert!(last < guard.fencing_token());
                last = guard.fencing_token();
                inside.fetch_sub(1, Ordering::SeqCst);
                guard.release().await.unwrap();
            }
        });
    }
    while let Some(done) = soon(tasks.join_next()).await {
        done.unwrap();
    }
    going.store(false, Ordering::Relaxed);
    flusher.join().unwrap();
}

#[tokio::test]
async fn who_loses_its_lock_by_flushall_is_told_and_who_waits_gets_it() {
    let server = server();
    let (one, two) = (client(&server).await, client(&server).await);
    let guard = one.mutex("k").ttl(ms(6000)).renew_at(0.05).lock().await.unwrap();
    let token = guard.fencing_token();
    let waiter = tokio::spawn(async move { two.mutex("k").ttl(ms(900)).lock().await.unwrap() });
    eventually("it waits", || waiting(&server) == 1).await;
    command(&server, &["FLUSHALL"]);
    assert_eq!(soon(guard.lost()).await, LossReason::Gone);
    let guard = soon(waiter).await.unwrap();
    assert!(token < guard.fencing_token(), "the counter is gone, the clock is not");
}

#[tokio::test]
async fn a_full_memory_refuses_who_comes_and_lets_go_who_leaves() {
    let server = RedisServer::start(&["--maxmemory", "64mb"]).unwrap();
    let (one, two) = (client(&server).await, client(&server).await);
    let guard = one.mutex("k").metadata("m".repeat(100)).lock().await.unwrap();
    let alone = one.mutex("alone").lock().await.unwrap();
    let late = one.mutex("late").lock().await.unwrap();
    let small = one.mutex("small").ttl(ms(6000)).renew_at(0.05).lock().await.unwrap();
    let waiter = {
        let two = two.clone();
        tokio::spawn(async move { two.mutex("k").ttl(ms(3000)).lock().await.unwrap() })
    };
    eventually("it waits", || waiting(&server) == 1).await;
    command(&server, &["CONFIG", "SET", "maxmemory", "1"]);

    let error = one.mutex("other").lock().await.unwrap_err();
    assert_eq!(kind(&error), ErrorKind::Transient, "{error}");
    assert!(error.to_string().contains("memory"), "{error}");
    assert_eq!(command(&server, &["EXISTS", "other"]), "0");
    let error = two.mutex("alone").lock().await.unwrap_err();
    assert_eq!(kind(&error), ErrorKind::Transient, "{error}");
    assert!(two.mutex("alone").try_lock().await.unwrap().is_none());

    // A held lock is renewed, and a place looked after.
    let known = small.expires_at();
    eventually("it is renewed", || known < small.expires_at() || !small.is_held()).await;
    let place = || command(&server, &["HGETALL", "__distlock:p:{k}k"]);
    let before = place();
    eventually("the place is looked after", || place() != before).await;
    assert_eq!(waiting(&server), 1);
    alone.release().await.unwrap();
    guard.release().await.unwrap();
    let guard = soon(waiter).await.unwrap();
    assert!(guard.is_held());
    late.extend(ms(50_000)).await.unwrap();
    late.release().await.unwrap();
    small.release().await.unwrap();
    guard.release().await.unwrap();
    assert_eq!(leftovers(&server), Vec::<String>::new());
}

#[tokio::test]
async fn a_server_that_may_throw_locks_away_is_told_of() {
    let server =
        RedisServer::start(&["--maxmemory", "64mb", "--maxmemory-policy", "volatile-lru"]).unwrap();
    let risky = backend(&server).await;
    assert_eq!(risky.eviction_policy(), Some("volatile-lru"));
    let warning = risky.warnings().next().unwrap();
    assert!(warning.contains("volatile-lru") && warning.contains("noeviction"), "{warning}");
    command(&server, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    let safe = backend(&server).await;
    assert_eq!(safe.eviction_policy(), Some("noeviction"));
    assert_eq!(safe.warnings().count(), 0);
}

#[tokio::test]
async fn a_replica_refuses_and_may_become_a_primary() {
    let server = server();
    let client = client(&server).await;
    command(&server, &["REPLICAOF", "127.0.0.1", "1"]);
    let error = client.mutex("k").lock().await.unwrap_err();
    assert_eq!(kind(&error), ErrorKind::Transient, "{error}");
    command(&server, &["REPLICAOF", "NO", "ONE"]);
    let strategy = Linear::new(ms(20)).limit(500);
    drop(soon(client.mutex("k").retry(strategy).lock()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_loads_its_data_is_waited_for() {
    // As long as it takes, and no longer.
    let slow = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"];
    let server = Arc::new(RedisServer::start(&slow).unwrap());
    let client = client(&server).await;
    command(&server, &["DEBUG", "POPULATE", "20000"]);
    command(&server, &["SAVE"]);
    server.kill().unwrap();
    let restart = {
        let server = Arc::clone(&server);
        tokio::task::spawn_blocking(move || server.restart().unwrap())
    };
    let mut loading = false;
    let guard = soon(async {
        loop {
            match client.mutex("k").lock().await {
                Ok(guard) => return guard,
                Err(error) => {
                    assert_eq!(kind(&error), ErrorKind::Transient, "{error}");
                    if !loading && error.to_string().contains("LOADING") {
                        loading = true;
                        command(&server, &["CONFIG", "SET", "key-load-delay", "0"]);
                    }
                    sleep(ms(10)).await;
                }
            }
        }
    })
    .await;
    assert!(loading, "it was asked while it loaded");
    restart.await.unwrap();
    guard.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_busy_with_a_script_is_waited_for() {
    let server = server();
    let client = client(&server).await;
    let held = client.mutex("held").lock().await.unwrap();
    command(&server, &["CONFIG", "SET", "busy-reply-threshold", "20"]);
    let mut connection = server.connection().unwrap();
    let script = thread::spawn(move || connection.command(&["EVAL", "while true do end", "0"]));
    let error = soon(async {
        loop {
            match client.mutex("k").try_lock().await {
                Err(error) if error.to_string().contains("BUSY") => return error,
                Err(error) => assert_eq!(kind(&error), ErrorKind::Transient, "{error}"),
                Ok(_) => sleep(ms(5)).await,
            }
        }
    })
    .await;
    assert_eq!(kind(&error), ErrorKind::Transient, "{error}");
    assert!(held.is_held());
    // The release is refused now, and repeated in the background.
    drop(held);
    command(&server, &["SCRIPT", "KILL"]);
    let _ = script.join().unwrap();
    eventually("nothing is left", || leftovers(&server).is_empty()).await;
}

#[tokio::test]
async fn something_else_at_the_lock_s_name_is_a_conflict() {
    let server = server();
    let client = client(&server).await;
    command(&server, &["LPUSH", "list", "x"]);
    for error in [
        client.mutex("list").lock().await.unwrap_err(),
        try_lock_error(&client, "list").await,
        client.inspect("list").await.unwrap_err(),
    ] {
        assert_eq!(kind(&error), ErrorKind::Conflict, "{error}");
    }
    assert_eq!(command(&server, &["TYPE", "list"]), "list");
    // Replaced under a holder's hands, beside another lock that is renewed in the same script.
    let mutex = |name| client.mutex(name).ttl(ms(6000)).renew_at(0.05);
    let (one, two) = (mutex("one").lock().await.unwrap(), mutex("two").lock().await.unwrap());
    command(&server, &["DEL", "one"]);
    command(&server, &["LPUSH", "one", "x"]);
    assert_eq!(soon(one.lost()).await, LossReason::Gone);
    let known = two.expires_at();
    eventually("it is renewed", || known < two.expires_at() || !two.is_held()).await;
    assert!(two.is_held());
}

#[tokio::test]
async fn a_lock_without_a_ttl_is_a_conflict_when_it_is_seen_twice() {
    let server = server();
    let client = client(&server).await;
    command(&server, &["SET", "k", "somebody"]);
    assert!(client.mutex("k").try_lock().await.unwrap().is_none(), "the ttl may be about to come");
    let error = soon(client.mutex("k").lock()).await.unwrap_err();
    assert_eq!(kind(&error), ErrorKind::Conflict, "{error}");
    assert!(error.to_string().contains("ttl"), "{error}");
    let error = try_lock_error(&client, "k").await;
    assert_eq!(kind(&error), ErrorKind::Conflict, "{error}");
    command(&server, &["PEXPIRE", "k", "200"]);
    drop(soon(client.mutex("k").lock()).await.unwrap());
    eventually("nothing is left", || leftovers(&server).is_empty()).await;
}

#[tokio::test]
async fn passwords_are_wanted_checked_and_hidden() {
    let server = RedisServer::start(&["--requirepass", "hunter2"]).unwrap();
    let url = |login: &str| format!("redis://{login}127.0.0.1:{}", server.port());
    let refused = async |login: &str| -> BackendError {
        let error = RedisBackend::connect(&url(login)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("hunter"), "{shown}");
        error
    };
    assert!(refused("").await.to_string().contains("NOAUTH"));
    assert!(refused(":hunter3@").await.to_string().contains("WRONGPASS"));
    assert!(refused("nobody:hunter2@").await.to_string().contains("WRONGPASS"));
    let backend = RedisBackend::connect(&url(":hunter2@")).await.unwrap();
    assert!(!format!("{backend:?}").contains("hunter"));
    drop(Client::new(backend).mutex("k").lock().await.unwrap());
}

#[tokio::test]
async fn a_server_that_is_down_is_a_transient_error_at_once() {
    let server = server();
    let client = client(&server).await;
    server.kill().unwrap();
    let started = Instant::now();
    let error = soon(client.mutex("k").lock()).await.unwrap_err();
    assert_eq!(kind(&error), ErrorKind::Transient, "{error}");
    let error = RedisBackend::connect(&server.url()).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
}
