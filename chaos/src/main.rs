//! `distlock-chaos --backend redis --seconds 60 --seed 1`: many processes on real servers under fire, and a verdict.

#![allow(clippy::print_stdout, reason = "a command line tool talks on its standard output")]

mod clock;
mod crew;
mod journal;
mod ledger;
mod nemesis;
mod plan;
mod run;
mod scene;
mod setup;
mod shim;
mod store;
mod task;
mod verdict;
mod worker;

use std::{env, error::Error, fs, path::PathBuf, process::ExitCode, time::Duration};

use crate::plan::{Backend, Plan};

const USAGE: &str = "\
distlock-chaos --backend BACKEND [--seconds N] [--seed S] [--workers W] [--history DIR]

  --backend BACKEND  redis, redis-cluster, redis-sentinel or etcd
  --seconds N        how long there are faults, 60 if it is not given; longer if not
                     every kind of fault came in that time
  --seed S           what decides who competes, and what befalls whom and when; 1
  --workers W        how many processes, in the place of what the seed says
  --history DIR      where the history is kept; else it is if something is violated
";

/// What is wanted.
#[derive(Debug)]
struct Args {
    plan: Plan,
    history: Option<PathBuf>,
}

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let result = match words.split_first() {
        Some((first, rest)) if first == "worker" => worker::run(rest),
        _ => parse(words).map_err(|error| format!("{error}\n\n{USAGE}").into()).and_then(drive),
    };
    result.unwrap_or_else(|error| {
        eprintln!("distlock-chaos: {error}");
        ExitCode::from(2)
    })
}

fn parse(words: Vec<String>) -> Result<Args, Box<dyn Error>> {
    let (mut backend, mut seconds, mut seed) = (None, 60, 1);
    let (mut workers, mut history) = (None, None);
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("`{word}` needs a value"));
        match word.as_str() {
            "--backend" => backend = Some(Backend::parse(&value()?)?),
            "--seconds" => seconds = value()?.parse()?,
            "--seed" => seed = value()?.parse()?,
            "--workers" => workers = Some(value()?.parse()?),
            "--history" => history = Some(PathBuf::from(value()?)),
            _ => return Err(format!("`{word}`?").into()),
        }
    }
    let backend = backend.ok_or("`--backend` says which servers")?;
    let mut plan = Plan::draw(backend, seed, Duration::from_secs(seconds));
    plan.workers = workers.unwrap_or(plan.workers);
    if plan.workers == 0 {
        return Err("nobody competes".into());
    }
    Ok(Args { plan, history })
}

fn drive(args: Args) -> Result<ExitCode, Box<dyn Error>> {
    let Args { plan, history } = args;
    let dir = run::folder(history.as_deref())?;
    let kept = |problem: &str| {
        let (backend, seed, seconds) = (plan.backend.name(), plan.seed, plan.faulty.as_secs());
        let workers = plan.workers;
        format!(
            "{problem}; the history is in {}\nagain: cargo xtask chaos --backend {backend} --seconds {seconds} --seed {seed} --workers {workers}",
            dir.display()
        )
    };
    let outcome =
        run::run(&plan, &dir).map_err(|error| kept(&format!("it went wrong: {error}")))?;
    println!("{outcome}");
    if !outcome.is_clean() {
        println!("{}", kept("VIOLATED"));
        return Ok(ExitCode::FAILURE);
    }
    if history.is_none() {
        fs::remove_dir_all(&dir)?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Args, Box<dyn Error>> {
        parse(line.split(' ').map(str::to_owned).collect())
    }

    #[test]
    fn a_command_line_is_understood() {
        let args = words("--backend etcd --seconds 7 --seed 3 --workers 2 --history x").unwrap();
        assert_eq!((args.plan.backend, args.plan.workers), (Backend::Etcd, 2));
        assert_eq!((args.plan.seed, args.plan.faulty), (3, Duration::from_secs(7)));
        assert_eq!(args.history, Some(PathBuf::from("x")));
        for wrong in ["--seconds 7", "--backend", "--backend x", "--backend etcd --workers 0", "-x"]
        {
            assert!(words(wrong).is_err(), "{wrong}");
        }
    }
}
