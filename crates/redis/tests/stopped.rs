//! A process that was stopped, while it held a lock or while it was granted one: the first thing that it learns when it runs again is that it has none,
//! and its write is refused. And one that may open no more files.
//!
//! The tests are their own second process: they start themselves anew as that one, so they bring their own `main`.

use std::{
    env,
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
};

use common::{client, command, eventually, ms, server, soon};
use distlock_core::{Client, FenceGate, FencingToken};
use distlock_redis::RedisBackend;
use distlock_servers::proxy::{Direction, RawProxy};
use tokio::{runtime::Runtime, time::sleep};

mod common;

/// The names and what they stand for.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        const TESTS: &[(&str, fn())] = &[$((stringify!($name), $name)),*];
    };
}

tests![
    a_stopped_holder_learns_that_it_lost_and_its_late_write_is_refused,
    one_that_was_stopped_while_its_grant_was_on_the_way_has_no_lock,
    one_that_was_stopped_while_its_turn_came_waits_anew,
    one_that_may_open_no_more_files_keeps_its_lock,
];

/// What the other process is to do, and where.
const ROLE: &str = "DISTLOCK_ROLE";
const URL: &str = "DISTLOCK_ROLE_URL";

fn main() {
    let args: Vec<String> = env::args().collect();
    let has = |wanted: &str| args.iter().any(|arg| arg == wanted);
    if let Ok(role) = env::var(ROLE) {
        let url = env::var(URL).unwrap();
        match role.as_str() {
            "hold" => hold(&url),
            "try" => attempt(&url),
            "wait" => wait(&url),
            _ => starve(&url),
        }
    } else if has("--list") {
        // What the test runners ask first.
        for (name, _) in TESTS.iter().filter(|_| !has("--ignored")) {
            say(&format!("{name}: test"));
        }
    } else {
        let named = |name: &str| args.iter().any(|arg| arg == name);
        let all = !TESTS.iter().any(|(name, _)| named(name));
        let mut passed = 0;
        for (name, run) in TESTS.iter().filter(|(name, _)| all || named(name)) {
            run();
            passed += 1;
            say(&format!("test {name} ... ok"));
        }
        say(&format!("\ntest result: ok. {passed} passed; 0 failed; 0 ignored"));
    }
}

fn a_stopped_holder_learns_that_it_lost_and_its_late_write_is_refused() {
    Runtime::new().unwrap().block_on(async {
        let server = server();
        let mut holder = Other::start("hold", &server.url(), None);
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

/// FAULTS H2: the answer waits in its socket while the lock ends.
fn one_that_was_stopped_while_its_grant_was_on_the_way_has_no_lock() {
    Runtime::new().unwrap().block_on(async {
        let server = server();
        let proxy = RawProxy::start(server.port()).unwrap();
        let url = format!("redis://127.0.0.1:{}?timeout=9s", proxy.port());
        let mut other = Other::start("try", &url, None);
        assert_eq!(other.answer(), "connected");
        proxy.hold(Direction::ToClient, true);
        other.ask();
        eventually("it is granted", || command(&server, &["EXISTS", "k"]) == "1").await;
        other.signal("-STOP");
        proxy.hold(Direction::ToClient, false);
        let rival = client(&server).await;
        let guard = soon(rival.mutex("k").lock()).await.unwrap();
        other.signal("-CONT");
        let answer = other.answer();
        assert!(answer.starts_with("no lock"), "{answer}");
        assert!(guard.is_held(), "and what is given back is not the rival's");
        assert!(command(&server, &["GET", "k"]).contains(&guard.owner().to_string()));
    });
}

/// FAULTS H2: the push waits in its socket while the lock that it tells of ends.
fn one_that_was_stopped_while_its_turn_came_waits_anew() {
    Runtime::new().unwrap().block_on(async {
        let server = server();
        let rival = client(&server).await;
        let guard = rival.mutex("k").lock().await.unwrap();
        let mut other = Other::start("wait", &server.url(), None);
        assert_eq!(other.answer(), "connected");
        other.ask();
        let waits = || command(&server, &["ZCARD", "__distlock:q:{k}k"]) == "1";
        eventually("it waits", waits).await;
        other.signal("-STOP");
        guard.release().await.unwrap();
        let holds = || command(&server, &["GET", "k"]);
        assert!(holds().starts_with("dl1:"), "it is granted to the one that is stopped");
        let guard = soon(rival.mutex("k").lock()).await.unwrap();
        other.signal("-CONT");
        eventually("it waits anew", waits).await;
        assert!(holds().contains(&guard.owner().to_string()));
        assert!(guard.is_held());
        let before = guard.fencing_token();
        guard.release().await.unwrap();
        assert!(before < other.token(), "by a later grant");
        other.ask();
        assert_eq!(other.answer(), "held true");
    });
}

/// FAULTS I9.
fn one_that_may_open_no_more_files_keeps_its_lock() {
    Runtime::new().unwrap().block_on(async {
        let server = server();
        let mut other = Other::start("starve", &server.url(), Some(64));
        other.token();
        other.ask();
        assert_eq!(other.answer(), "connect: transient true");
        assert_eq!(other.answer(), "held true");
        let rival = client(&server).await;
        assert!(rival.mutex("k").try_lock().await.unwrap().is_none());
        other.ask();
        assert_eq!(other.answer(), "released Released");
        drop(soon(rival.mutex("k").lock()).await.unwrap());
    });
}

/// The other process. It does nothing but when asked.
struct Other {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Other {
    fn start(role: &str, url: &str, files: Option<u32>) -> Self {
        let exe = env::current_exe().unwrap();
        let mut command = match files {
            None => Command::new(exe),
            Some(files) => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(format!("ulimit -n {files} && exec \"$0\"")).arg(exe);
                shell
            }
        };
        command.env(ROLE, role).env(URL, url).stdin(Stdio::piped()).stdout(Stdio::piped());
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

impl Drop for Other {
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

fn attempt(url: &str) {
    Runtime::new().unwrap().block_on(async {
        let client = Client::new(RedisBackend::connect(url).await.unwrap());
        drop(client.mutex("warm").lock().await.unwrap());
        say("connected");
        asked();
        match client.mutex("k").ttl(ms(2000)).try_lock().await {
            Ok(Some(guard)) => say(&format!("held {}", guard.is_held())),
            Ok(None) => say("no lock: somebody has it"),
            Err(error) => say(&format!("no lock: {error}")),
        }
        asked();
    });
}

fn wait(url: &str) {
    Runtime::new().unwrap().block_on(async {
        let client = Client::new(RedisBackend::connect(url).await.unwrap());
        say("connected");
        asked();
        let guard = client.mutex("k").ttl(ms(3000)).lock().await.unwrap();
        say(&format!("token {}", guard.fencing_token()));
        asked();
        say(&format!("held {}", guard.is_held()));
    });
}

fn starve(url: &str) {
    Runtime::new().unwrap().block_on(async {
        let client = Client::new(RedisBackend::connect(url).await.unwrap());
        let guard = client.mutex("k").ttl(ms(6000)).renew_at(0.05).lock().await.unwrap();
        say(&format!("token {}", guard.fencing_token()));
        asked();
        let mut files = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            files.push(file);
        }
        let error = RedisBackend::connect(url).await.unwrap_err();
        say(&format!("connect: transient {}", error.is_transient()));
        for _ in 0..3 {
            let known = guard.expires_at();
            while guard.is_held() && guard.expires_at() <= known {
                sleep(ms(5)).await;
            }
        }
        say(&format!("held {}", guard.is_held()));
        asked();
        let released = guard.release().await.unwrap();
        drop(files);
        say(&format!("released {released:?}"));
    });
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
