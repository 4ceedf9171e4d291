//! Who loses what it had in etcd, a lock or a place in the line, is told at once; who lost nothing is not.

mod common;

use std::{sync::Arc, time::Duration};

use common::{
    backend, client, delete, eventually, in_line, keys, ms, number, revoke, server, soon,
    wait_in_line, watchers,
};
use distlock_core::{Backend as _, Claim, Client, Guard, Key, LossReason, Mode, Owner, Standing};
use distlock_servers::etcd::EtcdServer;
use tokio::time::{Instant, timeout};

/// With this ttl nobody renews or looks again before any of the tests below has given up.
const TTL: Duration = Duration::from_secs(120);

/// What is told by events comes within this time; the next look of who waits is later.
const AT_ONCE: Duration = Duration::from_millis(4500);

async fn at_once<T>(future: impl Future<Output = T>) -> T {
    timeout(AT_ONCE, future).await.expect("it is told at once")
}

async fn clients(server: &EtcdServer, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(client(&server.url()).await);
    }
    clients
}

async fn hold(client: &Client, name: &str) -> Guard {
    client.mutex(name).ttl(TTL).lock().await.unwrap()
}

/// Waiters of a client each, behind a holder, and their keys.
async fn line_up(
    server: &EtcdServer,
    clients: &[Client],
) -> Vec<(tokio::task::JoinHandle<Guard>, String)> {
    let mut waiters = Vec::new();
    let mut known = keys(server, "k/");
    for client in clients {
        let waiter = wait_in_line(server, client, "k", known.len() + 1).await;
        let all = keys(server, "k/");
        let own = all.iter().find(|key| !known.contains(key)).unwrap().clone();
        known = all;
        waiters.push((waiter, own));
    }
    // Each has its watch open, so that what follows is told by events.
    eventually("all of them watch", || clients.len() as u64 <= watchers(server)).await;
    waiters
}

/// Waits until a waiter whose key is gone has another one.
async fn queued_anew(server: &EtcdServer, before: &str, count: usize) {
    let again = eventually("it is in line again", || {
        let keys = keys(server, "k/");
        keys.len() == count && !keys.iter().any(|key| key == before)
    });
    at_once(again).await;
}

/// In the middle of a line a waiter loses its place by `harm`. It is told, and comes back at the end of the line.
async fn a_waiter_loses_its_place(harm: fn(&EtcdServer, &str)) {
    let server = server();
    let clients = clients(&server, 4).await;
    let guard = hold(&clients[0], "k").await;
    let mut waiters = line_up(&server, &clients[1..]).await;
    let (last, _) = waiters.pop().unwrap();
    let (second, _) = waiters.pop().unwrap();
    let (first, place) = waiters.pop().unwrap();
    harm(&server, &place);
    queued_anew(&server, &place, 4).await;
    assert!(guard.is_held());
    assert!(![&first, &second, &last].iter().any(|waiter| waiter.is_finished()));
    // Whoever is granted the lock stands first, and the others wait on.
    let token = guard.fencing_token();
    guard.release().await.unwrap();
    let guard = soon(second).await.unwrap();
    assert!(token < guard.fencing_token());
    assert!(!first.is_finished() && !last.is_finished());
    let token = guard.fencing_token();
    guard.release().await.unwrap();
    let guard = soon(last).await.unwrap();
    assert!(token < guard.fencing_token());
    assert!(!first.is_finished());
    let token = guard.fencing_token();
    guard.release().await.unwrap();
    let guard = soon(first).await.unwrap();
    assert!(token < guard.fencing_token(), "by its new key");
    assert_eq!(keys(&server, "k/").len(), 1);
    assert!(guard.is_held());
}

#[tokio::test]
async fn a_waiter_whose_lease_is_revoked_is_told_and_goes_to_the_end_of_the_line() {
    a_waiter_loses_its_place(revoke).await;
}

#[tokio::test]
async fn a_waiter_whose_key_is_deleted_is_told_and_goes_to_the_end_of_the_line() {
    a_waiter_loses_its_place(delete).await;
}

#[tokio::test]
async fn a_waiter_that_lost_its_place_is_not_granted_it_by_a_release_right_after() {
    let server = server();
    let clients = clients(&server, 3).await;
    for harm in [revoke as fn(&EtcdServer, &str), delete] {
        let guard = hold(&clients[0], "k").await;
        let mut waiters = line_up(&server, &clients[1..]).await;
        let (last, _) = waiters.pop().unwrap();
        let (first, place) = waiters.pop().unwrap();
        // Nothing of this process runs in between: it hears of both at once.
        harm(&server, &place);
        let holder = keys(&server, "k/")
            .into_iter()
            .min_by_key(|key| number(&server, key, "CreateRevision"))
            .unwrap();
        delete(&server, &holder);
        let next = soon(last).await.unwrap();
        assert_eq!(at_once(guard.lost()).await, LossReason::Gone);
        in_line(&server, "k", 2).await;
        assert!(!first.is_finished() && next.is_held());
        next.release().await.unwrap();
        let first = soon(first).await.unwrap();
        assert!(first.is_held());
        first.release().await.unwrap();
    }
}

/// Holders lose their locks by `harm`, long before their next renewal.
async fn a_holder_loses_its_lock(harm: fn(&EtcdServer, &str)) {
    let server = server();
    let clients = clients(&server, 2).await;
    // Before its name is watched, and after.
    for watched in [false, true] {
        let guard = hold(&clients[0], "k").await;
        let waiters = if watched { line_up(&server, &clients[1..]).await } else { Vec::new() };
        let own = keys(&server, "k/")[0].clone();
        let key = keys(&server, "k/")
            .into_iter()
            .min_by_key(|key| number(&server, key, "CreateRevision"))
            .unwrap_or(own);
        harm(&server, &key);
        assert_eq!(at_once(guard.lost()).await, LossReason::Gone);
        assert!(!guard.is_held());
        for (waiter, _) in waiters {
            let next = soon(waiter).await.unwrap();
            assert!(guard.fencing_token() < next.fencing_token());
            next.release().await.unwrap();
        }
        assert!(guard.release().await.is_ok(), "there is nothing to release, and no harm in it");
        hold(&clients[0], "k").await.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_holder_whose_lease_is_revoked_is_told() {
    a_holder_loses_its_lock(revoke).await;
}

#[tokio::test]
async fn a_holder_whose_key_is_deleted_is_told() {
    a_holder_loses_its_lock(delete).await;
}

#[tokio::test]
async fn all_who_share_a_revoked_lease_are_told_and_nobody_else() {
    let server = server();
    let client = client(&server.url()).await;
    let mut guards = Vec::new();
    for number in 0..40 {
        guards.push(hold(&client, &format!("k{number}")).await);
    }
    let other = client.mutex("other").ttl(TTL * 2).lock().await.unwrap();
    let alone = client.mutex("alone").ttl(TTL).no_renewal().lock().await.unwrap();
    eventually("all of them are watched", || watchers(&server) == 42).await;
    revoke(&server, &keys(&server, "k0/")[0]);
    for guard in &guards {
        assert_eq!(at_once(guard.lost()).await, LossReason::Gone);
    }
    assert!(other.is_held() && alone.is_held());
    assert!(hold(&client, "k0").await.is_held(), "by another lease");
}

#[tokio::test]
async fn a_lock_without_renewal_is_told_too() {
    let server = server();
    let client = client(&server.url()).await;
    for harm in [revoke as fn(&EtcdServer, &str), delete] {
        let guard = client.mutex("k").ttl(TTL).no_renewal().lock().await.unwrap();
        harm(&server, &keys(&server, "k/")[0]);
        assert_eq!(at_once(guard.lost()).await, LossReason::Gone);
        drop(guard);
    }
    assert!(client.mutex("k").ttl(TTL).no_renewal().lock().await.unwrap().is_held());
}

/// Forgets all history up to now.
fn compact(server: &EtcdServer) {
    for _ in 0..20 {
        server.etcdctl(&["put", "something", "else"]).unwrap();
    }
    let revision = number(server, "k", "Revision").unwrap();
    server.etcdctl(&["compact", "--physical", &revision.to_string()]).unwrap();
}

#[tokio::test]
async fn a_compaction_is_in_nobody_s_way() {
    let server = server();
    let clients = clients(&server, 3).await;
    let mut guard = hold(&clients[0], "k").await;
    let waiters = line_up(&server, &clients[1..]).await;
    compact(&server);
    for (waiter, _) in waiters {
        guard.release().await.unwrap();
        guard = at_once(waiter).await.unwrap();
        compact(&server);
    }
    for (waiter, _) in line_up(&server, &clients[..2]).await {
        guard.release().await.unwrap();
        guard = at_once(waiter).await.unwrap();
    }
    delete(&server, &keys(&server, "k/")[0]);
    assert_eq!(at_once(guard.lost()).await, LossReason::Gone);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_server_keeps_locks_and_places() {
    let server = server();
    let clients = clients(&server, 4).await;
    let mut guard = hold(&clients[0], "k").await;
    let before = number(&server, &keys(&server, "k/")[0], "CreateRevision");
    let mut waiters = line_up(&server, &clients[1..]).await.into_iter();
    for (number_of_restart, (waiter, _)) in waiters.by_ref().enumerate() {
        let line = keys(&server, "k/");
        server.kill().unwrap();
        server.restart().unwrap();
        if number_of_restart == 1 {
            // The history is gone as well.
            compact(&server);
        }
        assert_eq!(keys(&server, "k/"), line, "leases live on");
        assert!(guard.is_held() && !waiter.is_finished());
        // Whether its watch is open again or not.
        guard.release().await.unwrap();
        guard = soon(waiter).await.unwrap();
    }
    let last = number(&server, &keys(&server, "k/")[0], "CreateRevision");
    assert!(before < last);
    eventually("it is watched again", || 0 < watchers(&server)).await;
    delete(&server, &keys(&server, "k/")[0]);
    assert_eq!(soon(guard.lost()).await, LossReason::Gone);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_loses_the_lock_at_its_deadline_at_the_latest() {
    let server = server();
    let clients = clients(&server, 2).await;
    let guard = clients[0].mutex("k").ttl(ms(2000)).lock().await.unwrap();
    let waiter = {
        let mutex = clients[1].mutex("k").ttl(ms(2000));
        tokio::spawn(async move { mutex.lock().await.unwrap() })
    };
    in_line(&server, "k", 2).await;
    server.stop().unwrap();
    let guard = Arc::new(guard);
    let clock = {
        let guard = Arc::clone(&guard);
        tokio::spawn(async move {
            while guard.is_held() {
                // The clock comes first, and the deadline last: it may have been renewed in between.
                let (now, held, until) = (Instant::now(), guard.is_held(), guard.expires_at());
                assert!(!held || now < until, "it is over when it said so");
                tokio::time::sleep(ms(1)).await;
            }
        })
    };
    assert_eq!(soon(guard.lost()).await, LossReason::Expired);
    soon(clock).await.unwrap();
    assert!(!guard.is_held());
    assert!(!waiter.is_finished());
    // The leases end on the server's side as well, whose clock went on.
    let over = Instant::now() + ms(2500);
    tokio::time::sleep_until(over).await;
    server.cont().unwrap();
    let next = soon(waiter).await.unwrap();
    assert!(guard.fencing_token() < next.fencing_token());
    assert!(next.is_held() && !guard.is_held());
    drop(guard);
    next.release().await.unwrap();
    in_line(&server, "k", 0).await;
    assert!(soon(clients[0].mutex("k").lock()).await.unwrap().is_held());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_for_a_moment_costs_nobody_anything() {
    let server = server();
    let clients = clients(&server, 2).await;
    let guard = hold(&clients[0], "k").await;
    let (waiter, place) = line_up(&server, &clients[1..]).await.pop().unwrap();
    server.stop().unwrap();
    // Longer than a watch may be silent and a request may take.
    tokio::time::sleep(ms(5000)).await;
    assert!(guard.is_held() && !waiter.is_finished());
    server.cont().unwrap();
    assert!(guard.is_held());
    assert!(keys(&server, "k/").contains(&place), "it kept its place");
    guard.release().await.unwrap();
    drop(soon(waiter).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_is_not_granted_what_goes_in_the_same_moment_as_its_own_place() {
    let server = server();
    let backend = common::backend(&server.url()).await;
    // Each has a place of its own, all by one lease.
    let client = Client::builder(backend.clone()).cohort_limit(0).ttl(TTL).build().unwrap();
    let (mut holders, mut waiters) = (Vec::new(), Vec::new());
    for number in 0..20 {
        let name = format!("k{number}");
        holders.push(client.mutex(&name).lock().await.unwrap());
        waiters.push(wait_in_line(&server, &client, &name, 2).await);
    }
    eventually("all of them are watched", || 20 <= watchers(&server)).await;
    let before = number(&server, "k", "Revision").unwrap();
    revoke(&server, &keys(&server, "k0/")[0]);
    for (holder, waiter) in holders.into_iter().zip(waiters) {
        assert_eq!(at_once(holder.lost()).await, LossReason::Gone);
        let guard = at_once(waiter).await.unwrap();
        assert!(before < backend.fence(&guard).create_revision(), "by a new key");
        assert!(guard.is_held());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_id_that_comes_back_after_an_outage_keeps_its_lock() {
    let server = server();
    let clients = clients(&server, 1).await;
    let owner = Owner::random().unwrap();
    // It keeps the lease of them all alive.
    let other = hold(&clients[0], "other").await;
    let mutex = clients[0].mutex("k").ttl(TTL).owner(owner);
    server.stop().unwrap();
    // What is asked now is given up, and may be carried out all the same.
    assert!(mutex.lock_timeout(ms(4000)).await.is_err());
    server.cont().unwrap();
    let again = soon(mutex.lock()).await.unwrap();
    // Whatever was to be tidied up is none of its business.
    assert!(timeout(ms(7000), again.lost()).await.is_err(), "it is held");
    assert!(again.is_held() && other.is_held());
    assert_eq!(keys(&server, "k/").len(), 1);
    again.release().await.unwrap();
    in_line(&server, "k", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_another_process_resumed_is_not_taken_for_gone_when_its_former_holder_ends() {
    let server = server();
    let store = backend(&server.url()).await;
    let claim =
        |owner, ttl| Claim::new(Key::new("k").unwrap(), owner, Mode::Exclusive, ttl).with_renewal();
    let owner = Owner::random().unwrap();
    // Nobody renews it.
    let held = claim(owner, ms(3000));
    assert!(matches!(store.acquire(&held).await, Ok(Standing::Held(_))));
    let waits = claim(Owner::random().unwrap(), TTL);
    assert!(matches!(store.acquire(&waits).await, Ok(Standing::Queued { .. })));
    let resumed = clients(&server, 1).await[0].mutex("k").owner(owner).ttl(TTL).lock().await;
    let resumed = resumed.unwrap();
    eventually("both watch", || 2 <= watchers(&server)).await;
    assert_eq!(soon(held.granted()).await.unwrap_err(), LossReason::Expired);
    for round in 0..20 {
        let key = format!("k/by hand {round}");
        server.etcdctl(&["put", &key, ""]).unwrap();
        delete(&server, &key);
    }
    assert!(timeout(ms(1000), waits.granted()).await.is_err(), "somebody is before it");
    assert!(resumed.is_held());
    assert!(keys(&server, "k/").iter().any(|key| key.ends_with(&owner.to_string())));
    resumed.release().await.unwrap();
    let _ = soon(waits.granted()).await.unwrap();
    assert!(store.release(&waits).await.unwrap());
}
