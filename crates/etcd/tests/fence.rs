//! What a holder writes under the condition of its fence, etcd refuses when the lock is not its own any more.

mod common;

use common::{backend, client, delete, eventually, keys, ms, revoke, server, soon, wait_in_line};
use distlock_core::{Client, Guard};
use distlock_etcd::EtcdBackend;
use distlock_servers::etcd::EtcdServer;
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use tokio::time::sleep;

/// Whether etcd carries out what a holder wants to write.
async fn writes(server: &EtcdServer, conditions: impl Into<Vec<Compare>>) -> bool {
    let mut etcd = etcd_client::Client::connect([server.endpoint()], None).await.unwrap();
    let txn = Txn::new().when(conditions).and_then([TxnOp::put("data", "written", None)]);
    etcd.txn(txn).await.unwrap().succeeded()
}

/// A client whose backend is at hand.
async fn machine(server: &EtcdServer) -> (EtcdBackend, Client) {
    let backend = backend(&server.url()).await;
    (backend.clone(), Client::new(backend))
}

#[tokio::test]
async fn a_holder_writes_until_its_lock_is_gone() {
    let server = server();
    let (backend, client) = machine(&server).await;
    let guard = client.mutex("k").lock().await.unwrap();
    let fence = backend.fence(&guard);
    assert!(writes(&server, [fence.compare()]).await);
    guard.extend(ms(60_000)).await.unwrap();
    assert!(writes(&server, [fence.compare()]).await, "another ttl is the same lock");
    assert_eq!(fence, backend.fence(&guard));
    guard.release().await.unwrap();
    assert!(!writes(&server, [fence.compare()]).await);
    let again = client.mutex("k").lock().await.unwrap();
    assert!(!writes(&server, [fence.compare()]).await, "it is another grant");
    assert!(writes(&server, [backend.fence(&again).compare()]).await);
}

#[tokio::test]
async fn a_holder_that_was_too_slow_writes_nothing() {
    let server = server();
    let (backend, one) = machine(&server).await;
    let two = client(&server.url()).await;
    for harm in [delete as fn(&EtcdServer, &str), revoke] {
        let stale = one.mutex("k").lock().await.unwrap();
        let waiter = wait_in_line(&server, &two, "k", 2).await;
        let own = String::from_utf8(backend.fence(&stale).key().to_vec()).unwrap();
        harm(&server, &own);
        // Whether it knows of its loss or not.
        assert!(!writes(&server, [backend.fence(&stale).compare()]).await);
        let fresh = soon(waiter).await.unwrap();
        assert!(!writes(&server, [backend.fence(&stale).compare()]).await);
        // Any backend can tell the fence of any guard.
        assert!(writes(&server, [backend.fence(&fresh).compare()]).await);
        fresh.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_key_that_was_made_again_by_hand_is_not_the_holder_s() {
    let server = server();
    let (backend, client) = machine(&server).await;
    let stale = client.mutex("k").lock().await.unwrap();
    let own = String::from_utf8(backend.fence(&stale).key().to_vec()).unwrap();
    delete(&server, &own);
    server.etcdctl(&["put", &own, ""]).unwrap();
    assert!(!writes(&server, [backend.fence(&stale).compare()]).await);
    soon(stale.lost()).await;
}

#[tokio::test]
async fn a_lock_that_was_waited_for_is_fenced_too() {
    let server = server();
    let (backend, one) = machine(&server).await;
    let two = client(&server.url()).await;
    let first = two.mutex("k").lock().await.unwrap();
    let waiter = wait_in_line(&server, &one, "k", 2).await;
    first.release().await.unwrap();
    let guard = soon(waiter).await.unwrap();
    assert!(writes(&server, [backend.fence(&guard).compare()]).await);
}

#[tokio::test]
async fn a_lock_that_was_handed_on_inside_the_process_is_fenced_too() {
    let server = server();
    let (backend, client) = machine(&server).await;
    let first = client.mutex("k").lock().await.unwrap();
    let wait = || {
        let mutex = client.mutex("k");
        tokio::spawn(async move { mutex.lock().await.unwrap() })
    };
    let mut waiters = [wait(), wait(), wait()].into_iter();
    tokio::task::yield_now().await;
    let (mut guard, mut tokens): (Guard, Vec<_>) = (first, Vec::new());
    loop {
        let key = keys(&server, "k/");
        assert_eq!(key, [String::from_utf8(backend.fence(&guard).key().to_vec()).unwrap()]);
        assert!(writes(&server, [backend.fence(&guard).compare()]).await);
        assert!(tokens.last() < Some(&guard.fencing_token()));
        tokens.push(guard.fencing_token());
        let Some(waiter) = waiters.next() else { break };
        guard.release().await.unwrap();
        guard = soon(waiter).await.unwrap();
    }
    delete(&server, &keys(&server, "k/")[0]);
    assert!(!writes(&server, [backend.fence(&guard).compare()]).await);
}

#[tokio::test]
async fn one_of_several_locks_that_is_lost_is_enough() {
    let server = server();
    let (backend, client) = machine(&server).await;
    let a = client.mutex("a").lock().await.unwrap();
    let b = client.mutex("b").ttl(ms(60_000)).lock().await.unwrap();
    let both = || vec![backend.fence(&a).compare(), backend.fence(&b).compare()];
    assert!(writes(&server, both()).await);
    revoke(&server, &keys(&server, "b/")[0]);
    assert!(!writes(&server, both()).await);
    assert!(writes(&server, [backend.fence(&a).compare()]).await);
}

#[tokio::test]
async fn prefixes_are_a_part_of_it() {
    let server = server();
    let plain = backend(&server.url()).await;
    let backend = backend(&format!("{}?prefix=jobs/", server.url())).await;
    let client = Client::builder(backend.clone()).prefix("nightly/").build().unwrap();
    let guard = client.mutex("k").lock().await.unwrap();
    let fence = backend.fence(&guard);
    assert!(fence.key().starts_with(b"jobs/nightly/k/"));
    assert!(writes(&server, [fence.compare()]).await);
    assert!(!writes(&server, [plain.fence(&guard).compare()]).await, "without the prefix");
    // For who uses another client.
    let by_hand = Compare::create_revision(fence.key(), CompareOp::Equal, fence.create_revision());
    assert!(writes(&server, [by_hand]).await);
    let shown = format!("{fence:?}");
    assert!(!shown.contains(&guard.owner().to_string()), "{shown}");
}

#[tokio::test]
async fn a_lock_that_ended_by_its_ttl_is_refused() {
    let server = server();
    let (backend, client) = machine(&server).await;
    let guard = client.mutex("k").ttl(ms(1000)).no_renewal().lock().await.unwrap();
    let fence = backend.fence(&guard);
    assert!(writes(&server, [fence.compare()]).await);
    soon(guard.lost()).await;
    eventually("its key is gone", || keys(&server, "k/").is_empty()).await;
    assert!(!writes(&server, [fence.compare()]).await);
    sleep(ms(10)).await;
    assert_eq!(fence, backend.fence(&guard), "what it was stays what it was");
}
