//! Cluster and TLS servers of etcd are whole when they are handed out.

use std::{
    io,
    path::Path,
    process::{Command, Output},
};

use distlock_servers::etcd::{EtcdCluster, EtcdTls};

#[test]
fn a_cluster_survives_its_leader() -> io::Result<()> {
    let cluster = EtcdCluster::start(&[])?;
    let members = cluster.members();
    assert_eq!(members.len(), 3);
    assert!(cluster.url().starts_with(&format!("etcd://127.0.0.1:{},", members[0].port())));
    let old = cluster.leader()?;
    members[old].etcdctl(&["put", "key", "value"])?;
    members[old].kill()?;
    let new = cluster.wait_other_leader(old)?;
    let get = ["get", "key", "--print-value-only"];
    assert_eq!(members[new].etcdctl(&get)?, "value\n");
    members[old].restart()?;
    assert_eq!(members[old].etcdctl(&get)?, "value\n");

    members[new].stop()?;
    let third = cluster.wait_other_leader(new)?;
    members[new].cont()?;
    cluster.wait_ready()?;
    assert_eq!(members[third].etcdctl(&get)?, "value\n");

    for member in members {
        member.kill()?;
    }
    assert_eq!(cluster.leader().unwrap_err().kind(), io::ErrorKind::NotFound);
    cluster.restart()?;
    assert_eq!(members[old].etcdctl(&get)?, "value\n");
    Ok(())
}

#[test]
fn a_leader_that_is_asked_to_end_hands_over() -> io::Result<()> {
    let cluster = EtcdCluster::start(&[])?;
    let old = cluster.leader()?;
    cluster.members()[old].terminate()?;
    cluster.wait_other_leader(old)?;
    Ok(())
}

#[test]
fn a_tls_server_knows_its_clients_and_its_users() -> io::Result<()> {
    let tls = EtcdTls::start(&["--auth-token-ttl", "2"])?;
    assert_eq!(tls.url(), format!("etcds://localhost:{}", tls.server().port()));
    let inside = format!("{}key", tls.prefix());
    tls.etcdctl(&["put", &inside, "value"])?;
    assert_eq!(tls.etcdctl(&["get", &inside, "--print-value-only"])?, "value\n");
    for denied in [["get", "key"], ["get", "locks"]] {
        let error = tls.etcdctl(&denied).unwrap_err().to_string();
        assert!(error.contains("permission denied"), "{error}");
    }
    assert_eq!(tls.server().etcdctl(&["get", &inside, "--print-value-only"])?, "value\n");
    tls.server().restart()?;
    assert_eq!(tls.etcdctl(&["get", &inside, "--print-value-only"])?, "value\n");
    assert!(!format!("{tls:?}").contains(tls.password()));

    let user = format!("--user={}:{}", tls.user(), tls.password());
    let get = |endpoint: &str, ca: &Path, certificate: &Path, key: &Path, user: &[&str]| {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--command-timeout=2s", "--dial-timeout=2s", "--endpoints", endpoint])
            .arg("--cacert")
            .arg(ca)
            .arg("--cert")
            .arg(certificate)
            .arg("--key")
            .arg(key)
            .args(user)
            .args(["get", &inside])
            .output()?;
        io::Result::<Output>::Ok(output)
    };
    let (ca, certificate, key) = (tls.ca(), tls.client_certificate(), tls.client_key());
    let endpoint = tls.endpoint();
    assert!(get(&endpoint, &ca, &certificate, &key, &[&user])?.status.success());
    let numbers = endpoint.replace("localhost", "127.0.0.1");
    assert!(get(&numbers, &ca, &certificate, &key, &[&user])?.status.success());
    assert!(!get(&endpoint, &ca, &certificate, &key, &[])?.status.success(), "nobody got in");
    assert!(!get(&endpoint, &tls.other_ca(), &certificate, &key, &[&user])?.status.success());
    let stranger = get(&endpoint, &ca, &tls.other_certificate(), &tls.other_key(), &[&user])?;
    assert!(!stranger.status.success());
    let plain = Command::new("etcdctl")
        .args(["--command-timeout=2s", "--dial-timeout=2s", "--endpoints"])
        .arg(endpoint.replace("https", "http"))
        .args(["get", &inside])
        .output()?;
    assert!(!plain.status.success());
    Ok(())
}
