//! A worker process: one client, some tasks that compete with all others, and a pipe that tells when it is over.

use std::{
    io,
    process::{self, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use distlock::{Client, Error};
use distlock_conformance::Dice;
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
    time::sleep,
};

use crate::{clock::Anchor, journal::Journal, setup::Setup, task::Task};

/// What the driver says when the worker is to end what it does, and leave.
pub(crate) const STOP: &str = "stop";

/// What the driver says when the worker is to keep the next lock that it gets, for longer than a lease lasts.
pub(crate) const KEEP: &str = "keep";

/// How a worker ends that found what must not be.
const WRONG: i32 = 3;

/// What all tasks of a worker share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) setup: Setup,
    pub(crate) client: Client,
    pub(crate) journal: Journal,
    pub(crate) anchor: Anchor,
    pub(crate) orders: Arc<Orders>,
}

/// What the driver has said.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    pub(crate) stop: AtomicBool,
    pub(crate) keep: AtomicBool,
}

impl Orders {
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Works until it is told to stop. It ends with the driver, whatever becomes of that.
pub(crate) fn run(words: &[String]) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let setup = Setup::parse(words)?;
    let journal = Journal::open(&setup.dir, setup.process)?;
    let orders = Arc::new(Orders::default());
    listen(Arc::clone(&orders));
    runtime(setup.threads)?.block_on(work(setup, journal, orders))?;
    Ok(ExitCode::SUCCESS)
}

/// Ends the process: something happened that no fault explains, and the driver will tell.
pub(crate) fn give_up(problem: &str) -> ! {
    eprintln!("{problem}");
    process::exit(WRONG)
}

fn runtime(threads: usize) -> io::Result<Runtime> {
    match threads {
        0 => Builder::new_current_thread().enable_all().build(),
        _ => Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
    }
}

/// Waits for a word from the driver, in a thread of its own.
fn listen(orders: Arc<Orders>) {
    thread::spawn(move || {
        let mut line = String::new();
        loop {
            line.clear();
            let read = io::stdin().read_line(&mut line);
            match line.trim_end() {
                STOP => orders.stop.store(true, Ordering::Relaxed),
                KEEP => orders.keep.store(true, Ordering::Relaxed),
                other if matches!(read, Ok(1..)) => give_up(&format!("what is `{other}`?")),
                // The driver is gone.
                _ => process::exit(2),
            }
        }
    });
}

async fn work(setup: Setup, journal: Journal, orders: Arc<Orders>) -> Result<(), Error> {
    let Some(client) = connect(&setup, &orders).await? else { return Ok(()) };
    let shared = Arc::new(Shared { setup, client, journal, anchor: Anchor::new(), orders });
    let mut dice = Dice::new(shared.setup.seed);
    let mut tasks = JoinSet::new();
    for number in 1..=shared.setup.tasks {
        match Task::new(Arc::clone(&shared), number, Dice::new(dice.roll())) {
            Ok(task) => tasks.spawn(task.run()),
            Err(error) => give_up(&format!("the ledger cannot be opened: {error}")),
        };
    }
    while let Some(done) = tasks.join_next().await {
        if let Err(error) = done {
            give_up(&format!("a task ended: {error}"));
        }
    }
    shared.client.shutdown().await;
    Ok(())
}

/// Connects, however long the server is away; nothing if it is over before.
async fn connect(setup: &Setup, orders: &Orders) -> Result<Option<Client>, Error> {
    while !orders.is_stopping() {
        match distlock::backend(&setup.url).await {
            Ok(backend) => {
                let client = Client::builder(backend).ttl(setup.ttl);
                return client.cohort_limit(setup.cohort_limit).build().map(Some);
            }
            Err(error) if error.is_transient() => sleep(Duration::from_millis(100)).await,
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
