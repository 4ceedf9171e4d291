//! `mutants`: the Lua scripts with one error in them, which tests on a real server have to catch.
//!
//! The tests are built once, with `--cfg mutants`, under which the scripts are read when they are first used.

mod explained;
mod lua;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use distlock_servers::redis::RedisServer;

use self::{explained::Explained, lua::Mutant};
use crate::{
    Result, install, root,
    run::{self, cargo},
};

const SCRIPTS: &str = "crates/redis/src/lua";

/// Explains those that no test catches.
const PAGE: &str = "docs/testing.md";

/// Tests, as options of nextest.
type Round = &'static [&'static str];

/// One after the other: those of the scripts by themselves, those that use them most, and all others that a single server is enough for and that do not
/// take half a minute.
const ROUNDS: [Round; 3] = [
    &["--profile", "mutants", "--lib", "--filterset", "test(/on_a_server/)"],
    &[
        "--profile",
        "mutants",
        "--test=conformance",
        "--test=foreign",
        "--test=lock",
        "--test=together",
        "--test=waiting",
    ],
    &[
        "--profile",
        "survivors",
        "--lib",
        "--test=gone",
        "--test=network",
        "--test=protocol",
        "--test=states",
        "--test=stopped",
        "--test=weather",
        "--test=wire",
        "--filterset",
        "not test(/on_a_server|cluster|sentinel|e20|e09|e1[02]/)",
    ],
];

/// What became of a mutant.
enum Fate {
    /// By this test.
    Caught(String),
    Survived,
}

/// All mutants, or those of some scripts, or of some lines of scripts.
pub(crate) fn mutants(chosen: &[String]) -> Result {
    install::servers()?;
    let scripts = scripts()?;
    let all = chosen_of(&scripts, chosen)?;
    let explained = explained()?;
    stale(&explained, &scripts)?;
    let folder = env::temp_dir().join(format!("distlock-mutants-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let result = try_all(&all, &explained, &folder);
    fs::remove_dir_all(&folder)?;
    result
}

fn try_all(all: &[(String, Mutant)], table: &Explained, folder: &Path) -> Result {
    if let Fate::Caught(test) = fate(folder, &ROUNDS)? {
        return Err(format!("without any mutant `{test}` fails").into());
    }
    let (mut caught, mut explained, mut unexplained) = (0, 0, 0);
    for (script, mutant) in all {
        let Mutant { line, what, text } = mutant;
        let file = folder.join(script).with_extension("lua");
        fs::write(&file, text)?;
        // Nothing is new about one that is explained, unless a quick test catches it now.
        let is_explained = table.explains(script, what);
        let rounds = if is_explained { &ROUNDS[..2] } else { &ROUNDS[..] };
        let said = match fate(folder, rounds)? {
            Fate::Caught(test) => {
                caught += 1;
                format!("caught by {test}")
            }
            Fate::Survived if is_explained => {
                explained += 1;
                "survived, as explained".to_owned()
            }
            Fate::Survived => {
                unexplained += 1;
                "SURVIVED".to_owned()
            }
        };
        fs::remove_file(&file)?;
        println!("{script}:{line}: {what}: {said}");
    }
    println!("{} mutants: {caught} caught, {} survived", all.len(), explained + unexplained);
    match unexplained {
        0 => Ok(()),
        some => Err(format!("{some} survived that `{PAGE}` does not explain").into()),
    }
}

/// Runs the tests on a server of their own, as a mutant may leave anything behind, or end in no end.
fn fate(folder: &Path, rounds: &[Round]) -> Result<Fate> {
    for tests in rounds {
        let server = RedisServer::start(&[])?;
        let mut command = tests_of(tests);
        command.env("DISTLOCK_REQUIRE_BACKENDS", "1");
        command.env("DISTLOCK_TEST_REDIS_URL", server.url());
        command.env("DISTLOCK_TEST_SCRIPTS", folder);
        let (passed, report) = run::judge(&command)?;
        if !passed {
            return Ok(Fate::Caught(culprit(&report).ok_or(report)?));
        }
    }
    Ok(Fate::Survived)
}

/// The test that failed at last, as nextest tells it: `TRY 2 FAIL [ 0.5s] (3/9) distlock-redis::binary name`.
fn culprit(report: &str) -> Option<String> {
    let ends = ["FAIL", "SIG", "TIMEOUT", "TMT"];
    let tells = |line: &&str| {
        line.split_once('[')
            .is_some_and(|(verdict, _)| ends.iter().any(|end| verdict.contains(end)))
    };
    let (_, test) = report
        .lines()
        .filter(tells)
        .filter_map(|line| line.split_once("distlock-redis"))
        .next_back()?;
    Some(test.trim_start_matches("::").trim().to_owned())
}

fn tests_of(tests: Round) -> Command {
    let mut command = cargo(&["nextest", "run", "--package", "distlock-redis", "--all-features"]);
    command.args(["--target-dir", "target/mutants"]).args(tests);
    let flags = env::var("RUSTFLAGS").unwrap_or_default();
    command.env("RUSTFLAGS", format!("{flags} --cfg mutants").trim_start());
    command
}

fn explained() -> Result<Explained> {
    Ok(Explained::of_page(&fs::read_to_string(root().join(PAGE))?))
}

/// An error if something is explained that is no mutant: nobody would see that its reason is about another line now.
fn stale(explained: &Explained, scripts: &[(String, String)]) -> Result {
    let all = chosen_of(scripts, &[])?;
    let stale = explained.without(all.iter().map(|(name, mutant)| (&**name, &*mutant.what)));
    match stale.is_empty() {
        true => Ok(()),
        false => Err(format!("`{PAGE}` explains what is no mutant: {}", stale.join(", ")).into()),
    }
}

/// Names and texts, in the order of names.
fn scripts() -> Result<Vec<(String, String)>> {
    let files = fs::read_dir(root().join(SCRIPTS))?.collect::<std::io::Result<Vec<_>>>()?;
    let mut files: Vec<PathBuf> = files.into_iter().map(|file| file.path()).collect();
    files.sort();
    let name = |file: &Path| file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    files.iter().map(|file| Ok((name(file), fs::read_to_string(file)?))).collect()
}

/// The mutants of what was chosen, each with the name of its script.
fn chosen_of(scripts: &[(String, String)], chosen: &[String]) -> Result<Vec<(String, Mutant)>> {
    let is_chosen = |name: &str, line: usize| {
        let place = format!("{name}:{line}");
        chosen.is_empty() || chosen.iter().any(|choice| *choice == name || *choice == place)
    };
    let mut all = Vec::new();
    for (name, text) in scripts {
        let mutants = lua::mutants(text).into_iter();
        let mutants = mutants.filter(|mutant| is_chosen(name, mutant.line));
        all.extend(mutants.map(|mutant| (name.clone(), mutant)));
    }
    match all.is_empty() {
        true => Err(format!("nothing to change in {}", chosen.join(", ")).into()),
        false => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_page_is_a_mutant_of_the_scripts() {
        let explained = explained().unwrap();
        assert!(!explained.is_empty());
        stale(&explained, &scripts().unwrap()).unwrap();
    }
}
