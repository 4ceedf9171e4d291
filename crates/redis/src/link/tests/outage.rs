//! Servers that are away, hung or unwilling, and the end of a link.

use distlock_servers::{proxy::Proxy, redis::RedisServer};

use super::*;

async fn failure(config: LinkConfig) -> LinkError {
    let ears = Arc::new(Ears::default());
    within(Link::connect(config, ears)).await.unwrap_err()
}

#[tokio::test]
async fn a_server_that_is_down_is_an_error_at_once() {
    let server = RedisServer::start(&[]).unwrap();
    server.kill().unwrap();
    let start = Instant::now();
    let error = failure(LinkConfig { connect_timeout: HANG, ..config(server.port()) }).await;
    assert!(
        matches!(&error, LinkError::Disconnected { reason, sent: false }
        if reason.contains("ConnectionRefused")),
        "{error:?}"
    );
    assert!(start.elapsed() < HANG / 2);
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_an_error_in_time() {
    let server = RedisServer::start(&[]).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    proxy.blackhole(true);
    let start = Instant::now();
    assert_eq!(failure(impatient(proxy.port())).await, LinkError::Timeout);
    assert!(start.elapsed() < HANG / 2);
    // Only now the proxy can see that its client is gone.
    proxy.blackhole(false);
    until("the connection is closed", || proxy.connections() == 0).await;
}

#[tokio::test]
async fn a_wrong_password_is_an_error_at_once() {
    let server = RedisServer::start(&["--requirepass", "right"]).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let wrong = LinkConfig { password: Some("wr0ng".into()), ..config(proxy.port()) };
    let error = failure(wrong.clone()).await;
    assert!(
        matches!(&error, LinkError::Server(text) if text.starts_with("WRONGPASS")),
        "{error:?}"
    );
    assert!(!error.to_string().contains("wr0ng"));
    assert_eq!(proxy.count("AUTH"), 1, "nothing is tried twice");

    let error = failure(LinkConfig { password: None, ..wrong.clone() }).await;
    assert!(matches!(&error, LinkError::Server(text) if text.starts_with("NOAUTH")), "{error:?}");

    let (link, _ears) = connect_whole(LinkConfig { password: Some("right".into()), ..wrong }).await;
    wait_works(&link).await;
}

#[tokio::test]
async fn a_password_that_became_wrong_is_told_and_forgiven() {
    let server = RedisServer::start(&[]).unwrap();
    server.command(&["ACL", "SETUSER", "u", "on", ">one", "+@all", "~*", "&*"]).unwrap();
    let (link, _ears) = connect(LinkConfig {
        username: Some("u".into()),
        password: Some("one".into()),
        ..config(server.port())
    })
    .await;
    wait_works(&link).await;
    server.command(&["ACL", "SETUSER", "u", "resetpass", ">two"]).unwrap();
    server.command(&["CLIENT", "KILL", "TYPE", "normal"]).unwrap();
    within(async {
        loop {
            match incr(&link, "n", Attempts::AtMostOnce).await {
                Err(LinkError::Server(text)) if text.starts_with("WRONGPASS") => break,
                _ => sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await;
    server.command(&["ACL", "SETUSER", "u", ">one"]).unwrap();
    wait_works(&link).await;
}

#[tokio::test]
async fn a_server_that_is_killed_and_comes_back_is_found_again() {
    let server = RedisServer::start(&[]).unwrap();
    let (link, ears) = connect_whole(impatient(server.port())).await;
    for round in 1..=3 {
        server.kill().unwrap();
        ears.wait_lost(round).await;
        until("the other connection is missed too", || !link.core().is_up()).await;
        let error = incr(&link, "n", Attempts::Repeatable).await.unwrap_err();
        assert!(!error.may_have_run(), "{error:?}");
        assert!(!link.is_subscribed());
        server.restart().unwrap();
        wait_works(&link).await;
        ears.wait_resubscribed(round + 1).await;
    }
}

/// What may be repeated waits for a server that is away for a moment.
#[tokio::test]
async fn a_short_outage_is_bridged() {
    let server = RedisServer::start(&[]).unwrap();
    let config = LinkConfig { request_timeout: HANG / 2, ..config(server.port()) };
    let (link, ears) = connect_whole(config).await;
    server.kill().unwrap();
    ears.wait_lost(1).await;
    let (reply, restarted) =
        tokio::join!(incr(&link, "n", Attempts::Repeatable), async { server.restart() });
    restarted.unwrap();
    assert_eq!(reply, Ok(Reply::Int(1)));
}

/// fred's own check is put off by each write, and its forced reconnection can hang.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_server_under_traffic_ends_every_call_and_is_found_again() {
    let server = RedisServer::start(&[]).unwrap();
    let (link, ears) = connect_whole(impatient(server.port())).await;
    wait_works(&link).await;
    server.stop().unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let link = link.clone();
            tokio::spawn(async move {
                let attempts =
                    if task % 2 == 0 { Attempts::AtMostOnce } else { Attempts::Repeatable };
                for _ in 0..6 {
                    incr(&link, "n", attempts).await.unwrap_err();
                }
            })
        })
        .collect();
    for task in tasks {
        within(task).await.unwrap();
    }
    server.cont().unwrap();
    wait_works(&link).await;
    // The subscriber had no traffic at all, only its own ping.
    ears.wait_lost(1).await;
    ears.wait_resubscribed(2).await;
}

/// The peer is there, but not on this connection: without the watchdog it would never be replaced.
#[tokio::test]
async fn a_connection_that_went_silent_is_replaced() {
    let server = RedisServer::start(&[]).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let (link, _ears) = connect(impatient(proxy.port())).await;
    wait_works(&link).await;
    proxy.silence_request(1, "EVALSHA");
    let error = incr(&link, "n", Attempts::AtMostOnce).await.unwrap_err();
    assert_eq!(error, LinkError::Timeout);
    wait_works(&link).await;
    assert_eq!(server.command(&["EXISTS", "n"]).unwrap(), "0");
}

#[tokio::test]
async fn a_black_hole_swallows_no_call() {
    let server = RedisServer::start(&[]).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let (link, ears) = connect_whole(impatient(proxy.port())).await;
    wait_works(&link).await;
    proxy.blackhole(true);
    for attempts in [Attempts::AtMostOnce, Attempts::Repeatable].repeat(4) {
        incr(&link, "n", attempts).await.unwrap_err();
    }
    ears.wait_lost(1).await;
    proxy.blackhole(false);
    wait_works(&link).await;
    ears.wait_resubscribed(2).await;
}

/// Slow is not dead: a connection that answers is kept.
#[tokio::test]
async fn timeouts_of_a_living_connection_do_not_replace_it() {
    let server = RedisServer::start(&[]).unwrap();
    let limit = Duration::from_secs(1);
    let config = LinkConfig { request_timeout: limit, ..config(server.port()) };
    let (link, _ears) = connect(config).await;
    wait_works(&link).await;
    let connection = link.command("CLIENT", &list(["ID"])).await.unwrap();
    for number in ["1", "2", "3"] {
        // Until the call's limit is over: a PING sent then is answered in time.
        server.command(&["CLIENT", "PAUSE", "60000", "WRITE"]).unwrap();
        let error = incr(&link, "n", Attempts::AtMostOnce).await.unwrap_err();
        assert_eq!(error, LinkError::Timeout);
        server.command(&["CLIENT", "UNPAUSE"]).unwrap();
        until("it was only late", || counter(&server, "n") == number).await;
        // By then the PING is on its way, and does not wait for the end of the next pause.
        assert_eq!(link.command("CLIENT", &list(["ID"])).await.unwrap(), connection);
    }
}

/// `quit` during fred's back-off hung in 13 of 40 runs.
#[tokio::test]
async fn closing_ends_in_time_whatever_the_server_does() {
    let server = RedisServer::start(&[]).unwrap();
    for round in 0..10 {
        let (link, ears) = connect_whole(impatient(server.port())).await;
        match round % 3 {
            0 => {
                server.kill().unwrap();
                ears.wait_lost(1).await;
                let _ = incr(&link, "n", Attempts::AtMostOnce).await;
            }
            1 => server.stop().unwrap(),
            _ => {}
        }
        within(link.close()).await;
        within(link.close()).await;
        let closed = incr(&link, "n", Attempts::Repeatable).await;
        assert_eq!(closed, Err(LinkError::Closed));
        assert_eq!(link.command("PING", &[]).await, Err(LinkError::Closed));
        assert_eq!(link.subscribed().await, Err(LinkError::Closed));
        server.restart().unwrap();
    }
}

#[tokio::test]
async fn closing_lets_what_is_in_flight_end() {
    let server = RedisServer::start(&[]).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let (link, _ears) = connect(config(proxy.port())).await;
    wait_works(&link).await;
    let before = proxy.count("EVALSHA");
    server.command(&["CLIENT", "PAUSE", "200", "WRITE"]).unwrap();
    let call = tokio::spawn({
        let link = link.clone();
        async move { incr(&link, "n", Attempts::AtMostOnce).await }
    });
    proxy.wait_count("EVALSHA", before + 1).await.unwrap();
    within(link.close()).await;
    assert_eq!(within(call).await.unwrap(), Ok(Reply::Int(1)));
}

/// fred's clients live on when they are dropped without `quit`.
#[tokio::test]
async fn dropping_the_last_link_leaves_no_connection_and_no_task() {
    let server = RedisServer::start(&[]).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let tasks = tokio::runtime::Handle::current().metrics();
    let before = tasks.num_alive_tasks();
    for closed in [false, true] {
        let (link, ears) = connect_whole(config(proxy.port())).await;
        let other = link.clone();
        wait_works(&link).await;
        assert_eq!(proxy.connections(), 2);
        drop(link);
        wait_works(&other).await;
        if closed {
            within(other.close()).await;
        }
        drop(other);
        until("the connections are closed", || proxy.connections() == 0).await;
        until("the tasks are gone", || tasks.num_alive_tasks() == before).await;
        assert_eq!(Arc::strong_count(&ears), 1, "nobody holds the listener");
    }
    // The same while the server is away.
    let (link, ears) = connect_whole(config(proxy.port())).await;
    server.kill().unwrap();
    ears.wait_lost(1).await;
    drop(link);
    until("the tasks are gone", || tasks.num_alive_tasks() == before).await;
}

#[tokio::test]
async fn a_runtime_that_ends_takes_the_link_along() {
    let server = RedisServer::start(&[]).unwrap();
    let port = server.port();
    let link = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(connect_whole(config(port))).0
    })
    .join()
    .unwrap();
    let error = incr(&link, "n", Attempts::Repeatable).await.unwrap_err();
    assert!(matches!(error, LinkError::Disconnected { .. }), "{error:?}");
    within(link.close()).await;
}
