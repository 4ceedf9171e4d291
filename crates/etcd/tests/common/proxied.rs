//! Clients whose connections go through a proxy.

use distlock_core::{Client, Error, Released};
use distlock_servers::{etcd::EtcdServer, proxy::RawProxy};
use tokio::time::sleep;

use super::{client, ms, soon};

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
    // As often as it takes: a busy machine may not keep the limit of a request.
    let works = async {
        while let Err(error) = once(&client).await {
            assert!(error.is_transient(), "{error}");
        }
        while !client.inspect("warm").await.is_ok_and(|seen| seen.holders.is_empty()) {
            sleep(ms(5)).await;
        }
    };
    soon(works).await;
    client
}

async fn once(client: &Client) -> Result<Released, Error> {
    client.mutex("warm").lock().await?.release().await
}
