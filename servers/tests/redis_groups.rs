//! Cluster, Sentinel and TLS servers are whole when they are handed out.

use std::{
    io,
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use distlock_servers::{
    net::wait_until,
    proxy::Proxy,
    redis::{RedisCluster, RedisSentinel, RedisTls},
    resp::Connection,
};

#[test]
fn a_cluster_serves_every_slot_and_survives_a_master() -> io::Result<()> {
    let cluster = RedisCluster::start(&["--cluster-node-timeout", "1000"])?;
    let [first, second, third, replicas @ ..] = cluster.nodes() else { panic!("too few nodes") };
    assert_eq!(replicas.len(), 3);
    assert!(cluster.url().starts_with(&format!("redis-cluster://127.0.0.1:{},", first.port())));
    // "foo" is in slot 12182, "hello" in 866.
    assert_eq!(cluster.master_of("foo", first)?.port(), third.port());
    assert_eq!(cluster.master_of("hello", replicas.last().expect("three"))?.port(), first.port());
    assert_eq!(third.replicate(&["SET", "foo", "bar"])?, "OK");
    let moved = second.command(&["GET", "foo"]).unwrap_err().to_string();
    assert_eq!(moved, format!("MOVED 12182 127.0.0.1:{}", third.port()));
    for (master, replica) in cluster.nodes().iter().zip(replicas) {
        assert_eq!(cluster.replica_of(master)?.port(), replica.port());
    }
    assert_eq!((cluster.shard_of("foo")?, cluster.shard_of("hello")?), (2, 0));
    // "a" is in slot 15495, "b" in 3300, "c" in 7365.
    assert_eq!((cluster.shard_of("a")?, cluster.shard_of("b")?, cluster.shard_of("c")?), (2, 0, 1));
    let alias = Ipv4Addr::new(127, 0, 0, 2);
    let _proxy = Proxy::start_at(alias, second.port())?;
    let mut behind = Connection::at((alias, second.port()))?;
    let moved = behind.command(&["GET", "foo"]).unwrap_err().to_string();
    assert_eq!(moved, format!("MOVED 12182 {alias}:{}", third.port()), "clients stay with proxies");
    let slots = behind.command(&["CLUSTER", "SLOTS"])?.to_string();
    assert!(slots.contains(&format!("{alias}\n{}", third.port())), "{slots}");
    assert!(!slots.contains("127.0.0.1"), "{slots}");

    let heir = cluster.replica_of(third)?;
    third.kill()?;
    wait_until("the replica takes over", Duration::from_secs(60), || {
        let role = heir.info("role");
        let master = cluster.master_of("foo", first);
        Ok(role.is_ok_and(|role| role == "master")
            && master.is_ok_and(|master| master.port() == heir.port()))
    })?;
    third.restart()?;
    cluster.wait_ready()?;
    assert_eq!(heir.command(&["GET", "foo"])?, "bar");
    assert_eq!(cluster.replica_of(heir)?.port(), third.port());
    Ok(())
}

#[test]
fn sentinels_promote_the_replica_of_a_dead_master() -> io::Result<()> {
    let group = RedisSentinel::start(&[])?;
    let [master, replica] = group.servers() else { panic!("not two servers") };
    assert_eq!(group.sentinels().len(), 3);
    assert!(group.url().ends_with("/?master=distlock"));
    assert_eq!(group.master()?.port(), master.port());
    let (alias, port) = (Ipv4Addr::new(127, 0, 0, 2), group.sentinels()[0].port());
    let _proxy = Proxy::start_at(alias, port)?;
    let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", RedisSentinel::MASTER];
    let told = Connection::at((alias, port))?.command(&question)?.to_string();
    assert_eq!(told, format!("{alias}\n{}", master.port()), "clients stay with proxies");
    assert_eq!(master.replicate(&["SET", "key", "value"])?, "OK");
    master.kill()?;
    wait_until("the replica takes over", Duration::from_secs(60), || {
        // A Sentinel cuts all connections of the server that it promotes.
        let role = replica.info("role");
        Ok(role.is_ok_and(|role| role == "master")
            && group.master().is_ok_and(|master| master.port() == replica.port()))
    })?;
    wait_until("the value is there", Duration::from_secs(10), || {
        Ok(replica.command(&["GET", "key"]).is_ok_and(|value| value == "value"))
    })?;
    Ok(())
}

#[test]
fn a_tls_server_is_known_by_its_authority_alone() -> io::Result<()> {
    let tls = RedisTls::start(&[])?;
    assert_eq!(tls.url(), format!("rediss://localhost:{}", tls.server().port()));
    let output = ping(&tls, "localhost", &tls.ca())?;
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "PONG");
    let output = ping(&tls, "127.0.0.1", &tls.ca())?;
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "PONG");
    let output = ping(&tls, "localhost", &tls.other_ca())?;
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("certificate verify failed"));
    assert_eq!(tls.server().command(&["CONFIG", "GET", "port"])?, "port\n0");
    TcpStream::connect(("127.0.0.1", tls.server().port()))?;
    Ok(())
}

fn ping(tls: &RedisTls, host: &str, ca: &Path) -> io::Result<Output> {
    Command::new("redis-cli")
        .args(["--tls", "-h", host, "-p", &tls.server().port().to_string(), "--cacert"])
        .arg(ca)
        .arg("PING")
        .output()
}
