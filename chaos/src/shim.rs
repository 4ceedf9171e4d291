//! Wall clocks of servers that can be set, by a library that is preloaded into these.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use crate::scene::Scene;

/// By so many seconds at once.
const MOST: u64 = 20;

/// The library, which is built in a folder.
#[derive(Debug)]
pub(crate) struct Shim {
    dir: PathBuf,
    library: PathBuf,
}

/// The wall clock of a server, or of several, for which it is set at once.
#[derive(Debug)]
pub(crate) struct WallClock {
    library: PathBuf,
    path: PathBuf,
    file: File,
    state: Mutex<State>,
}

/// How far the clock is ahead, in seconds.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    offset: i64,
    highest: i64,
}

impl Shim {
    /// Builds the library in this folder, with the C compiler that Rust links with.
    pub(crate) fn build(dir: &Path) -> io::Result<Self> {
        let (source, library) = (dir.join("shim.c"), dir.join("shim.so"));
        fs::write(&source, include_str!("shim.c"))?;
        let output = Command::new("cc")
            .args(["-O2", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                let cure = "`cc`, which Rust links with, builds what sets the server's clock";
                io::Error::new(error.kind(), format!("{cure}: {error}"))
            })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(io::Error::other(format!("`cc` failed:\n{said}")));
        }
        Ok(Self { dir: dir.to_owned(), library })
    }

    /// A clock of this name.
    pub(crate) fn clock(&self, name: &str) -> io::Result<WallClock> {
        let path = self.dir.join(format!("clock-{name}"));
        let file = File::options().create(true).truncate(true).write(true).open(&path)?;
        file.write_all_at(&0_i64.to_ne_bytes(), 0)?;
        Ok(WallClock { library: self.library.clone(), path, file, state: Mutex::default() })
    }
}

impl WallClock {
    /// What a server needs in its environment.
    pub(crate) fn env(&self) -> Vec<String> {
        vec![
            format!("LD_PRELOAD={}", self.library.display()),
            format!("DISTLOCK_CLOCK={}", self.path.display()),
        ]
    }

    /// Sets the clock back, by some seconds.
    pub(crate) fn set_back(&self, scene: &mut Scene) -> io::Result<()> {
        self.step(-1 - scene.dice.below(MOST).cast_signed())
    }

    /// Sets the clock forward: by some seconds, or to where it has been, as a time daemon would.
    pub(crate) fn set_forward(&self, scene: &mut Scene) -> io::Result<()> {
        let least = if scene.dice.chance(0.5) { self.behind() } else { 0 };
        self.step(least.max(1 + scene.dice.below(MOST).cast_signed()))
    }

    /// Sets the clock forward, or back.
    pub(crate) fn step(&self, seconds: i64) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.offset += seconds;
        state.highest = state.highest.max(state.offset);
        self.file.write_all_at(&(state.offset * 1_000_000_000).to_ne_bytes(), 0)
    }

    /// How far it is behind of what it once was.
    pub(crate) fn behind(&self) -> i64 {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.highest - state.offset
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use distlock_servers::{net::wait_until, process::temp_dir, redis::RedisServer};

    use super::*;

    #[test]
    fn the_time_of_a_server_is_set_and_its_keys_end_by_it() {
        let dir = temp_dir("shim").unwrap();
        let shim = Shim::build(&dir).unwrap();
        let (clock, other) = (shim.clock("one").unwrap(), shim.clock("other").unwrap());
        other.step(7).unwrap();
        let server = RedisServer::start_with_env(&[], &clock.env()).unwrap();
        let seconds = || {
            let time = server.command(&["TIME"]).unwrap();
            time.lines().next().unwrap().parse::<i64>().unwrap()
        };
        let started = seconds();
        assert_eq!(server.command(&["SET", "k", "v", "PX", "60000"]).unwrap(), "OK");
        clock.step(-1000).unwrap();
        // The server reads its clock anew some ten times a second.
        let is = |what: &str, test: &dyn Fn() -> bool| {
            wait_until(what, Duration::from_secs(20), || Ok(test())).unwrap();
        };
        is("it is set back", &|| (started - 1001..started - 900).contains(&seconds()));
        assert_eq!(server.command(&["EXISTS", "k"]).unwrap(), "1");
        assert_eq!((clock.behind(), other.behind()), (1000, 0));
        clock.step(1100).unwrap();
        is("the key has ended", &|| server.command(&["EXISTS", "k"]).unwrap() == "0");
        assert!(started + 99 <= seconds());
        assert_eq!(clock.behind(), 0);
        drop(server);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_ttl_is_replicated_as_a_time_of_day_so_a_server_that_is_ahead_ends_what_it_takes_over() {
        let dir = temp_dir("shim").unwrap();
        let shim = Shim::build(&dir).unwrap();
        let ahead = shim.clock("ahead").unwrap();
        ahead.step(100).unwrap();
        let primary = RedisServer::start(&["--repl-diskless-sync-delay", "0"]).unwrap();
        let port = primary.port().to_string();
        let args = ["--replicaof", "127.0.0.1", &port];
        let heir = RedisServer::start_with_env(&args, &ahead.env()).unwrap();
        wait_until("it is linked", Duration::from_secs(20), || {
            Ok(heir.info("master_link_status")? == "up")
        })
        .unwrap();
        let script = "return redis.call('SET', KEYS[1], 'v', 'PX', ARGV[1])";
        for (key, ttl) in [("short", "60000"), ("long", "160000")] {
            assert_eq!(primary.replicate(&["EVAL", script, "1", key, ttl]).unwrap(), "OK");
        }
        heir.command(&["REPLICAOF", "NO", "ONE"]).unwrap();
        assert_eq!(primary.command(&["EXISTS", "short", "long"]).unwrap(), "2");
        assert_eq!(heir.command(&["EXISTS", "short"]).unwrap(), "0");
        let rest: i64 = heir.command(&["PTTL", "long"]).unwrap().parse().unwrap();
        assert!(0 < rest && rest <= 60_000, "{rest}");
        drop((primary, heir));
        fs::remove_dir_all(dir).unwrap();
    }
}
