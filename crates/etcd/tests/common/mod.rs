//! What the tests on real servers share.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod judge;
pub(crate) mod proxied;

use std::time::Duration;

use distlock_core::{Client, Guard};
use distlock_etcd::EtcdBackend;
use distlock_servers::etcd::EtcdServer;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// Nothing here takes so long, unless it hangs.
pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) fn server() -> EtcdServer {
    EtcdServer::start(&[]).expect("an etcd server can be started")
}

/// Where there is one server, and no word of a time limit, its answers may take as long as a busy machine needs.
pub(crate) async fn backend(url: &str) -> EtcdBackend {
    let patient = if url.contains([',', '?']) { "" } else { "/?timeout=3s" };
    EtcdBackend::connect(&format!("{url}{patient}")).await.expect("the server can be reached")
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
    lease_ids(server).len()
}

/// The leases that there are.
pub(crate) fn lease_ids(server: &EtcdServer) -> Vec<String> {
    let leases = server.etcdctl(&["lease", "list"]).expect("the server answers");
    let ids = leases.lines().filter(|line| !line.is_empty() && !line.starts_with("found"));
    ids.map(str::to_owned).collect()
}

/// A number that the server tells of a key, by the name that `etcdctl` gives it: `CreateRevision`, `Lease`. That of the store, `Revision`, it tells of any.
pub(crate) fn number(server: &EtcdServer, key: &str, name: &str) -> Option<i64> {
    let told = server.etcdctl(&["get", key, "-w", "fields"]).expect("the server answers");
    let mark = format!("\"{name}\" : ");
    told.lines().find_map(|line| line.strip_prefix(&mark)?.parse().ok())
}

/// Ends the lease of a key.
pub(crate) fn revoke(server: &EtcdServer, key: &str) {
    let lease = number(server, key, "Lease").expect("the key is there");
    server.etcdctl(&["lease", "revoke", &format!("{lease:x}")]).expect("the lease is there");
}

pub(crate) fn delete(server: &EtcdServer, key: &str) {
    assert_eq!(server.etcdctl(&["del", key]).expect("the server answers").trim(), "1");
}

/// How often a method was called.
pub(crate) fn calls(server: &EtcdServer, method: &str) -> u64 {
    let label = format!("grpc_method=\"{method}\"");
    // A server that tells no such number has not been called so.
    server.metric_where("grpc_server_started_total", &label).map_or(0, whole)
}

/// How many proposals were committed.
pub(crate) fn proposals(server: &EtcdServer) -> u64 {
    whole(server.metric("etcd_server_proposals_committed_total").expect("the server answers"))
}

/// How many watches are open.
pub(crate) fn watchers(server: &EtcdServer) -> u64 {
    whole(server.metric("etcd_debugging_mvcc_watcher_total").expect("the server answers"))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it counts something")]
pub(crate) fn whole(number: f64) -> u64 {
    number.round() as u64
}

/// A waiter as from another process. Returns when its key is the last of so many under the name.
pub(crate) async fn wait_in_line(
    server: &EtcdServer,
    client: &Client,
    name: &str,
    place: usize,
) -> JoinHandle<Guard> {
    let mutex = client.mutex(name);
    let waiter =
        tokio::spawn(async move { mutex.lock().await.expect("it waits as long as it takes") });
    in_line(server, name, place).await;
    waiter
}

/// Waits until so many keys are under a name.
pub(crate) async fn in_line(server: &EtcdServer, name: &str, count: usize) {
    let line = format!("{name}/");
    eventually(&format!("{count} in line"), || keys(server, &line).len() == count).await;
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
