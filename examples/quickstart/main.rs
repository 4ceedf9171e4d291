//! Several workers compete for one lock and make entries in a shared ledger. One of them overstays: it stops running while it
//! holds the lock, loses it, is told so when it runs again, and its late write is refused.
//!
//! ```text
//! cargo run --example quickstart                                    on the memory store, a worker is a thread
//! cargo run --example quickstart -- --url redis://127.0.0.1:6379    on Redis, a worker is a process
//! cargo run --example quickstart --features etcd -- --url etcd://127.0.0.1:2379    on etcd
//! ```
//!
//! `worker.rs` is the part that uses the library.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

mod ledger;
mod report;
mod worker;

use std::{
    env,
    error::Error,
    fs,
    io::{self, BufRead as _, BufReader, Write},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    thread,
};

use distlock::{AnyBackend, Client, Owner};

use crate::{ledger::Ledger, report::Report, worker::Worker};

type Result<T = (), E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const WORKERS: [&str; 4] = ["ann", "bob", "cleo", "dan"];
const OVERSTAYS: &str = "cleo";
const MEMORY: &str = "memory://";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match *args {
        [] => compete(MEMORY),
        ["--url", url] => compete(url),
        // How it starts itself.
        ["--worker", name, "--url", url, "--ledger", folder] => be_worker(name, url, folder),
        _ => Err("usage: quickstart [--url URL]".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n  ✘ {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Lets all workers work, shows what they tell, and checks the ledger.
fn compete(url: &str) -> Result {
    let store = runtime()?.block_on(distlock::backend(url))?;
    // Other processes would see nothing of a memory store.
    let in_one_process = url.starts_with(MEMORY);
    let kind = if in_one_process { "threads" } else { "processes" };
    println!("{} workers ({kind}), one lock, one ledger, on {}\n", WORKERS.len(), shown(url));
    let folder = env::temp_dir().join(format!("distlock-quickstart-{}", Owner::random()?));
    let ledger = Ledger::create(&folder)?;
    let result = match in_one_process {
        true => in_threads(&store, &ledger),
        false => in_processes(url, &folder),
    };
    let result = result.and_then(|report| report.conclude(&WORKERS, &ledger.load()?));
    fs::remove_dir_all(folder)?;
    result
}

/// Each worker is a thread, with a client and a runtime of its own, as if it were a process.
fn in_threads(store: &AnyBackend, ledger: &Ledger) -> Result<Report> {
    let (rx, tx) = io::pipe()?;
    let mut workers = Vec::new();
    for name in WORKERS {
        let (store, ledger, out) = (store.clone(), ledger.clone(), tx.try_clone()?);
        workers.push(thread::spawn(move || {
            runtime()?.block_on(worker(name, Client::new(store), ledger, out).work())
        }));
    }
    drop(tx);
    let report = read(rx)?;
    for worker in workers {
        worker.join().map_err(|_| "a worker panicked")??;
    }
    Ok(report)
}

/// Each worker is this program again.
fn in_processes(url: &str, folder: &Path) -> Result<Report> {
    let (rx, tx) = io::pipe()?;
    let mut workers = Vec::new();
    for name in WORKERS {
        let mut command = Command::new(env::current_exe()?);
        command.args(["--worker", name, "--url", url, "--ledger"]).arg(folder);
        workers.push(Running(command.stdin(Stdio::null()).stdout(tx.try_clone()?).spawn()?));
    }
    drop(tx);
    let report = read(rx)?;
    for (name, mut worker) in WORKERS.iter().zip(workers) {
        let status = worker.0.wait()?;
        if !status.success() {
            return Err(format!("{name} ended with {status}").into());
        }
    }
    Ok(report)
}

fn be_worker(name: &str, url: &str, folder: &str) -> Result {
    runtime()?.block_on(async {
        let client = distlock::connect(url).await?;
        worker(name, client, Ledger::at(Path::new(folder)), io::stdout()).work().await
    })
}

fn worker<W: Write>(name: &str, client: Client, ledger: Ledger, out: W) -> Worker<W> {
    Worker { name: name.to_owned(), overstays: name == OVERSTAYS, client, ledger, out }
}

fn read(rx: io::PipeReader) -> Result<Report> {
    let mut report = Report::new();
    for line in BufReader::new(rx).lines() {
        report.line(&line?);
    }
    Ok(report)
}

/// A thread of its own, so that a worker that does not run stops all that is its own, and nothing else.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// A child that does not outlive this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The URL without a password, wherever it stands.
fn shown(url: &str) -> String {
    let url = url.split('?').next().unwrap_or(url);
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        _ => url.to_owned(),
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
