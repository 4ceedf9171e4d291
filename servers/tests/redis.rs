//! A Redis server does what its owner says, and goes with it.

use std::{
    env, fs,
    io::{self, BufRead, BufReader},
    net::TcpStream,
    process::{Command, Stdio},
    time::Duration,
};

use distlock_servers::{net::wait_until, redis::RedisServer, resp::Connection};

#[test]
fn it_answers_on_port_and_socket() -> io::Result<()> {
    let server = RedisServer::start(&[])?;
    assert_eq!(server.command(&["PING"])?, "PONG");
    assert_eq!(server.info("process_id")?, server.pid().to_string());
    assert_eq!(server.info("tcp_port")?, server.port().to_string());
    assert_eq!(server.url(), format!("redis://127.0.0.1:{}", server.port()));
    let mut connection = Connection::tcp(server.port())?;
    connection.command(&["SET", "key", "value"])?;
    assert_eq!(server.command(&["GET", "key"])?, "value");
    assert_eq!(server.command(&["DEBUG", "SLEEP", "0"])?, "OK");
    assert!(server.command(&["NONSENSE"]).unwrap_err().to_string().starts_with("ERR unknown"));
    Ok(())
}

#[test]
fn two_servers_do_not_meet() -> io::Result<()> {
    let (left, right) = (RedisServer::start(&[])?, RedisServer::start(&[])?);
    left.command(&["SET", "key", "value"])?;
    assert_ne!(left.port(), right.port());
    assert_eq!(right.command(&["GET", "key"])?, "");
    Ok(())
}

#[test]
fn a_stopped_server_goes_on_where_it_stood() -> io::Result<()> {
    let server = RedisServer::start(&[])?;
    let mut connection = server.connection()?;
    connection.command(&["SET", "key", "value"])?;
    server.stop()?;
    server.cont()?;
    assert_eq!(connection.command(&["GET", "key"])?.to_string(), "value");
    Ok(())
}

#[test]
fn a_killed_server_comes_back_empty_on_its_port() -> io::Result<()> {
    let server = RedisServer::start(&[])?;
    let pid = server.pid();
    server.command(&["SET", "key", "value"])?;
    server.kill()?;
    assert!(TcpStream::connect(("127.0.0.1", server.port())).is_err());
    assert!(server.command(&["PING"]).is_err());
    server.restart()?;
    assert_ne!(server.pid(), pid);
    assert_eq!(Connection::tcp(server.port())?.command(&["DBSIZE"])?.to_string(), "0");
    Ok(())
}

#[test]
fn a_persistent_server_comes_back_with_its_data() -> io::Result<()> {
    let server = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"])?;
    server.command(&["SET", "key", "value"])?;
    server.restart()?;
    assert_eq!(server.command(&["GET", "key"])?, "value");
    Ok(())
}

#[test]
fn a_password_keeps_others_out() -> io::Result<()> {
    let server = RedisServer::start(&["--requirepass", "secret"])?;
    assert_eq!(server.command(&["PING"])?, "PONG");
    let refused = Connection::tcp(server.port())?.command(&["PING"]).unwrap_err();
    assert!(refused.to_string().starts_with("NOAUTH"), "{refused}");
    assert!(!format!("{server:?}").contains("secret"));
    Ok(())
}

#[test]
fn a_refused_argument_is_told() {
    let error = RedisServer::start(&["--no-such-option", "yes"]).unwrap_err();
    assert!(error.to_string().contains("no-such-option"), "{error}");
}

#[test]
fn dropping_it_frees_port_and_folder() -> io::Result<()> {
    let server = RedisServer::start(&[])?;
    let (port, dir) = (server.port(), server.dir().to_owned());
    assert!(fs::exists(&dir)?);
    drop(server);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(!fs::exists(&dir)?);
    Ok(())
}

/// The test runs itself once more as the owner that gets killed.
#[test]
fn a_killed_owner_takes_its_server_along() -> io::Result<()> {
    const OWNER: &str = "DISTLOCK_SERVERS_OWNER";
    if env::var_os(OWNER).is_some() {
        let server = RedisServer::start(&[])?;
        server.stop()?;
        eprintln!("\n{OWNER} {} {}", server.pid(), server.dir().display());
        io::stdin().read_line(&mut String::new())?;
        return Ok(());
    }
    let mut owner = Command::new(env::current_exe()?)
        .args(["--exact", "a_killed_owner_takes_its_server_along", "--nocapture"])
        .env(OWNER, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(owner.stderr.take().expect("stderr is piped"));
    let told = output
        .lines()
        .find_map(|line| Some(line.ok()?.strip_prefix(OWNER)?.trim().to_owned()))
        .expect("the owner tells of its server");
    let (pid, dir) = told.split_once(' ').expect("process id and folder");
    assert!(fs::exists(dir)?);
    owner.kill()?;
    owner.wait()?;
    // The folder goes last, when the server has been seen dead.
    wait_until("the folder is gone", Duration::from_secs(30), || Ok(!fs::exists(dir)?))?;
    let probe = Command::new("sh").args(["-c", "kill -0 $0 2>/dev/null", pid]).status()?;
    assert!(!probe.success(), "server {pid} survived");
    Ok(())
}
