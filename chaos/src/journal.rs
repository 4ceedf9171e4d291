//! What a process writes down: a line for each event, each with one call of the system, so that its death takes none of them.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process,
};

use distlock_checker::{Event, History};

/// The file of one process; 0 is the driver.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
}

impl Journal {
    /// Begins, or goes on with, the file of this process.
    pub(crate) fn open(dir: &Path, process: u32) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path(dir, process))?;
        Ok(Self { file })
    }

    /// Adds a line. A history with holes would be judged as if nothing had happened in them, so it ends the process if it cannot.
    pub(crate) fn write(&self, event: &Event) {
        let mut line = event.to_line();
        line.push('\n');
        if let Err(error) = (&self.file).write_all(line.as_bytes()) {
            eprintln!("distlock-chaos: the history cannot be written: {error}");
            process::exit(4);
        }
    }
}

/// All that was written in this folder.
pub(crate) fn read(dir: &Path) -> io::Result<History> {
    let mut history = History::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "jsonl") {
            history.read(&fs::read_to_string(&path)?).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
            })?;
        }
    }
    Ok(history)
}

fn path(dir: &Path, process: u32) -> PathBuf {
    dir.join(format!("process-{process}.jsonl"))
}

#[cfg(test)]
mod tests {
    use distlock_checker::Kind;
    use distlock_servers::process::temp_dir;

    use super::*;

    #[test]
    fn what_processes_wrote_is_one_history() {
        let dir = temp_dir("journal").unwrap();
        for process in 0..3 {
            let journal = Journal::open(&dir, process).unwrap();
            journal.write(&Event::new(9 - u64::from(process), Kind::Heal));
        }
        // What a kill may leave behind.
        let mut file = File::options().append(true).open(path(&dir, 1)).unwrap();
        file.write_all(b"{\"t\":7,").unwrap();
        let times: Vec<u64> = read(&dir).unwrap().events().map(|event| event.t).collect();
        assert_eq!(times, [7, 8, 9]);
        fs::remove_dir_all(dir).unwrap();
    }
}
