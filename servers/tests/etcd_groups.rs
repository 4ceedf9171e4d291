//! A cluster of etcd is whole when it is handed out.

use std::io;

use distlock_servers::etcd::EtcdCluster;

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
