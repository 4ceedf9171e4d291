//! What the tests on real servers share.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod judge;

use std::time::Duration;

use distlock_core::Client;
use distlock_etcd::EtcdBackend;
use distlock_servers::etcd::EtcdServer;
use tokio::time::{Instant, sleep, timeout};

/// Nothing here takes so long, unless it hangs.
pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) fn server() -> EtcdServer {
    EtcdServer::start(&[]).expect("an etcd server can be started")
}

pub(crate) async fn backend(url: &str) -> EtcdBackend {
    EtcdBackend::connect(url).await.expect("the server can be reached")
}

/// A client with a backend of its own, as another process would have.
pub(crate) async fn client(url: &str) -> Client {
    Client::new(backend(url).await)
}

/// The keys that begin so, in their order.
pub(crate) fn keys(server: &EtcdServer, prefix: &str) -> Vec<String> {
    let keys = server.etcdctl(&["get", "--prefix", "--keys-only", prefix]);
    let keys = keys.expect("the server answers");
    keys.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// How many leases there are.
pub(crate) fn leases(server: &EtcdServer) -> usize {
    let leases = server.etcdctl(&["lease", "list"]).expect("the server answers");
    leases.lines().filter(|line| !line.is_empty() && !line.starts_with("found")).count()
}

/// Waits until something is so, and says what was not if it hangs.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < end, "{what}, within {LONG:?}");
        sleep(ms(5)).await;
    }
}

/// A future that must not hang.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(LONG, future).await.expect("it hangs")
}
