//! The proxy that knows only bytes, each fault on a server that echoes, and all of them on etcd.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use distlock_servers::{
    etcd::{EtcdServer, EtcdTls},
    net::wait_until,
    process::{Process, temp_dir},
    proxy::{Direction, RawProxy},
};

const LIMIT: Duration = Duration::from_secs(20);

/// Long enough for what must not arrive to arrive.
const BLINK: Duration = Duration::from_millis(30);

/// Sends back whatever comes, as long as the test's process lives.
fn echo() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    port
}

fn start() -> (RawProxy, TcpStream) {
    let proxy = RawProxy::start(echo()).unwrap();
    let stream = connect(&proxy);
    (proxy, stream)
}

fn connect(proxy: &RawProxy) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// What comes back for `text`, whole.
fn ask(stream: &mut TcpStream, text: &str) -> io::Result<String> {
    stream.write_all(text.as_bytes())?;
    read(stream, text.len())
}

fn read(stream: &mut TcpStream, length: usize) -> io::Result<String> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok(String::from_utf8(bytes).unwrap())
}

/// Whether nothing comes for a moment.
fn is_quiet(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(BLINK)).unwrap();
    let result = stream.read(&mut [0]);
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let quiet = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
    result.is_err_and(|error| quiet.contains(&error.kind()))
}

#[tokio::test]
async fn without_a_fault_everything_passes_and_is_counted() {
    let (proxy, mut stream) = start();
    assert_eq!(ask(&mut stream, "hello").unwrap(), "hello");
    proxy.wait_accepted(1).await.unwrap();
    proxy.wait_bytes(Direction::ToClient, 5).await.unwrap();
    assert_eq!((proxy.bytes(Direction::ToServer), proxy.bytes(Direction::ToClient)), (5, 5));
    assert_eq!((proxy.accepted(), proxy.connections()), (1, 1));
    let long = "0123456789".repeat(50_000);
    stream.write_all(long.as_bytes()).unwrap();
    // The end of one side is passed on, and the other goes on until it ends too.
    stream.shutdown(Shutdown::Write).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert!(all == long);
    proxy.wait_closed().await.unwrap();
    assert_eq!((proxy.accepted(), proxy.connections()), (1, 0));
}

#[tokio::test]
async fn what_is_held_arrives_when_it_is_released() {
    for direction in [Direction::ToClient, Direction::ToServer] {
        let (proxy, mut stream) = start();
        ask(&mut stream, "a").unwrap();
        proxy.hold(direction, true);
        stream.write_all(b"one").unwrap();
        stream.write_all(b"two").unwrap();
        proxy.wait_bytes(direction, 7).await.unwrap();
        assert!(is_quiet(&mut stream));
        let back = if direction == Direction::ToClient { 7 } else { 1 };
        assert_eq!(proxy.bytes(Direction::ToClient), back);
        proxy.hold(direction, false);
        assert_eq!(read(&mut stream, 6).unwrap(), "onetwo");
    }
}

#[tokio::test]
async fn a_black_hole_hides_ends_and_lets_new_connections_wait() {
    let (proxy, mut stream) = start();
    ask(&mut stream, "a").unwrap();
    proxy.blackhole(true);
    stream.shutdown(Shutdown::Write).unwrap();
    let mut later = connect(&proxy);
    later.write_all(b"b").unwrap();
    proxy.wait_accepted(2).await.unwrap();
    assert!(is_quiet(&mut stream) && is_quiet(&mut later));
    proxy.blackhole(false);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(read(&mut later, 1).unwrap(), "b");
}

#[tokio::test]
async fn silence_is_for_good_and_for_open_connections_alone() {
    let (proxy, mut stream) = start();
    ask(&mut stream, "a").unwrap();
    proxy.silence(Direction::ToClient);
    stream.write_all(b"b").unwrap();
    proxy.wait_bytes(Direction::ToClient, 2).await.unwrap();
    assert!(is_quiet(&mut stream));
    let mut later = connect(&proxy);
    assert_eq!(ask(&mut later, "c").unwrap(), "c");
    assert_eq!(proxy.connections(), 2);
    proxy.silence(Direction::ToServer);
    drop((stream, later));
    proxy.wait_closed().await.unwrap();
}

#[tokio::test]
async fn a_cut_ends_and_a_reset_is_an_error() {
    let (proxy, mut stream) = start();
    ask(&mut stream, "a").unwrap();
    proxy.cut();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    let mut stream = connect(&proxy);
    ask(&mut stream, "a").unwrap();
    proxy.reset();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    proxy.wait_closed().await.unwrap();
    // Also those that have not got through to the server.
    proxy.blackhole(true);
    let mut stream = connect(&proxy);
    proxy.wait_accepted(3).await.unwrap();
    proxy.reset();
    assert!(stream.read(&mut [0]).is_err());
}

#[tokio::test]
async fn a_cut_can_wait_for_its_byte() {
    let (proxy, mut stream) = start();
    ask(&mut stream, "a").unwrap();
    proxy.cut_after(Direction::ToClient, 7);
    assert_eq!(ask(&mut stream, "1234").unwrap(), "1234");
    stream.write_all(b"5678").unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "567");
    let mut again = connect(&proxy);
    assert_eq!(ask(&mut again, "12345678").unwrap(), "12345678", "it cuts once");
    proxy.cut_after(Direction::ToServer, 0);
    again.write_all(b"never").unwrap();
    assert_eq!(again.read(&mut [0]).unwrap(), 0);
}

#[test]
fn slices_come_in_order_and_whole() {
    let (proxy, mut stream) = start();
    proxy.slice(3);
    let long = "0123456789".repeat(100);
    assert_eq!(ask(&mut stream, &long).unwrap(), long);
}

#[test]
fn refused_connections_end_at_once() {
    let (proxy, mut stream) = start();
    ask(&mut stream, "a").unwrap();
    proxy.refuse(true);
    assert!(ask(&mut connect(&proxy), "b").is_err());
    ask(&mut stream, "a").unwrap();
    proxy.refuse(false);
    ask(&mut connect(&proxy), "b").unwrap();
}

#[test]
fn delays_add_up() {
    let (proxy, mut stream) = start();
    proxy.delay(Direction::ToServer, BLINK);
    proxy.delay(Direction::ToClient, BLINK);
    #[expect(clippy::disallowed_methods, reason = "a lower bound on real time is what is tested")]
    let start = Instant::now();
    ask(&mut stream, "a").unwrap();
    assert!(2 * BLINK <= start.elapsed());
}

/// Runs `etcdctl` through the proxy, with what the server's own needs.
fn etcdctl(endpoint: &str, args: &[&str]) -> Process {
    let endpoint = format!("--endpoints={endpoint}");
    let line = [&["ETCDCTL_API=3", "etcdctl", &endpoint], args].concat();
    let line: Vec<_> = line.into_iter().map(str::to_owned).collect();
    Process::start("env", &line, temp_dir("proxy-etcdctl").unwrap()).unwrap()
}

fn wait_log(client: &Process, what: &str) {
    wait_until(what, LIMIT, || Ok(client.log().contains(what)))
        .unwrap_or_else(|error| panic!("{error}: {}", client.log()));
}

#[tokio::test]
async fn a_watch_of_etcd_survives_what_can_be_survived() {
    let server = EtcdServer::start(&[]).unwrap();
    let proxy = RawProxy::start(server.port()).unwrap();
    let endpoint = format!("http://127.0.0.1:{}", proxy.port());
    let watch = etcdctl(&endpoint, &["watch", "key"]);
    wait_until("it watches", LIMIT, || {
        Ok(0.0 < server.metric("etcd_debugging_mvcc_watcher_total")?)
    })
    .unwrap();
    let put = |value| server.etcdctl(&["put", "key", value]).unwrap();
    put("first");
    wait_log(&watch, "first");

    let seen = proxy.bytes(Direction::ToClient);
    proxy.hold(Direction::ToClient, true);
    put("held");
    proxy.wait_bytes(Direction::ToClient, seen + 1).await.unwrap();
    thread::sleep(BLINK);
    assert!(!watch.log().contains("held"));
    proxy.hold(Direction::ToClient, false);
    wait_log(&watch, "held");

    for (cut, value) in ["whole", "reset", "frame"].into_iter().zip(["second", "third", "fourth"]) {
        let made = proxy.accepted();
        match cut {
            "whole" => proxy.cut(),
            "reset" => proxy.reset(),
            _ => proxy.cut_after(Direction::ToClient, 5),
        }
        put(value);
        wait_log(&watch, value);
        assert!(made < proxy.accepted(), "{cut}: the client did not connect anew");
    }
}

#[test]
fn tls_passes_too() {
    let tls = EtcdTls::start(&[]).unwrap();
    let proxy = RawProxy::start(tls.server().port()).unwrap();
    let file = |name, path: std::path::PathBuf| format!("--{name}={}", path.display());
    let client = etcdctl(
        &format!("https://localhost:{}", proxy.port()),
        &[
            &file("cacert", tls.ca()),
            &file("cert", tls.client_certificate()),
            &file("key", tls.client_key()),
            &format!("--user={}:{}", tls.user(), tls.password()),
            "put",
            &format!("{}key", tls.prefix()),
            "value",
        ],
    );
    wait_log(&client, "OK");
    assert!(0 < proxy.bytes(Direction::ToServer));
}
