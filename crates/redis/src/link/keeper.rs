//! Keeps the command connection alive, and the link's tasks in one hand.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use super::{
    LinkError,
    client::{Router, ping},
    core::{Core, Health},
};

/// Between two looks for the primary.
const SEARCH: Duration = Duration::from_secs(1);

/// Replaces the connection whenever it ends or does not answer, until the link is closed.
pub(super) async fn keep(core: Arc<Core>, mut router: Router) {
    let mut connected = Instant::now();
    let mut switches = *core.switches.borrow();
    loop {
        tokio::select! {
            _ = router.ended() => {}
            () = core.wake.notified() => {
                if core.is_demoted() {
                    // A server that stays read-only must not cost a connection per command. What
                    // sentinels tell is rare, and each moment at the old primary too long.
                    if *core.switches.borrow() == switches {
                        sleep_until(connected + SEARCH).await;
                    }
                } else if !core.is_suspect() || is_answering(&core).await {
                    continue;
                }
            }
        }
        if core.is_closed() {
            return;
        }
        switches = *core.switches.borrow();
        router = reconnect(&core, router).await;
        connected = Instant::now();
    }
}

/// Timeouts alone prove little: the script may be slow, or we are.
async fn is_answering(core: &Core) -> bool {
    match ping(&core.client, core.request_timeout).await {
        Ok(_) => true,
        // Without a connection there is nothing to replace; its end is reported otherwise.
        Err(error) => LinkError::in_exchange(error) != LinkError::Timeout,
    }
}

async fn reconnect(core: &Core, router: Router) -> Router {
    core.set_health(Health::Starting);
    router.stop().await;
    let mut backoff = Backoff::default();
    loop {
        // What is being connected to when another primary is announced may be the old one: frozen so far, and about to go on.
        let mut switches = core.switches.subscribe();
        let switched = async {
            // It cannot fail: we own the sender.
            let _ = switches.changed().await;
            LinkError::Disconnected { reason: "another primary was announced".into(), sent: false }
        };
        match Router::start_unless(&core.client, core.connect_timeout, switched).await {
            Ok(router) if core.is_misled() => {
                router.stop().await;
                core.set_health(Health::Down(LinkError::Disconnected {
                    reason: "the sentinel does not know the new primary yet".into(),
                    sent: false,
                }));
            }
            Ok(router) => {
                core.set_health(Health::Up);
                // That forgot what was announced in the last moment.
                if switches.has_changed().unwrap_or(false) {
                    core.demote();
                }
                return router;
            }
            Err(error) => core.set_health(Health::Down(error)),
        }
        sleep(backoff.next()).await;
    }
}

/// Pauses between attempts to connect: growing to half a second, each shortened by chance.
#[derive(Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(20);
    const LONGEST: Duration = Duration::from_millis(500);

    pub(super) fn next(&mut self) -> Duration {
        let pause = Self::FIRST.saturating_mul(1 << self.attempts.min(8)).min(Self::LONGEST);
        self.attempts += 1;
        // Half fixed, half by chance, so that many processes do not come back at the same moment.
        pause / 2 + pause / 2 * (random() as u32 % 1024) / 1024
    }
}

/// The standard library's only random numbers: good enough to spread load.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Tasks that end with their owner.
#[derive(Default)]
pub(super) struct Tasks {
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Tasks {
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let handle = tokio::spawn(task);
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
    }

    /// Ends all tasks and waits until they are gone.
    pub(super) async fn end(&self) {
        let handles =
            std::mem::take(&mut *self.handles.lock().unwrap_or_else(PoisonError::into_inner));
        for handle in &handles {
            handle.abort();
        }
        for handle in handles {
            let _ = handle.await;
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for handle in self.handles.get_mut().unwrap_or_else(PoisonError::into_inner) {
            handle.abort();
        }
    }
}
