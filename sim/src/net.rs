//! The network between processes and their one server: what is sent arrives late, twice, or never.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use distlock_core::{BackendError, Claim, Lease, Owner, simulation};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout_at},
};

use crate::{plan::Wound, world::World};

/// A server: a state, and what can befall it.
pub(crate) trait Server: Clone + Send + 'static {
    /// What it says to processes unasked.
    type Push: Clone + Send + 'static;

    /// What it has to say since it was asked last.
    fn pushes(&mut self) -> Vec<(u32, Self::Push)>;

    /// What befell which locks by itself, since it was asked last.
    fn mishaps(&mut self) -> Vec<(&'static str, String)>;

    /// A process listens to pushes, or does not any more.
    fn listens(&mut self, process: u32, listens: bool);

    /// Something befalls it. `amount` is a random number. `false`: there was nothing to befall.
    fn suffer(&mut self, wound: Wound, key: &str, amount: u64) -> bool;

    /// The same state in another place; what the server counts for the judge stays.
    fn replace(&mut self, by: Self);

    /// For how long this owner has the lock yet, if nobody extends it.
    fn keeps(&mut self, key: &str, owner: Owner) -> Duration;

    /// Who of ours has which lock.
    fn holders(&mut self) -> Vec<(String, Owner)>;

    /// A client that is not ours takes the lock, if it is free, and gives it back.
    fn lend(&mut self, key: &str, owner: Owner, ttl: Duration) -> bool;

    fn take_back(&mut self, key: &str, owner: Owner);

    /// What it does by itself, twice in a second.
    fn tick(&mut self);

    /// What is there, by name.
    fn left(&mut self) -> Vec<(&'static str, u64)>;
}

/// Why an exchange failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Cut {
    /// There was no answer in time; it may be carried out yet.
    Silence,
    /// The connection broke; it may have been carried out.
    Broken,
    /// The server, or the lack of one, refused it.
    Refused,
}

/// Whether the server runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Health {
    Up,
    Down,
    Hung,
}

/// The server and all connections to it.
pub(crate) struct Net<S: Server> {
    world: Arc<World>,
    state: Mutex<State<S>>,
    /// Told when the server's health changes. Who waits is woken in the order of arrival, which not everything in tokio keeps to.
    changed: Notify,
}

struct State<S: Server> {
    server: S,
    /// Copies that lag behind, the oldest first.
    copies: Vec<S>,
    ears: BTreeMap<u32, mpsc::UnboundedSender<Heard<S::Push>>>,
    dead: BTreeSet<u32>,
    /// They cannot reach the server, nor it them.
    cut_off: BTreeSet<u32>,
    health: Health,
}

/// What a process hears on its second connection.
#[derive(Clone, Debug)]
pub(crate) enum Heard<P> {
    Push(P),
    Lost,
    Resubscribed,
}

/// The connections of one process.
pub(crate) struct Link<S: Server> {
    net: Arc<Net<S>>,
    pub(crate) process: u32,
    timeout: Duration,
}

impl<S: Server> Net<S> {
    /// A server that runs.
    pub(crate) fn new(world: &Arc<World>, server: S) -> Arc<Self> {
        let (copies, ears) = (Vec::new(), BTreeMap::new());
        let (dead, cut_off) = (BTreeSet::new(), BTreeSet::new());
        let state = State { server, copies, ears, dead, cut_off, health: Health::Up };
        let (world, changed) = (Arc::clone(world), Notify::new());
        Arc::new(Self { world, state: Mutex::new(state), changed })
    }

    /// Connects a process. What it hears comes out of the channel.
    pub(crate) fn connect(
        self: &Arc<Self>,
        process: u32,
        timeout: Duration,
    ) -> (Link<S>, mpsc::UnboundedReceiver<Heard<S::Push>>) {
        let (tx, rx) = mpsc::unbounded_channel();
        let mut state = self.state();
        state.ears.insert(process, tx);
        state.server.listens(process, true);
        (Link { net: Arc::clone(self), process, timeout }, rx)
    }

    /// A process does not listen any more: its machine, or only its connection, is gone. `known`: the server knows.
    pub(crate) fn deafen(&self, process: u32, known: bool) {
        let mut state = self.state();
        if let Some(ear) = state.ears.remove(&process)
            && known
        {
            state.server.listens(process, false);
            let _ = ear.send(Heard::Lost);
        }
    }

    /// It listens again, by the same channel.
    pub(crate) fn undeafen(&self, process: u32, ear: mpsc::UnboundedSender<Heard<S::Push>>) {
        let _ = ear.send(Heard::Resubscribed);
        let mut state = self.state();
        state.ears.insert(process, ear);
        state.server.listens(process, true);
    }

    pub(crate) fn ear(&self, process: u32) -> Option<mpsc::UnboundedSender<Heard<S::Push>>> {
        self.state().ears.get(&process).cloned()
    }

    /// A process sends and hears nothing any more.
    pub(crate) fn bury(&self, process: u32) {
        let mut state = self.state();
        state.ears.remove(&process);
        state.dead.insert(process);
    }

    /// A process reaches nobody any more, and is reached by nobody; or is.
    pub(crate) fn cut_off(&self, process: u32, cut_off: bool) {
        let mut state = self.state();
        if cut_off {
            state.cut_off.insert(process);
        } else {
            state.cut_off.remove(&process);
        }
    }

    fn is_cut_off(&self, process: u32) -> bool {
        self.state().cut_off.contains(&process)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.state().health == Health::Up
    }

    pub(crate) fn set_health(&self, health: Health) {
        self.state().health = health;
        self.changed.notify_waiters();
    }

    /// What the server does by itself, and the copy that lags behind.
    pub(crate) fn tick(self: &Arc<Self>) {
        if !self.is_up() {
            return;
        }
        self.carry_out(&|server: &mut S| server.tick());
        let mut state = self.state();
        let copy = state.server.clone();
        state.copies.push(copy);
        if state.copies.len() > 3 {
            state.copies.remove(0);
        }
    }

    pub(crate) fn suffer(self: &Arc<Self>, wound: Wound, key: &str, amount: u64) -> bool {
        if wound == Wound::Failover {
            let mut state = self.state();
            if state.copies.is_empty() {
                return false;
            }
            let copy = state.copies.remove(0);
            state.copies.clear();
            state.server.replace(copy);
            return true;
        }
        self.carry_out(&|server: &mut S| server.suffer(wound, key, amount))
    }

    /// Asks the server something at once, as nobody can who is not the simulation itself.
    pub(crate) fn peek<T>(&self, ask: impl FnOnce(&mut S) -> T) -> T {
        ask(&mut self.state().server)
    }

    pub(crate) fn carry_out<T>(self: &Arc<Self>, run: &dyn Fn(&mut S) -> T) -> T {
        let mut state = self.state();
        let answer = run(&mut state.server);
        let (pushes, mishaps) = (state.server.pushes(), state.server.mishaps());
        drop(state);
        for (name, key) in mishaps {
            self.world.fault(name, &key);
        }
        for (process, push) in pushes {
            self.push(process, &push);
        }
        answer
    }

    fn push(self: &Arc<Self>, process: u32, push: &S::Push) {
        let rates = self.world.rates();
        let happens = |rate: f64, name: &str| {
            let happens = 0.0 < rate && self.world.chance(rate);
            if happens {
                self.world.fault(name, "");
            }
            happens
        };
        if happens(rates.lose_push, "push_lost") {
            return;
        }
        let copies = 1 + u32::from(happens(rates.double_push, "push_doubled"));
        for _ in 0..copies {
            let late = match happens(rates.delay_push, "push_late") {
                true => self.world.between(1, rates.longest),
                false => self.world.between(0, 3),
            };
            let (net, push) = (Arc::clone(self), push.clone());
            tokio::spawn(async move {
                sleep(late).await;
                // Who does not listen at this moment never hears of it.
                if let Some(ear) = net.ear(process).filter(|_| !net.is_cut_off(process)) {
                    let _ = ear.send(Heard::Push(push));
                }
            });
        }
    }

    /// Waits until the server runs, or is known not to.
    async fn running(&self) {
        loop {
            let changed = self.changed.notified();
            if self.state().health != Health::Hung {
                return;
            }
            changed.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Server> Link<S> {
    /// One exchange with the server, with what the network makes of it. It ends in bounded time.
    pub(crate) async fn exchange<T: Send + 'static>(
        &self,
        run: impl Fn(&mut S) -> T + Send + Sync + 'static,
    ) -> Result<T, Cut> {
        self.send(run, true, Instant::now() + self.timeout).await
    }

    /// The same for what has less time.
    pub(crate) async fn exchange_until<T: Send + 'static>(
        &self,
        run: impl Fn(&mut S) -> T + Send + Sync + 'static,
        until: Instant,
    ) -> Result<T, Cut> {
        self.send(run, true, until).await
    }

    /// The same for what is never sent again: a connection by itself doubles nothing, those who repeat do.
    pub(crate) async fn exchange_once<T: Send + 'static>(
        &self,
        run: impl Fn(&mut S) -> T + Send + Sync + 'static,
        until: Instant,
    ) -> Result<T, Cut> {
        self.send(run, false, until).await
    }

    async fn send<T: Send + 'static>(
        &self,
        run: impl Fn(&mut S) -> T + Send + Sync + 'static,
        repeats: bool,
        until: Instant,
    ) -> Result<T, Cut> {
        if self.net.state().dead.contains(&self.process) {
            return pending().await;
        }
        let fate = self.net.world.fate(repeats);
        let (tx, mut rx) = oneshot::channel();
        // Kept here too, so that what is lost is silence, and no end.
        let tx = Arc::new(Mutex::new(Some(tx)));
        let (run, process) = (Arc::new(run), self.process);
        for arrives in fate.arrives.into_iter().flatten().filter(|_| fate.request) {
            let (net, tx, run) = (Arc::clone(&self.net), Arc::clone(&tx), Arc::clone(&run));
            tokio::spawn(async move {
                sleep(arrives).await;
                if net.is_cut_off(process) {
                    return;
                }
                net.running().await;
                let refuses = fate.refused || !net.is_up();
                let answer = refuses.then_some(Err(Cut::Refused));
                let answer = answer.unwrap_or_else(|| Ok(net.carry_out(&*run)));
                if fate.reply {
                    sleep(fate.back).await;
                    if net.is_cut_off(process) {
                        return;
                    }
                    let tx = tx.lock().unwrap_or_else(PoisonError::into_inner).take();
                    if let Some(tx) = tx {
                        let _ = tx.send(answer);
                    }
                }
            });
        }
        if let Some(after) = fate.cut {
            sleep_until((Instant::now() + after).min(until)).await;
            return Err(Cut::Broken);
        }
        match timeout_at(until, &mut rx).await {
            Ok(Ok(answer)) => answer,
            _ => Err(Cut::Silence),
        }
    }

    pub(crate) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether pushes arrive, as far as the process knows.
    pub(crate) fn hears(&self) -> bool {
        self.net.state().ears.contains_key(&self.process)
    }

    /// A time between the two, in milliseconds.
    pub(crate) fn between(&self, low: u64, high: u64) -> Duration {
        self.net.world.between(low, high)
    }

    /// Tells a claim that it is granted. Who says yes for one that is over leaves a lock with nobody.
    pub(crate) fn grant(&self, claim: &Claim, lease: Lease) -> bool {
        let over = simulation::is_over(claim);
        let taken = claim.grant(lease);
        if over && taken {
            self.net.world.breach("a grant is accepted that nobody waits for", claim.key());
        }
        taken
    }
}

impl Cut {
    pub(crate) fn error(self, name: &'static str) -> BackendError {
        BackendError::transient(
            name,
            match self {
                Self::Silence => "gave no answer in time",
                Self::Broken => "the connection broke",
                Self::Refused => "the server refused the request",
            },
        )
    }
}

impl<S: Server> fmt::Debug for Net<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").finish_non_exhaustive()
    }
}

impl<S: Server> fmt::Debug for Link<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("process", &self.process).finish_non_exhaustive()
    }
}
