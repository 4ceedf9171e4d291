//! `up` and `down`: servers for work by hand.

use std::{
    env,
    fmt::Write,
    fs, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use distlock_servers::net::wait_until;

use crate::{Result, install, root, run, servers::Servers};

/// A server that `up` started: its process, and the socket by which we know it again.
#[derive(Debug)]
struct Running {
    pid: u32,
    socket: PathBuf,
}

impl Running {
    fn parse(line: &str) -> Option<Self> {
        let (pid, socket) = line.split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, socket: PathBuf::from(socket) })
    }

    /// Nobody else can listen in the server's private folder, and a stopped server still does. So
    /// this also tells that the process id is not meanwhile a stranger's.
    fn is_alive(&self) -> bool {
        UnixStream::connect(&self.socket).is_ok()
    }

    fn end(&self) -> Result {
        if self.is_alive() {
            let pid = self.pid.to_string();
            run::output(Command::new("sh").args(["-c", "kill -KILL $0", &pid]))?;
            wait_until("the server is dead", Duration::from_secs(10), || Ok(!self.is_alive()))?;
        }
        let dir = self.socket.parent().unwrap_or(Path::new(""));
        match dir.starts_with(env::temp_dir()) {
            true => absent_is_fine(fs::remove_dir_all(dir)),
            false => Err(format!("not one of our folders: {}", dir.display()).into()),
        }
    }
}

/// Starts all servers and prints how to find them.
pub(crate) fn up() -> Result {
    let (pids, exports) = (pids_file(), exports_file());
    let running = read(&pids)?;
    if !running.is_empty() && running.iter().all(Running::is_alive) {
        print!("{}", fs::read_to_string(exports)?);
        eprintln!("xtask: they run already; `cargo xtask down` stops them");
        return Ok(());
    }
    // What is left of an earlier set is of no use.
    if !running.is_empty() {
        down()?;
    }
    install::servers()?;
    let servers = Servers::start_all()?;
    let mut lines = String::new();
    for server in servers.iter() {
        writeln!(lines, "{} {}", server.pid(), server.socket().display())?;
    }
    fs::create_dir_all(pids.parent().expect("it lies in a folder"))?;
    let told = servers.exports();
    fs::write(&exports, &told)?;
    fs::write(&pids, lines)?;
    print!("{told}");
    eprintln!("xtask: also in {}; `cargo xtask down` stops them", exports.display());
    Ok(servers.detach()?)
}

/// Stops what [`up`] started.
pub(crate) fn down() -> Result {
    let pids = pids_file();
    let running = read(&pids)?;
    for server in &running {
        server.end()?;
    }
    absent_is_fine(fs::remove_file(exports_file()))?;
    absent_is_fine(fs::remove_file(pids))?;
    match running.len() {
        0 => eprintln!("xtask: no servers run"),
        count => eprintln!("xtask: {count} servers stopped"),
    }
    Ok(())
}

fn pids_file() -> PathBuf {
    root().join("target/servers/pids")
}

fn exports_file() -> PathBuf {
    root().join("target/servers/env")
}

fn read(pids: &Path) -> Result<Vec<Running>> {
    match fs::read_to_string(pids) {
        Ok(lines) => Ok(lines.lines().filter_map(Running::parse).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn absent_is_fine(result: io::Result<()>) -> Result {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
