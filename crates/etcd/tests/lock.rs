//! One lock after the other on one real server: what they cost, which leases they use, and what they leave behind.

mod common;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use common::{
    backend, calls, client, eventually, in_line, keys, lease_ids, leases, ms, number, proposals,
    revoke, server, soon, wait_in_line, watchers,
};
use distlock_core::{Client, Error, Guard, LossReason, Owner};
use distlock_etcd::{EtcdBackend, EtcdConfig};
use distlock_servers::{etcd::EtcdServer, net::in_time};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

fn key_of(server: &EtcdServer, name: &str) -> String {
    keys(server, &format!("{name}/")).pop().expect("there is one")
}

#[tokio::test]
async fn a_lock_is_held_by_one_at_a_time_and_tokens_rise() {
    let server = server();
    let (one, two) = (client(&server.url()).await, client(&server.url()).await);
    let guard = one.mutex("k").lock().await.unwrap();
    assert!(two.mutex("k").try_lock().await.unwrap().is_none());
    let first = guard.fencing_token();
    let waiter = wait_in_line(&server, &two, "k", 2).await;
    guard.release().await.unwrap();
    let guard = soon(waiter).await.unwrap();
    assert!(first < guard.fencing_token());
    let first = guard.fencing_token();
    guard.release().await.unwrap();
    let guard = one.mutex("k").try_lock().await.unwrap().expect("it is free");
    assert!(first < guard.fencing_token());
    guard.release().await.unwrap();
    assert_eq!(keys(&server, ""), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_that_are_given_up_leave_nothing_but_the_lease_of_the_session() {
    let server = server();
    let mut clients = Vec::new();
    for number in 0..3 {
        clients.push(client(&server.url()).await);
        clients[number].mutex("first").lock().await.unwrap().release().await.unwrap();
    }
    let clients = Arc::new(clients);
    let before: BTreeSet<_> = lease_ids(&server).into_iter().collect();
    assert_eq!(before.len(), 3);
    let mut tasks = JoinSet::new();
    for number in 0..300_u64 {
        let clients = Arc::clone(&clients);
        tasks.spawn(async move {
            let mutex = clients[number as usize % 3].mutex(format!("k{}", number % 7));
            // From before the request is sent until long after its answer.
            sleep(ms(number % 40)).await;
            drop(timeout(ms(number % 13), mutex.lock()).await);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let gone = eventually("nothing is left", || keys(&server, "").is_empty());
    in_time(ms(1000), gone).await.expect("nothing is left after a second");
    // Nobody granted anything to those who are gone, later on.
    sleep(ms(300)).await;
    assert_eq!(keys(&server, ""), Vec::<String>::new());
    assert_eq!(lease_ids(&server).into_iter().collect::<BTreeSet<_>>(), before);
    let guard = clients[0].mutex("k0").lock().await.unwrap();
    assert!(guard.is_held());
    assert_eq!(lease_ids(&server).into_iter().collect::<BTreeSet<_>>(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_of_a_ttl_that_renew_share_a_lease_and_one_stream_of_keep_alives() {
    let server = server();
    let client = client(&server.url()).await;
    let mut guards = Vec::new();
    for number in 0..100 {
        guards.push(client.mutex(format!("k{number}")).ttl(ms(3000)).lock().await.unwrap());
    }
    assert_eq!(leases(&server), 1);
    eventually("all of them are watched", || watchers(&server) == 100).await;
    let alive = || {
        let label = r#"grpc_method="LeaseKeepAlive""#;
        let count = server.metric_where("grpc_server_msg_received_total", label);
        count.map_or(0, common::whole)
    };
    let before = alive();
    eventually("it is renewed", || before + 2 < alive()).await;
    let (before, transactions) = (alive(), calls(&server, "Txn"));
    eventually("it is renewed", || before + 4 < alive()).await;
    assert_eq!(calls(&server, "LeaseKeepAlive"), 1, "one stream");
    let readings = calls(&server, "Txn") - transactions;
    assert!(
        readings <= 5,
        "what is watched is read once per ttl at most, all together: {readings}"
    );
    assert!(guards.iter().all(Guard::is_held));
    for number in 0..20 {
        guards.push(client.mutex(format!("j{number}")).ttl(ms(60_000)).lock().await.unwrap());
    }
    assert_eq!(leases(&server), 2);
    let before = alive();
    eventually("both are renewed", || before + 4 < alive()).await;
    assert!(calls(&server, "LeaseKeepAlive") <= 2, "one stream each");
    assert!(guards.iter().all(Guard::is_held));
    assert_eq!(calls(&server, "LeaseGrant"), 2);
}

#[tokio::test]
async fn locks_without_renewal_take_their_leases_from_a_stock() {
    let server = server();
    let client = client(&server.url()).await;
    let mutex = |name: &str| client.mutex(name).ttl(ms(20_000)).no_renewal();
    for _ in 0..30 {
        let guard = mutex("k").lock().await.unwrap();
        assert!(ms(15_000) < guard.remaining(), "{:?}", guard.remaining());
        guard.release().await.unwrap();
    }
    assert_eq!(calls(&server, "LeaseGrant"), 1);
    let mut guards = Vec::new();
    for number in 0..10 {
        guards.push(mutex(&format!("k{number}")).lock().await.unwrap());
    }
    // One that is held is nobody else's: its end is the end of one lock.
    assert_eq!(leases(&server), 10);
    let other = client.mutex("other").ttl(ms(20_000)).lock().await.unwrap();
    revoke(&server, &key_of(&server, "k3"));
    assert_eq!(soon(guards[3].lost()).await, LossReason::Gone);
    let held = guards.iter().filter(|guard| guard.is_held()).count();
    assert_eq!((held, other.is_held()), (9, true));
}

#[tokio::test]
async fn a_lease_from_the_stock_lasts_for_a_whole_ttl_again() {
    let server = server();
    let client = client(&server.url()).await;
    let mutex = client.mutex("k").ttl(ms(6000)).no_renewal();
    for _ in 0..2 {
        let guard = mutex.lock().await.unwrap();
        sleep(ms(3600)).await;
        assert!(guard.is_held());
        assert_eq!(keys(&server, "k/").len(), 1);
        guard.release().await.unwrap();
    }
    assert_eq!(calls(&server, "LeaseGrant"), 1);
}

#[tokio::test]
async fn a_lease_from_the_stock_lasts_for_the_whole_of_a_minimal_hold() {
    let server = server();
    let (one, two) = (client(&server.url()).await, client(&server.url()).await);
    let before = one.mutex("before").ttl(ms(16_000)).no_renewal().lock().await.unwrap();
    sleep(ms(7000)).await;
    before.release().await.unwrap();
    let released = Instant::now();
    let hold = one.mutex("k").ttl(ms(30_000)).min_hold(ms(15_900)).lock().await.unwrap();
    hold.release().await.unwrap();
    assert_eq!(calls(&server, "LeaseGrant"), 2, "the one in stock is used");
    // The time that it had left is over.
    sleep_until(released + ms(11_500)).await;
    assert!(two.mutex("k").try_lock().await.unwrap().is_none());
}

#[tokio::test]
async fn a_ttl_that_the_server_rounds_up_ends_when_it_was_asked_to() {
    let server = server();
    let client = client(&server.url()).await;
    let guard = client.mutex("k").ttl(ms(1000)).no_renewal().lock().await.unwrap();
    assert!(guard.remaining() <= ms(1000));
    let granted = server.etcdctl(&["lease", "timetolive", &lease_ids(&server)[0]]).unwrap();
    assert!(granted.contains("granted with TTL(2s)"), "{granted}");
    let before = calls(&server, "Txn");
    let until = guard.expires_at();
    assert_eq!(soon(guard.lost()).await, LossReason::Expired);
    assert!(until <= Instant::now());
    eventually("its key is gone", || keys(&server, "k/").is_empty()).await;
    assert_eq!(calls(&server, "Txn"), before + 1, "it was deleted; the lease had a second left");
    assert!(client.mutex("k").try_lock().await.unwrap().is_some());
}

#[tokio::test]
async fn a_renewed_lock_outlives_a_ttl_that_the_server_rounds_up() {
    let server = server();
    let client = client(&server.url()).await;
    let guard = client.mutex("k").ttl(ms(1900)).renew_at(0.1).lock().await.unwrap();
    let created = number(&server, &key_of(&server, "k"), "CreateRevision");
    sleep(ms(4000)).await;
    assert!(guard.is_held());
    assert_eq!(number(&server, &key_of(&server, "k"), "CreateRevision"), created);
}

#[tokio::test]
async fn another_ttl_is_another_lease_and_the_same_grant() {
    let server = server();
    let backend = backend(&server.url()).await;
    let client = Client::new(backend.clone());
    let guard = client.mutex("k").ttl(ms(60_000)).metadata("words").lock().await.unwrap();
    let key = key_of(&server, "k");
    let rival = common::client(&server.url()).await;
    let waiter = wait_in_line(&server, &rival, "k", 2).await;
    let of = |name: &str| number(&server, &key, name).unwrap();
    let (token, created, lease) = (guard.fencing_token(), of("CreateRevision"), of("Lease"));
    for (ttl, same) in [(ms(90_000), false), (ms(5_000), false), (ms(60_000), true)] {
        guard.extend(ttl).await.unwrap();
        assert!(ttl / 2 < guard.remaining() && guard.remaining() <= ttl);
        assert_eq!((of("CreateRevision"), guard.fencing_token()), (created, token));
        assert_eq!(of("Lease") == lease, same, "{ttl:?}");
        assert_eq!(backend.fence(&guard).create_revision(), created);
        let seen = rival.inspect("k").await.unwrap();
        assert_eq!(seen.holders[0].metadata, "words");
        assert_eq!(seen.waiting, Some(1));
    }
    // The end of a lease that it had once is none of its business.
    guard.extend(ms(90_000)).await.unwrap();
    server.etcdctl(&["lease", "revoke", &format!("{lease:x}")]).unwrap();
    sleep(ms(300)).await;
    assert!(guard.is_held() && !waiter.is_finished());
    guard.release().await.unwrap();
    drop(soon(waiter).await.unwrap());
}

#[tokio::test]
async fn a_lock_without_renewal_can_be_given_another_ttl() {
    let server = server();
    let client = client(&server.url()).await;
    let guard = client.mutex("k").ttl(ms(2000)).no_renewal().lock().await.unwrap();
    let created = number(&server, &key_of(&server, "k"), "CreateRevision");
    guard.extend(ms(30_000)).await.unwrap();
    sleep(ms(3500)).await;
    assert!(guard.is_held());
    assert_eq!(number(&server, &key_of(&server, "k"), "CreateRevision"), created);
    guard.extend(ms(1000)).await.unwrap();
    assert_eq!(soon(guard.lost()).await, LossReason::Expired);
    eventually("its key is gone", || keys(&server, "k/").is_empty()).await;
}

/// Something of everything that a client can have in etcd.
async fn busy(server: &EtcdServer, client: &Client) -> (Vec<Guard>, JoinSet<Result<Guard, Error>>) {
    let mut guards = vec![client.mutex("a").lock().await.unwrap()];
    guards.push(client.mutex("b").ttl(ms(60_000)).no_renewal().lock().await.unwrap());
    guards.push(client.mutex("c").ttl(ms(9_000)).lock().await.unwrap());
    client.mutex("d").ttl(ms(60_000)).no_renewal().lock().await.unwrap().release().await.unwrap();
    server.etcdctl(&["put", "e/by hand", ""]).unwrap();
    let mut waiters = JoinSet::new();
    for name in ["a", "e", "e", "f"] {
        let mutex = client.mutex(name);
        waiters.spawn(async move { mutex.lock().await });
    }
    in_line(server, "e", 2).await;
    in_line(server, "f", 1).await;
    eventually("it watches", || 4 <= watchers(server)).await;
    (guards, waiters)
}

async fn nothing_is_left(server: &EtcdServer) {
    eventually("no key is left", || keys(server, "") == ["e/by hand"]).await;
    eventually("no lease is left", || leases(server) == 0).await;
    eventually("no watch is left", || watchers(server) == 0).await;
}

#[tokio::test]
async fn a_client_that_is_shut_down_and_dropped_leaves_nothing() {
    let server = server();
    let client = client(&server.url()).await;
    let (guards, mut waiters) = busy(&server, &client).await;
    let held_by_waiter = soon(waiters.join_next()).await.unwrap().unwrap().unwrap();
    soon(client.shutdown()).await;
    assert_eq!(keys(&server, ""), ["e/by hand"]);
    while let Some(waiter) = soon(waiters.join_next()).await {
        assert!(matches!(waiter.unwrap(), Err(Error::Closed)));
    }
    assert!(!guards.iter().chain([&held_by_waiter]).any(Guard::is_held));
    drop((client, guards, held_by_waiter));
    nothing_is_left(&server).await;
}

#[tokio::test]
async fn a_backend_that_is_closed_leaves_nothing_and_ends_every_call() {
    let server = server();
    for shuts_down in [true, false] {
        let backend = backend(&server.url()).await;
        let client = Client::new(backend.clone());
        let (guards, mut waiters) = busy(&server, &client).await;
        if shuts_down {
            soon(client.shutdown()).await;
        }
        soon(backend.close()).await;
        assert_eq!(leases(&server), 0);
        nothing_is_left(&server).await;
        let error = soon(Client::new(backend).mutex("k").lock()).await.unwrap_err();
        assert!(!error.is_transient(), "{error}");
        waiters.abort_all();
        drop((client, guards));
        nothing_is_left(&server).await;
    }
}

#[tokio::test]
async fn a_client_that_is_only_dropped_leaves_nothing_either() {
    let server = server();
    let client = client(&server.url()).await;
    let (guards, mut waiters) = busy(&server, &client).await;
    waiters.shutdown().await;
    drop(guards);
    drop(client);
    nothing_is_left(&server).await;
}

#[tokio::test]
async fn with_a_client_of_the_user_s() {
    let server = server();
    let mut user = etcd_client::Client::connect([server.endpoint()], None).await.unwrap();
    let backend = EtcdBackend::from_client(user.clone()).await.unwrap();
    let own = Client::new(backend.clone());
    let other = client(&server.url()).await;
    let guard = own.mutex("k").lock().await.unwrap();
    let waiter = wait_in_line(&server, &other, "k", 2).await;
    guard.release().await.unwrap();
    let guard = soon(waiter).await.unwrap();
    let waiter = wait_in_line(&server, &own, "k", 2).await;
    guard.release().await.unwrap();
    let guard = soon(waiter).await.unwrap();
    revoke(&server, &key_of(&server, "k"));
    assert_eq!(soon(guard.lost()).await, LossReason::Gone);
    let config = EtcdConfig::new::<String>([]).prefix("jobs/").request_timeout(ms(500));
    let prefixed = EtcdBackend::from_client_with(user.clone(), config).await.unwrap();
    drop(Client::new(prefixed).mutex("k").lock().await.unwrap());
    own.shutdown().await;
    soon(backend.close()).await;
    user.put("it", "is still connected", None).await.unwrap();
}

/// Counts what some work costs, until it was not disturbed by anything else.
async fn costs(server: &EtcdServer, expected: [u64; 4], mut work: impl AsyncFnMut()) {
    let count = || {
        let [txn, delete, range] = ["Txn", "DeleteRange", "Range"].map(|name| calls(server, name));
        [proposals(server), txn, delete, range]
    };
    let mut seen = Vec::new();
    for _ in 0..8 {
        let before = count();
        work().await;
        let after = count();
        let cost = std::array::from_fn(|index| after[index] - before[index]);
        if cost == expected {
            return;
        }
        seen.push(cost);
    }
    panic!("proposals, transactions, deletes, reads: {seen:?} and never {expected:?}");
}

#[tokio::test]
async fn a_lock_in_nobody_s_way_costs_two_proposals_and_no_read() {
    let server = server();
    let client = client(&server.url()).await;
    let cycles = async || {
        for _ in 0..20 {
            client.mutex("k").lock().await.unwrap().release().await.unwrap();
        }
    };
    costs(&server, [40, 20, 20, 0], cycles).await;
    let cycles = async || {
        for _ in 0..20 {
            let mutex = client.mutex("k").ttl(ms(9000)).no_renewal();
            mutex.lock().await.unwrap().release().await.unwrap();
        }
    };
    costs(&server, [40, 20, 20, 0], cycles).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_costs_two_proposals_and_no_read() {
    let server = server();
    let clients = [client(&server.url()).await, client(&server.url()).await];
    let ttl = Duration::from_secs(120);
    let rounds = async || {
        let mut guard = clients[0].mutex("k").ttl(ttl).lock().await.unwrap();
        for round in 1..=20 {
            let handled = calls(&server, "Txn");
            let mutex = clients[round % 2].mutex("k").ttl(ttl);
            let waiter = tokio::spawn(async move { mutex.lock().await.unwrap() });
            eventually("it has asked", || handled < calls(&server, "Txn")).await;
            guard.release().await.unwrap();
            guard = soon(waiter).await.unwrap();
        }
        guard.release().await.unwrap();
    };
    costs(&server, [42, 21, 21, 0], rounds).await;
}

#[tokio::test]
async fn who_is_released_by_force_is_told() {
    let server = server();
    let (one, two) = (client(&server.url()).await, client(&server.url()).await);
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
async fn a_lock_is_resumed_by_its_owner_id() {
    let server = server();
    let (one, two) = (client(&server.url()).await, client(&server.url()).await);
    let owner = Owner::random().unwrap();
    let guard = one.mutex("k").owner(owner).lock().await.unwrap();
    let token = guard.fencing_token();
    std::mem::forget(guard);
    let guard = two.mutex("k").owner(owner).metadata("again").lock().await.unwrap();
    assert_eq!(guard.fencing_token(), token, "the same grant");
    assert_eq!(two.inspect("k").await.unwrap().holders[0].metadata, "again");
    // What is to be told of it is told to whom it belongs now.
    assert!(client(&server.url()).await.force_release("k").await.unwrap());
    soon(guard.lost()).await;
}
