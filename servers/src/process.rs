//! A server process that cannot outlive its owner.
//!
//! Between us and the server stands a small shell script that reads words from a pipe we hold. It
//! starts the server and signals it when told to. When the pipe closes, because we dropped it or
//! because our process died in whatever way, it kills the server and removes its folder.
//!
//! The script is the server's parent and reaps it only when asked, so the process id it signals is
//! never a stranger's.

use std::{
    env, fmt,
    fs::{self, DirBuilder, File},
    io::{self, BufRead, BufReader, Write},
    os::unix::{fs::DirBuilderExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{self, Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::net::wait_until;

/// One word in, one line out; the first line is the process id of the server.
const SUPERVISOR: &str = r#"
# When our parent dies while the server is stopped, the kernel sends SIGHUP to us both; when it dies before it hears an answer, SIGPIPE to us.
trap '' HUP PIPE
dir=$1
shift
run() { "$@" </dev/null >>"$dir/log" 2>&1 & pid=$!; echo $pid; }
finish() { if [ -n "$pid" ]; then kill -KILL $pid; wait $pid; pid=; fi; }
run "$@"
while read -r word; do
    case $word in
        alive)
            jobs >"$dir/jobs"
            state=
            read -r state <"$dir/jobs"
            case $pid:$state in
                :*) echo no ;;
                *Running*) echo yes ;;
                *) echo no ;;
            esac ;;
        detach) exit 0 ;;
        kill) finish; echo ok ;;
        start) finish; run "$@" ;;
        *) kill -s "$word" $pid && echo ok || echo failed ;;
    esac
done
finish
rm -rf "$dir"
"#;

/// A running server program.
pub struct Process {
    dir: PathBuf,
    supervisor: Child,
    /// Closing its pipe ends the server; `None` once that is done.
    state: Mutex<Option<State>>,
}

struct State {
    pid: u32,
    words: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Process {
    /// Starts `program`, which must stay in the foreground, in `dir`.
    ///
    /// From here on the folder belongs to the process and is removed with it. The program's output
    /// goes to the file `log` in it.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if the program is not installed, and whatever starting fails with.
    pub fn start(program: &str, args: &[String], dir: PathBuf) -> io::Result<Self> {
        let program = find(program)?;
        let log = File::options().create(true).append(true).open(dir.join("log"))?;
        let mut supervisor = Command::new("sh")
            .args(["-c", SUPERVISOR, "supervisor"])
            .arg(&dir)
            .arg(program)
            .args(args)
            .current_dir(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // A Ctrl-C in the terminal is for us; the pipe tells the script when we are gone.
            .process_group(0)
            .spawn()?;
        let words = supervisor.stdin.take().expect("stdin is piped");
        let answers = BufReader::new(supervisor.stdout.take().expect("stdout is piped"));
        let mut state = State { pid: 0, words, answers };
        state.pid = state.read_pid()?;
        Ok(Self { dir, supervisor, state: Mutex::new(Some(state)) })
    }

    /// The folder the server works in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the server wrote so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.dir.join("log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The process id of the server itself; another one after [`start_again`](Self::start_again).
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.state().as_ref().map_or(0, |state| state.pid)
    }

    /// Whether the server runs; a stopped one does.
    ///
    /// # Errors
    /// If the supervising script is gone.
    pub fn is_alive(&self) -> io::Result<bool> {
        Ok(self.ask("alive")? == "yes")
    }

    /// Freezes the server (SIGSTOP). Returns when it stands still.
    ///
    /// # Errors
    /// If the server does not run.
    pub fn stop(&self) -> io::Result<()> {
        self.signal("STOP")?;
        // The signal is sent at once but obeyed by each thread at its next chance. Where there is
        // no /proc to see it, sent must do.
        let stat = format!("/proc/{}/stat", self.pid());
        wait_until("the server stands still", Duration::from_secs(5), || {
            Ok(fs::read_to_string(&stat).map_or(true, |line| line.contains(") T ")))
        })
    }

    /// Lets a stopped server go on (SIGCONT).
    ///
    /// # Errors
    /// If the server does not run.
    pub fn cont(&self) -> io::Result<()> {
        self.signal("CONT")
    }

    /// Asks the server to end (SIGTERM), without waiting for it.
    ///
    /// # Errors
    /// If the server does not run.
    pub fn terminate(&self) -> io::Result<()> {
        self.signal("TERM")
    }

    /// Kills the server (SIGKILL). Returns when it is dead; its folder stays.
    ///
    /// # Errors
    /// If the supervising script is gone.
    pub fn kill(&self) -> io::Result<()> {
        self.ask("kill").map(drop)
    }

    /// Starts the server anew with the same arguments in the same folder, killing it first if need
    /// be.
    ///
    /// # Errors
    /// If the supervising script is gone.
    pub fn start_again(&self) -> io::Result<()> {
        let mut guard = self.state();
        let state = guard.as_mut().ok_or_else(gone)?;
        state.send("start")?;
        state.pid = state.read_pid()?;
        Ok(())
    }

    /// Leaves the server running for good, with its folder, whatever happens to us.
    ///
    /// # Errors
    /// If the supervising script is gone.
    pub fn detach(mut self) -> io::Result<u32> {
        let Some(mut state) = self.state().take() else { return Err(gone()) };
        state.send("detach")?;
        self.supervisor.wait()?;
        Ok(state.pid)
    }

    fn signal(&self, name: &str) -> io::Result<()> {
        match self.ask(name)?.as_str() {
            "ok" => Ok(()),
            _ => Err(io::Error::other(format!("cannot send SIG{name}: the server does not run"))),
        }
    }

    fn ask(&self, word: &str) -> io::Result<String> {
        let mut guard = self.state();
        let state = guard.as_mut().ok_or_else(gone)?;
        state.send(word)?;
        state.read_line()
    }

    fn state(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.state().take().is_some() {
            // The pipe is closed now; the script ends when the server is dead and its folder gone.
            let _ = self.supervisor.wait();
        }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("pid", &self.pid())
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl State {
    fn send(&mut self, word: &str) -> io::Result<()> {
        writeln!(self.words, "{word}")
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(gone());
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }

    fn read_pid(&mut self) -> io::Result<u32> {
        self.read_line()?.parse().map_err(io::Error::other)
    }
}

/// A new folder that only we can read, below the system's temporary one.
///
/// # Errors
/// If it cannot be made.
pub fn temp_dir(name: &str) -> io::Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = env::temp_dir().join(format!("distlock-{name}-{}-{number}", process::id()));
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            // Left behind by an earlier process with our id.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// The program's path, or an error that tells how to get it.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] if no folder of `PATH` has it.
pub fn find(program: &str) -> io::Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file()).ok_or_else(
        || {
            let cure = match program {
                "etcd" => "`apt-get install etcd-server` brings it, and so does `cargo xtask test`",
                "etcdctl" => {
                    "`apt-get install etcd-client` brings it, and so does `cargo xtask test`"
                }
                "redis-server" | "redis-cli" => {
                    "`apt-get install redis-server` brings it, and so does `cargo xtask test`"
                }
                _ => "put it on the PATH",
            };
            let message = format!("`{program}` is not installed: {cure}");
            io::Error::new(io::ErrorKind::NotFound, message)
        },
    )
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the process that supervises the server is gone")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Process {
        let dir = temp_dir("sleeper").unwrap();
        Process::start("sleep", &["600".to_owned()], dir).unwrap()
    }

    fn lives(pid: u32) -> bool {
        let mut ask = Command::new("sh");
        ask.args(["-c", "kill -0 $0 2>/dev/null", &pid.to_string()]).status().unwrap().success()
    }

    #[test]
    fn a_process_lives_dies_and_lives_again() {
        let process = sleeper();
        let first = process.pid();
        assert!(process.is_alive().unwrap());
        process.stop().unwrap();
        assert!(process.is_alive().unwrap());
        process.kill().unwrap();
        assert!(!process.is_alive().unwrap());
        assert!(process.cont().is_err());
        process.start_again().unwrap();
        assert_ne!(process.pid(), first);
        assert!(process.is_alive().unwrap());
    }

    #[test]
    fn a_process_that_ends_by_itself_is_noticed() {
        let process = Process::start("true", &[], temp_dir("true").unwrap()).unwrap();
        wait_until("it ends", Duration::from_secs(10), || Ok(!process.is_alive()?)).unwrap();
    }

    #[test]
    fn dropping_removes_process_and_folder() {
        let process = sleeper();
        let dir = process.dir().to_owned();
        let pid = process.pid();
        process.stop().unwrap();
        drop(process);
        assert!(!dir.exists());
        assert!(!lives(pid), "process {pid} survived");
    }

    #[test]
    fn it_ends_too_when_nobody_is_there_to_hear_an_answer() {
        let mut process = sleeper();
        let (dir, pid) = (process.dir().to_owned(), process.pid());
        let state = process.state.get_mut().unwrap().take();
        let State { mut words, answers, .. } = state.unwrap();
        drop(answers);
        io::Write::write_all(&mut words, b"alive\n").unwrap();
        drop(words);
        process.supervisor.wait().unwrap();
        assert!(!dir.exists());
        assert!(!lives(pid), "process {pid} survived");
    }

    #[test]
    fn a_missing_program_names_the_cure() {
        let error = find("redis-server-of-another-world").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("redis-server-of-another-world"));
    }
}
