//! `bench`: measurements against a server of their own.

use crate::{
    Result, install,
    run::{self, cargo},
    servers::Servers,
};

/// Runs the benchmark named first, or all; the rest goes to the benchmark.
pub(crate) fn bench(args: &[String]) -> Result {
    install::servers()?;
    let servers = Servers::start_standalone()?;
    let mut command = cargo(&["bench", "-p", "distlock-benches"]);
    match args.split_first() {
        // Without `--benches` cargo would also hand the arguments to the library's test harness.
        None => command.arg("--benches"),
        Some((name, rest)) => command.args(["--bench", name, "--"]).args(rest),
    };
    command.envs(servers.env());
    run::run(&command)
}
