//! How often a script is executed when the network fails in the middle.

use distlock_servers::{
    proxy::{Direction, Proxy},
    redis::RedisServer,
};

use super::*;

async fn start() -> (RedisServer, Proxy, Link) {
    let server = RedisServer::start(&[]).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let (link, _ears) = connect(config(proxy.port())).await;
    wait_works(&link).await;
    (server, proxy, link)
}

/// fred's default is three executions.
#[tokio::test]
async fn a_lost_reply_does_not_repeat_what_must_run_once() {
    let (server, proxy, link) = start().await;
    proxy.drop_reply(1, "EVALSHA");
    let error = incr(&link, "n", Attempts::AtMostOnce).await.unwrap_err();
    assert!(matches!(error, LinkError::Disconnected { sent: true, .. }), "{error:?}");
    assert!(error.may_have_run());
    // What is sent next would follow a repetition on the same connection.
    wait_works(&link).await;
    assert_eq!(counter(&server, "n"), "1");
}

#[tokio::test]
async fn a_lost_reply_repeats_what_may_be_repeated() {
    let (server, proxy, link) = start().await;
    proxy.drop_reply(1, "EVALSHA");
    assert_eq!(incr(&link, "n", Attempts::Repeatable).await, Ok(Reply::Int(2)));
    assert_eq!(counter(&server, "n"), "2");
}

#[tokio::test]
async fn a_lost_request_is_an_error_or_a_repetition() {
    let (server, proxy, link) = start().await;
    proxy.drop_request(1, "EVALSHA");
    assert!(incr(&link, "n", Attempts::AtMostOnce).await.unwrap_err().may_have_run());
    wait_works(&link).await;
    assert_eq!(server.command(&["EXISTS", "n"]).unwrap(), "0");
    proxy.drop_request(1, "EVALSHA");
    assert_eq!(incr(&link, "n", Attempts::Repeatable).await, Ok(Reply::Int(1)));
}

/// The fall-back to EVAL is another send, so its lost reply is another chance to run twice.
#[tokio::test]
async fn the_whole_script_is_sent_once_as_well() {
    let (server, proxy, link) = start().await;
    server.command(&["SCRIPT", "FLUSH"]).unwrap();
    proxy.drop_reply(1, "EVAL");
    let error = incr(&link, "n", Attempts::AtMostOnce).await.unwrap_err();
    assert!(error.may_have_run(), "{error:?}");
    wait_works(&link).await;
    assert_eq!(counter(&server, "n"), "1");
    server.command(&["SCRIPT", "FLUSH"]).unwrap();
    proxy.drop_reply(1, "EVAL");
    assert_eq!(incr(&link, "n", Attempts::Repeatable).await, Ok(Reply::Int(3)));
}

/// Sent again after a restart, the script is unknown there.
#[tokio::test]
async fn a_repetition_falls_back_to_the_whole_script_too() {
    let (server, proxy, link) = start().await;
    proxy.drop_reply(1, "EVALSHA");
    proxy.refuse(true);
    let call = tokio::spawn({
        let link = link.clone();
        async move { incr(&link, "n", Attempts::Repeatable).await }
    });
    until("it is executed", || counter(&server, "n") == "1").await;
    server.command(&["SCRIPT", "FLUSH"]).unwrap();
    proxy.refuse(false);
    assert_eq!(within(call).await.unwrap(), Ok(Reply::Int(2)));
}

/// Those in flight behind the lost reply are lost with it, and none is repeated either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_under_load_repeats_nothing() {
    let (server, proxy, link) = start().await;
    for round in 1..=5 {
        proxy.drop_reply(20, "EVALSHA");
        let tasks: Vec<_> = (0..50)
            .map(|task| {
                let link = link.clone();
                tokio::spawn(async move {
                    let key = format!("n{round}:{task}");
                    let result = incr(&link, &key, Attempts::AtMostOnce).await;
                    (key, result)
                })
            })
            .collect();
        let mut failed = 0;
        for task in tasks {
            let (key, result) = within(task).await.unwrap();
            let executed = counter(&server, &key);
            match result {
                Ok(reply) => assert_eq!((reply, executed.as_str()), (Reply::Int(1), "1"), "{key}"),
                Err(error) => {
                    failed += 1;
                    assert!(executed.is_empty() || error.may_have_run(), "{key}: {error:?}");
                    assert!(executed.is_empty() || executed == "1", "{key}: {executed} times");
                }
            }
        }
        assert!(1 <= failed);
        wait_works(&link).await;
    }
}

/// fred keeps a command whose future was dropped by a timeout from outside, and sends it later.
#[tokio::test]
async fn what_timed_out_before_it_was_sent_is_never_sent() {
    let server = RedisServer::start(&[]).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let (link, _ears) = connect(impatient(proxy.port())).await;
    wait_works(&link).await;
    server.kill().unwrap();
    for number in 0..10 {
        for attempts in [Attempts::AtMostOnce, Attempts::Repeatable] {
            let error = incr(&link, &format!("n{number}"), attempts).await.unwrap_err();
            assert!(number == 0 || !error.may_have_run(), "{error:?}");
        }
    }
    server.restart().unwrap();
    wait_works(&link).await;
    assert_eq!(server.command(&["KEYS", "n*"]).unwrap(), "");
}

/// A slow reply is a timeout for its caller, and nobody else's reply.
#[tokio::test]
async fn a_late_reply_goes_to_nobody() {
    let server = RedisServer::start(&[]).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let (link, _ears) = connect(impatient(proxy.port())).await;
    wait_works(&link).await;
    proxy.delay(Direction::ToClient, Duration::from_millis(400));
    let error = incr(&link, "n", Attempts::AtMostOnce).await.unwrap_err();
    assert_eq!(error, LinkError::Timeout);
    proxy.delay(Direction::ToClient, Duration::ZERO);
    until("the late reply is there", || counter(&server, "n") == "1").await;
    let reply = within(async {
        loop {
            match link.command("ECHO", &list(["mine"])).await {
                Ok(reply) => return reply,
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await;
    assert_eq!(reply, bulk("mine"));
}
