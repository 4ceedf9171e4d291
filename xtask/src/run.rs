//! Running other programs, and telling how it went.

use std::{
    env,
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{Result, root};

/// Runs a program in the background of a shell that ends it, with all its children in our group,
/// when the pipe we hold closes. However we die, nothing keeps running.
const LEASH: &str = r#"
exec 3<&0
"$@" </dev/null 3<&- &
child=$!
{ read -r word <&3; trap "" TERM; kill -TERM 0; sleep 15; kill -KILL 0; } >/dev/null 2>&1 &
leash=$!
wait $child
code=$?
kill -KILL $leash
exit $code
"#;

/// Named pieces of work and how long each took.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    done: Vec<(String, Duration)>,
}

impl Steps {
    /// Runs `work`, then prints a line for each step it took.
    pub(crate) fn all(work: impl FnOnce(&mut Self) -> Result) -> Result {
        let mut steps = Self::default();
        let result = work(&mut steps);
        println!();
        for (name, took) in &steps.done {
            println!("xtask: {:>7.1}s  {name}", took.as_secs_f64());
        }
        match &result {
            Ok(()) => println!("xtask: all green"),
            Err(_) => println!("xtask: red"),
        }
        result
    }

    /// Announces, runs and times one step.
    pub(crate) fn step<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\nxtask: {name}");
        let start = now();
        let result = work();
        let mark = if result.is_ok() { "ok    " } else { "FAILED" };
        self.done.push((format!("{mark} {name}"), start.elapsed()));
        result
    }
}

/// The cargo that runs us, in the root.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.args(args).current_dir(root());
    command
}

/// Runs to the end, in our own terminal; an exit code other than 0 is an error.
pub(crate) fn run(command: &Command) -> Result {
    run_to(command, Stdio::inherit())
}

/// As [`run`], but nothing goes to standard output, which belongs to somebody else.
pub(crate) fn run_aside(command: &Command) -> Result {
    run_to(command, io::stderr().into())
}

fn run_to(command: &Command, stdout: Stdio) -> Result {
    let line = display(command);
    eprintln!("$ {line}");
    let mut child =
        leashed(command).stdout(stdout).spawn().map_err(|error| format!("`{line}`: {error}"))?;
    // `wait` would close the pipe first.
    let pipe = child.stdin.take();
    let status = child.wait()?;
    drop(pipe);
    match status.success() {
        true => Ok(()),
        false => Err(format!("`{line}` failed: {status}").into()),
    }
}

/// Runs to the end in silence; whether it ended well, and what it had to say about it.
pub(crate) fn judge(command: &Command) -> Result<(bool, String)> {
    let mut child = leashed(command).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let pipe = child.stdin.take();
    let output = child.wait_with_output()?;
    drop(pipe);
    Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// The same program, which ends when we do.
fn leashed(command: &Command) -> Command {
    let mut leashed = Command::new("sh");
    leashed
        .args(["-c", LEASH, "leash"])
        .arg(command.get_program())
        .args(command.get_args())
        .process_group(0)
        .stdin(Stdio::piped());
    if let Some(dir) = command.get_current_dir() {
        leashed.current_dir(dir);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => leashed.env(name, value),
            None => leashed.env_remove(name),
        };
    }
    leashed
}

/// Runs to the end and returns what was printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = display(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("`{line}`: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?),
        false => Err(format!("`{line}` failed: {}", output.status).into()),
    }
}

/// Whether it runs and ends well; what it says is nobody's business.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

fn display(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
    let args = command.get_args().map(|arg| arg.to_string_lossy().into_owned());
    std::iter::once(program).chain(args).collect::<Vec<_>>().join(" ")
}

#[expect(clippy::disallowed_methods, reason = "there is no runtime here, and nothing is paused")]
fn now() -> Instant {
    Instant::now()
}
