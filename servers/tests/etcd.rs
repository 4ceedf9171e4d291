//! An etcd server does what its owner says, and goes with it.

use std::{fs, io, net::TcpStream, time::Duration};

use distlock_servers::{etcd::EtcdServer, net::wait_until};

#[test]
fn it_answers_and_counts() -> io::Result<()> {
    let server = EtcdServer::start(&[])?;
    assert_eq!(server.endpoint(), format!("http://127.0.0.1:{}", server.port()));
    assert_eq!(server.url(), format!("etcd://127.0.0.1:{}", server.port()));
    TcpStream::connect(("127.0.0.1", server.port()))?;
    let puts = || server.metric_where("grpc_server_handled_total", r#"grpc_method="Put""#);
    assert!(puts()? < 1.0);
    assert_eq!(server.etcdctl(&["put", "key", "value"])?, "OK\n");
    assert_eq!(server.etcdctl(&["get", "key", "--print-value-only"])?, "value\n");
    assert_eq!(puts()?.round() as u64, 1);
    assert!(0.0 < server.metric("etcd_server_is_leader")?);
    assert!(1.0 < server.metric("grpc_server_started_total")?);
    let unknown = server.metric("no_such_metric").unwrap_err();
    assert_eq!(unknown.kind(), io::ErrorKind::NotFound);
    let refused = server.etcdctl(&["lease", "revoke", "1"]).unwrap_err().to_string();
    assert!(refused.contains("lease not found"), "{refused}");
    Ok(())
}

#[test]
fn two_servers_do_not_meet() -> io::Result<()> {
    let (left, right) = (EtcdServer::start(&[])?, EtcdServer::start(&[])?);
    left.etcdctl(&["put", "key", "value"])?;
    assert_ne!(left.port(), right.port());
    assert_eq!(right.etcdctl(&["get", "key"])?, "");
    Ok(())
}

#[test]
fn data_outlasts_a_stop_a_kill_and_an_end() -> io::Result<()> {
    let server = EtcdServer::start(&[])?;
    let get = || server.etcdctl(&["get", "key", "--print-value-only"]);
    server.etcdctl(&["put", "key", "value"])?;
    server.stop()?;
    assert!(server.metrics().is_err());
    server.cont()?;
    server.wait_ready()?;
    assert_eq!(get()?, "value\n");
    let pid = server.pid();
    server.kill()?;
    assert!(TcpStream::connect(("127.0.0.1", server.port())).is_err());
    assert!(server.metrics().is_err());
    server.restart()?;
    assert_ne!(server.pid(), pid);
    assert_eq!(get()?, "value\n");
    server.terminate()?;
    assert!(TcpStream::connect(("127.0.0.1", server.port())).is_err());
    server.restart()?;
    assert_eq!(get()?, "value\n");
    Ok(())
}

#[test]
fn a_tool_that_runs_for_long_is_told_when_to_end() -> io::Result<()> {
    let server = EtcdServer::start(&[])?;
    let first = server.spawn_etcdctl(&["lock", "name"])?;
    let holds = |log: String| log.contains("name/");
    let wait = |what, log: &dyn Fn() -> String| {
        wait_until(what, Duration::from_secs(30), || Ok(holds(log())))
    };
    wait("the first has the lock", &|| first.log())?;
    let second = server.spawn_etcdctl(&["lock", "name", "echo", "name/got"])?;
    wait_until("the second waits", Duration::from_secs(30), || {
        Ok(server.metric("etcd_debugging_mvcc_watcher_total")? > 0.0)
    })?;
    assert!(!holds(second.log()));
    first.terminate()?;
    wait("the second has the lock", &|| second.log())?;
    wait_until("the second ends", Duration::from_secs(30), || Ok(!second.is_alive()?))
}

#[test]
fn a_refused_argument_is_told() {
    let error = EtcdServer::start(&["--no-such-option"]).unwrap_err();
    assert!(error.to_string().contains("no-such-option"), "{error}");
}

#[test]
fn dropping_it_frees_port_and_folder() -> io::Result<()> {
    let server = EtcdServer::start(&[])?;
    let (port, dir) = (server.port(), server.dir().to_owned());
    assert!(fs::exists(&dir)?);
    drop(server);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(!fs::exists(&dir)?);
    Ok(())
}
