//! Locks of `etcdctl lock` and ours stand in one line; what else stands at a lock's name.

mod common;

use std::{fs, path::Path};

use common::{client, delete, eventually, in_line, keys, number, server, soon, wait_in_line};
use distlock_core::{Error, ErrorKind};
use distlock_servers::{etcd::EtcdServer, process::Process};

/// An `etcdctl lock`, which holds or waits until it is asked to end.
struct Foreign(Process);

impl Foreign {
    fn start(server: &EtcdServer, name: &str) -> Self {
        Self(server.spawn_etcdctl(&["lock", name]).unwrap())
    }

    /// It prints its key when it has the lock.
    fn holds(&self) -> bool {
        self.0.log().contains('/')
    }

    async fn held(&self) {
        eventually("etcdctl has the lock", || self.holds()).await;
    }

    fn release(&self) {
        self.0.terminate().unwrap();
    }
}

#[tokio::test]
async fn etcdctl_holds_ours_waits_and_another_etcdctl_waits_behind() {
    let server = server();
    let (one, two) = (client(&server.url()).await, client(&server.url()).await);
    let first = Foreign::start(&server, "k");
    first.held().await;
    assert!(one.mutex("k").try_lock().await.unwrap().is_none());
    let ours = wait_in_line(&server, &one, "k", 2).await;
    let second = Foreign::start(&server, "k");
    in_line(&server, "k", 3).await;
    let seen = two.inspect("k").await.unwrap();
    assert_eq!((seen.holders.len(), seen.waiting), (1, Some(2)));
    assert_eq!(seen.holders[0].owner, None);
    assert!(seen.holders[0].expires_in.is_some(), "it has a lease");
    assert!(!ours.is_finished());

    first.release();
    let guard = soon(ours).await.unwrap();
    in_line(&server, "k", 2).await;
    assert!(!second.holds() && guard.is_held());
    assert!(two.mutex("k").try_lock().await.unwrap().is_none());
    guard.release().await.unwrap();
    second.held().await;
    let ours = wait_in_line(&server, &two, "k", 2).await;
    second.release();
    drop(soon(ours).await.unwrap());
    in_line(&server, "k", 0).await;
}

#[tokio::test]
async fn ours_holds_etcdctl_waits_and_another_of_ours_waits_behind() {
    let server = server();
    let (one, two) = (client(&server.url()).await, client(&server.url()).await);
    let guard = one.mutex("k").lock().await.unwrap();
    let foreign = Foreign::start(&server, "k");
    in_line(&server, "k", 2).await;
    let ours = wait_in_line(&server, &two, "k", 3).await;
    assert!(!foreign.holds());
    guard.release().await.unwrap();
    foreign.held().await;
    assert_eq!(keys(&server, "k/").len(), 2);
    assert!(!ours.is_finished());
    foreign.release();
    drop(soon(ours).await.unwrap());
    in_line(&server, "k", 0).await;
}

#[tokio::test]
async fn etcdctl_that_waits_and_gives_up_leaves_the_line_to_ours() {
    let server = server();
    let (one, two) = (client(&server.url()).await, client(&server.url()).await);
    let guard = one.mutex("k").lock().await.unwrap();
    let foreign = Foreign::start(&server, "k");
    in_line(&server, "k", 2).await;
    let ours = wait_in_line(&server, &two, "k", 3).await;
    foreign.release();
    in_line(&server, "k", 2).await;
    assert!(guard.is_held() && !ours.is_finished());
    guard.release().await.unwrap();
    drop(soon(ours).await.unwrap());
    assert!(!foreign.holds());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_gets_its_turn_among_the_tasks_of_one_client() {
    let server = server();
    let client = client(&server.url()).await;
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let mutex = client.mutex("k");
            tokio::spawn(async move {
                loop {
                    let guard = mutex.lock().await.unwrap();
                    tokio::task::yield_now().await;
                    guard.release().await.unwrap();
                }
            })
        })
        .collect();
    for _ in 0..3 {
        let foreign = Foreign::start(&server, "k");
        foreign.held().await;
        foreign.release();
    }
    for task in tasks {
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled(), "none of them failed");
    }
    in_line(&server, "k", 0).await;
}

/// `mkdir` succeeds for one at a time.
fn crowd(server: &EtcdServer, times: usize, script: &str) {
    for _ in 0..times {
        server.etcdctl(&["lock", "k", "--", "sh", "-c", script]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_at_a_time_in_the_crowd() {
    let server = std::sync::Arc::new(server());
    let room = server.dir().join("room");
    let script = format!("mkdir {0} && rmdir {0}", room.display());
    let others: Vec<_> = (0..2)
        .map(|_| {
            let (server, script) = (std::sync::Arc::clone(&server), script.clone());
            std::thread::spawn(move || crowd(&server, 15, &script))
        })
        .collect();
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let (client, room) = (client(&server.url()).await, room.clone());
        tasks.push(tokio::spawn(async move {
            let alone = |room: &Path| fs::create_dir(room).and_then(|()| fs::remove_dir(room));
            for _ in 0..30 {
                let guard = client.mutex("k").lock().await.unwrap();
                alone(&room).expect("nobody else is inside");
                guard.release().await.unwrap();
            }
        }));
    }
    for task in tasks {
        soon(task).await.unwrap();
    }
    for other in others {
        other.join().expect("nobody of ours was inside");
    }
    in_line(&server, "k", 0).await;
}

#[tokio::test]
async fn a_key_put_by_hand_blocks_until_it_is_deleted() {
    let server = server();
    let (one, two) = (client(&server.url()).await, client(&server.url()).await);
    for key in ["k/by hand", "k/", "k/w", "k/694d7c1bd4e3a20f"] {
        server.etcdctl(&["put", key, "for maintenance"]).unwrap();
        assert!(one.mutex("k").try_lock().await.unwrap().is_none());
        let ours = wait_in_line(&server, &one, "k", 2).await;
        let seen = two.inspect("k").await.unwrap();
        assert_eq!((seen.holders.len(), seen.waiting), (1, Some(1)), "{key}");
        assert_eq!(seen.holders[0].owner, None);
        assert_eq!(seen.holders[0].expires_in, None, "it never ends by itself");
        assert_eq!(seen.holders[0].metadata, "for maintenance");
        let Error::Backend(error) = two.force_release("k").await.unwrap_err() else { panic!() };
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(!ours.is_finished());
        delete(&server, key);
        let guard = soon(ours).await.unwrap();
        assert!(two.force_release("k").await.unwrap(), "ours it can release");
        soon(guard.lost()).await;
    }
    assert_eq!(keys(&server, "k").len(), 0);
}

#[tokio::test]
async fn a_key_put_by_hand_behind_the_holder_stands_in_line() {
    let server = server();
    let (one, two) = (client(&server.url()).await, client(&server.url()).await);
    let guard = one.mutex("k").lock().await.unwrap();
    server.etcdctl(&["put", "k/by hand", ""]).unwrap();
    let ours = wait_in_line(&server, &two, "k", 3).await;
    guard.release().await.unwrap();
    in_line(&server, "k", 2).await;
    let seen = one.inspect("k").await.unwrap();
    assert_eq!(seen.holders[0].owner, None);
    assert!(!ours.is_finished());
    delete(&server, "k/by hand");
    drop(soon(ours).await.unwrap());
}

#[tokio::test]
async fn keys_beside_the_line_block_nobody() {
    let server = server();
    let client = client(&server.url()).await;
    for key in ["k", "k.", "k0", "k/by/hand", "k//", "j/k/x"] {
        server.etcdctl(&["put", key, ""]).unwrap();
    }
    let guard = soon(client.mutex("k").lock()).await.unwrap();
    guard.release().await.unwrap();
    let guard = client.mutex("k").try_lock().await.unwrap().expect("it is free");
    let seen = client.inspect("k").await.unwrap();
    assert_eq!((seen.holders.len(), seen.waiting), (1, Some(0)));
    guard.release().await.unwrap();
    assert_eq!(client.inspect("k").await.unwrap().holders.len(), 0);
}

#[tokio::test]
async fn a_name_and_a_longer_one_are_independent() {
    let server = server();
    let (one, two) = (client(&server.url()).await, client(&server.url()).await);
    for (held, free) in [("a/b", "a"), ("a", "a/b"), ("a/b/c", "a"), ("a", "a/b/c"), ("a/", "a")] {
        let holder = one.mutex(held).lock().await.unwrap();
        for client in [&one, &two] {
            let guard = client.mutex(free).try_lock().await.unwrap();
            let guard =
                guard.unwrap_or_else(|| panic!("`{held}` must not be in the way of `{free}`"));
            guard.release().await.unwrap();
            soon(client.mutex(free).lock()).await.unwrap().release().await.unwrap();
        }
        assert!(two.mutex(held).try_lock().await.unwrap().is_none());
        assert!(holder.is_held());
        holder.release().await.unwrap();
    }
    assert_eq!(keys(&server, "a"), Vec::<String>::new());
}

#[tokio::test]
async fn waiters_of_a_name_and_of_a_longer_one_are_independent() {
    let server = server();
    let (one, two) = (client(&server.url()).await, client(&server.url()).await);
    let short = one.mutex("a").lock().await.unwrap();
    let long = one.mutex("a/b").lock().await.unwrap();
    // What is right under `a/`, and all that is.
    let for_short = wait_in_line(&server, &two, "a", 3).await;
    let for_long = wait_in_line(&server, &two, "a/b", 2).await;
    for (name, owner) in [("a", short.owner()), ("a/b", long.owner())] {
        let seen = two.inspect(name).await.unwrap();
        assert_eq!((seen.holders.len(), seen.waiting), (1, Some(1)), "{name}");
        assert_eq!(seen.holders[0].owner, Some(owner));
    }
    long.release().await.unwrap();
    let long = soon(for_long).await.unwrap();
    assert!(!for_short.is_finished() && short.is_held());
    let for_long = wait_in_line(&server, &one, "a/b", 2).await;
    short.release().await.unwrap();
    let short = soon(for_short).await.unwrap();
    assert!(!for_long.is_finished() && long.is_held());
    // Force does not reach into the other either.
    assert!(one.force_release("a").await.unwrap());
    soon(short.lost()).await;
    assert!(long.is_held());
    long.release().await.unwrap();
    drop(soon(for_long).await.unwrap());
}

#[tokio::test]
async fn who_does_not_wait_writes_nothing_where_it_is_taken() {
    let server = server();
    let (one, two) = (client(&server.url()).await, client(&server.url()).await);
    let revision = || number(&server, "k", "Revision").unwrap();
    let taken = async |name: &str| {
        let before = revision();
        for client in [&one, &two] {
            assert!(client.mutex(name).try_lock().await.unwrap().is_none());
        }
        assert_eq!(revision(), before, "{name}");
    };
    let guard = one.mutex("k").lock().await.unwrap();
    taken("k").await;
    let long = one.mutex("k/long").lock().await.unwrap();
    taken("k").await;
    guard.release().await.unwrap();
    // For `etcdctl` a longer name is in the way of a shorter one.
    long.release().await.unwrap();
    let foreign = Foreign::start(&server, "k");
    foreign.held().await;
    taken("k").await;
    foreign.release();
}
