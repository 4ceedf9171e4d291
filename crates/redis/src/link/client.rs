//! fred's clients as we use them: nothing reconnected, nothing repeated, everything limited.

use std::{cmp, future::pending, net::IpAddr, time::Duration};

use fred::{
    clients::Client,
    error::Error,
    interfaces::{ClientLike, ClusterInterface},
    types::{
        ClusterHash, ConnectHandle, CustomCommand, Resp3Frame, Value,
        config::{Config, ConnectionConfig, Options, PerformanceConfig, Server, ServerConfig},
    },
};
use tokio::time::timeout;

use super::{LinkConfig, LinkError, Reply, core::Core};

/// Commands that may wait to be written; more are refused.
const QUEUE: usize = 65_536;

/// The client for commands.
pub(super) fn build(config: &LinkConfig) -> Result<Client, LinkError> {
    Ok(single(config.to_fred()?, connection(config), 1))
}

/// A client with the settings of the user's, but our rules.
pub(super) fn build_like(user: &Client, config: &LinkConfig) -> Client {
    single(user.client_config(), connection(config), 1)
}

/// A client to subscribe with. In a cluster one node suffices, as PUBLISH reaches all of them;
/// another `turn` takes another node.
pub(super) fn build_subscriber(core: &Core, turn: usize) -> Client {
    let mut config = core.client.client_config();
    if config.server.is_clustered() {
        let nodes = core.client.cached_cluster_state().map(|state| state.unique_primary_nodes());
        let nodes = nodes.filter(|nodes| !nodes.is_empty()).unwrap_or(config.server.hosts());
        config.server = ServerConfig::Centralized { server: nodes[turn % nodes.len()].clone() };
    }
    single(config, limited(core), core.backlog)
}

/// A client to listen to a sentinel with, or to ask it, and the name of the primary that matters.
pub(super) fn build_sentinel(core: &Core, turn: usize) -> Option<(Client, String)> {
    let mut config = core.client.client_config();
    let ServerConfig::Sentinel { hosts, service_name, username, password } = config.server else {
        return None;
    };
    let server: Server = hosts.get(turn % hosts.len().max(1))?.clone();
    config.server = ServerConfig::Centralized { server };
    (config.username, config.password, config.database) = (username, password, None);
    Some((single(config, limited(core), 64), service_name))
}

/// Sends PING. An error from the server is a sign of life too.
pub(super) async fn ping(client: &Client, limit: Duration) -> Result<Resp3Frame, Error> {
    let options = Options { timeout: Some(limit), ..Options::default() };
    let name = CustomCommand::new_static("PING", ClusterHash::Random, false);
    client.with_options(&options).custom_raw(name, Vec::<Value>::new()).await
}

/// Asks a sentinel where the primary is, on a connection of its own: where one is subscribed, nothing
/// can be asked.
pub(super) async fn locate(core: &Core, turn: usize) -> Result<Option<Server>, LinkError> {
    let Some((client, master)) = build_sentinel(core, turn) else { return Ok(None) };
    let router = Router::start(&client, core.connect_timeout).await?;
    let options = Options { timeout: Some(core.request_timeout), ..Options::default() };
    let name = CustomCommand::new_static("SENTINEL", ClusterHash::Random, false);
    let words = vec!["GET-MASTER-ADDR-BY-NAME".to_owned(), master];
    let frame = client.with_options(&options).custom_raw(name, words).await;
    router.stop().await;
    match Reply::from_frame(frame.map_err(LinkError::at_start)?)? {
        Reply::Array(words) => match words.as_slice() {
            [Reply::Bulk(host), Reply::Bulk(port)] => Ok(address(host, port)),
            _ => Ok(None),
        },
        _ => Ok(None),
    }
}

/// A server by host and port, as sentinels write them.
pub(super) fn address(host: &[u8], port: &[u8]) -> Option<Server> {
    let text = |bytes| std::str::from_utf8(bytes).ok();
    Some(Server::new(text(host)?, text(port)?.parse().ok()?))
}

/// Whether these are two servers, as sentinels name them. Whether a name and an address are, nobody
/// can tell.
pub(super) fn differ(one: &Server, other: &Server) -> bool {
    let ip = |server: &Server| server.host.parse::<IpAddr>().ok();
    match (ip(one), ip(other)) {
        (Some(this), Some(that)) => (this, one.port) != (that, other.port),
        (None, None) => !one.host.eq_ignore_ascii_case(&other.host) || one.port != other.port,
        _ => false,
    }
}

/// The driver's task for one client. Dropping it closes the client's connections.
pub(super) struct Router {
    task: ConnectHandle,
}

impl Router {
    /// Connects the client and has it answer a PING.
    pub(super) async fn start(client: &Client, limit: Duration) -> Result<Self, LinkError> {
        Self::start_unless(client, limit, pending()).await
    }

    /// As [`start`](Self::start), unless something happens before.
    pub(super) async fn start_unless(
        client: &Client,
        limit: Duration,
        happens: impl Future<Output = LinkError> + Send,
    ) -> Result<Self, LinkError> {
        let mut router = Self { task: client.connect() };
        // fred's own report of success can be the one of an earlier connection; an answer is not.
        let error = tokio::select! {
            biased;
            error = happens => error,
            error = router.ended() => error,
            pong = timeout(limit, ping(client, limit)) => match pong {
                Ok(Ok(_)) => return Ok(router),
                Ok(Err(error)) => LinkError::at_start(error),
                Err(_) => LinkError::Timeout,
            },
        };
        router.stop().await;
        Err(hide(error, &client.client_config()))
    }

    /// Waits until the connection is lost.
    pub(super) async fn ended(&mut self) -> LinkError {
        match (&mut self.task).await {
            Ok(Err(error)) => LinkError::at_start(error),
            Ok(Ok(())) | Err(_) => {
                LinkError::Disconnected { reason: "the connection was lost".into(), sent: false }
            }
        }
    }

    /// Closes the connections.
    ///
    /// The client can be connected again only when this is over: a task on its last instructions
    /// would put its command queue in the place of the new one.
    pub(super) async fn stop(mut self) {
        if !self.task.is_finished() {
            self.task.abort();
            let _ = (&mut self.task).await;
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Takes out of an error what we log in with, which the server has just been told and may repeat.
fn hide(error: LinkError, config: &Config) -> LinkError {
    let sentinels = match &config.server {
        ServerConfig::Sentinel { password, .. } => password.as_deref(),
        _ => None,
    };
    let secrets: Vec<_> = config.password.as_deref().into_iter().chain(sentinels).collect();
    error.without(&secrets)
}

/// Without a reconnection policy fred ends its task at the first trouble.
fn single(mut config: Config, connection: ConnectionConfig, capacity: usize) -> Client {
    config.fail_fast = true;
    let performance =
        PerformanceConfig { broadcast_channel_capacity: capacity, ..PerformanceConfig::default() };
    Client::new(config, Some(performance), Some(connection), None)
}

fn connection(config: &LinkConfig) -> ConnectionConfig {
    ConnectionConfig {
        connection_timeout: config.connect_timeout,
        internal_command_timeout: config.request_timeout,
        max_command_attempts: 1,
        // We follow MOVED ourselves: what fred follows cannot be told from what it repeats. And to
        // follow ASK it reads the next reply of a shared connection, whosever that is.
        max_redirections: 0,
        max_command_buffer_len: QUEUE,
        // Errors are for the caller to judge. Empty by our word, not by a feature being off.
        reconnect_errors: Vec::new(),
        ..ConnectionConfig::default()
    }
}

/// The connection settings of the command client, in our limits if it is the user's.
fn limited(core: &Core) -> ConnectionConfig {
    let mut connection = core.client.connection_config().clone();
    connection.connection_timeout = cmp::min(connection.connection_timeout, core.connect_timeout);
    connection.internal_command_timeout =
        cmp::min(connection.internal_command_timeout, core.request_timeout);
    connection
}
