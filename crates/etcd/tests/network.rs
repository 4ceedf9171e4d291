//! Requests and answers that are lost, late or without a connection.

mod common;

use std::{net::TcpListener, sync::Arc, time::Duration};

use common::{
    backend, client, eventually,
    judge::{Judge, lost_in_time},
    keys, leases, ms,
    proxied::{behind, proxy, url},
    server, soon,
};
use distlock_core::{Client, Error, Linear, LossReason, Owner, Released, RetryStrategy as _};
use distlock_etcd::EtcdBackend;
use distlock_servers::{
    etcd::EtcdServer,
    proxy::{Direction, RawProxy},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const KEY: &str = "job/7";

/// Where its keys are.
const LINE: &str = "job/7/";

/// A field of the only key of the lock: `"CreateRevision"`, `"Lease"`.
fn field(server: &EtcdServer, name: &str) -> u64 {
    let fields = server.etcdctl(&["get", "--prefix", "-w", "fields", LINE]).unwrap();
    let mut values = fields.lines().filter_map(|line| line.strip_prefix(&format!("\"{name}\" : ")));
    let value = values.next().expect("the key has it").parse().unwrap();
    assert!(values.next().is_none(), "it is the only one: {fields}");
    value
}

/// A port on which nobody answers: connections are made, and that is all.
fn mute() -> TcpListener {
    TcpListener::bind(("127.0.0.1", 0)).unwrap()
}

/// A port that refuses connections.
fn dead() -> u16 {
    mute().local_addr().unwrap().port()
}

/// Ends the connections whose answers are held back, so that these never arrive.
async fn lose_answers(proxy: &RawProxy) {
    // Who comes back waits until they are gone.
    proxy.refuse(true);
    proxy.reset();
    proxy.wait_closed().await.unwrap();
    proxy.hold(Direction::ToClient, false);
    proxy.refuse(false);
}

async fn nothing_is_left(server: &EtcdServer, line: &str) {
    eventually("no key is left", || keys(server, line).is_empty()).await;
    eventually("no lease is left", || leases(server) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acquisition_whose_answer_is_lost_is_recognized() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "5s").await;
    proxy.hold(Direction::ToClient, true);
    let mutex = client.mutex(KEY);
    let task = tokio::spawn(async move { mutex.lock().await });
    eventually("it is carried out", || keys(&server, LINE).len() == 1).await;
    let created = field(&server, "CreateRevision");
    lose_answers(&proxy).await;
    let guard = soon(task).await.unwrap().unwrap();
    assert!(guard.is_held());
    assert_eq!(guard.fencing_token().as_u64() >> 16, created, "that is its own key");
    assert_eq!(guard.release().await.unwrap(), Released::Released);
    // The first attempt might come yet: so the lease that it names goes.
    nothing_is_left(&server, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_true_after_its_release_is_undone_while_others_keep_their_lease() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "5s").await;
    let other = client.mutex("other").ttl(ms(6000)).lock().await.unwrap();
    proxy.hold(Direction::ToClient, true);
    let mutex = client.mutex(KEY).ttl(ms(6000));
    let task = tokio::spawn(async move { mutex.lock().await });
    eventually("it is carried out", || keys(&server, LINE).len() == 1).await;
    let (key, lease) = (keys(&server, LINE).remove(0), field(&server, "Lease"));
    lose_answers(&proxy).await;
    soon(task).await.unwrap().unwrap().release().await.unwrap();
    let lease = format!("--lease={lease:x}");
    for _ in 0..3 {
        server.etcdctl(&["put", &key, "a ghost", &lease]).expect("its lease is in use");
        eventually("it is gone", || keys(&server, LINE).is_empty()).await;
    }
    let again = soon(client.mutex(KEY).ttl(ms(6000)).lock()).await.unwrap();
    assert_ne!(format!("--lease={:x}", field(&server, "Lease")), lease);
    again.release().await.unwrap();
    assert!(other.is_held(), "it shares the lease of the ghost");
    other.release().await.unwrap();
    eventually("no lease of a ghost is left", || {
        server.etcdctl(&["put", &key, "a ghost", &lease]).is_err()
    })
    .await;
    assert_eq!(keys(&server, ""), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_who_comes_back_is_not_taken_for_his_ghost() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "5s").await;
    // Keeps the lease of the ghost, and so the hunt for it.
    let other = client.mutex("other").lock().await.unwrap();
    let owner = Owner::new(7);
    let mutex = client.mutex(KEY).owner(owner);
    proxy.hold(Direction::ToClient, true);
    let task = tokio::spawn(async move { mutex.lock().await });
    eventually("it is carried out", || keys(&server, LINE).len() == 1).await;
    lose_answers(&proxy).await;
    soon(task).await.unwrap().unwrap().release().await.unwrap();
    let guard = soon(client.mutex(KEY).owner(owner).lock()).await.unwrap();
    let created = field(&server, "CreateRevision");
    sleep(ms(3000)).await;
    assert!(guard.is_held());
    assert_eq!(field(&server, "CreateRevision"), created);
    guard.release().await.unwrap();
    drop(other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_found_it_taken_does_not_take_it_later() {
    let server = server();
    let proxy = proxy(&server);
    let rival = client(&server.url()).await.mutex(KEY).lock().await.unwrap();
    let taken = keys(&server, LINE);
    let client = behind(&proxy, "5s").await;
    // Keeps the lease that the attempt names.
    let other = client.mutex("other").lock().await.unwrap();
    let fields = server.etcdctl(&["get", "--prefix", "-w", "fields", "other/"]).unwrap();
    let lease = fields.lines().find_map(|line| line.strip_prefix("\"Lease\" : ")).unwrap();
    let lease = format!("--lease={:x}", lease.parse::<u64>().unwrap());
    let owner = Owner::new(7);
    let mutex = client.mutex(KEY).owner(owner);
    proxy.hold(Direction::ToClient, true);
    let before = transactions(&server);
    let task = tokio::spawn(async move { mutex.try_lock().await });
    eventually("it is carried out", || before < transactions(&server)).await;
    lose_answers(&proxy).await;
    assert!(soon(task).await.unwrap().unwrap().is_none(), "somebody has it");
    rival.release().await.unwrap();
    let key = taken[0].rsplit_once("/w").map(|(line, _)| format!("{line}/w{owner}")).unwrap();
    server.etcdctl(&["put", &key, "a ghost", &lease]).expect("its lease is in use");
    let came = Instant::now();
    eventually("it is gone", || keys(&server, LINE).is_empty()).await;
    assert!(came.elapsed() < ms(15_000), "long before its ttl, which is 30 s");
    assert!(other.is_held());
}

/// How many transactions were carried out.
fn transactions(server: &EtcdServer) -> f64 {
    server.metric_where("grpc_server_handled_total", "grpc_method=\"Txn\"").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_given_up_takes_no_lock_later() {
    let server = server();
    let (one, two) = (proxy(&server), proxy(&server));
    let client = client(&url(&[one.port(), two.port()], "1s")).await;
    soon(client.mutex("warm").lock()).await.unwrap().release().await.unwrap();
    // The request arrives long after it was made again, granted and given back by another way.
    one.hold(Direction::ToServer, true);
    let guard = soon(client.mutex(KEY).lock()).await.unwrap();
    guard.release().await.unwrap();
    assert_eq!(keys(&server, LINE), Vec::<String>::new());
    one.hold(Direction::ToServer, false);
    nothing_is_left(&server, "").await;
    assert!(soon(client.mutex(KEY).try_lock()).await.unwrap().is_some(), "nobody has it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_given_up_in_the_dark_leaves_nothing() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "200ms").await;
    for round in 0..5 {
        proxy.blackhole(true);
        let lock = client.mutex(KEY).ttl(ms(3000));
        match timeout(ms(150 * round), lock.lock()).await {
            Ok(Err(Error::Backend(error))) => assert!(error.is_transient(), "{error}"),
            Ok(other) => panic!("nobody can have heard of it: {other:?}"),
            Err(_) => {}
        }
        proxy.blackhole(false);
    }
    eventually("no key is left", || keys(&server, "").is_empty()).await;
    drop(client);
    eventually("no lease is left", || leases(&server) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_whose_answer_is_lost_has_released_and_harms_nobody_who_comes_next() {
    let server = server();
    let proxy = proxy(&server);
    let rival = client(&server.url()).await;
    let client = behind(&proxy, "5s").await;
    let guard = client.mutex(KEY).lock().await.unwrap();
    proxy.hold(Direction::ToClient, true);
    let task = tokio::spawn(guard.release());
    let rival = soon(rival.mutex(KEY).lock()).await.unwrap();
    lose_answers(&proxy).await;
    assert_eq!(soon(task).await.unwrap().unwrap(), Released::Released);
    assert!(rival.is_held());
    assert_eq!(keys(&server, LINE).len(), 1);
    assert_eq!(rival.release().await.unwrap(), Released::Released);
    assert_eq!(keys(&server, LINE), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minimal_hold_is_kept_also_where_the_release_reaches_nobody_at_first() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "300ms").await;
    let guard = client.mutex(KEY).min_hold(ms(25_000)).lock().await.unwrap();
    proxy.refuse(true);
    proxy.reset();
    assert!(soon(guard.release()).await.is_err());
    proxy.refuse(false);
    let value = || server.etcdctl(&["get", "--prefix", "--print-value-only", LINE]).unwrap();
    eventually("it is nobody's for the rest of it", || value().contains("rest")).await;
    assert!(common::client(&server.url()).await.mutex(KEY).try_lock().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_in_the_dark_is_told_by_its_deadline_and_before_its_successor() {
    let server = server();
    let proxy = proxy(&server);
    let rival = client(&server.url()).await;
    let client = behind(&proxy, "500ms").await;
    let guard = Arc::new(client.mutex(KEY).ttl(ms(3000)).lock().await.unwrap());
    let task = tokio::spawn({
        let guard = Arc::clone(&guard);
        async move {
            let rival = rival.mutex(KEY).lock().await.unwrap();
            assert!(!guard.is_held(), "two at once");
            assert!(guard.fencing_token() < rival.fencing_token());
            rival
        }
    });
    proxy.blackhole(true);
    assert!(!soon(lost_in_time(&guard, common::LONG)).await, "nobody renews it");
    assert_eq!(guard.lost().await, LossReason::Expired);
    let rival = soon(task).await.unwrap();
    proxy.blackhole(false);
    drop(guard);
    drop(soon(client.mutex("warm").lock()).await.unwrap());
    assert!(rival.is_held());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_falls_silent_costs_no_lock() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "500ms").await;
    let guard = client.mutex(KEY).ttl(ms(4000)).lock().await.unwrap();
    for direction in [Direction::ToClient, Direction::ToServer] {
        let known = guard.expires_at();
        proxy.silence(direction);
        eventually("it is renewed", || known < guard.expires_at() || !guard.is_held()).await;
        assert!(guard.is_held(), "another connection was there to be made");
    }
    assert_eq!(soon(guard.release()).await.unwrap(), Released::Released);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_whose_connection_falls_silent_gets_in() {
    let server = server();
    let proxy = proxy(&server);
    let holder = client(&server.url()).await;
    let waiter = behind(&proxy, "500ms").await;
    for direction in [Direction::ToClient, Direction::ToServer] {
        let guard = holder.mutex(KEY).lock().await.unwrap();
        let mutex = waiter.mutex(KEY);
        let task = tokio::spawn(async move { mutex.lock().await.unwrap() });
        eventually("it waits", || keys(&server, LINE).len() == 2).await;
        proxy.silence(direction);
        guard.release().await.unwrap();
        let guard = soon(task).await.unwrap();
        assert!(guard.is_held());
        soon(guard.release()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_hears_of_what_happened_while_its_watch_was_cut() {
    let server = server();
    let proxy = proxy(&server);
    let holder = client(&server.url()).await;
    let waiter = behind(&proxy, "1s").await;
    let guard = holder.mutex(KEY).lock().await.unwrap();
    let task = tokio::spawn(async move { waiter.mutex(KEY).lock().await.unwrap() });
    eventually("it waits", || keys(&server, LINE).len() == 2).await;
    eventually("both watch", || 2 <= watches(&server)).await;
    proxy.refuse(true);
    proxy.cut();
    guard.release().await.unwrap();
    proxy.refuse(false);
    assert!(soon(task).await.unwrap().is_held());
}

fn watches(server: &EtcdServer) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is a number")]
    let watches = server.metric("etcd_debugging_mvcc_watcher_total").unwrap() as u64;
    watches
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_without_an_answer_costs_no_lock() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "500ms").await;
    let guard = client.mutex(KEY).ttl(ms(4000)).lock().await.unwrap();
    for _ in 0..3 {
        let known = guard.expires_at();
        proxy.hold(Direction::ToClient, true);
        let seen = proxy.bytes(Direction::ToServer);
        proxy.wait_bytes(Direction::ToServer, seen + 1).await.unwrap();
        lose_answers(&proxy).await;
        eventually("it is renewed", || known < guard.expires_at() || !guard.is_held()).await;
        assert!(guard.is_held());
    }
    assert_eq!(soon(guard.release()).await.unwrap(), Released::Released);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_get_in_through_a_storm_of_resets_and_one_at_a_time() {
    let server = server();
    let proxy = Arc::new(proxy(&server));
    let judge = Arc::new(Judge::default());
    let mut tasks = JoinSet::new();
    for number in 0..8 {
        let client = behind(&proxy, "1s").await;
        let judge = Arc::clone(&judge);
        tasks.spawn(async move {
            for round in 0..12 {
                let mutex = client.mutex(KEY).retry(Linear::new(ms(20)).limit(1000));
                let guard = soon(mutex.lock()).await.unwrap();
                let guard = judge.visit(guard, ms((number + round) % 4 * 5)).await;
                // The background goes on with what has no answer.
                let _ = soon(guard.release()).await;
            }
        });
    }
    let storm = tokio::spawn({
        let proxy = Arc::clone(&proxy);
        async move {
            for round in 0.. {
                sleep(ms(50 + round * 37 % 150)).await;
                if round % 3 == 0 { proxy.cut() } else { proxy.reset() }
            }
        }
    });
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    storm.abort();
    assert_eq!(judge.counts().0, 8 * 12);
    eventually("no key is left", || keys(&server, "").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_dead_or_mute_is_passed_over() {
    let server = server();
    let mute = mute();
    let ports = [dead(), mute.local_addr().unwrap().port(), server.port()];
    let client = client(&url(&ports, "1s")).await;
    for _ in 0..3 {
        soon(client.mutex(KEY).lock()).await.unwrap().release().await.unwrap();
    }
    let guard = soon(client.mutex(KEY).ttl(ms(4000)).lock()).await.unwrap();
    let known = guard.expires_at();
    eventually("it is renewed", || known < guard.expires_at() || !guard.is_held()).await;
    assert!(guard.is_held());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_member_answers_everybody_is_told_so_in_bounded_time() {
    let mute = mute();
    let ports = [dead(), mute.local_addr().unwrap().port(), dead()];
    let error = soon(EtcdBackend::connect(&url(&ports, "300ms"))).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let server = server();
    let proxy = proxy(&server);
    let client = Client::new(backend(&url(&[dead(), proxy.port(), dead()], "1s")).await);
    proxy.blackhole(true);
    let mut tasks = JoinSet::new();
    for number in 0..8 {
        // A lease of its own for each, too.
        let mutex = client.mutex(format!("k{number}")).ttl(Duration::from_secs(20 + number % 4));
        tasks.spawn(async move { mutex.lock().await.map(drop) });
    }
    while let Some(done) = soon(tasks.join_next()).await {
        let error = done.unwrap().unwrap_err();
        let Error::Backend(error) = error else { panic!("{error}") };
        assert!(error.is_transient(), "{error}");
    }
    proxy.blackhole(false);
    drop(soon(client.mutex(KEY).lock()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_everybody_is_not_stormed() {
    let server = server();
    let proxy = proxy(&server);
    let rival = client(&server.url()).await;
    let client = behind(&proxy, "500ms").await;
    let guard = client.mutex(KEY).ttl(ms(3000)).lock().await.unwrap();
    let taken = rival.mutex("taken").lock().await.unwrap();
    let waits = client.mutex("taken").ttl(ms(5000));
    let waiter = tokio::spawn(async move { waits.lock().await.unwrap() });
    eventually("it waits", || keys(&server, "taken/").len() == 2).await;
    proxy.refuse(true);
    proxy.reset();
    let (before, started) = (proxy.accepted(), Instant::now());
    assert!(!soon(lost_in_time(&guard, common::LONG)).await, "nobody renews it");
    #[allow(clippy::cast_precision_loss, reason = "there are few")]
    let rate = (proxy.accepted() - before) as f64 / started.elapsed().as_secs_f64();
    eprintln!("{rate} connections per second");
    assert!(rate < 150.0, "{rate} connections per second");
    proxy.refuse(false);
    taken.release().await.unwrap();
    assert!(soon(waiter).await.unwrap().is_held());
}
