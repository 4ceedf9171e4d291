//! The one place that talks to the driver, fred: everything it must not be trusted with is done here.
//!
//! A [`Link`] runs scripts and receives the pushes of one channel. What the rest of the crate may
//! rely on:
//!
//! - fred repeats nothing: a command is written to a connection once, and what is sent again is sent
//!   by [`Link::run`], for [`Attempts::Repeatable`] only.
//! - Every call ends within the request timeout, and every error says whether the command may have
//!   been executed.
//! - A connection that is lost, or does not answer, is replaced by [`keeper`]; fred's own reconnecting
//!   (which replays what was in flight, and stops for good at some errors) is switched off.
//! - The subscription has a connection of its own, see [`subscriber`], so that a refused SUBSCRIBE
//!   cannot shift the replies of commands.
//! - Behind sentinels the primary is looked for whenever one of them tells of another one, or names
//!   another one than ours after it could not be heard for a while. One that names it by a host name
//!   where another gives an address is believed only when it tells, as these cannot be compared.
//! - Dropping the last [`Link`] closes its connections and ends its tasks.

mod client;
mod config;
mod core;
mod error;
mod keeper;
mod reply;
mod script;
mod subscriber;
#[cfg(feature = "tls")]
mod tls;

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

pub(crate) use fred::bytes::Bytes;
use fred::{
    clients::Client,
    interfaces::{ClientLike, ClusterInterface},
};
use tokio::time::{Instant, sleep_until, timeout_at};

use self::{client::Router, core::Core, keeper::Tasks};
#[allow(unused_imports, reason = "for the settings of the backend")]
pub(crate) use self::{
    config::{Endpoint, LinkConfig, TlsSettings, Topology},
    error::LinkError,
    reply::Reply,
    script::Script,
};

/// How often one call of [`Link::run`] may put its command on a connection, all in all.
const MAX_SENDS: u32 = 8;

/// First pause between two sends of one call; it doubles.
const PAUSE: Duration = Duration::from_millis(5);

/// May a command be sent again when it is not known whether it was executed?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempts {
    /// Never. It is sent again only after an answer that proves that it was not executed.
    AtMostOnce,
    /// Yes: executing it twice is the same as once.
    Repeatable,
}

/// Who wants to know what happens on the channel.
///
/// The calls come from the subscriber's task and must return soon. A listener must not own the
/// [`Link`] (a weak reference is fine), or neither is ever dropped.
pub(crate) trait Listener: Send + Sync + 'static {
    /// A message on our channel.
    fn push(&self, message: &[u8]);
    /// From now on messages arrive; before that any number of them may have been missed.
    fn resubscribed(&self);
    /// Until `resubscribed` no message arrives.
    fn lost(&self);
}

/// The connections to one Redis deployment. Clones share them.
#[derive(Clone)]
pub(crate) struct Link {
    inner: Arc<Inner>,
}

struct Inner {
    core: Arc<Core>,
    tasks: Tasks,
    /// The client is ours: connected, watched and closed by us.
    own: bool,
}

impl Link {
    /// Connects, and starts to subscribe in the background.
    ///
    /// # Errors
    /// Whatever stands in the way, within the connect timeout: nothing is tried twice.
    pub(crate) async fn connect(
        config: LinkConfig,
        listener: Arc<dyn Listener>,
    ) -> Result<Self, LinkError> {
        let client = client::build(&config)?;
        let router = Router::start(&client, config.connect_timeout).await?;
        Ok(Self::spawn(client, Some(router), &config, listener))
    }

    /// Uses a connected client of the user's for commands, and its settings for the subscriber.
    ///
    /// Its connection, timeouts for connecting and reconnection policy are the user's business, so
    /// nobody replaces a connection that hangs. In a cluster we connect a client of our own with the
    /// same settings: fred's following of `ASK` can hand one caller's reply to another, and cannot
    /// be switched off from outside.
    ///
    /// # Errors
    /// If the client is not connected.
    pub(crate) async fn from_client(
        user: Client,
        config: LinkConfig,
        listener: Arc<dyn Listener>,
    ) -> Result<Self, LinkError> {
        if user.is_clustered() {
            let client = client::build_like(&user, &config);
            let router = Router::start(&client, config.connect_timeout).await?;
            return Ok(Self::spawn(client, Some(router), &config, listener));
        }
        client::ping(&user, config.connect_timeout).await.map_err(LinkError::at_start)?;
        Ok(Self::spawn(user, None, &config, listener))
    }

    fn spawn(
        client: Client,
        router: Option<Router>,
        config: &LinkConfig,
        listener: Arc<dyn Listener>,
    ) -> Self {
        let core = Arc::new(Core::new(client, config));
        let tasks = Tasks::default();
        let own = router.is_some();
        if let Some(router) = router {
            tasks.spawn(keeper::keep(Arc::clone(&core), router));
        }
        let channel = config.channel.clone();
        tasks.spawn(subscriber::subscribe(
            Arc::clone(&core),
            channel,
            config.ping_interval,
            listener,
        ));
        if core.client.uses_sentinels() {
            tasks.spawn(subscriber::watch_sentinels(Arc::clone(&core), config.ping_interval));
        }
        Self { inner: Arc::new(Inner { core, tasks, own }) }
    }

    /// Runs a script, by its digest if the server knows it.
    ///
    /// All keys must be in one slot. The call ends within the request timeout, whatever happens.
    ///
    /// # Errors
    /// [`LinkError::may_have_run`] tells whether the script may have been executed nevertheless.
    ///
    /// # Cancel safety
    /// None: dropped, the script may be executed at any later time.
    pub(crate) async fn run(
        &self,
        script: &Script,
        keys: &[Bytes],
        args: &[Bytes],
        attempts: Attempts,
    ) -> Result<Reply, LinkError> {
        let start = Instant::now();
        match self.core().exchange(script.evalsha(keys, args, self.is_cluster())).await {
            Err(error) if error.is_for_good() => Err(error),
            Err(error) => {
                Box::pin(self.run_again(script, keys, args, attempts, start, error)).await
            }
            reply => reply,
        }
    }

    /// The rest of [`run`](Self::run), when its first send had no reply worth returning.
    async fn run_again(
        &self,
        script: &Script,
        keys: &[Bytes],
        args: &[Bytes],
        attempts: Attempts,
        start: Instant,
        mut error: LinkError,
    ) -> Result<Reply, LinkError> {
        let core = self.core();
        let deadline = start + core.request_timeout;
        let mut known = true;
        let mut pause = PAUSE;
        // What an earlier send may have done, the error of a later one must not deny.
        let mut ran = false;
        for _ in 1..MAX_SENDS {
            ran |= error.may_have_run();
            if error.is_noscript() && known {
                // The refused send was not executed: whatever `attempts` says, this is the first.
                known = false;
            } else if error.is_for_good() || (ran && attempts == Attempts::AtMostOnce) {
                break;
            } else {
                // The keeper may not have noticed yet; with a user's client there is none.
                sleep_until((Instant::now() + pause).min(deadline)).await;
                pause *= 2;
                if let Err(next) = core.wait_up(deadline, attempts).await {
                    error = next;
                    break;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let command = match known {
                true => script.evalsha(keys, args, self.is_cluster()),
                false => script.eval(keys, args, self.is_cluster()),
            };
            match core.exchange_within(command, left).await {
                Ok(reply) => return Ok(reply),
                Err(next) => error = next,
            }
        }
        Err(if ran { error.ran() } else { error })
    }

    /// Sends one command that has no key, to any node.
    ///
    /// # Errors
    /// As [`run`](Self::run); it is sent once.
    pub(crate) async fn command(
        &self,
        name: &'static str,
        args: &[Bytes],
    ) -> Result<Reply, LinkError> {
        let core = self.core();
        let deadline = Instant::now() + core.request_timeout;
        core.wait_up(deadline, Attempts::AtMostOnce).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        core.exchange_within(script::Command::plain(name, args), left).await
    }

    /// Sends one command to every primary; one reply for each.
    ///
    /// # Errors
    /// The first error of any of them.
    pub(crate) async fn command_everywhere(
        &self,
        name: &'static str,
        args: &[Bytes],
    ) -> Result<Vec<Reply>, LinkError> {
        let Some(state) = self.core().client.cached_cluster_state() else {
            return Ok(vec![self.command(name, args).await?]);
        };
        let mut replies = Vec::new();
        for node in state.unique_primary_nodes() {
            let command = script::Command::plain(name, args);
            replies.push(self.core().exchange_at(node, command).await?);
        }
        Ok(replies)
    }

    /// Whether a push sent now would arrive.
    pub(crate) fn is_subscribed(&self) -> bool {
        self.core().subscription.borrow().is_ok()
    }

    /// Waits until the subscription is confirmed, at most for the request timeout.
    ///
    /// # Errors
    /// At once if the server refused it or cannot be reached; it is tried again in the background.
    pub(crate) async fn subscribed(&self) -> Result<(), LinkError> {
        let core = self.core();
        let mut watch = core.subscription.subscribe();
        let deadline = Instant::now() + core.request_timeout;
        let decided = watch.wait_for(|state| !matches!(state, Err(LinkError::Timeout)));
        match timeout_at(deadline, decided).await {
            Ok(Ok(state)) => state.clone(),
            Ok(Err(_)) => Err(LinkError::Closed),
            Err(_) => Err(LinkError::Timeout),
        }
    }

    /// The hash slot of a key, in a cluster or not.
    pub(crate) fn slot(key: &[u8]) -> u16 {
        fred::util::redis_keyslot(key)
    }

    /// Whether keys live on several nodes.
    pub(crate) fn is_cluster(&self) -> bool {
        self.core().clustered
    }

    /// Closes our connections, in bounded time whatever the servers do.
    ///
    /// Commands in flight get their answers if these come soon. Later calls fail with
    /// [`LinkError::Closed`]. A client given by the user stays as it is.
    pub(crate) async fn close(&self) {
        let Inner { core, tasks, own } = &*self.inner;
        if core.set_closed() && *own {
            // `quit` waits for what is in flight; it can wait for ever.
            let _ = tokio::time::timeout(core.request_timeout, core.client.quit()).await;
        }
        tasks.end().await;
    }

    fn core(&self) -> &Arc<Core> {
        &self.inner.core
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("health", &*self.core().health.borrow())
            .field("clustered", &self.is_cluster())
            .field("subscribed", &self.is_subscribed())
            .finish_non_exhaustive()
    }
}
