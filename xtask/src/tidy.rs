//! `tidy`: the rules of the house that no other tool knows.

mod dependencies;
mod faults;
mod readme;
mod source;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use crate::{Result, root};

/// What breaks a rule, and where.
#[derive(Debug)]
struct Finding {
    path: PathBuf,
    /// From 1.
    line: usize,
    text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.text)
    }
}

/// Prints a line for each broken rule, and fails if there is one.
pub(crate) fn tidy() -> Result {
    let root = root();
    let mut findings = Vec::new();
    let files = rust_files(&root)?;
    for path in &files {
        let relative = path.strip_prefix(&root)?;
        findings.extend(source::check(relative, &fs::read_to_string(path)?));
    }
    findings.extend(dependencies::check(&root)?);
    findings.extend(faults::check(&root)?);
    findings.extend(readme::check(&root)?);
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => {
            println!("{} files are tidy", files.len());
            Ok(())
        }
        count => Err(format!("tidy: {count} findings").into()),
    }
}

/// All Rust files of the repository.
pub(crate) fn rust_files(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            let hidden = name.to_string_lossy().starts_with('.');
            if entry.file_type()?.is_dir() {
                if !hidden && name != "target" {
                    dirs.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
