//! `chaos`: many processes on real servers under fire.

use std::thread;

use crate::{
    Result, install,
    run::{self, Steps, cargo},
};

/// Two at a time, so the longest ones are apart.
const PAIRS: [[&str; 2]; 2] = [["etcd", "redis"], ["redis-cluster", "redis-sentinel"]];

/// What the arguments say; without any a minute of each backend.
pub(crate) fn chaos(steps: &mut Steps, args: &[String]) -> Result {
    if args.is_empty() {
        return drill(steps);
    }
    prepare(steps)?;
    steps.step("fire drill", || fire(args))
}

/// A minute of each backend, two at a time: they wait more than they work.
pub(crate) fn drill(steps: &mut Steps) -> Result {
    prepare(steps)?;
    // All of them run, whichever is red.
    let mut results = Vec::new();
    for pair in PAIRS {
        let drills = || {
            thread::scope(|scope| {
                let drills = pair.map(|backend| {
                    scope.spawn(move || {
                        let words = ["--backend", backend, "--seconds", "60"];
                        // The error of a thread has to be sent.
                        fire(&words.map(str::to_owned)).map_err(|error| error.to_string())
                    })
                });
                let results = drills.map(|drill| drill.join().expect("it does not panic"));
                results.into_iter().collect::<std::result::Result<(), _>>()
            })?;
            Ok(())
        };
        results.push(steps.step(&format!("fire drill: {}", pair.join(" and ")), drills));
    }
    results.into_iter().collect()
}

fn prepare(steps: &mut Steps) -> Result {
    steps.step("build of the fire drill", || {
        install::servers()?;
        run::run(&cargo(&["build", "--release", "-p", "distlock-chaos"]))
    })
}

fn fire(args: &[String]) -> Result {
    let mut command = cargo(&["run", "--quiet", "--release", "-p", "distlock-chaos", "--"]);
    command.args(args);
    run::run(&command)
}
