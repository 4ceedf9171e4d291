//! `distlock-checker FILES…`: judges the histories in these files as one, and ends with an error if something is violated.

#![allow(clippy::print_stdout, reason = "a command line tool talks on its standard output")]

use std::{env, error::Error, fs, process::ExitCode, time::Duration};

use distlock_checker::{History, Rules, judge};

const USAGE: &str = "\
distlock-checker [OPTIONS] FILES…

  --excuse FAULT        a fault of this name explains a second holder
  --reach SECONDS       so long after it
  --lease SECONDS       so long before it was seen a grant was made, at the most
  --fence-excuse FAULT  a fault of this name explains a token that repeats
  --bound SECONDS       how long an acquisition may take after the heal
  --grants N            how many grants make it worth the name
  --contended N         the same for grants to those who had to wait
";

fn main() -> ExitCode {
    match run(env::args().skip(1)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("distlock-checker: {error}\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run(mut args: impl Iterator<Item = String>) -> Result<bool, Box<dyn Error>> {
    let mut rules = Rules::default();
    let mut history = History::new();
    let mut files = 0;
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("`{arg}` needs a value"));
        match arg.as_str() {
            "--excuse" => rules.excuses.push(value()?),
            "--reach" => rules.reach = Duration::try_from_secs_f64(value()?.parse()?)?,
            "--lease" => rules.lease = Some(Duration::try_from_secs_f64(value()?.parse()?)?),
            "--fence-excuse" => rules.fence_excuses.push(value()?),
            "--bound" => rules.bound = Some(Duration::try_from_secs_f64(value()?.parse()?)?),
            "--grants" => rules.grants = value()?.parse()?,
            "--contended" => rules.contended = value()?.parse()?,
            option if option.starts_with('-') => return Err(format!("`{option}`?").into()),
            file => {
                let text = fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
                history.read(&text).map_err(|error| format!("{file}: {error}"))?;
                files += 1;
            }
        }
    }
    if files == 0 {
        return Err("no files".into());
    }
    let verdict = judge(&mut history, &rules);
    println!("{verdict}");
    Ok(verdict.is_clean())
}
