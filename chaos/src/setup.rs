//! What a worker process is told when it is started.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

/// What a worker process is told when it is started, as words on its command line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Setup {
    /// Its number in the history.
    pub(crate) process: u32,
    pub(crate) url: String,
    /// Where history and ledger are.
    pub(crate) dir: PathBuf,
    pub(crate) seed: u64,
    pub(crate) ttl: Duration,
    /// How many locks there are.
    pub(crate) locks: usize,
    /// How many of its tasks compete for them.
    pub(crate) tasks: u32,
    pub(crate) cohort_limit: u32,
    /// Threads of its runtime; 0 is a runtime in one thread.
    pub(crate) threads: usize,
    /// Nearly all its work is quick.
    pub(crate) hurry: bool,
}

impl Setup {
    pub(crate) fn to_words(&self) -> Vec<String> {
        let Self { process, url, dir, seed, ttl, locks, tasks, cohort_limit, threads, hurry } =
            self;
        vec![
            format!("process={process}"),
            format!("url={url}"),
            format!("dir={}", dir.display()),
            format!("seed={seed}"),
            format!("ttl={}", ttl.as_millis()),
            format!("locks={locks}"),
            format!("tasks={tasks}"),
            format!("cohort_limit={cohort_limit}"),
            format!("threads={threads}"),
            format!("hurry={}", u8::from(*hurry)),
        ]
    }

    pub(crate) fn parse(words: &[String]) -> Result<Self, String> {
        let words: HashMap<&str, &str> =
            words.iter().filter_map(|word| word.split_once('=')).collect();
        let word = |name: &str| words.get(name).copied().ok_or(format!("no `{name}`"));
        let number = |name: &str| {
            let text = word(name)?;
            text.parse::<u64>().map_err(|error| format!("`{name}={text}`: {error}"))
        };
        let small = |name: &str| u32::try_from(number(name)?).map_err(|error| error.to_string());
        Ok(Self {
            process: small("process")?,
            url: word("url")?.to_owned(),
            dir: word("dir")?.into(),
            seed: number("seed")?,
            ttl: Duration::from_millis(number("ttl")?),
            locks: small("locks")? as usize,
            tasks: small("tasks")?,
            cohort_limit: small("cohort_limit")?,
            threads: small("threads")? as usize,
            hurry: number("hurry")? == 1,
        })
    }
}

/// The name of a lock.
pub(crate) fn lock_name(number: usize) -> String {
    format!("chaos/{number}")
}

/// The file that a worker makes when it has a lock that it was told to keep.
pub(crate) fn kept_file(dir: &Path, process: u32) -> PathBuf {
    dir.join(format!("kept-{process}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_hears_what_it_is_told() {
        let setup = Setup {
            process: 7,
            url: "redis://127.0.0.1:1?timeout=300ms&connect_timeout=1s".to_owned(),
            dir: "/a folder/with=signs".into(),
            seed: u64::MAX,
            ttl: Duration::from_millis(1500),
            locks: 3,
            tasks: 4,
            cohort_limit: 0,
            threads: 2,
            hurry: true,
        };
        assert_eq!(Setup::parse(&setup.to_words()), Ok(setup));
        assert!(Setup::parse(&["process=x".to_owned()]).is_err());
    }
}
