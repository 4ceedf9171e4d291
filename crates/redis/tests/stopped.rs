//! A process that was stopped while it held a lock: the first thing that it learns when it runs again is that it lost, and its write is refused.
//!
//! The test is its own second process: it starts itself anew as the holder, so it brings its own `main`.

use std::{
    env,
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
};

use common::{client, ms, server, soon};
use distlock_core::{Client, FenceGate, FencingToken};
use distlock_redis::RedisBackend;
use tokio::runtime::Runtime;

mod common;

const NAME: &str = "a_stopped_holder_learns_that_it_lost_and_its_late_write_is_refused";
const HOLDER: &str = "DISTLOCK_HOLDER_OF";

fn main() {
    let args: Vec<String> = env::args().collect();
    let has = |wanted: &str| args.iter().any(|arg| arg == wanted);
    if let Ok(url) = env::var(HOLDER) {
        hold(&url);
    } else if has("--list") {
        // What the test runners ask first.
        if !has("--ignored") {
            say(&format!("{NAME}: test"));
        }
    } else {
        run();
        say(&format!("test {NAME} ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored"));
    }
}

fn run() {
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let server = server();
        let mut holder = Holder::start(&server.url());
        let stale = holder.token();
        let gate = FenceGate::new();
        assert!(gate.admit(stale), "it writes while it holds the lock");

        holder.signal("-STOP");
        let rival = client(&server).await;
        let guard = soon(rival.mutex("k").ttl(ms(5_000)).lock()).await.unwrap();
        assert!(stale < guard.fencing_token());
        assert!(gate.admit(guard.fencing_token()));
        // It is asked while it is stopped, so that nothing comes before its answer.
        holder.ask();
        holder.signal("-CONT");

        assert_eq!(holder.answer(), "held false", "the first thing that it learns");
        assert!(!gate.admit(stale), "its write comes too late");
        assert!(guard.is_held(), "what it does now harms nobody");
        holder.ask();
        assert_eq!(holder.answer(), "released NotHeld");
        assert!(guard.is_held());
    });
}

/// The process that is stopped. It does nothing but when asked.
struct Holder {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Holder {
    fn start(url: &str) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.env(HOLDER, url).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    fn token(&mut self) -> FencingToken {
        FencingToken::new(self.answer().strip_prefix("token ").unwrap().parse().unwrap())
    }

    fn ask(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"?\n").unwrap();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hold(url: &str) {
    let runtime = Runtime::new().unwrap();
    let guard = runtime.block_on(async {
        let client = Client::new(RedisBackend::connect(url).await.unwrap());
        // Renewed as long as the process runs.
        client.mutex("k").ttl(ms(400)).lock().await.unwrap()
    });
    say(&format!("token {}", guard.fencing_token()));
    asked();
    say(&format!("held {}", guard.is_held()));
    asked();
    let released = runtime.block_on(guard.release()).unwrap();
    say(&format!("released {released:?}"));
}

fn asked() {
    let mut line = String::new();
    if io::stdin().read_line(&mut line).unwrap() == 0 {
        std::process::exit(0);
    }
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}
