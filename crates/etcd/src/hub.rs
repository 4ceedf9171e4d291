//! The one watch stream of a process. On it is one watch for each name that somebody waits for, or has held for a while.
//!
//! A watch is opened at the present revision, and the line is read once it is; from then on events alone tell what happens. Whatever goes wrong with the stream, its end,
//! a compaction, a member without a leader, an old token, is treated the same: a new stream, on another member if need be, and all lines read again. Nothing is ever
//! concluded from silence.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use etcd_client::{
    EventType, WatchFilterType, WatchOptions, WatchRequestSender, WatchResponse,
    WatchResponseStream,
};
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    error::{Failure, Remedy},
    store::Store,
    table::{Scope, Table},
};

/// How often the stream is asked for a sign of life, and for how long it may give none.
const PULSE: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_millis(3500);

/// For how long a name is watched that nobody of this process wants any more: who comes back soon finds its watch open.
const LINGER: Duration = Duration::from_secs(5);

/// How long to wait before the next stream, when one did not last.
const PAUSES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
];

/// Watches what wants to be watched, for as long as the store is there.
pub(crate) async fn run(store: Weak<Store>, wake: Arc<Notify>) {
    let mut failures = 0;
    loop {
        let wanted = {
            let Some(store) = store.upgrade().filter(|store| store.check_open().is_ok()) else {
                return;
            };
            store.table().first_wanted()
        };
        let Some(line) = wanted else {
            wake.notified().await;
            continue;
        };
        sleep(PAUSES[failures.min(PAUSES.len() - 1)]).await;
        let opened = Instant::now();
        // A server that says what no server says must not end this task.
        let ended = AssertUnwindSafe(session(&store, &wake, line)).catch_unwind().await;
        if let Some(store) = store.upgrade() {
            store.table().unwatch();
        }
        match ended {
            Ok(Ok(())) => failures = 0,
            _ if PULSE * 5 < opened.elapsed() => failures = 0,
            _ => failures += 1,
        }
    }
}

/// One stream, from its opening to its end. `Ok`: nobody needs it any more.
async fn session(store: &Weak<Store>, wake: &Notify, first: Arc<str>) -> Result<(), Failure> {
    let mut session = Session::open(store, first).await?;
    let mut pulse = interval(PULSE);
    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        session.open_wanted().await?;
        tokio::select! {
            biased;
            message = session.rx.next() => {
                session.heard = Instant::now();
                let ended = match message {
                    Some(Ok(message)) => session.hear(&message).await,
                    Some(Err(error)) => Err(Failure::new(&error)),
                    None => Err(Failure::timeout()),
                };
                if let Err(failure) = ended {
                    session.blame(&failure).await;
                    return Err(failure);
                }
            }
            () = wake.notified() => {}
            Some(()) = session.readings.next(), if !session.readings.is_empty() => {}
            _ = pulse.tick() => {
                if SILENCE < session.heard.elapsed() {
                    let failure = Failure::timeout();
                    session.blame(&failure).await;
                    return Err(failure);
                }
                session.close_idle().await?;
                if session.ids.is_empty() {
                    return Ok(());
                }
                session.send(async |tx| tx.request_progress().await).await?;
            }
        }
    }
}

type Readings = FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send>>>;

struct Session<'a> {
    store: &'a Weak<Store>,
    tx: WatchRequestSender,
    rx: WatchResponseStream,
    /// The member that it leads to.
    turn: usize,
    limit: Duration,
    ids: HashMap<i64, (Arc<str>, Scope)>,
    last_id: i64,
    heard: Instant,
    readings: Readings,
}

impl<'a> Session<'a> {
    async fn open(store: &'a Weak<Store>, first: Arc<str>) -> Result<Self, Failure> {
        let strong = store.upgrade().ok_or_else(Failure::closed)?;
        let link = strong.members.link().await?;
        let scope = strong.table().open(&first, 1).unwrap_or(Scope::Leaving);
        let limit = strong.members.request_timeout();
        let mut watch = link.client.watch_client();
        let opening = watch.watch(&*first, Some(options(1, scope)));
        let failure = match timeout(limit, opening).await {
            Ok(Ok(stream)) => {
                let (tx, rx) = stream.split();
                let ids = HashMap::from([(1, (first, scope))]);
                return Ok(Self {
                    store,
                    tx,
                    rx,
                    turn: link.turn(),
                    limit,
                    ids,
                    last_id: 1,
                    heard: Instant::now(),
                    readings: Readings::new(),
                });
            }
            Ok(Err(error)) => Failure::new(&error),
            Err(_) => Failure::timeout(),
        };
        strong.members.mend(&link, &failure).await;
        Err(failure)
    }

    /// What the trouble of the stream says of its member.
    async fn blame(&mut self, failure: &Failure) {
        let Some(store) = self.store.upgrade() else { return };
        match failure.remedy {
            Remedy::Login => {
                if let Ok(link) = store.members.link().await {
                    store.members.mend(&link, failure).await;
                }
            }
            _ if failure.silent => store.members.hang_up(self.turn).await,
            _ => store.members.leave(self.turn),
        }
    }

    /// Opens the watches that are wanted and not there.
    async fn open_wanted(&mut self) -> Result<(), Failure> {
        let Some(store) = self.store.upgrade().filter(|store| store.check_open().is_ok()) else {
            return Err(Failure::closed());
        };
        let wanted = std::mem::take(&mut store.table().unwatched);
        for line in wanted {
            let id = self.last_id + 1;
            let Some(scope) = store.table().open(&line, id) else { continue };
            self.last_id = id;
            self.ids.insert(id, (Arc::clone(&line), scope));
            self.send(async |tx| tx.watch(&*line, Some(options(id, scope))).await).await?;
        }
        Ok(())
    }

    async fn hear(&mut self, message: &WatchResponse) -> Result<(), Failure> {
        if message.created() && message.canceled() {
            // One that was refused has no id, so that nobody knows which: with an old token it is each.
            return Err(Failure::canceled(message.cancel_reason()));
        }
        let id = message.watch_id();
        let Some((line, scope)) = self.ids.get(&id).cloned() else {
            // A sign of life, or one that was closed.
            return Ok(());
        };
        if message.canceled() {
            return Err(Failure::canceled(message.cancel_reason()));
        }
        let Some(store) = self.store.upgrade() else { return Err(Failure::closed()) };
        if message.created() {
            let before = store.table().opened(&line, id, scope);
            if let Some(before) = before {
                self.ids.remove(&before);
                self.send(async |tx| tx.cancel(before).await).await?;
            }
            self.readings.push(Box::pin(read(Arc::clone(&store), line, id)));
            return Ok(());
        }
        let effects = {
            let mut table = store.table();
            let Some(name) = table.names.get_mut(&line) else { return Ok(()) };
            let mut effects = Vec::new();
            for event in message.events() {
                let Some(kv) = event.kv() else { continue };
                let Some(nonce) = kv.key().strip_prefix(line.as_bytes()) else { continue };
                match event.event_type() {
                    EventType::Delete => effects.extend(name.went(nonce, kv.mod_revision())),
                    EventType::Put if kv.version() == 1 => name.came(nonce, kv.create_revision()),
                    EventType::Put => name.changed(nonce, kv.lease()),
                }
            }
            effects.extend(name.settle(name.hears_all()));
            effects
        };
        store.carry_out(effects);
        Ok(())
    }

    /// Closes the watches that nobody has wanted for a while.
    async fn close_idle(&mut self) -> Result<(), Failure> {
        let Some(store) = self.store.upgrade() else { return Err(Failure::closed()) };
        let idle = store.table().close_idle(Instant::now(), LINGER);
        for id in idle {
            if self.ids.remove(&id).is_some() {
                self.send(async |tx| tx.cancel(id).await).await?;
            }
        }
        Ok(())
    }

    async fn send(
        &mut self,
        request: impl AsyncFnOnce(&mut WatchRequestSender) -> Result<(), etcd_client::Error>,
    ) -> Result<(), Failure> {
        match timeout(self.limit, request(&mut self.tx)).await {
            Ok(sent) => sent.map_err(|error| Failure::new(&error)),
            Err(_) => Err(Failure::timeout()),
        }
    }
}

/// Reads a line whose watch was opened, until it is read or the watch is over.
async fn read(store: Arc<Store>, line: Arc<str>, id: i64) {
    loop {
        if !store.table().is_live(&line, id) {
            return;
        }
        if store.take_in_one(&line).await.is_ok() {
            return store.table().set_synced(&line, id);
        }
        sleep(PAUSES[2]).await;
    }
}

fn options(id: i64, scope: Scope) -> WatchOptions {
    let options = WatchOptions::new().with_prefix().with_watch_id(id).with_fragment();
    match scope {
        Scope::All => options,
        Scope::Leaving => options.with_filters([WatchFilterType::NoPut]),
    }
}

impl Table {
    fn first_wanted(&self) -> Option<Arc<str>> {
        self.names.iter().find_map(|(line, name)| name.watch.want.map(|_| Arc::clone(line)))
    }

    /// The scope in which a name is to be watched, if it is not yet.
    fn open(&mut self, line: &Arc<str>, id: i64) -> Option<Scope> {
        let watch = &mut self.names.get_mut(line)?.watch;
        let there = [watch.live, watch.opening].into_iter().flatten().map(|(_, scope)| scope).max();
        let scope = watch.want.filter(|want| there < Some(*want))?;
        watch.opening = Some((id, scope));
        Some(scope)
    }

    /// A watch was opened. Gives back the id of the one that it takes the place of.
    fn opened(&mut self, line: &Arc<str>, id: i64, scope: Scope) -> Option<i64> {
        let watch = &mut self.names.get_mut(line)?.watch;
        if watch.opening.is_some_and(|(opening, _)| opening == id) {
            watch.opening = None;
        }
        watch.live.replace((id, scope)).map(|(before, _)| before)
    }

    /// Whether the watch is still the one that was opened with this id.
    fn is_live(&self, line: &Arc<str>, id: i64) -> bool {
        self.names.get(line).is_some_and(|name| name.watch.live.is_some_and(|(live, _)| live == id))
    }

    /// The line was read since the watch was opened: from now on it tells all.
    fn set_synced(&mut self, line: &Arc<str>, id: i64) {
        if self.is_live(line, id)
            && let Some(name) = self.names.get_mut(line)
        {
            name.watch.synced = true;
        }
    }

    /// The stream is over: all watches are to be opened again.
    fn unwatch(&mut self) {
        self.unwatched.clear();
        for (line, name) in &mut self.names {
            let want = name.watch.want;
            name.watch = crate::table::Watch { want, ..Default::default() };
            if want.is_some() {
                self.unwatched.push(Arc::clone(line));
            }
        }
    }

    /// Forgets the names that nobody has wanted for a while. Gives back the ids of their watches.
    fn close_idle(&mut self, now: Instant, linger: Duration) -> Vec<i64> {
        let mut ids = Vec::new();
        let mut closed = 0;
        self.names.retain(|_, name| {
            let watch = &name.watch;
            let idle = name.records.is_empty() && name.asks == 0 && name.idle + linger <= now;
            if watch.want.is_none() || !idle || watch.opening.is_some() {
                return true;
            }
            ids.extend(watch.live.map(|(id, _)| id));
            closed += 1;
            false
        });
        self.watched -= closed;
        ids
    }
}
