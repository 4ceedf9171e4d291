//! The project's chores: `cargo xtask help` lists them.

#![allow(clippy::print_stdout, reason = "a command line tool talks on its standard output")]

mod bench;
mod chaos;
mod install;
mod lint;
mod manifest;
mod mutants;
mod run;
mod servers;
mod sim;
mod supply;
mod test;
mod tidy;
mod tree;
mod updown;

use std::{
    env,
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::run::Steps;

/// The message of an error is all that a caller needs.
type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "\
cargo xtask COMMAND

  up                  start the servers and leave them running; prints `export` lines
  down                stop what `up` started
  test [ARGS]         start the servers, run all tests against them, stop them;
                      ARGS (filters, -p PACKAGE, …) go to the test runner, and then
                      it is the only thing that runs
  lint                formatting, clippy, rustdoc, tidy, dependency rules, licenses
  tidy                the rules of the house that no other tool knows
  bench [NAME [ARGS]] run one benchmark; without a name all of them, and write
                      docs/benchmarks.md
  sim [ARGS]          simulate seeds: --seeds N, --seed FIRST, --store redis|etcd|all,
                      --history FILE
  zoo [SEEDS]         put the bugs of other libraries into the simulation; each has to be caught
  interleavings       let threads meet in thousands of orders at core's claims, guards and lines
  mutants [SCRIPT[:LINE]]
                      put one error after another into the Lua scripts; a test on a real
                      server has to catch each, or docs/testing.md to say why not
  chaos [ARGS]        many processes on real servers under fire: --backend redis|
                      redis-cluster|redis-sentinel|etcd, --seconds N, --seed S,
                      --workers W, --history DIR; without arguments a minute of each
  ci                  lint, simulation, interleavings, fire drill, test: what CI runs
";

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let args: Vec<String> = args.collect();
    match dispatch(&command, &args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: &str, args: &[String]) -> Result {
    let takes_args = matches!(command, "bench" | "chaos" | "mutants" | "sim" | "test" | "zoo");
    if let (false, Some(arg)) = (takes_args, args.first()) {
        return Err(format!("`{command}` takes no arguments, but got `{arg}`\n\n{USAGE}").into());
    }
    match command {
        "bench" => bench::bench(args),
        "chaos" => Steps::all(|steps| chaos::chaos(steps, args)),
        "ci" => Steps::all(|steps| {
            lint::lint(steps)?;
            // Before the tests: it is quick, and tells more.
            sim::seeds(steps)?;
            chaos::drill(steps)?;
            test::test(steps, &[])
        }),
        "down" => updown::down(),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        "interleavings" => sim::interleavings(),
        "lint" => Steps::all(lint::lint),
        "mutants" => mutants::mutants(args),
        "sim" => sim::sim(args),
        "test" => Steps::all(|steps| test::test(steps, args)),
        "tidy" => tidy::tidy(),
        "up" => updown::up(),
        "zoo" => sim::zoo(args),
        _ => Err(format!("no such command: `{command}`\n\n{USAGE}").into()),
    }
}

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root").to_owned()
}
