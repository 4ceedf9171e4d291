//! `sim`, `zoo` and `interleavings`: seeds of the deterministic simulation, without bugs and with; and the orders in which threads can meet.

use std::env;

use crate::{
    Result,
    run::{self, Steps, cargo},
};

/// Simulates what the arguments say.
pub(crate) fn sim(args: &[String]) -> Result {
    release("distlock-sim", args)
}

/// The bugs of others, each of which has to be caught.
pub(crate) fn zoo(args: &[String]) -> Result {
    release("zoo", args)
}

/// The state machines of core, with shuttle's locks in place of std's. It is a build of its own, which is kept apart.
pub(crate) fn interleavings() -> Result {
    let mut command = cargo(&["test", "--quiet", "--package", "distlock-core", "--lib"]);
    command.args(["--target-dir", "target/shuttle", "interleavings::"]);
    let flags = env::var("RUSTFLAGS").unwrap_or_default();
    command.env("RUSTFLAGS", format!("{flags} --cfg shuttle").trim_start());
    run::run(&command)
}

fn release(program: &str, args: &[String]) -> Result {
    let options = ["run", "--quiet", "--release", "-p", "distlock-sim", "--bin", program, "--"];
    let mut command = cargo(&options);
    command.args(args);
    run::run(&command)
}

/// As many seeds as a merge needs, of every store, and the proof that they would find something.
pub(crate) fn seeds(steps: &mut Steps) -> Result {
    steps.step("simulation", || sim(&["--seeds".to_owned(), "300".to_owned()]))?;
    steps.step("zoo", || zoo(&[]))?;
    steps.step("interleavings", interleavings)
}
