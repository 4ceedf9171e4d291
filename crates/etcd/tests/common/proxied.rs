//! Clients whose connections go through a proxy.

use distlock_core::Client;
use distlock_servers::{etcd::EtcdServer, proxy::RawProxy};

use super::{client, soon};

pub(crate) fn proxy(server: &EtcdServer) -> RawProxy {
    RawProxy::start(server.port()).unwrap()
}

/// The URL of members at these ports.
pub(crate) fn url(ports: &[u16], request_timeout: &str) -> String {
    let hosts: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("etcd://{}/?timeout={request_timeout}", hosts.join(","))
}

/// A client behind a proxy that has held a lock once.
pub(crate) async fn behind(proxy: &RawProxy, request_timeout: &str) -> Client {
    let client = client(&url(&[proxy.port()], request_timeout)).await;
    soon(client.mutex("warm").lock()).await.unwrap().release().await.unwrap();
    client
}
