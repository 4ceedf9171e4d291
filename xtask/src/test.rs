//! `test`: everything that proves something, against real servers.

use std::process::Command;

use crate::{
    Result, install, root,
    run::{self, Steps, cargo},
    servers::Servers,
    tidy,
};

/// Runs the tests; with `args` only what they choose.
pub(crate) fn test(steps: &mut Steps, args: &[String]) -> Result {
    let servers = steps.step("servers", || {
        install::servers()?;
        Servers::start_all()
    })?;
    let with_servers = |mut command: Command| {
        command.envs(servers.env());
        command
    };
    let tests = with_servers(runner(args));
    if !args.is_empty() {
        return steps.step("tests", || run::run(&tests));
    }
    // All of them run, whichever is red; the longest report comes last.
    let mut results = Vec::new();
    for name in examples()? {
        let command = cargo(&["run", "--quiet", "--example", &name]);
        results.push(steps.step(&format!("example {name}"), || run::run(&command)));
    }
    let doctests = ["test", "--quiet", "--doc", "--workspace", "--all-features", "--no-fail-fast"];
    let doctests = with_servers(cargo(&doctests));
    results.push(steps.step("doctests", || run::run(&doctests)));
    results.push(steps.step("tests", || run::run(&tests)));
    results.into_iter().collect()
}

/// nextest if it is installed, else what comes with Rust.
fn runner(args: &[String]) -> Command {
    let has_nextest = run::succeeds(&mut cargo(&["nextest", "--version"]));
    let mut command = match has_nextest {
        true => cargo(&["nextest", "run", "--no-fail-fast"]),
        false => cargo(&["test", "--no-fail-fast", "--lib", "--bins", "--tests", "--examples"]),
    };
    command.arg("--all-features");
    let chosen = |arg: &String| arg.starts_with("-p") || arg.starts_with("--package");
    if !args.iter().any(chosen) {
        command.arg("--workspace");
    }
    command.args(args);
    command
}

/// Examples that need nothing but Rust, so that they must run as they are.
const SMOKE: &[&str] = &["quickstart", "cron", "lost", "observer", "retry", "web"];

fn examples() -> Result<Vec<String>> {
    let files = tidy::rust_files(&root())?;
    let exists = |name: &&&str| {
        let (file, main) = (format!("examples/{name}.rs"), format!("examples/{name}/main.rs"));
        files.iter().any(|path| path.ends_with(&file) || path.ends_with(&main))
    };
    Ok(SMOKE.iter().filter(exists).map(|name| (*name).to_owned()).collect())
}
