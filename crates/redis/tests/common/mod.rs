//! What the tests on real servers share.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use distlock_core::{BackendError, Client, Event, Guard, Key, LossReason, Observer};
use distlock_redis::RedisBackend;
use distlock_servers::{net::in_time, redis::RedisServer};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Nothing here takes so long, unless it hangs.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) fn server() -> RedisServer {
    RedisServer::start(&[]).expect("a Redis server can be started")
}

pub(crate) async fn backend(server: &RedisServer) -> RedisBackend {
    RedisBackend::connect(&server.url()).await.expect("the server can be reached")
}

/// A client with a backend of its own, as another process would have.
pub(crate) async fn client(server: &RedisServer) -> Client {
    Client::new(backend(server).await)
}

pub(crate) fn command(server: &RedisServer, args: &[&str]) -> String {
    server.command(args).expect("the command is carried out")
}

/// How many keys there are, but for the fence counters, which outlive their locks.
pub(crate) fn leftovers(server: &RedisServer) -> Vec<String> {
    const SCRIPT: &str = "
        local left = {}
        for _, key in ipairs(redis.call('KEYS', '*')) do
            if string.sub(key, 1, 13) ~= '__distlock:f:' then left[#left + 1] = key end
        end
        return table.concat(left, '\\n')";
    command(server, &["EVAL", SCRIPT, "0"]).lines().map(str::to_owned).collect()
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

/// Waits until a lock that is not renewed any more is lost, of which its holder must be told when it is: no store is asked for that.
pub(crate) async fn lost_in_time(guard: &Guard) -> LossReason {
    while guard.is_held() {
        let end = guard.expires_at();
        tokio::select! {
            biased;
            reason = guard.lost() => return reason,
            () = sleep_until(end) => {}
        }
    }
    in_time(ms(500), guard.lost()).await.expect("told half a second after its deadline")
}

/// Takes a lock once, has it renewed and changed, and gives it back, so that the scripts are known: as often as it takes, as the requests of many clients
/// here have a limit that a busy machine may not keep.
pub(crate) async fn warm_up(client: &Client) {
    let mutex = client.mutex("warm").ttl(ms(6000)).renew_at(0.02);
    let once = async || {
        let guard = mutex.lock().await?;
        let known = guard.expires_at();
        eventually("it is renewed", || known < guard.expires_at() || !guard.is_held()).await;
        guard.extend(ms(40_000)).await?;
        guard.release().await
    };
    let works = async {
        while let Err(error) = once().await {
            assert!(error.is_transient(), "{error}");
        }
        // What was not answered is given back later.
        while !client.inspect("warm").await.is_ok_and(|seen| seen.holders.is_empty()) {
            sleep(ms(5)).await;
        }
    };
    soon(works).await;
}

/// An observer that keeps in mind which renewals failed, and why.
#[derive(Clone, Default)]
pub(crate) struct Failures(Arc<Mutex<Vec<BackendError>>>);

impl Observer for Failures {
    fn event(&self, _: &Key, event: &Event) {
        if let Event::RenewalFailed { error } = event {
            self.0.lock().unwrap().push(error.clone());
        }
    }
}

impl Failures {
    /// Waits for one that says this, by itself or by its cause.
    pub(crate) async fn saying(&self, text: &str) -> BackendError {
        let end = Instant::now() + LONG;
        loop {
            let all = self.0.lock().unwrap().clone();
            if let Some(error) = all.iter().find(|error| format!("{error:?}").contains(text)) {
                return error.clone();
            }
            assert!(Instant::now() < end, "a renewal fails by {text}, not by {:?}", all.last());
            sleep(ms(5)).await;
        }
    }
}
