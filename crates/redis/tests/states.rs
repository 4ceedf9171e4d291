//! A server in a state in which it refuses: who holds a lock outlives that, and who comes is told what it is. FAULTS C5, B8, E.

mod common;

use std::{fs, sync::Arc, thread, time::Duration};

use common::{Failures, client, command, eventually, leftovers, lost_in_time, ms, server, soon};
use distlock_core::{Client, Error, ErrorKind, Guard, LossReason};
use distlock_redis::RedisBackend;
use distlock_servers::{
    redis::{RedisCluster, RedisServer},
    resp::Connection,
};
use tokio::time::sleep;

/// Of the locks here: renewed every few hundred milliseconds, and over long after the state is.
const TTL: Duration = ms(6000);

struct Stage {
    server: RedisServer,
    /// For commands while no new connection can be made.
    control: Connection,
    client: Client,
    failures: Failures,
}

impl Stage {
    async fn start(args: &[&str]) -> Self {
        Self::of(RedisServer::start(args).unwrap(), "").await
    }

    /// Of a client that logs in so: `user:password@`, or not at all.
    async fn of(server: RedisServer, login: &str) -> Self {
        let url = format!("redis://{login}127.0.0.1:{}", server.port());
        let backend = RedisBackend::connect(&url).await.unwrap();
        let failures = Failures::default();
        let builder = Client::builder(backend).observer(failures.clone());
        let client = builder.ttl(TTL).renew_at(0.05).build().unwrap();
        let control = server.connection().unwrap();
        Self { server, control, client, failures }
    }

    fn command(&mut self, args: &[&str]) -> String {
        self.control.command(args).unwrap().to_string()
    }

    async fn hold(&mut self, name: &str) -> Guard {
        self.client.mutex(name).lock().await.unwrap()
    }

    /// What one is told who comes now. Before the state is noticed there may be no connection at all.
    async fn refusal(&mut self, text: &str) -> ErrorKind {
        let attempts = async {
            loop {
                match self.client.mutex("newcomer").lock().await {
                    Err(Error::Backend(error)) if error.to_string().contains(text) => {
                        return error.kind();
                    }
                    Err(Error::Backend(error)) => assert!(error.is_transient(), "{error}"),
                    other => panic!("it is refused, not {other:?}"),
                }
                sleep(ms(5)).await;
            }
        };
        soon(attempts).await
    }

    /// The server refuses with this text: a renewal says so, a newcomer is told so, and what could not be given back is given back later.
    async fn outlive(
        mut self,
        (text, kind): (&str, ErrorKind),
        cause: impl FnOnce(&mut Self) + Send,
        heal: impl FnOnce(&mut Self) + Send,
    ) {
        let guard = self.hold("k").await;
        let given_back = self.client.mutex("given back").ttl(TTL / 2).lock().await.unwrap();
        cause(&mut self);
        let error = self.failures.saying(text).await;
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(self.refusal(text).await, kind);
        let refused = soon(given_back.release()).await;
        assert!(matches!(refused, Err(Error::Backend(_))), "{refused:?}");
        assert!(guard.is_held());
        heal(&mut self);
        let known = guard.expires_at();
        eventually("it is renewed", || known < guard.expires_at()).await;
        assert!(guard.is_held());
        if kind == ErrorKind::Transient {
            eventually("it is given back", || leftovers(&self.server) == ["k"]).await;
        } else {
            // Not tried again: it ends by its ttl.
            eventually("it ends", || !leftovers(&self.server).contains(&"given back".to_owned()))
                .await;
        }
        soon(guard.release()).await.unwrap();
        assert_eq!(leftovers(&self.server), Vec::<String>::new(), "a newcomer left nothing");
        drop(soon(self.client.mutex("newcomer").lock()).await.unwrap());
    }
}

const BUSY: &str = "while true do end";

#[tokio::test]
async fn e02_busy_with_a_script() {
    let mut stage = Stage::start(&["--busy-reply-threshold", "20"]).await;
    let mut other = stage.server.connection().unwrap();
    let busy = |_: &mut Stage| drop(thread::spawn(move || other.command(&["EVAL", BUSY, "0"])));
    stage.command(&["PING"]);
    stage
        .outlive(("BUSY", ErrorKind::Transient), busy, |stage| {
            stage.command(&["SCRIPT", "KILL"]);
        })
        .await;
}

#[tokio::test]
async fn e03_a_script_that_cannot_be_ended_ends_with_the_server_and_all_locks() {
    let mut stage = Stage::start(&["--busy-reply-threshold", "20"]).await;
    let guard = stage.hold("k").await;
    let mut other = stage.server.connection().unwrap();
    let script = "redis.call('SET', 'written', 1) while true do end";
    drop(thread::spawn(move || other.command(&["EVAL", script, "0"])));
    let error = stage.failures.saying("BUSY").await;
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    let error = stage.control.command(&["SCRIPT", "KILL"]).unwrap_err();
    assert!(error.to_string().starts_with("UNKILLABLE"), "{error}");
    assert!(guard.is_held());
    stage.server.restart().unwrap();
    assert_eq!(soon(guard.lost()).await, LossReason::Gone);
    drop(soon(stage.client.mutex("k").lock()).await.unwrap());
}

#[tokio::test]
async fn e05_a_replica() {
    Stage::start(&[])
        .await
        .outlive(
            ("READONLY", ErrorKind::Transient),
            |stage| drop(stage.command(&["REPLICAOF", "127.0.0.1", "1"])),
            |stage| drop(stage.command(&["REPLICAOF", "NO", "ONE"])),
        )
        .await;
}

#[tokio::test]
async fn e06_a_replica_without_its_primary() {
    Stage::start(&["--replica-serve-stale-data", "no"])
        .await
        .outlive(
            ("MASTERDOWN", ErrorKind::Transient),
            |stage| drop(stage.command(&["REPLICAOF", "127.0.0.1", "1"])),
            |stage| drop(stage.command(&["REPLICAOF", "NO", "ONE"])),
        )
        .await;
}

#[tokio::test]
async fn e07_too_few_replicas() {
    Stage::start(&[])
        .await
        .outlive(
            ("NOREPLICAS", ErrorKind::Transient),
            |stage| drop(stage.command(&["CONFIG", "SET", "min-replicas-to-write", "1"])),
            |stage| drop(stage.command(&["CONFIG", "SET", "min-replicas-to-write", "0"])),
        )
        .await;
}

#[tokio::test]
async fn e08_data_that_cannot_be_saved() {
    let mut stage =
        Stage::start(&["--enable-protected-configs", "yes", "--save", "3600 1000000"]).await;
    let folder = stage.server.dir().join("gone");
    fs::create_dir(&folder).unwrap();
    stage.command(&["CONFIG", "SET", "dir", folder.to_str().unwrap()]);
    fs::remove_dir(&folder).unwrap();
    let fail = |stage: &mut Stage| {
        stage.command(&["BGSAVE"]);
        while stage.server.info("rdb_last_bgsave_status").unwrap() != "err" {
            thread::sleep(ms(5));
        }
    };
    stage
        .outlive(("MISCONF", ErrorKind::Transient), fail, |stage| {
            fs::create_dir(&folder).unwrap();
            stage.command(&["CONFIG", "SET", "dir", folder.to_str().unwrap()]);
            stage.command(&["SAVE"]);
        })
        .await;
}

#[tokio::test]
async fn e09_a_password_that_is_wanted_all_of_a_sudden() {
    let heal = |stage: &mut Stage| drop(stage.command(&["CONFIG", "SET", "requirepass", ""]));
    Stage::start(&[])
        .await
        .outlive(
            ("NOAUTH", ErrorKind::Permanent),
            |stage| {
                stage.command(&["CONFIG", "SET", "requirepass", "secret"]);
                stage.command(&["CLIENT", "KILL", "TYPE", "normal"]);
            },
            heal,
        )
        .await;
}

/// A server with a user that may do all.
async fn as_user() -> Stage {
    let server = server();
    command(&server, &["ACL", "SETUSER", "u", "on", ">one", "~*", "&*", "+@all"]);
    Stage::of(server, "u:one@").await
}

#[tokio::test]
async fn e09_a_password_that_has_changed() {
    as_user()
        .await
        .outlive(
            ("WRONGPASS", ErrorKind::Permanent),
            |stage| {
                stage.command(&["ACL", "SETUSER", "u", "resetpass", ">two"]);
                stage.command(&["CLIENT", "KILL", "TYPE", "normal"]);
            },
            |stage| drop(stage.command(&["ACL", "SETUSER", "u", ">one"])),
        )
        .await;
}

#[tokio::test]
async fn e10_a_right_that_is_taken_away() {
    as_user()
        .await
        .outlive(
            ("NOPERM", ErrorKind::Permanent),
            |stage| drop(stage.command(&["ACL", "SETUSER", "u", "-evalsha"])),
            |stage| drop(stage.command(&["ACL", "SETUSER", "u", "+evalsha"])),
        )
        .await;
}

#[tokio::test]
async fn e12_a_right_that_the_scripts_miss() {
    let rights = ["-pexpire", "-set", "-del"];
    as_user()
        .await
        .outlive(
            ("no right to a command", ErrorKind::Permanent),
            |stage| drop(stage.command(&[&["ACL", "SETUSER", "u"][..], &rights].concat())),
            |stage| drop(stage.command(&["ACL", "SETUSER", "u", "+@all"])),
        )
        .await;
}

#[tokio::test]
async fn e19_too_many_clients() {
    Stage::start(&[])
        .await
        .outlive(
            ("max number of clients", ErrorKind::Transient),
            |stage| {
                stage.command(&["CONFIG", "SET", "maxclients", "1"]);
                stage.command(&["CLIENT", "KILL", "TYPE", "normal"]);
                stage.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            },
            |stage| drop(stage.command(&["CONFIG", "SET", "maxclients", "100"])),
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e01_a_server_that_comes_back_with_its_data_and_loads_it_for_a_while() {
    // As long as it takes, and no longer.
    let slow = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"];
    let stage = Stage::start(&slow).await;
    let guard = stage.client.mutex("k").ttl(ms(60_000)).renew_at(0.002).lock().await.unwrap();
    let server = Arc::new(stage.server);
    command(&server, &["DEBUG", "POPULATE", "12000"]);
    command(&server, &["SAVE"]);
    server.kill().unwrap();
    let restart = {
        let server = Arc::clone(&server);
        tokio::task::spawn_blocking(move || server.restart().unwrap())
    };
    let error = stage.failures.saying("LOADING").await;
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    command(&server, &["CONFIG", "SET", "key-load-delay", "0"]);
    let known = guard.expires_at();
    eventually("it is renewed", || known < guard.expires_at()).await;
    assert!(guard.is_held());
    restart.await.unwrap();
    soon(guard.release()).await.unwrap();
    assert_eq!(command(&server, &["EXISTS", "k"]), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e16_a_cluster_that_is_down() {
    let cluster = RedisCluster::start(&["--cluster-node-timeout", "1000"]).unwrap();
    let failures = Failures::default();
    let builder = Client::builder(RedisBackend::connect(&cluster.url()).await.unwrap());
    let client = builder.observer(failures.clone()).ttl(ms(60_000)).renew_at(0.005);
    let client = client.build().unwrap();
    let guard = client.mutex("k").lock().await.unwrap();
    let node = cluster.master_of("k", &cluster.nodes()[0]).unwrap();
    // A slot that nobody serves, elsewhere: a cluster wants to be whole.
    let names = ["a", "b", "c", "d", "e", "f"];
    let served = names.map(|name| (name, cluster.master_of(name, node).unwrap()));
    let (name, owner) = served.into_iter().find(|(_, other)| other.port() != node.port()).unwrap();
    let slot = command(node, &["CLUSTER", "KEYSLOT", name]);
    for node in std::iter::once(owner).chain(cluster.nodes()) {
        // The owner is asked twice, and refuses the second time.
        let _ = node.command(&["CLUSTER", "DELSLOTS", &slot]);
    }
    let said =
        || node.command(&["GET", "k"]).is_err_and(|e| e.to_string().starts_with("CLUSTERDOWN"));
    eventually("the cluster is down", said).await;
    // The driver looks for another node then, so that its own words are told.
    let error = failures.saying("").await;
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    let error = soon(client.mutex("k").lock_timeout(ms(100))).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "somebody of this process has it: {error}");
    let refused = soon(client.mutex("newcomer").lock()).await.unwrap_err();
    assert!(refused.is_transient(), "{refused}");
    assert!(guard.is_held());
    command(owner, &["CLUSTER", "ADDSLOTS", &slot]);
    let known = guard.expires_at();
    eventually("it is renewed", || known < guard.expires_at() || !guard.is_held()).await;
    assert!(guard.is_held());
    soon(guard.release()).await.unwrap();
    drop(soon(client.mutex("k").lock()).await.unwrap());
}

/// Longer than a lock lasts, every client is told nothing at all, on connections that live.
#[tokio::test]
async fn e18_a_pause_for_all_clients_makes_no_loss_late() {
    let server = server();
    let (one, two) = (client(&server).await, client(&server).await);
    let guard = one.mutex("k").ttl(ms(1000)).lock().await.unwrap();
    let waiter = tokio::spawn(async move { two.mutex("k").lock().await });
    eventually("it waits", || command(&server, &["EXISTS", "__distlock:q:{k}k"]) == "1").await;
    command(&server, &["CLIENT", "PAUSE", "2500", "ALL"]);
    assert_eq!(lost_in_time(&guard).await, LossReason::Expired);
    let next = soon(waiter).await.unwrap().unwrap();
    assert!(!guard.is_held() && next.is_held());
    assert!(guard.fencing_token() < next.fencing_token());
}

#[tokio::test]
async fn e19_a_holder_and_a_waiter_outlive_that_their_connections_are_ended_by_hand() {
    let server = server();
    let (one, two) = (client(&server).await, client(&server).await);
    let guard = one.mutex("k").ttl(ms(6000)).renew_at(0.1).lock().await.unwrap();
    let waiter = tokio::spawn(async move { two.mutex("k").ttl(ms(6000)).lock().await });
    eventually("it waits", || command(&server, &["EXISTS", "__distlock:q:{k}k"]) == "1").await;
    for kind in ["normal", "pubsub", "normal", "pubsub"] {
        let known = guard.expires_at();
        command(&server, &["CLIENT", "KILL", "TYPE", kind]);
        eventually("it is renewed", || known < guard.expires_at() || !guard.is_held()).await;
        assert!(guard.is_held() && !waiter.is_finished());
    }
    soon(guard.release()).await.unwrap();
    assert!(soon(waiter).await.unwrap().unwrap().is_held());
}

#[tokio::test]
async fn e19_a_subscriber_whose_buffer_overflows_is_subscribed_again() {
    let server = server();
    let (one, two) = (client(&server).await, client(&server).await);
    let guard = one.mutex("k").lock().await.unwrap();
    let waiter = tokio::spawn(async move { two.mutex("k").ttl(ms(60_000)).lock().await });
    eventually("it waits", || command(&server, &["EXISTS", "__distlock:q:{k}k"]) == "1").await;
    command(&server, &["CONFIG", "SET", "client-output-buffer-limit", "pubsub 32kb 32kb 1"]);
    let before = number(&server, "total_connections_received");
    // Both are told more than they may be.
    let channels = command(&server, &["PUBSUB", "CHANNELS", "__distlock:c:*"]);
    for channel in channels.lines() {
        command(&server, &["PUBLISH", channel, &"x".repeat(4_000_000)]);
    }
    eventually("they come again", || before + 4 <= number(&server, "total_connections_received"))
        .await;
    let all = || command(&server, &["PUBSUB", "CHANNELS", "__distlock:c:*"]).lines().count() == 2;
    eventually("they are subscribed again", all).await;
    soon(guard.release()).await.unwrap();
    assert!(soon(waiter).await.unwrap().unwrap().is_held());
}

fn number(server: &RedisServer, field: &str) -> u64 {
    server.info(field).unwrap().parse().unwrap()
}
