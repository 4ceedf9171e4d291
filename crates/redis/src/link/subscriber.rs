//! The subscription, on a connection of its own.
//!
//! fred writes a SUBSCRIBE and reports success at once; when the server refuses it, the refusal is
//! taken for the reply of the next command in line, and so is every reply after it. Here the only
//! commands on the connection are ours, and the first PING after the SUBSCRIBE tells: its own answer
//! confirms the subscription, an error is the refusal. For the same reason nothing is resubscribed
//! on an old client: whenever anything is wrong, client and connection are thrown away.

use std::{convert::Infallible, sync::Arc, time::Duration};

use fred::{
    clients::Client,
    interfaces::{ClientLike, EventInterface, PubsubInterface, ServerInterface},
    types::{Message, config::Options},
};
use tokio::{
    pin,
    sync::{
        Notify,
        broadcast::{Receiver, error::RecvError},
    },
    time::sleep,
};

use super::{
    LinkError, Listener, Reply,
    client::{Router, address, build_sentinel, build_subscriber, differ, locate, ping},
    core::Core,
    keeper::{Backoff, random},
};

/// Before a refused subscription is tried again: the rights of a user seldom change.
const REFUSED: Duration = Duration::from_secs(10);

/// Where the sentinels announce a new primary.
const SWITCH: &str = "+switch-master";

enum Event<'a> {
    Message(&'a [u8]),
    /// Some may have been missed: at the start, or because we were too slow.
    Missed,
}

/// One subscription, from connecting to the end of the connection.
struct Session<'a> {
    core: &'a Core,
    client: Client,
    channel: &'a str,
    ping_interval: Duration,
}

/// Keeps the listener subscribed to the channel.
pub(super) async fn subscribe(
    core: Arc<Core>,
    channel: String,
    ping_interval: Duration,
    listener: Arc<dyn Listener>,
) {
    // Many processes should not all choose the same node of a cluster.
    let mut turn = random() as usize % 1024;
    let mut backoff = Backoff::default();
    let mut switches = core.switches.subscribe();
    loop {
        let client = build_subscriber(&core, turn);
        let session = Session { core: &core, client, channel: &channel, ping_interval };
        let mut up = false;
        let session = session.run(|event| match event {
            Event::Message(message) => listener.push(message),
            Event::Missed => {
                up = true;
                core.subscription.send_if_modified(|state| match state {
                    Err(LinkError::Closed) => false,
                    state => std::mem::replace(state, Ok(())).is_err(),
                });
                listener.resubscribed();
            }
        });
        let error = tokio::select! {
            error = session => error,
            _ = switches.changed() => {
                LinkError::Disconnected { reason: "there is another primary".into(), sent: false }
            }
        };
        let refused = matches!(error, LinkError::Server(_));
        core.subscription.send_if_modified(|state| match state {
            Err(LinkError::Closed) => false,
            state => {
                *state = Err(error.unsent());
                true
            }
        });
        if up {
            listener.lost();
            backoff = Backoff::default();
        }
        turn += 1;
        sleep(if refused { REFUSED } else { backoff.next() }).await;
    }
}

/// Has the primary looked for as soon as a sentinel tells of another one.
///
/// The old one may go on taking commands for many seconds, which are lost when it learns the news.
pub(super) async fn watch_sentinels(core: Arc<Core>, ping_interval: Duration) {
    let mut turn = random() as usize % 1024;
    let mut backoff = Backoff::default();
    while let Some((client, master)) = build_sentinel(&core, turn) {
        let session = Session { core: &core, client, channel: SWITCH, ping_interval };
        let missed = Notify::new();
        let session = session.run(|event| match event {
            // `<name> <old host> <old port> <new host> <new port>`
            Event::Message(message) => {
                let words: Vec<_> = message.split(|&byte| byte == b' ').collect();
                if words[0] == master.as_bytes() {
                    core.announce(match words[1..] {
                        [_, _, host, port] => address(host, port),
                        _ => None,
                    });
                }
            }
            Event::Missed => {
                backoff = Backoff::default();
                missed.notify_one();
            }
        });
        tokio::select! {
            _ = session => {}
            never = make_up(&core, turn, &missed) => match never {},
        }
        turn += 1;
        sleep(backoff.next()).await;
    }
}

/// Whenever a switch may have been missed, asks the sentinel where the primary is.
///
/// What it answers counts once: a sentinel that is behind must not send us to and fro.
async fn make_up(core: &Core, turn: usize, missed: &Notify) -> Infallible {
    loop {
        missed.notified().await;
        let mut backoff = Backoff::default();
        let named = loop {
            match locate(core, turn).await {
                Ok(named) => break named,
                Err(LinkError::Server(_)) => sleep(REFUSED).await,
                Err(_) => sleep(backoff.next()).await,
            }
        };
        let Some(named) = named else { continue };
        // Who is still connecting may have asked too early.
        let moved = |at| differ(&named, &at);
        if !core.is_up() || core.client.sentinel_primary().is_some_and(moved) {
            core.announce(None);
        }
    }
}

impl Session<'_> {
    /// Runs until something is wrong, and says what.
    async fn run(self, mut on: impl FnMut(Event<'_>) + Send) -> LinkError {
        let messages = self.client.message_rx();
        match self.start().await {
            Ok(router) => {
                on(Event::Missed);
                self.listen(router, messages, on).await
            }
            Err(error) => error,
        }
    }

    /// Connects and subscribes.
    async fn start(&self) -> Result<Router, LinkError> {
        let router = Router::start(&self.client, self.core.connect_timeout).await?;
        let limit = self.core.request_timeout;
        let options = Options { timeout: Some(limit), ..Options::default() };
        let client = self.client.with_options(&options);
        client.subscribe(self.channel).await.map_err(LinkError::at_start)?;
        let pong = ping(&self.client, limit).await.map_err(LinkError::at_start)?;
        match Reply::from_frame(pong) {
            // A user without the right to PING gets this as the answer to PING.
            Err(LinkError::Server(text)) if text.contains("'ping'") => Ok(router),
            Err(error) => Err(error),
            Ok(_) => Ok(router),
        }
    }

    async fn listen(
        &self,
        mut router: Router,
        mut messages: Receiver<Message>,
        mut on: impl FnMut(Event<'_>) + Send,
    ) -> LinkError {
        loop {
            let check = async {
                sleep(self.ping_interval).await;
                ping(&self.client, self.core.request_timeout).await
            };
            pin!(check);
            let mut heard = false;
            loop {
                tokio::select! {
                    biased;
                    message = messages.recv() => {
                        heard = true;
                        match message {
                            Ok(message) => {
                                on(Event::Message(message.value.as_bytes().unwrap_or_default()));
                            }
                            Err(RecvError::Lagged(_)) => on(Event::Missed),
                            Err(RecvError::Closed) => return LinkError::Closed,
                        }
                    }
                    error = router.ended() => return error,
                    pong = &mut check => match pong.map_err(LinkError::in_exchange) {
                        Ok(_) => break,
                        // The answer may be stuck behind the messages.
                        Err(LinkError::Timeout) if heard => break,
                        Err(error) => return error,
                    },
                }
            }
        }
    }
}
