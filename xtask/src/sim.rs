//! `sim`: seeds of the deterministic simulation.

use crate::{
    Result,
    run::{self, Steps, cargo},
};

/// Simulates what the arguments say.
pub(crate) fn sim(args: &[String]) -> Result {
    let mut command = cargo(&["run", "--quiet", "--release", "-p", "distlock-sim", "--"]);
    command.args(args);
    run::run(&command)
}

/// As many seeds as a merge needs, of every store.
pub(crate) fn seeds(steps: &mut Steps) -> Result {
    steps.step("simulation", || sim(&["--seeds".to_owned(), "300".to_owned()]))
}
