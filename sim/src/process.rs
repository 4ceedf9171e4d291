//! A simulated process: a client with its workers behind a gate, and what it hears.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use distlock_checker::{Event, Kind};
use distlock_core::{AnyBackend, Backend, Client, FenceGate, Guard, simulation::Gate};
use tokio::task::JoinHandle;

use crate::{
    Bug,
    etcd::{self, Etcd},
    net::{Heard, Link, Net, Server},
    plan::Plan,
    redis::{self, Redis},
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
    ids: AtomicU32,
}

/// One process.
pub(crate) struct Process {
    pub(crate) id: u32,
    pub(crate) gate: Gate,
    pub(crate) client: Client,
    pub(crate) world: Arc<World>,
    stalled: AtomicBool,
    /// It is leaving, by itself.
    pub(crate) leaving: AtomicBool,
    guards: Mutex<BTreeMap<u32, Hold>>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

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
        let (stopped, processes) = (AtomicBool::new(false), Mutex::default());
        Arc::new(Self { world, net, plan, stopped, gates, processes, ids: AtomicU32::new(1) })
    }

    /// Starts a process with its workers.
    pub(crate) fn start_process(self: &Arc<Self>) {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (link, mut heard) = self.net.connect(id, self.plan.request_timeout);
        let backend = S::backend(link, self.plan.bug);
        let gate = Gate::new();
        let hears = backend.clone();
        tokio::spawn(gate.hold(async move {
            while let Some(heard) = heard.recv().await {
                S::hear(&hears, heard);
            }
        }));
        let backend = AnyBackend::new(backend);
        let backend = match self.plan.bug {
            Some(bug) => bug.wrap(backend),
            None => backend,
        };
        let client = Client::builder(backend).ttl(self.plan.ttl);
        let client = client.cohort_limit(self.plan.cohort_limit).build();
        let client = client.expect("the plan's ttl is within the limits");
        let process = Arc::new(Process {
            id,
            gate,
            client,
            world: Arc::clone(&self.world),
            stalled: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            guards: Mutex::default(),
            workers: Mutex::default(),
        });
        for worker in 1..=self.plan.workers {
            let task = worker::work(Arc::clone(self), Arc::clone(&process), worker);
            process.workers().push(tokio::spawn(process.gate.hold(task)));
        }
        self.processes().push(process);
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

    fn processes(&self) -> MutexGuard<'_, Vec<Arc<Process>>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
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
            self.look(false);
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
                hold.stalled = true;
            }
        }
    }
}
