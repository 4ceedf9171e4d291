//! A cluster: slots that move, nodes that die.

use distlock_servers::redis::{RedisCluster, RedisServer};
use fred::{
    clients::Client,
    interfaces::ClientLike,
    types::config::{Config, ReconnectPolicy, ServerConfig},
};

use super::*;

fn settings(cluster: &RedisCluster) -> LinkConfig {
    let seeds =
        cluster.nodes().iter().map(|node| Endpoint::new("127.0.0.1", node.port())).collect();
    LinkConfig { topology: Topology::Cluster { seeds }, ..config(0) }
}

/// Hands the slot of `key`, which must be empty, from its master to another one, and waits until all nodes know: the driver may ask any of them, and what
/// gossip takes is not what the link is tested for.
async fn move_slot(cluster: &RedisCluster, key: &str) {
    let (source, target, slot) = ends(cluster, key);
    let (from, to) = (source.command(&["CLUSTER", "MYID"]), target.command(&["CLUSTER", "MYID"]));
    target.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from.unwrap()]).unwrap();
    let to = to.unwrap();
    for node in [&[target, source], &cluster.nodes().iter().collect::<Vec<_>>()[..3]].concat() {
        node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &to]).unwrap();
    }
    let knows = |node| cluster.master_of(key, node).is_ok_and(|now| now.port() == target.port());
    until("all nodes know", || cluster.nodes().iter().all(knows)).await;
}

/// Publishes until it is heard: a node that has just lost touch with another one tells it nothing, and does not say so.
async fn wait_hears(node: &RedisServer, ears: &Ears, message: &str) {
    until("pushes arrive", || {
        node.command(&["PUBLISH", CHANNEL, message]).unwrap();
        ears.messages().iter().any(|heard| heard == message.as_bytes())
    })
    .await;
}

/// The master of `key`, another master, and the slot.
fn ends<'a>(cluster: &'a RedisCluster, key: &str) -> (&'a RedisServer, &'a RedisServer, String) {
    let source = cluster.master_of(key, &cluster.nodes()[0]).unwrap();
    let target = cluster.nodes()[..3].iter().find(|node| node.port() != source.port()).unwrap();
    (source, target, Link::slot(key.as_bytes()).to_string())
}

/// One cluster for all of it: they are slow to start.
#[tokio::test]
async fn scripts_pushes_and_moving_slots() {
    let cluster = RedisCluster::start(&[]).unwrap();
    let (link, ears) = connect_whole(settings(&cluster)).await;
    assert!(link.is_cluster());

    // Each key goes to its own node, by the digest only after the script is known there.
    for number in 0..60 {
        let key = format!("n{number}");
        assert_eq!(incr(&link, &key, Attempts::AtMostOnce).await, Ok(Reply::Int(1)));
        assert_eq!(incr(&link, &key, Attempts::Repeatable).await, Ok(Reply::Int(2)));
    }
    let ports = link.command_everywhere("CONFIG", &list(["GET", "port"])).await.unwrap();
    let mut expected: Vec<_> = cluster.nodes()[..3]
        .iter()
        .map(|node| Reply::Array(vec![bulk("port"), bulk(&node.port().to_string())]))
        .collect();
    expected.retain(|port| !ports.contains(port));
    assert_eq!((ports.len(), expected), (3, vec![]));

    // A plain PUBLISH on any node reaches the one subscription.
    for node in &cluster.nodes()[..3] {
        wait_hears(node, &ears, &format!("from {}", node.port())).await;
    }

    // `max_command_attempts` of 1 alone breaks this, and more of them repeat.
    for attempts in [Attempts::AtMostOnce, Attempts::Repeatable] {
        for number in 0..5 {
            let key = format!("{attempts:?}{number}");
            move_slot(&cluster, &key).await;
            assert_eq!(incr(&link, &key, attempts).await, Ok(Reply::Int(1)), "{key}");
            assert_eq!(incr(&link, &key, attempts).await, Ok(Reply::Int(2)), "{key}");
        }
    }

    // A slot in the middle of its move: fred reads the answer to ASKING from a connection that
    // others wait on, and hands their replies to the wrong callers.
    let key = "in-between";
    let (source, target, slot) = ends(&cluster, key);
    let (from, to) = (source.command(&["CLUSTER", "MYID"]), target.command(&["CLUSTER", "MYID"]));
    target.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from.unwrap()]).unwrap();
    source.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to.unwrap()]).unwrap();
    let others = async {
        for round in 0..20 {
            let keys: Vec<_> = (0..30).map(|number| format!("n{number}")).collect();
            for key in &keys {
                let reply = incr(&link, key, Attempts::AtMostOnce).await;
                assert_eq!(reply, Ok(Reply::Int(3 + round)), "{key}");
            }
        }
    };
    let moving = async {
        for attempts in [Attempts::AtMostOnce, Attempts::Repeatable].repeat(2) {
            let error = incr(&link, key, attempts).await.unwrap_err();
            assert_eq!(error, LinkError::Moved);
            assert!(!error.may_have_run());
        }
    };
    tokio::join!(others, moving);
    move_slot(&cluster, key).await;
    assert_eq!(incr(&link, key, Attempts::AtMostOnce).await, Ok(Reply::Int(1)));

    // A user's client lends its settings.
    let server = ServerConfig::new_clustered(vec![("127.0.0.1", cluster.nodes()[0].port())]);
    let policy = ReconnectPolicy::new_constant(0, 20);
    let user = Client::new(Config { server, ..Config::default() }, None, None, Some(policy));
    within(user.init()).await.unwrap();
    let ears = Arc::new(Ears::default());
    let theirs = within(Link::from_client(user.clone(), config(0), ears)).await.unwrap();
    let key = "theirs";
    assert_eq!(incr(&theirs, key, Attempts::AtMostOnce).await, Ok(Reply::Int(1)));
    within(theirs.close()).await;
    let _: String = within(user.ping(None)).await.unwrap();
    within(user.quit()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_node_repeats_nothing_and_is_replaced() {
    let cluster = RedisCluster::start(&["--cluster-node-timeout", "1000"]).unwrap();
    let mut settings = settings(&cluster);
    settings.request_timeout = Duration::from_secs(1);
    let (link, ears) = connect_whole(settings).await;
    wait_works(&link).await;

    // When one connection ends, fred connects to the whole cluster anew and repeats what was in
    // flight to the other nodes.
    let (paused, cut) = (&cluster.nodes()[0], &cluster.nodes()[1]);
    let keys: Vec<_> = (0..)
        .map(|number| format!("key{number}"))
        .filter(|key| {
            let owner = cluster.master_of(key, paused).unwrap();
            owner.port() == paused.port()
        })
        .take(5)
        .collect();
    for key in &keys {
        paused.command(&["CLIENT", "PAUSE", "10000", "WRITE"]).unwrap();
        let call = tokio::spawn({
            let (link, key) = (link.clone(), key.clone());
            async move { incr(&link, &key, Attempts::AtMostOnce).await }
        });
        until("it is in flight", || {
            paused.info("blocked_clients").is_ok_and(|count| count != "0") || call.is_finished()
        })
        .await;
        cut.command(&["CLIENT", "KILL", "TYPE", "normal"]).unwrap();
        let result = within(call).await.unwrap();
        paused.command(&["CLIENT", "UNPAUSE"]).unwrap();
        wait_works(&link).await;
        let executed = counter(paused, key);
        match result {
            Ok(reply) => assert_eq!((reply, executed.as_str()), (Reply::Int(1), "1")),
            Err(error) => {
                assert!(error.may_have_run(), "{error:?}");
                assert!(executed.is_empty() || executed == "1", "{executed} times");
            }
        }
    }

    // A dead master is replaced by its replica; no call hangs meanwhile.
    let master = cluster.master_of("works", paused).unwrap();
    master.kill().unwrap();
    wait_works(&link).await;
    within(link.subscribed()).await.ok();
    until("it is subscribed", || link.is_subscribed()).await;
    let other = cluster.nodes().iter().find(|node| node.port() != master.port()).unwrap();
    wait_hears(other, &ears, "hello").await;
}
