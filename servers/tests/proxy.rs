//! The fault proxy, each fault on a real server.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    time::{Duration, Instant},
};

use distlock_servers::{
    net::wait_until,
    proxy::{Direction, Matcher, Proxy},
    redis::RedisServer,
    resp::{Connection, Reply},
};

fn start() -> (RedisServer, Proxy, Connection) {
    let server = RedisServer::start(&[]).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let connection = Connection::tcp(proxy.port()).unwrap();
    (server, proxy, connection)
}

fn is_cut(result: io::Result<Reply>) -> bool {
    result.is_err_and(|error| error.kind() != io::ErrorKind::Other)
}

fn text(text: &str) -> Reply {
    Reply::Text(text.to_owned())
}

#[test]
fn without_a_fault_everything_passes_and_is_counted() {
    let (_server, proxy, mut connection) = start();
    assert_eq!(connection.command(&["SET", "a", "1"]).unwrap(), text("OK"));
    assert_eq!(connection.command(&["get", "a"]).unwrap(), text("1"));
    assert!(connection.command(&["NONSENSE"]).is_err());
    assert_eq!(connection.command(&["GET", "a"]).unwrap(), text("1"));
    assert_eq!(proxy.count("GET"), 2);
    assert_eq!(proxy.count(Matcher::any()), 4);
    assert_eq!(proxy.count(Matcher::containing("ONSEN")), 1);
    assert_eq!(proxy.count(Matcher::command("set a").and("SET")), 1);
    assert_eq!(proxy.connections(), 1);
}

#[test]
fn a_lost_reply_is_of_a_request_that_was_executed() {
    let (server, proxy, mut connection) = start();
    proxy.drop_reply(2, "INCR");
    assert_eq!(connection.command(&["INCR", "n"]).unwrap(), Reply::Integer(1));
    assert!(is_cut(connection.command(&["INCR", "n"])));
    assert_eq!(server.command(&["GET", "n"]).unwrap(), "2");
    let mut again = Connection::tcp(proxy.port()).unwrap();
    assert_eq!(again.command(&["INCR", "n"]).unwrap(), Reply::Integer(3), "a rule acts once");
}

#[test]
fn a_lost_request_is_not_executed() {
    let (server, proxy, mut connection) = start();
    proxy.drop_request(1, "INCR");
    assert!(is_cut(connection.command(&["INCR", "n"])));
    assert_eq!(server.command(&["EXISTS", "n"]).unwrap(), "0");
    assert_eq!(proxy.count("INCR"), 1);
}

#[tokio::test]
async fn a_silent_connection_stays_open() {
    let (server, proxy, mut connection) = start();
    proxy.silence_reply(1, "INCR");
    let hung = tokio::task::spawn_blocking(move || connection.command(&["INCR", "n"]));
    proxy.wait_count("INCR", 1).await.unwrap();
    wait_until("it is executed", Duration::from_secs(10), || {
        Ok(server.command(&["GET", "n"])? == "1")
    })
    .unwrap();
    assert!(!hung.is_finished());
    assert_eq!(proxy.connections(), 1);
    proxy.cut();
    assert!(is_cut(hung.await.unwrap()));
}

#[test]
fn a_late_reply_holds_up_its_own_connection_alone() {
    let (_server, proxy, mut connection) = start();
    proxy.late_reply(2, "INCR", Duration::from_millis(60));
    #[expect(clippy::disallowed_methods, reason = "a lower bound on real time is what is tested")]
    let start = std::time::Instant::now();
    assert_eq!(connection.command(&["INCR", "n"]).unwrap(), Reply::Integer(1));
    let late = std::thread::spawn(move || connection.command(&["INCR", "n"]));
    let mut other = Connection::tcp(proxy.port()).unwrap();
    wait_until("it is executed", Duration::from_secs(10), || {
        Ok(other.command(&["GET", "n"])? == text("2"))
    })
    .unwrap();
    assert_eq!(late.join().unwrap().unwrap(), Reply::Integer(2));
    assert!(Duration::from_millis(60) <= start.elapsed());
}

#[test]
fn a_duplicate_is_executed_but_answered_once() {
    let (server, proxy, mut connection) = start();
    proxy.duplicate(1, "INCR");
    assert_eq!(connection.command(&["INCR", "n"]).unwrap(), Reply::Integer(1));
    assert_eq!(connection.command(&["PING"]).unwrap(), text("PONG"), "no reply is shifted");
    assert_eq!(server.command(&["GET", "n"]).unwrap(), "2");
}

#[test]
fn delays_add_up() {
    let (_server, proxy, mut connection) = start();
    proxy.delay(Direction::ToServer, Duration::from_millis(30));
    proxy.delay(Direction::ToClient, Duration::from_millis(30));
    #[expect(clippy::disallowed_methods, reason = "a lower bound on real time is what is tested")]
    let start = Instant::now();
    connection.command(&["PING"]).unwrap();
    assert!(Duration::from_millis(60) <= start.elapsed());
}

#[test]
fn what_a_black_hole_swallowed_arrives_when_it_is_gone() {
    let (server, proxy, mut connection) = start();
    connection.command(&["PING"]).unwrap();
    proxy.blackhole(true);
    let mut later = Connection::tcp(proxy.port()).unwrap();
    let waiting = std::thread::spawn(move || {
        (connection.command(&["INCR", "n"]).unwrap(), later.command(&["PING"]).unwrap())
    });
    wait_until("the request is seen", Duration::from_secs(10), || Ok(proxy.count("INCR") == 1))
        .unwrap();
    assert_eq!(server.command(&["EXISTS", "n"]).unwrap(), "0");
    proxy.blackhole(false);
    assert_eq!(waiting.join().unwrap(), (Reply::Integer(1), text("PONG")));
}

#[test]
fn refused_connections_end_at_once() {
    let (_server, proxy, mut connection) = start();
    connection.command(&["PING"]).unwrap();
    proxy.refuse(true);
    let refused = Connection::tcp(proxy.port()).and_then(|mut new| new.command(&["PING"]));
    assert!(is_cut(refused));
    connection.command(&["PING"]).unwrap();
    proxy.refuse(false);
    Connection::tcp(proxy.port()).unwrap().command(&["PING"]).unwrap();
}

#[test]
fn subscribers_can_be_cut_and_their_messages_lost() {
    let (server, proxy, mut connection) = start();
    let mut subscriber = Connection::tcp(proxy.port()).unwrap();
    subscriber.command(&["SUBSCRIBE", "a", "b"]).unwrap();
    subscriber.read().unwrap();
    proxy.drop_messages(true);
    server.command(&["PUBLISH", "a", "lost"]).unwrap();
    // Its answer comes after the message would have.
    subscriber.command(&["PING"]).unwrap();
    proxy.drop_messages(false);
    server.command(&["PUBLISH", "b", "heard"]).unwrap();
    let message = Reply::Array(vec![text("message"), text("b"), text("heard")]);
    assert_eq!(subscriber.read().unwrap(), message);
    assert_eq!(proxy.cut_where("SUBSCRIBE"), 1);
    assert!(is_cut(subscriber.read()));
    connection.command(&["PING"]).unwrap();
}

#[test]
fn requests_in_one_packet_are_told_apart() {
    let (_server, proxy, mut connection) = start();
    // One reply of several frames, then the next request's.
    connection.command(&["RPUSH", "l", "1", "2"]).unwrap();
    let list = connection.command(&["LRANGE", "l", "0", "-1"]).unwrap();
    assert_eq!(list, Reply::Array(vec![text("1"), text("2")]));
    let nested = connection.command(&["EVAL", "return {1,{'x',false},{}}", "0"]).unwrap();
    assert!(matches!(nested, Reply::Array(list) if list.len() == 3));
    assert_eq!(proxy.count("LRANGE"), 1);
}

#[test]
fn a_frame_can_be_cut_in_its_middle() {
    let (server, proxy, mut connection) = start();
    proxy.cut_reply(2, "ECHO", 6);
    assert_eq!(connection.command(&["ECHO", "whole"]).unwrap(), text("whole"));
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    stream.write_all(b"*2\r\n$4\r\nECHO\r\n$5\r\nwhole\r\n").unwrap();
    let mut part = String::new();
    stream.read_to_string(&mut part).unwrap();
    assert_eq!(part, "$5\r\nwh", "and what comes before it is whole");
    proxy.cut_request(1, "INCR", 9);
    assert!(is_cut(connection.command(&["INCR", "n"])));
    assert_eq!(server.command(&["EXISTS", "n"]).unwrap(), "0");
    let mut again = Connection::tcp(proxy.port()).unwrap();
    assert_eq!(again.command(&["INCR", "n"]).unwrap(), Reply::Integer(1), "a rule acts once");
}

#[test]
fn a_reset_is_an_error_at_once() {
    let (_server, proxy, mut connection) = start();
    connection.command(&["PING"]).unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    stream.write_all(b"PING\r\n").unwrap();
    stream.read_exact(&mut [0; 7]).unwrap();
    proxy.reset();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(is_cut(connection.command(&["PING"])));
    wait_until("they are gone", Duration::from_secs(10), || Ok(proxy.connections() == 0)).unwrap();
}

#[test]
fn slices_are_put_together_again() {
    let (_server, proxy, mut connection) = start();
    proxy.slice(1);
    let long = "0123456789".repeat(100);
    assert_eq!(connection.command(&["ECHO", &long]).unwrap(), text(&long));
    assert_eq!(proxy.count("ECHO"), 1);
}

#[test]
fn what_was_ordered_does_not_happen_after_the_heal_and_the_past_can_be_forgotten() {
    let (_server, proxy, mut connection) = start();
    proxy.drop_reply(1, "INCR");
    proxy.delay(Direction::ToServer, Duration::from_secs(600));
    proxy.refuse(true);
    proxy.blackhole(true);
    proxy.heal();
    assert_eq!(connection.command(&["INCR", "n"]).unwrap(), Reply::Integer(1));
    let mut other = Connection::tcp(proxy.port()).unwrap();
    assert_eq!(other.command(&["INCR", "n"]).unwrap(), Reply::Integer(2));
    assert_eq!(proxy.count("INCR"), 2);
    proxy.forget();
    assert_eq!(proxy.count("INCR"), 0);
    assert_eq!(other.command(&["INCR", "n"]).unwrap(), Reply::Integer(3));
    assert_eq!(proxy.count("INCR"), 1);
}

#[test]
fn an_address_that_does_not_fit_in_the_place_of_another_is_refused() {
    let server = RedisServer::start(&[]).unwrap();
    let error = Proxy::start_at(Ipv4Addr::new(127, 0, 0, 10), server.port()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    let proxy = Proxy::start_at(Ipv4Addr::new(127, 0, 0, 9), server.port()).unwrap();
    assert_eq!(proxy.port(), server.port());
    let mut connection = Connection::at((Ipv4Addr::new(127, 0, 0, 9), proxy.port())).unwrap();
    let told = connection.command(&["ECHO", "x127.0.0.1:1,127.0.0.2,127.0.0.1"]).unwrap();
    assert_eq!(told, text("x127.0.0.9:1,127.0.0.2,127.0.0.9"));
}
