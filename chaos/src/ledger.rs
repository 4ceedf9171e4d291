//! The resource that the locks protect: files. One of each pair looks at tokens, the other one believes whoever comes.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use distlock::{FenceGate, FencingToken};
use rustix::fs::{FlockOperation, flock};

/// Of the highest token, as text.
const DIGITS: usize = 20;

/// The files of one lock, opened by one task.
#[derive(Debug)]
pub(crate) struct Ledger {
    gate: File,
    gated: File,
    open: File,
}

/// What the files of all locks came to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Audit {
    pub(crate) gated: Count,
    pub(crate) open: Count,
}

/// Writes that were accepted, and those of them that came after one with a higher token.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Count {
    pub(crate) accepted: u64,
    pub(crate) stale: u64,
}

impl Ledger {
    /// Opens the files of a lock. Each task needs its own: what a file is locked by is the opening of it.
    pub(crate) fn open(dir: &Path, number: usize) -> io::Result<Self> {
        let append = |name| File::options().create(true).append(true).open(path(dir, name, number));
        Ok(Self {
            gate: File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(path(dir, "highest", number))?,
            gated: append(GATED)?,
            open: append(OPEN)?,
        })
    }

    /// Writes, if no higher token was seen: the question and the write are one step, under the lock of the file, and the highest token is kept in it.
    /// Says when that was, and whether it was accepted; nothing if another process is at it, which may be stopped in the middle.
    pub(crate) fn write(
        &self,
        token: FencingToken,
        now: impl FnOnce() -> u64,
    ) -> io::Result<Option<(u64, bool)>> {
        match flock(&self.gate, FlockOperation::NonBlockingLockExclusive) {
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => return Ok(None),
            other => other?,
        }
        let written = self.write_locked(token, now);
        flock(&self.gate, FlockOperation::Unlock)?;
        written.map(Some)
    }

    fn write_locked(
        &self,
        token: FencingToken,
        now: impl FnOnce() -> u64,
    ) -> io::Result<(u64, bool)> {
        let mut digits = [0; DIGITS];
        let gate = match self.gate.read_exact_at(&mut digits, 0) {
            Ok(()) => FenceGate::starting_at(FencingToken::new(number(&digits)?)),
            // Nobody has written yet.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => FenceGate::new(),
            Err(error) => return Err(error),
        };
        let accepted = gate.admit(token);
        if accepted {
            // In this order: who dies in between has raised the bar, and written nothing.
            let highest = format!("{:0DIGITS$}", gate.highest().as_u64());
            self.gate.write_all_at(highest.as_bytes(), 0)?;
            (&self.gated).write_all(format!("{token}\n").as_bytes())?;
        }
        Ok((now(), accepted))
    }

    /// Writes, whoever it is.
    pub(crate) fn write_unasked(&self, token: FencingToken) -> io::Result<()> {
        (&self.open).write_all(format!("{token}\n").as_bytes())
    }
}

/// Looks through the files of all locks.
pub(crate) fn audit(dir: &Path, locks: usize) -> io::Result<Audit> {
    let mut audit = Audit::default();
    for lock in 0..locks {
        count(&path(dir, GATED, lock), &mut audit.gated)?;
        count(&path(dir, OPEN, lock), &mut audit.open)?;
    }
    Ok(audit)
}

fn count(path: &Path, into: &mut Count) -> io::Result<()> {
    let text = match fs::read_to_string(path) {
        // Nobody ever had this lock.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let mut highest = 0;
    for line in text.lines() {
        let token = number(line.as_bytes())?;
        into.accepted += 1;
        into.stale += u64::from(token < highest);
        highest = highest.max(token);
    }
    Ok(())
}

const GATED: &str = "gated";
const OPEN: &str = "open";

fn path(dir: &Path, name: &str, number: usize) -> PathBuf {
    dir.join(format!("{name}-{number}"))
}

fn number(digits: &[u8]) -> io::Result<u64> {
    let text = str::from_utf8(digits).map_err(io::Error::other)?;
    text.parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use distlock_servers::process::temp_dir;

    use super::*;

    #[test]
    fn the_gate_refuses_what_the_open_file_takes() {
        let dir = temp_dir("ledger").unwrap();
        let [one, other] = [0, 0].map(|lock| Ledger::open(&dir, lock).unwrap());
        let write = |ledger: &Ledger, token: u64| {
            let token = FencingToken::new(token);
            ledger.write_unasked(token).unwrap();
            ledger.write(token, || 7).unwrap()
        };
        assert_eq!(write(&one, 5), Some((7, true)));
        assert_eq!(write(&other, 8), Some((7, true)));
        assert_eq!(write(&one, 5), Some((7, false)), "it was followed");
        assert_eq!(write(&other, 8), Some((7, true)), "the same holder writes again");
        let expected =
            Audit { gated: Count { accepted: 3, stale: 0 }, open: Count { accepted: 4, stale: 1 } };
        assert_eq!(audit(&dir, 2).unwrap(), expected);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn who_is_stopped_in_the_middle_holds_up_nobody() {
        let dir = temp_dir("ledger").unwrap();
        let [one, other] = [0, 0].map(|lock| Ledger::open(&dir, lock).unwrap());
        flock(&one.gate, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(other.write(FencingToken::new(1), || 7).unwrap(), None);
        flock(&one.gate, FlockOperation::Unlock).unwrap();
        assert!(other.write(FencingToken::new(1), || 7).unwrap().is_some());
        fs::remove_dir_all(dir).unwrap();
    }
}
