//! Sentinels: the primary changes.

use distlock_servers::redis::{RedisSentinel, RedisServer};
use fred::types::config::Server;

use super::{super::client::differ, *};

fn settings(group: &RedisSentinel) -> LinkConfig {
    let topology = Topology::Sentinel {
        sentinels: group
            .sentinels()
            .iter()
            .map(|sentinel| Endpoint::new("127.0.0.1", sentinel.port()))
            .collect(),
        master: RedisSentinel::MASTER.to_owned(),
        username: None,
        password: None,
    };
    LinkConfig { topology, request_timeout: Duration::from_secs(1), ..config(0) }
}

async fn port(link: &Link) -> Result<Reply, LinkError> {
    link.command("CONFIG", &list(["GET", "port"])).await
}

async fn wait_at(link: &Link, server: &RedisServer) {
    let expected = Ok(Reply::Array(vec![bulk("port"), bulk(&server.port().to_string())]));
    let deadline = Instant::now() + HANG;
    while port(link).await != expected {
        assert!(Instant::now() < deadline, "not at the new primary");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The old primary lives on and takes commands until it is told: they would be lost.
#[tokio::test]
async fn a_switch_is_followed_as_soon_as_it_is_announced() {
    let group = RedisSentinel::start(&[]).unwrap();
    let (old, new) = (&group.servers()[0], &group.servers()[1]);
    let (link, ears) = connect_whole(settings(&group)).await;
    wait_at(&link, old).await;
    // Who watches the sentinels is there.
    until("the sentinels are watched", || {
        group
            .sentinels()
            .iter()
            .any(|sentinel| sentinel.command(&["CLIENT", "LIST"]).unwrap().contains(" sub=1 "))
    })
    .await;
    group.sentinels()[0].command(&["SENTINEL", "FAILOVER", RedisSentinel::MASTER]).unwrap();
    wait_at(&link, new).await;
    wait_works(&link).await;
    until("pushes of the new primary arrive", || {
        new.command(&["PUBLISH", CHANNEL, "hello"]).unwrap();
        !ears.messages().is_empty()
    })
    .await;
}

/// The old primary takes commands for some ten seconds more, until the sentinels make it a replica: they would be lost.
#[tokio::test]
async fn a_frozen_primary_that_goes_on_is_not_connected_to_after_a_switch() {
    let group = RedisSentinel::start(&[]).unwrap();
    let (old, new) = (&group.servers()[0], &group.servers()[1]);
    // Attempts to connect to what is frozen are longer than the pauses between them.
    let limit = Duration::from_millis(1500);
    let settings = LinkConfig { request_timeout: limit, ..settings(&group) };
    let (link, _ears) = connect_whole(settings).await;
    wait_at(&link, old).await;
    old.stop().unwrap();
    let switches = || *link.core().switches.borrow();
    let announced = async {
        while switches() == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let asks = async {
        loop {
            let _ = tokio::join!(port(&link), port(&link), port(&link));
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = within(announced) => {}
        () = asks => {}
    }
    old.cont().unwrap();
    let gone = bulk(&old.port().to_string());
    let end = Instant::now() + 2 * limit;
    while Instant::now() < end {
        let reply = port(&link).await;
        assert!(!matches!(&reply, Ok(Reply::Array(words)) if words[1] == gone), "at the old one");
        sleep(Duration::from_millis(5)).await;
    }
    wait_at(&link, new).await;
}

/// The sentinel that such a client has.
fn lonely(group: &RedisSentinel) -> (LinkConfig, &RedisServer) {
    let sentinel = &group.sentinels()[0];
    let topology = Topology::Sentinel {
        sentinels: vec![Endpoint::new("127.0.0.1", sentinel.port())],
        master: RedisSentinel::MASTER.to_owned(),
        username: None,
        password: None,
    };
    (LinkConfig { topology, ..settings(group) }, sentinel)
}

/// Nobody can subscribe to what the sentinel announces, and those who have are cut off. The
/// sentinels still hear each other.
fn silence(sentinel: &RedisServer) {
    let words = ["ACL", "SETUSER", "default", "resetchannels", "&__sentinel__:hello"];
    assert_eq!(sentinel.command(&words).unwrap(), "OK");
    sentinel.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).unwrap();
}

/// Another server becomes the primary. The old one is not told: it remains what it was, and so do
/// its connections.
async fn switch_in_silence(group: &RedisSentinel) {
    let (old, new) = (&group.servers()[0], &group.servers()[1]);
    let words = ["ACL", "SETUSER", "default", "-slaveof", "-replicaof"];
    assert_eq!(old.command(&words).unwrap(), "OK");
    group.sentinels()[0].command(&["SENTINEL", "FAILOVER", RedisSentinel::MASTER]).unwrap();
    // The driver asks another one each time.
    let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", RedisSentinel::MASTER];
    let named = format!("127.0.0.1\n{}", new.port());
    until("all sentinels name the new primary", || {
        group.sentinels().iter().all(|sentinel| sentinel.command(&words).unwrap() == named)
    })
    .await;
    assert_eq!(old.info("role").unwrap(), "master");
}

async fn follow_what_was_not_heard(link: &Link, group: &RedisSentinel) {
    let (old, new) = (&group.servers()[0], &group.servers()[1]);
    wait_at(link, old).await;
    assert_eq!(*link.core().switches.borrow(), 0, "it was heard");
    let sentinel = &group.sentinels()[0];
    assert_eq!(sentinel.command(&["ACL", "SETUSER", "default", "allchannels"]).unwrap(), "OK");
    wait_at(link, new).await;
    wait_works(link).await;
    assert_eq!(old.info("role").unwrap(), "master", "it was told by the old one");
}

#[tokio::test]
async fn a_switch_before_the_sentinels_are_watched_is_followed() {
    let group = RedisSentinel::start(&[]).unwrap();
    let (settings, sentinel) = lonely(&group);
    silence(sentinel);
    let (link, _ears) = connect_whole(settings).await;
    switch_in_silence(&group).await;
    follow_what_was_not_heard(&link, &group).await;
}

#[tokio::test]
async fn a_switch_while_the_sentinels_are_not_watched_is_followed() {
    let group = RedisSentinel::start(&[]).unwrap();
    let (settings, sentinel) = lonely(&group);
    let (link, _ears) = connect_whole(settings).await;
    let watched = || sentinel.command(&["CLIENT", "LIST"]).unwrap().contains(" sub=1 ");
    until("the sentinel is watched", watched).await;
    silence(sentinel);
    until("it is not watched any more", || !watched()).await;
    switch_in_silence(&group).await;
    follow_what_was_not_heard(&link, &group).await;
}

/// The driver asks any sentinel, which may not have heard yet of what another one announced.
#[tokio::test]
async fn a_sentinel_that_is_behind_does_not_send_us_back() {
    let group = RedisSentinel::start(&[]).unwrap();
    let (old, new) = (&group.servers()[0], &group.servers()[1]);
    let (settings, sentinel) = lonely(&group);
    let (link, _ears) = connect_whole(settings).await;
    until("the sentinel is watched", || {
        sentinel.command(&["CLIENT", "LIST"]).unwrap().contains(" sub=1 ")
    })
    .await;
    let listeners = || group.servers().iter().chain(&group.sentinels()[1..]);
    for listener in listeners() {
        let words = ["ACL", "SETUSER", "default", "-publish", "-slaveof", "-replicaof"];
        // Only the old primary must refuse to be told; a sentinel does not even know the command.
        let words = if listener.port() == old.port() { &words[..] } else { &words[..4] };
        assert_eq!(listener.command(words).unwrap(), "OK");
    }
    sentinel.command(&["SENTINEL", "FAILOVER", RedisSentinel::MASTER]).unwrap();
    until("it is announced", || *link.core().switches.borrow() == 1).await;
    for listener in listeners() {
        assert_eq!(listener.command(&["ACL", "SETUSER", "default", "+publish"]).unwrap(), "OK");
    }
    wait_at(&link, new).await;
    assert_eq!(old.info("role").unwrap(), "master", "it was told by the old one");
    assert_eq!(*link.core().switches.borrow(), 1, "it was told twice");
}

/// One that is wrong for good must not keep us from working.
#[tokio::test]
async fn a_sentinel_that_contradicts_the_others_is_heeded_once() {
    let (group, other) = (RedisSentinel::start(&[]).unwrap(), RedisSentinel::start(&[]).unwrap());
    let (first, odd) = (&group.sentinels()[0], &other.sentinels()[0]);
    let topology = Topology::Sentinel {
        sentinels: [first, odd]
            .map(|sentinel| Endpoint::new("127.0.0.1", sentinel.port()))
            .to_vec(),
        master: RedisSentinel::MASTER.to_owned(),
        username: None,
        password: None,
    };
    // The odd one may be watched at once, which costs the first subscription: no waiting for that.
    let (link, _ears) = connect(LinkConfig { topology, ..settings(&group) }).await;
    // The driver asks the first one and those whom it knows; which one is watched is left to chance.
    until("the odd one is watched", || {
        first.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).unwrap();
        *link.core().switches.borrow() != 0
    })
    .await;
    wait_at(&link, &group.servers()[0]).await;
    // Long enough for many, if each brought the next.
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        let _ = incr(&link, "n", Attempts::Repeatable).await;
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(*link.core().switches.borrow(), 1, "to and fro");
    wait_at(&link, &group.servers()[0]).await;
}

#[test]
fn servers_are_compared_where_that_is_possible() {
    let server = |host| Server::new(host, 6379);
    for (one, other, expected) in [
        ("10.0.0.1", "10.0.0.1", false),
        ("10.0.0.1", "10.0.0.2", true),
        ("::1", "0:0:0:0:0:0:0:1", false),
        ("one.example", "ONE.example", false),
        ("one.example", "two.example", true),
        ("one.example", "10.0.0.1", false),
    ] {
        assert_eq!(differ(&server(one), &server(other)), expected, "{one} {other}");
        assert_eq!(differ(&server(other), &server(one)), expected, "{other} {one}");
    }
    assert!(differ(&Server::new("10.0.0.1", 1), &Server::new("10.0.0.1", 2)));
}

#[tokio::test]
async fn a_dead_primary_is_replaced() {
    let group = RedisSentinel::start(&[]).unwrap();
    let (old, new) = (&group.servers()[0], &group.servers()[1]);
    let (link, ears) = connect_whole(settings(&group)).await;
    wait_works(&link).await;
    old.kill().unwrap();
    wait_at(&link, new).await;
    wait_works(&link).await;
    ears.wait_resubscribed(2).await;
    within(link.close()).await;
}

/// A primary that became a replica answers READONLY, and its connection never ends.
#[tokio::test]
async fn a_primary_that_became_read_only_is_left() {
    let group = RedisSentinel::start(&[]).unwrap();
    let old = &group.servers()[0];
    let mut settings = settings(&group);
    // As if a name pointed here.
    settings.topology = Topology::Standalone(Endpoint::new("127.0.0.1", old.port()));
    let (link, _ears) = connect(settings).await;
    wait_works(&link).await;
    let id = link.command("CLIENT", &list(["ID"])).await.unwrap();
    old.command(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    let error = incr(&link, "n", Attempts::Repeatable).await.unwrap_err();
    assert!(matches!(&error, LinkError::Server(text) if text.starts_with("READONLY")), "{error:?}");
    let deadline = Instant::now() + HANG;
    while link.command("CLIENT", &list(["ID"])).await.is_ok_and(|now| now == id) {
        assert!(Instant::now() < deadline, "it stays connected");
        sleep(Duration::from_millis(20)).await;
    }
    old.command(&["REPLICAOF", "NO", "ONE"]).unwrap();
    wait_works(&link).await;
}
