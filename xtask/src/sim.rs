//! `sim` and `zoo`: seeds of the deterministic simulation, without bugs and with.

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

fn release(program: &str, args: &[String]) -> Result {
    let options = ["run", "--quiet", "--release", "-p", "distlock-sim", "--bin", program, "--"];
    let mut command = cargo(&options);
    command.args(args);
    run::run(&command)
}

/// As many seeds as a merge needs, of every store, and the proof that they would find something.
pub(crate) fn seeds(steps: &mut Steps) -> Result {
    steps.step("simulation", || sim(&["--seeds".to_owned(), "300".to_owned()]))?;
    steps.step("zoo", || zoo(&[]))
}
