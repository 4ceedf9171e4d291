//! Tests of the link against real servers: each shows one of the driver's traps avoided.

mod attempts;
mod cluster;
mod commands;
mod errors;
mod outage;
mod secrets;
mod sentinel;
mod subscription;
#[cfg(feature = "tls")]
mod tls;
mod user_client;

use std::{
    future::Future,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use distlock_servers::redis::RedisServer;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    Attempts, Bytes, Endpoint, Link, LinkConfig, LinkError, Listener, Reply, Script, Topology,
};

/// A hung test ends here. Nothing waits that long when all is well.
const HANG: Duration = Duration::from_secs(60);

const CHANNEL: &str = "the-channel";

static INCR: LazyLock<Script> =
    LazyLock::new(|| Script::new("return redis.call('INCRBY', KEYS[1], ARGV[1])"));

/// A listener that remembers.
#[derive(Default)]
struct Ears {
    messages: Mutex<Vec<Vec<u8>>>,
    resubscribed: watch::Sender<usize>,
    lost: watch::Sender<usize>,
    heard: watch::Sender<usize>,
}

impl Listener for Ears {
    fn push(&self, message: &[u8]) {
        self.messages.lock().unwrap().push(message.to_vec());
        self.heard.send_modify(|count| *count += 1);
    }

    fn resubscribed(&self) {
        self.resubscribed.send_modify(|count| *count += 1);
    }

    fn lost(&self) {
        self.lost.send_modify(|count| *count += 1);
    }
}

impl Ears {
    async fn wait_heard(&self, count: usize) {
        at_least(&self.heard, count).await;
    }

    async fn wait_lost(&self, count: usize) {
        at_least(&self.lost, count).await;
    }

    async fn wait_resubscribed(&self, count: usize) {
        at_least(&self.resubscribed, count).await;
    }

    fn messages(&self) -> Vec<Vec<u8>> {
        self.messages.lock().unwrap().clone()
    }
}

async fn at_least(counter: &watch::Sender<usize>, count: usize) {
    within(counter.subscribe().wait_for(|now| count <= *now)).await.unwrap();
}

/// Panics where the future hangs.
async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(HANG, future).await.expect("it hangs")
}

/// Polls until it is so.
async fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !ready() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn config(port: u16) -> LinkConfig {
    let topology = Topology::Standalone(Endpoint::new("127.0.0.1", port));
    LinkConfig {
        request_timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(5),
        ping_interval: Duration::from_millis(100),
        ..LinkConfig::new(topology, CHANNEL)
    }
}

/// As `config`, for servers that will not answer.
fn impatient(port: u16) -> LinkConfig {
    LinkConfig {
        request_timeout: Duration::from_millis(300),
        connect_timeout: Duration::from_millis(500),
        ..config(port)
    }
}

async fn connect(config: LinkConfig) -> (Link, Arc<Ears>) {
    let ears = Arc::new(Ears::default());
    let link = within(Link::connect(config, Arc::clone(&ears) as Arc<dyn Listener>)).await.unwrap();
    (link, ears)
}

/// As `connect`, and subscribed.
async fn connect_whole(config: LinkConfig) -> (Link, Arc<Ears>) {
    let (link, ears) = connect(config).await;
    within(link.subscribed()).await.unwrap();
    (link, ears)
}

fn list<const N: usize>(words: [&str; N]) -> [Bytes; N] {
    words.map(|word| Bytes::copy_from_slice(word.as_bytes()))
}

fn bulk(text: &str) -> Reply {
    Reply::Bulk(Bytes::copy_from_slice(text.as_bytes()))
}

async fn incr(link: &Link, key: &str, attempts: Attempts) -> Result<Reply, LinkError> {
    within(link.run(&INCR, &list([key]), &list(["1"]), attempts)).await
}

/// Runs until it succeeds once.
async fn wait_works(link: &Link) {
    let deadline = Instant::now() + HANG;
    while let Err(error) = incr(link, "works", Attempts::AtMostOnce).await {
        assert!(Instant::now() < deadline, "it does not recover: {error}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// The counter as the server has it.
fn counter(server: &RedisServer, key: &str) -> String {
    server.command(&["GET", key]).unwrap()
}
