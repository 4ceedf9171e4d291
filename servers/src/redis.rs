//! Redis servers.

mod cluster;
mod sentinel;
mod tls;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    net::{free_port, wait_until},
    process::{Process, find, temp_dir},
    resp::{Connection, Reply},
};

pub use self::{cluster::RedisCluster, sentinel::RedisSentinel, tls::RedisTls};
pub use crate::certificate::Flaw;

/// How long a server may take to answer its first PING, on a machine that is busy compiling.
const START: Duration = Duration::from_secs(30);

/// Somebody else may take a free port before the server does.
const ATTEMPTS: usize = 10;

/// One `redis-server`: empty, without persistence, on a free port and a unix socket.
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// use distlock_servers::redis::RedisServer;
///
/// let server = RedisServer::start(&["--maxmemory", "8mb"])?;
/// assert_eq!(server.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"])?, "OK");
/// println!("{}", server.url());
/// # Ok(()) }
/// ```
pub struct RedisServer {
    port: u16,
    process: Process,
    /// What `--requirepass` said, so that [`command`](Self::command) gets in.
    password: Option<String>,
}

impl RedisServer {
    /// Starts a server and waits until it answers.
    ///
    /// The arguments follow our own, so that `&["--appendonly", "yes"]` gives a server that keeps
    /// its data over a [`restart`](Self::restart). DEBUG commands are enabled.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if Redis is not installed, saying how to get it. Otherwise what
    /// the server wrote before it gave up.
    pub fn start(args: &[&str]) -> io::Result<Self> {
        Self::start_with_env(args, &[])
    }

    /// As [`start`](Self::start), with `NAME=VALUE` in its environment.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with_env(args: &[&str], env: &[String]) -> io::Result<Self> {
        Self::launch_with_env("redis", env, |port, _| {
            let port = port.to_string();
            Ok([&["--port", &port], args].concat().into_iter().map(str::to_owned).collect())
        })
    }

    /// Starts a server whose arguments depend on its port and its folder.
    pub(crate) fn launch(
        name: &str,
        args: impl Fn(u16, &Path) -> io::Result<Vec<String>>,
    ) -> io::Result<Self> {
        Self::launch_with_env(name, &[], args)
    }

    /// As [`launch`](Self::launch), with `NAME=VALUE` in its environment.
    pub(crate) fn launch_with_env(
        name: &str,
        env: &[String],
        args: impl Fn(u16, &Path) -> io::Result<Vec<String>>,
    ) -> io::Result<Self> {
        let mut tried = Ok(());
        for _ in 0..ATTEMPTS {
            let port = free_port()?;
            let dir = temp_dir(name)?;
            let mut args = args(port, &dir)?;
            // A configuration file has to come first.
            let first = args.iter().take_while(|arg| !arg.starts_with("--")).count();
            args.splice(first..first, common_args(&dir));
            let password = args
                .windows(2)
                .find_map(|pair| (pair[0] == "--requirepass").then(|| pair[1].clone()));
            let process = start_process(env, args, dir)?;
            let server = Self { port, process, password };
            tried = server.wait_ready();
            match &tried {
                Ok(()) => return Ok(server),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(_) => break,
            }
        }
        Err(tried.expect_err("success has returned"))
    }

    /// The TCP port, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the server itself.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// `redis://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The unix socket the server listens on too.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.process.dir().join(SOCKET)
    }

    /// The folder the server works in; removed with it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.process.dir()
    }

    /// What the server wrote so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// A connection of one's own, over the unix socket.
    ///
    /// # Errors
    /// If the server does not run, or refuses the password given by `--requirepass`.
    pub fn connection(&self) -> io::Result<Connection> {
        let mut connection = Connection::unix(&self.socket())?;
        if let Some(password) = &self.password {
            connection.command(&["AUTH", password])?;
        }
        Ok(connection)
    }

    /// Sends one command over a connection of its own and returns the reply as text.
    ///
    /// # Errors
    /// The server's own error with its text as the message, or a failure to reach it: it is killed,
    /// or stopped and did not answer for ten seconds.
    pub fn command<A: AsRef<[u8]>>(&self, args: &[A]) -> io::Result<String> {
        Ok(self.reply(args)?.to_string())
    }

    /// As [`command`](Self::command), with the reply's structure.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn reply<A: AsRef<[u8]>>(&self, args: &[A]) -> io::Result<Reply> {
        self.connection()?.command(args)
    }

    /// As [`command`](Self::command), and waits until a replica has what the command wrote.
    ///
    /// `WAIT` by itself, over another connection, waits for nothing.
    ///
    /// # Errors
    /// As [`command`](Self::command), and [`io::ErrorKind::TimedOut`] if no replica has it in time.
    pub fn replicate<A: AsRef<[u8]>>(&self, args: &[A]) -> io::Result<String> {
        let mut connection = self.connection()?;
        let reply = connection.command(args)?.to_string();
        match &*connection.command(&["WAIT", "1", "8000"])?.to_string() {
            "0" => Err(io::Error::new(io::ErrorKind::TimedOut, "no replica has it")),
            _ => Ok(reply),
        }
    }

    /// One field of INFO, such as `connected_clients`.
    ///
    /// # Errors
    /// As [`command`](Self::command), and [`io::ErrorKind::NotFound`] if there is no such field.
    pub fn info(&self, field: &str) -> io::Result<String> {
        let info = self.command(&["INFO", "everything"])?;
        info.lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .map(str::to_owned)
            .ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, format!("INFO has no `{field}`"))
            })
    }

    /// Freezes the server (SIGSTOP): connections stay open, nothing is answered.
    ///
    /// # Errors
    /// If it does not run.
    pub fn stop(&self) -> io::Result<()> {
        self.process.stop()
    }

    /// Lets a stopped server go on (SIGCONT).
    ///
    /// # Errors
    /// If it does not run.
    pub fn cont(&self) -> io::Result<()> {
        self.process.cont()
    }

    /// Kills the server (SIGKILL). It is dead and its port free when this returns.
    ///
    /// # Errors
    /// If the process that supervises it is gone.
    pub fn kill(&self) -> io::Result<()> {
        self.process.kill()
    }

    /// Kills the server if it lives, and starts it again on the same port with the same arguments.
    ///
    /// It comes back empty, unless the arguments made it persistent.
    ///
    /// # Errors
    /// If it does not come up again; what it wrote is in the message.
    pub fn restart(&self) -> io::Result<()> {
        let mut tried = Ok(());
        for _ in 0..ATTEMPTS {
            self.process.start_again()?;
            tried = self.wait_ready();
            match &tried {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                _ => break,
            }
        }
        tried
    }

    /// Leaves the server running for good and returns its process id.
    ///
    /// # Errors
    /// If the process that supervises it is gone.
    pub fn detach(self) -> io::Result<u32> {
        self.process.detach()
    }

    /// Waits until the server answers on its socket.
    ///
    /// The socket lies in the server's own folder and is opened after the ports, so an answer on it
    /// proves that the ports are this server's too.
    fn wait_ready(&self) -> io::Result<()> {
        wait_until("the server answers PING", START, || {
            if self
                .connection()
                .is_ok_and(|mut connection| is_ready(&connection.command(&["PING"])))
            {
                return Ok(true);
            }
            if self.process.is_alive()? {
                return Ok(false);
            }
            let log = self.log();
            let kind = match log.contains("Address already in use") {
                true => io::ErrorKind::AddrInUse,
                false => io::ErrorKind::Other,
            };
            Err(io::Error::new(kind, format!("redis-server ended at its start:\n{log}")))
        })
    }
}

impl fmt::Debug for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisServer")
            .field("port", &self.port)
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

const SOCKET: &str = "socket";

fn start_process(env: &[String], args: Vec<String>, dir: PathBuf) -> io::Result<Process> {
    const PROGRAM: &str = "redis-server";
    if env.is_empty() {
        return Process::start(PROGRAM, &args, dir);
    }
    let program = find(PROGRAM)?.display().to_string();
    // It becomes the server, and keeps the process id.
    Process::start("env", &[env.to_vec(), vec![program], args].concat(), dir)
}

fn common_args(dir: &Path) -> Vec<String> {
    let dir = dir.display().to_string();
    let socket = format!("{dir}/{SOCKET}");
    let pairs = [
        ["--bind", "127.0.0.1"],
        ["--daemonize", "no"],
        ["--dir", &dir],
        ["--enable-debug-command", "yes"],
        ["--save", ""],
        ["--unixsocket", &socket],
    ];
    pairs.as_flattened().iter().map(|&arg| arg.to_owned()).collect()
}

/// An error is an answer too, unless it says that the server is not ready.
fn is_ready(answer: &io::Result<Reply>) -> bool {
    match answer {
        Ok(_) => true,
        Err(error) => {
            error.kind() == io::ErrorKind::Other && !error.to_string().starts_with("LOADING")
        }
    }
}
