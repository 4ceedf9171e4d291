//! A client that the user brings.

use distlock_servers::{proxy::Proxy, redis::RedisServer};
use fred::{
    clients::Client,
    interfaces::ClientLike,
    types::config::{Config, ReconnectPolicy, ServerConfig},
};

use super::*;

async fn user(port: u16) -> Client {
    let config =
        Config { server: ServerConfig::new_centralized("127.0.0.1", port), ..Config::default() };
    let policy = ReconnectPolicy::new_constant(0, 20);
    let client = Client::new(config, None, None, Some(policy));
    within(client.init()).await.unwrap();
    client
}

async fn link_of(client: &Client, config: LinkConfig) -> (Link, Arc<Ears>) {
    let ears = Arc::new(Ears::default());
    let listener = Arc::clone(&ears) as Arc<dyn Listener>;
    let link = within(Link::from_client(client.clone(), config, listener)).await.unwrap();
    within(link.subscribed()).await.unwrap();
    (link, ears)
}

#[tokio::test]
async fn its_connection_is_used_and_survives_the_link() {
    let server = RedisServer::start(&[]).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let client = user(proxy.port()).await;
    let (link, ears) = link_of(&client, config(0)).await;
    assert_eq!(incr(&link, "n", Attempts::AtMostOnce).await, Ok(Reply::Int(1)));
    assert_eq!(proxy.connections(), 2, "the user's and the subscriber's");
    server.command(&["PUBLISH", CHANNEL, "hello"]).unwrap();
    ears.wait_heard(1).await;
    within(link.close()).await;
    assert_eq!(incr(&link, "n", Attempts::AtMostOnce).await, Err(LinkError::Closed));
    drop(link);
    until("only the user's is left", || proxy.connections() == 1).await;
    let pong: String = within(client.ping(None)).await.unwrap();
    assert_eq!(pong, "PONG");
    within(client.quit()).await.unwrap();
}

/// Its own settings would repeat three times, and wait for ever.
#[tokio::test]
async fn its_repetitions_and_its_patience_do_not_count() {
    let server = RedisServer::start(&[]).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let client = user(proxy.port()).await;
    let (link, _ears) = link_of(&client, impatient(0)).await;
    wait_works(&link).await;
    proxy.drop_reply(1, "EVALSHA");
    let error = incr(&link, "n", Attempts::AtMostOnce).await.unwrap_err();
    assert!(matches!(error, LinkError::Disconnected { sent: true, .. }), "{error:?}");
    wait_works(&link).await;
    assert_eq!(counter(&server, "n"), "1");
    proxy.drop_reply(1, "EVALSHA");
    assert_eq!(incr(&link, "n", Attempts::Repeatable).await, Ok(Reply::Int(3)));
    server.stop().unwrap();
    for attempts in [Attempts::AtMostOnce, Attempts::Repeatable] {
        assert_eq!(incr(&link, "n", attempts).await, Err(LinkError::Timeout));
    }
    server.cont().unwrap();
    wait_works(&link).await;
}

#[tokio::test]
async fn one_that_is_not_connected_is_refused() {
    let client = Client::new(Config::default(), None, None, None);
    let ears = Arc::new(Ears::default());
    let error = within(Link::from_client(client, impatient(0), ears)).await.unwrap_err();
    assert!(matches!(error, LinkError::Disconnected { sent: false, .. } | LinkError::Timeout));
}
