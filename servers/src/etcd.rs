//! etcd servers.

mod cluster;
mod metrics;
mod tls;

use std::{
    env, fmt, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use crate::{
    net::{free_port, wait_until},
    process::{Process, find, temp_dir},
};

pub use self::{cluster::EtcdCluster, tls::EtcdTls};

/// How long a member may take until it is healthy, on a machine that is busy compiling.
const START: Duration = Duration::from_secs(60);

/// Somebody else may take a free port before the server does.
const ATTEMPTS: usize = 10;

/// One member of etcd, with its data in a temporary folder.
///
/// Alone it is a whole cluster; three make an [`EtcdCluster`].
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// use distlock_servers::etcd::EtcdServer;
///
/// let server = EtcdServer::start(&["--max-txn-ops", "64"])?;
/// assert_eq!(server.etcdctl(&["put", "key", "value"])?, "OK\n");
/// println!("{}", server.url());
/// # Ok(()) }
/// ```
pub struct EtcdServer {
    port: u16,
    process: Process,
    /// What leads `etcdctl` here: the endpoint, and with TLS the certificates and the user.
    access: Vec<String>,
}

/// The ports that a member listens on.
#[derive(Clone, Copy, Debug)]
struct Ports {
    client: u16,
    peer: u16,
}

impl EtcdServer {
    /// Starts a cluster of one member and waits until it is healthy.
    ///
    /// The arguments follow our own and win over them. What the server stores survives a
    /// [`restart`](Self::restart), though not a crash of the machine: nothing is flushed to disk
    /// where this etcd can go without.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if etcd is not installed, saying how to get it. Otherwise what
    /// the server wrote before it gave up.
    pub fn start(args: &[&str]) -> io::Result<Self> {
        again(|| {
            let ports = Ports::free()?;
            let dir = temp_dir("etcd")?;
            let own = own_args("member", ports, &format!("member={}", ports.peer_url()));
            let server = Self::spawn(ports, [own, owned(args)].concat(), dir)?;
            server.wait_ready()?;
            Ok(server)
        })
    }

    /// Starts a member without waiting for it: what it waits for may not have been started yet.
    fn spawn(ports: Ports, args: Vec<String>, dir: PathBuf) -> io::Result<Self> {
        let process = Process::start("etcd", &args, dir)?;
        let access = vec![format!("--endpoints=http://127.0.0.1:{}", ports.client)];
        Ok(Self { port: ports.client, process, access })
    }

    /// The port for clients, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the server itself.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// `http://127.0.0.1:PORT`, as etcd's own clients want it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// `etcd://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("etcd://127.0.0.1:{}", self.port)
    }

    /// The unix socket on which the server tells of its health and its metrics, and nothing else.
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

    /// Runs `etcdctl` on this server to its end, and returns what it printed.
    ///
    /// With TLS it shows the client's certificate and is `root`.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if it is not installed. What it complains of, if it fails: it
    /// gives up after five seconds without an answer.
    pub fn etcdctl(&self, args: &[&str]) -> io::Result<String> {
        run_etcdctl(&self.access, args)
    }

    /// Starts an `etcdctl` on this server that runs for long, such as `lock NAME` or `watch KEY`.
    ///
    /// What it prints is in its [`log`](Process::log). It is killed when the value is dropped, and
    /// `lock` gives back what it has when it is asked to [`terminate`](Process::terminate).
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if it is not installed.
    pub fn spawn_etcdctl(&self, args: &[&str]) -> io::Result<Process> {
        let program = find("etcdctl")?.display().to_string();
        let line = [vec![API.to_owned(), program], self.access.clone(), owned(args)].concat();
        Process::start("env", &line, temp_dir("etcdctl")?)
    }

    /// All that the server counts, in the format of Prometheus.
    ///
    /// # Errors
    /// If it is killed, or stopped and did not answer for two seconds.
    pub fn metrics(&self) -> io::Result<String> {
        metrics::get(&self.socket(), "/metrics")
    }

    /// One number out of the [metrics](Self::metrics): the sum over all labels.
    ///
    /// `etcd_debugging_mvcc_watcher_total` is the number of watches.
    ///
    /// # Errors
    /// As [`metrics`](Self::metrics), and [`io::ErrorKind::NotFound`] if there is no such name.
    pub fn metric(&self, name: &str) -> io::Result<f64> {
        self.metric_where(name, "")
    }

    /// As [`metric`](Self::metric), only of the lines whose labels contain `label`.
    ///
    /// `metric_where("grpc_server_started_total", r#"grpc_method="Txn""#)` is the number of
    /// transactions that clients sent.
    ///
    /// # Errors
    /// As [`metric`](Self::metric).
    pub fn metric_where(&self, name: &str, label: &str) -> io::Result<f64> {
        metrics::sum(&self.metrics()?, name, label).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("no metric `{name}` with `{label}`"))
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

    /// Kills the server (SIGKILL). It is dead and its ports free when this returns.
    ///
    /// # Errors
    /// If the process that supervises it is gone.
    pub fn kill(&self) -> io::Result<()> {
        self.process.kill()
    }

    /// Asks the server to end (SIGTERM), upon which a leader hands over, and waits until it did.
    ///
    /// # Errors
    /// If it does not run, or [`io::ErrorKind::TimedOut`] if it takes more than a minute.
    pub fn terminate(&self) -> io::Result<()> {
        self.process.terminate()?;
        wait_until("the server ends", START, || Ok(!self.process.is_alive()?))
    }

    /// Kills the server if it lives, starts it again on the same ports with the same arguments and
    /// its data, and waits until it is healthy.
    ///
    /// # Errors
    /// If it does not come up again; what it wrote is in the message. A member of a cluster cannot
    /// be healthy without a majority: see [`start_again`](Self::start_again).
    pub fn restart(&self) -> io::Result<()> {
        again(|| {
            self.start_again()?;
            self.wait_ready()
        })
    }

    /// As [`restart`](Self::restart), without waiting.
    ///
    /// # Errors
    /// If the process that supervises it is gone.
    pub fn start_again(&self) -> io::Result<()> {
        self.process.start_again()
    }

    /// Waits until the server is healthy: it knows a leader, and a majority answers that one.
    ///
    /// The socket lies in the server's own folder and is opened after the ports, so an answer on it
    /// proves that the ports are this server's too.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] after a minute, or what the server wrote before it ended.
    pub fn wait_ready(&self) -> io::Result<()> {
        wait_until("the server is healthy", START, || {
            if metrics::get(&self.socket(), "/health").is_ok_and(|told| told.contains(HEALTHY)) {
                return Ok(true);
            }
            if self.process.is_alive()? {
                return Ok(false);
            }
            let log = self.log();
            let kind = match log.contains(IN_USE) {
                true => io::ErrorKind::AddrInUse,
                false => io::ErrorKind::Other,
            };
            Err(io::Error::new(kind, format!("etcd ended at its start:\n{log}")))
        })
    }

    /// Leaves the server running for good and returns its process id.
    ///
    /// # Errors
    /// If the process that supervises it is gone.
    pub fn detach(self) -> io::Result<u32> {
        self.process.detach()
    }
}

impl fmt::Debug for EtcdServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdServer")
            .field("port", &self.port)
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

impl Ports {
    fn free() -> io::Result<Self> {
        let client = free_port()?;
        loop {
            let peer = free_port()?;
            if peer != client {
                return Ok(Self { client, peer });
            }
        }
    }

    fn peer_url(self) -> String {
        format!("http://127.0.0.1:{}", self.peer)
    }
}

/// The name of the socket; etcd insists on something that looks like a port.
const SOCKET: &str = "metrics:0";

const HEALTHY: &str = r#""health":"true""#;

const IN_USE: &str = "address already in use";

/// What `etcdctl` before 3.4 needs, and some environment may have set otherwise.
const API: &str = "ETCDCTL_API=3";

/// Runs `start` until no port was taken in the last moment.
fn again<T>(start: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let mut tries = 1;
    loop {
        match start() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < ATTEMPTS => {
                tries += 1
            }
            result => return result,
        }
    }
}

/// The arguments of a member that speaks in the clear.
fn own_args(name: &str, ports: Ports, members: &str) -> Vec<String> {
    let client = format!("http://127.0.0.1:{}", ports.client);
    let peer = ports.peer_url();
    let socket = format!("unix://{SOCKET}");
    let pairs = [
        ["--name", name],
        // In the folder it is started in, as is the socket.
        ["--data-dir", "data"],
        ["--listen-client-urls", &client],
        ["--advertise-client-urls", &client],
        ["--listen-peer-urls", &peer],
        ["--initial-advertise-peer-urls", &peer],
        ["--initial-cluster", members],
        ["--listen-metrics-urls", &socket],
        ["--logger", "zap"],
        ["--log-outputs", "stderr"],
    ];
    let mut args = owned(pairs.as_flattened());
    if has_no_fsync() {
        args.push("--unsafe-no-fsync".to_owned());
    }
    args
}

/// Whether the installed etcd can leave its data to the page cache, which came with 3.5.
fn has_no_fsync() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let help = Command::new("etcd").arg("--help").stdin(Stdio::null()).output();
        help.is_ok_and(|help| {
            [help.stdout, help.stderr]
                .iter()
                .any(|text| String::from_utf8_lossy(text).contains("--unsafe-no-fsync"))
        })
    })
}

fn run_etcdctl(access: &[String], args: &[&str]) -> io::Result<String> {
    let (name, value) = API.split_once('=').expect("it is an assignment");
    let mut command = Command::new(find("etcdctl")?);
    // Whatever else the environment says of etcd is about another one.
    for (name, _) in env::vars_os().filter(|(name, _)| is_about_etcdctl(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    let output = command.env(name, value).args(access).args(args).stdin(Stdio::null()).output()?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => {
            let said = [output.stdout, output.stderr].concat();
            Err(io::Error::other(String::from_utf8_lossy(&said).trim().to_owned()))
        }
    }
}

fn is_about_etcdctl(name: &str) -> bool {
    name.starts_with("ETCDCTL_")
}

fn owned(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}
