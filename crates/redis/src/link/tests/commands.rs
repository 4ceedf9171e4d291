//! What works when nothing fails.

use distlock_servers::{proxy::Proxy, redis::RedisServer};

use super::*;

#[tokio::test]
async fn a_script_is_sent_whole_once_and_by_its_digest_from_then_on() {
    let server = RedisServer::start(&[]).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let (link, _ears) = connect(config(proxy.port())).await;
    for attempts in [Attempts::AtMostOnce, Attempts::Repeatable] {
        server.command(&["SCRIPT", "FLUSH"]).unwrap();
        let before = (proxy.count("EVAL"), proxy.count("EVALSHA"));
        let key = format!("{attempts:?}");
        assert_eq!(incr(&link, &key, attempts).await, Ok(Reply::Int(1)));
        assert_eq!(incr(&link, &key, attempts).await, Ok(Reply::Int(2)));
        assert_eq!(incr(&link, &key, attempts).await, Ok(Reply::Int(3)));
        let after = (proxy.count("EVAL"), proxy.count("EVALSHA"));
        assert_eq!((after.0 - before.0, after.1 - before.1), (1, 3));
    }
}

#[tokio::test]
async fn every_kind_of_reply_arrives_as_it_is() {
    let server = RedisServer::start(&[]).unwrap();
    let (link, _ears) = connect(config(server.port())).await;
    let script = Script::new(
        "return {1, 'a', false, {KEYS[2], ARGV[1]}, {ok = 'fine'}, {err = 'BAD inside'}, {}}",
    );
    let binary = Bytes::from_static(b"\0\r\n\xff{}");
    let keys = [Bytes::from_static(b"k"), binary.clone()];
    let reply = link.run(&script, &keys, std::slice::from_ref(&binary), Attempts::Repeatable).await;
    let expected = Reply::Array(vec![
        Reply::Int(1),
        bulk("a"),
        Reply::Nil,
        Reply::Array(vec![Reply::Bulk(binary.clone()), Reply::Bulk(binary)]),
        bulk("fine"),
        Reply::Error("BAD inside".to_owned()),
        Reply::Array(vec![]),
    ]);
    assert_eq!(reply, Ok(expected));
}

#[tokio::test]
async fn a_servers_error_arrives_word_for_word() {
    let server = RedisServer::start(&[]).unwrap();
    let (link, _ears) = connect(config(server.port())).await;
    server.command(&["RPUSH", "list", "x"]).unwrap();
    let error = incr(&link, "list", Attempts::Repeatable).await.unwrap_err();
    let LinkError::Server(text) = &error else { panic!("{error:?}") };
    assert!(
        text.starts_with("WRONGTYPE Operation against a key holding the wrong kind of value"),
        "{text}"
    );
    assert!(error.may_have_run(), "what the script did before the error stays");

    let error = link.command("NONSENSE", &[]).await.unwrap_err();
    let LinkError::Server(text) = &error else { panic!("{error:?}") };
    assert!(text.starts_with("ERR unknown command"), "{text}");
    assert!(!error.may_have_run());
}

#[tokio::test]
async fn plain_commands_work_and_many_keys_too() {
    let server = RedisServer::start(&[]).unwrap();
    let (link, _ears) = connect(config(server.port())).await;
    assert_eq!(link.command("PING", &[]).await, Ok(bulk("PONG")));
    assert_eq!(link.command("ECHO", &list(["x"])).await, Ok(bulk("x")));
    let everywhere = link.command_everywhere("ECHO", &list(["y"])).await;
    assert_eq!(everywhere, Ok(vec![bulk("y")]));
    let script = Script::new("return {#KEYS, #ARGV}");
    let keys: Vec<_> = (0..100).map(|number| Bytes::from(number.to_string())).collect();
    let reply = link.run(&script, &keys, &keys[..12], Attempts::Repeatable).await;
    assert_eq!(reply, Ok(Reply::Array(vec![Reply::Int(100), Reply::Int(12)])));
    assert!(!link.is_cluster());
}

#[tokio::test]
async fn a_unix_socket_and_a_database_are_reached() {
    let server = RedisServer::start(&[]).unwrap();
    let (link, ears) = connect_whole(LinkConfig {
        topology: Topology::Unix(server.socket()),
        database: Some(3),
        ..config(0)
    })
    .await;
    assert_eq!(incr(&link, "n", Attempts::AtMostOnce).await, Ok(Reply::Int(1)));
    assert_eq!(server.command(&["EXISTS", "n"]).unwrap(), "0", "it is in another database");
    server.command(&["PUBLISH", CHANNEL, "hello"]).unwrap();
    ears.wait_heard(1).await;
    assert_eq!(ears.messages(), [b"hello"]);
}

#[test]
fn slots_follow_the_hash_tag() {
    assert_eq!(Link::slot(b"123456789"), 0x31c3);
    assert_eq!(Link::slot(b"a{tag}b"), Link::slot(b"tag"));
    assert_ne!(Link::slot(b"a{}b"), Link::slot(b""));
}
