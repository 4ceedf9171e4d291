//! A simulated process: a client with its workers behind a gate, and what it hears.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use distlock_checker::{Event, Kind};
use distlock_core::{AnyBackend, Backend, Client, FenceGate, Guard, Key, Owner, simulation::Gate};
use tokio::task::JoinHandle;

use crate::{
    Bug,
    etcd::{self, Etcd},
    net::{Heard, Link, Net, Server},
    plan::Plan,
    redis::{self, Redis},
    witness::Witness,
    worker,
    world::World,
};

/// A server for which there is a client's side.
pub(crate) trait Kit: Server {
    type Backend: Backend + Clone;

    fn backend(link: Link<Self>, bug: Option<Bug>) -> Self::Backend;

    fn hear(backend: &Self::Backend, heard: Heard<Self::Push>);
}

impl Kit for Redis {
    type Backend = redis::Backend;

    fn backend(link: Link<Self>, bug: Option<Bug>) -> redis::Backend {
        redis::Backend::new(link, bug)
    }

    fn hear(backend: &redis::Backend, heard: Heard<Self::Push>) {
        backend.hear(heard);
    }
}

impl Kit for Etcd {
    type Backend = etcd::Backend;

    fn backend(link: Link<Self>, bug: Option<Bug>) -> etcd::Backend {
        etcd::Backend::new(link, bug)
    }

    fn hear(backend: &etcd::Backend, heard: Heard<Self::Push>) {
        backend.hear(heard);
    }
}

/// Everything of one run.
pub(crate) struct Sim<S: Server> {
    pub(crate) world: Arc<World>,
    pub(crate) net: Arc<Net<S>>,
    pub(crate) plan: Plan,
    pub(crate) stopped: AtomicBool,
    /// What protects a resource, for each lock.
    pub(crate) gates: Vec<FenceGate>,
    processes: Mutex<Vec<Arc<Process>>>,
    /// Locks of clients that are not ours.
    strangers: Mutex<Vec<(String, Owner)>>,
    ids: AtomicU32,
}

/// One process.
pub(crate) struct Process {
    pub(crate) id: u32,
    pub(crate) gate: Gate,
    pub(crate) client: Client,
    pub(crate) world: Arc<World>,
    stalled: AtomicBool,
    /// When it went on the last time.
    resumed: AtomicU64,
    /// It is leaving, by itself.
    pub(crate) leaving: AtomicBool,
    pub(crate) witness: Witness,
    guards: Arc<Guards>,
    /// What was asked of each claim that a guard has had, so that a hand-over is known as such.
    pub(crate) owners: Mutex<BTreeMap<Owner, Asked>>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

/// The guards of a process, by worker.
type Guards = Mutex<BTreeMap<u32, Hold>>;

/// With what ttl and words a lock was asked for; none, when it was changed since.
pub(crate) type Asked = Option<(Duration, &'static str)>;

/// A guard, and what the history knows of it.
pub(crate) struct Hold {
    pub(crate) guard: Arc<Guard>,
    /// Its deadline, when somebody looked the last time.
    pub(crate) deadline: u64,
    /// Since then the process did not run.
    pub(crate) stalled: bool,
}

impl<S: Kit> Sim<S> {
    pub(crate) fn new(world: Arc<World>, server: S, plan: Plan) -> Arc<Self> {
        let net = Net::new(&world, server);
        let gates = (0..plan.keys).map(|_| FenceGate::new()).collect();
        let (stopped, ids) = (AtomicBool::new(false), AtomicU32::new(1));
        let (processes, strangers) = (Mutex::default(), Mutex::default());
        Arc::new(Self { world, net, plan, stopped, gates, processes, strangers, ids })
    }

    /// Starts a process with its workers.
    pub(crate) fn start_process(self: &Arc<Self>) {
        let id = self.next_id();
        let (link, mut heard) = self.net.connect(id, self.plan.request_timeout);
        let backend = S::backend(link, self.plan.bug);
        let gate = Gate::new();
        let hears = backend.clone();
        tokio::spawn(gate.hold(async move {
            while let Some(heard) = heard.recv().await {
                S::hear(&hears, heard);
            }
        }));
        let witness =
            Witness::new(AnyBackend::new(backend), &self.world, self.plan.cohort_limit > 0);
        let backend = AnyBackend::new(witness.clone());
        let backend = match self.plan.bug {
            Some(bug) => bug.wrap(backend),
            None => backend,
        };
        let guards = Arc::new(Guards::default());
        let client = Client::builder(backend).ttl(self.plan.ttl);
        let client = client.observer(self.observer(id, &guards));
        let client = client.cohort_limit(self.plan.cohort_limit).build();
        let client = client.expect("the plan's ttl is within the limits");
        let process = Arc::new(Process {
            id,
            gate,
            client,
            world: Arc::clone(&self.world),
            stalled: AtomicBool::new(false),
            resumed: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            witness,
            guards,
            owners: Mutex::default(),
            workers: Mutex::default(),
        });
        for worker in 1..=self.plan.workers {
            let task = worker::work(Arc::clone(self), Arc::clone(&process), worker);
            process.workers().push(tokio::spawn(process.gate.hold(task)));
        }
        self.processes().push(process);
    }

    /// Writes down every rise of a deadline in its moment.
    fn observer(
        &self,
        process: u32,
        guards: &Arc<Guards>,
    ) -> impl Fn(&Key, &distlock_core::Event) + Send + Sync + use<S> {
        let (world, net) = (Arc::clone(&self.world), Arc::clone(&self.net));
        let guards = Arc::downgrade(guards);
        move |key, event| {
            let (distlock_core::Event::Renewed { .. }, Some(guards)) = (event, guards.upgrade())
            else {
                return;
            };
            let now = world.now();
            // To ask one whose end is not noticed yet would be to notice it.
            let held = guards.lock().unwrap_or_else(PoisonError::into_inner);
            let renewed = |hold: &&Hold| hold.guard.key() == key && now < hold.deadline;
            let renewed: Vec<_> = held
                .iter()
                .filter(|(_, hold)| renewed(hold))
                .map(|(worker, hold)| (*worker, Arc::clone(&hold.guard)))
                .collect();
            drop(held);
            for (worker, guard) in renewed {
                if !guard.is_held() {
                    continue;
                }
                let event = Event::new(now, Kind::Step).of(process, worker).key(key.as_str());
                let deadline = world.time_of(guard.expires_at());
                world.record(&event.deadline(deadline).value(kept_until(&world, &net, &guard)));
                let mut held = guards.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(hold) = held.get_mut(&worker) {
                    hold.deadline = deadline;
                }
            }
        }
    }

    /// Until when the store would keep the lock of a guard.
    pub(crate) fn kept_until(&self, guard: &Guard) -> u64 {
        kept_until(&self.world, &self.net, guard)
    }

    /// A number for one more process.
    pub(crate) fn next_id(&self) -> u32 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Nobody who ever was sends anything any more.
    pub(crate) fn bury_all(&self) {
        (1..self.ids.load(Ordering::Relaxed)).for_each(|process| self.net.bury(process));
    }

    /// The processes there are.
    pub(crate) fn all(&self) -> Vec<Arc<Process>> {
        self.processes().clone()
    }

    /// One of them.
    pub(crate) fn any(&self) -> Option<Arc<Process>> {
        let processes = self.processes();
        let index = self.world.below(processes.len() as u64) as usize;
        processes.get(index).cloned()
    }

    /// It is not there any more.
    pub(crate) fn forget(&self, process: &Process) {
        self.processes().retain(|other| other.id != process.id);
    }

    pub(crate) fn strangers(&self) -> MutexGuard<'_, Vec<(String, Owner)>> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn processes(&self) -> MutexGuard<'_, Vec<Arc<Process>>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kept_until<S: Server>(world: &World, net: &Net<S>, guard: &Guard) -> u64 {
    let left = net.peek(|server| server.keeps(guard.key().as_str(), guard.owner()));
    world.now() + u64::try_from(left.as_nanos()).unwrap_or(u64::MAX)
}

impl Process {
    /// The deadline of a guard for which the store is being asked; `changed`: for another ttl.
    pub(crate) fn renews_until(&self, changed: bool) -> Option<u64> {
        let guards = self.guards();
        let renewed = |hold: &&Hold| self.witness.is_asked(hold.guard.owner(), changed);
        guards.values().find(renewed).map(|hold| hold.deadline)
    }

    /// Whether it ran all the time since then.
    pub(crate) fn ran_since(&self, t: u64) -> bool {
        !self.stalled.load(Ordering::Relaxed) && self.resumed.load(Ordering::Relaxed) <= t
    }

    pub(crate) fn guards(&self) -> MutexGuard<'_, BTreeMap<u32, Hold>> {
        self.guards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn workers(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops it in the middle of whatever it does. `false`: it is stopped already.
    pub(crate) fn stall(&self) -> bool {
        if self.stalled.swap(true, Ordering::Relaxed) {
            return false;
        }
        let event = Event::new(self.world.now(), Kind::Stall).of(self.id, 0);
        self.world.record(&event);
        self.look(true);
        self.gate.shut();
        true
    }

    /// It goes on.
    pub(crate) fn resume(&self) {
        if self.stalled.swap(false, Ordering::Relaxed) {
            let event = Event::new(self.world.now(), Kind::Resume).of(self.id, 0);
            self.world.record(&event);
            self.resumed.store(self.world.now(), Ordering::Relaxed);
            // Who asks a guard makes it notice its end. Not everybody asks at once.
            if self.world.chance(0.5) {
                self.look(false);
            }
            self.gate.open();
        }
    }

    /// It is no more. What it has at the server stays there.
    pub(crate) fn die(&self) {
        let event = Event::new(self.world.now(), Kind::Death).of(self.id, 0);
        self.look(true);
        self.world.record(&event);
        self.gate.shut();
        // Should it be stalled, it does not go on.
        self.stalled.store(false, Ordering::Relaxed);
    }

    /// Writes down how its guards stand.
    fn look(&self, stalls: bool) {
        for (worker, hold) in self.guards().iter_mut() {
            if hold.guard.is_held() {
                hold.deadline = self.world.time_of(hold.guard.expires_at());
                hold.stalled = stalls;
                let event = Event::new(self.world.now(), Kind::Step).of(self.id, *worker);
                let event = event.key(hold.guard.key().as_str()).deadline(hold.deadline);
                self.world.record(&event);
            } else {
                // Whoever has it was not told yet, by the end of a longest hold for example, and is told when the process goes on.
                hold.deadline = hold.deadline.min(self.world.now());
                hold.stalled = true;
            }
        }
    }
}
