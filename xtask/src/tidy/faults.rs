//! Rules for the page of faults: every test that it names is there, and every row names one or says why not.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{Result, tidy::Finding};

const PAGE: &str = "docs/faults.md";

/// Checks the page, if there is one.
pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let page = match fs::read_to_string(root.join(PAGE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        page => page?,
    };
    let read = |file: &str| fs::read_to_string(root.join(file)).ok();
    let finding = |(line, text)| Finding { path: PathBuf::from(PAGE), line, text };
    Ok(wrong(&page, read).into_iter().map(finding).collect())
}

/// What is wrong, by line; `read` gives the text of a file that exists.
fn wrong(page: &str, read: impl Fn(&str) -> Option<String>) -> Vec<(usize, String)> {
    let mut findings = Vec::new();
    for (index, line) in page.lines().enumerate() {
        let mut find = |text: String| findings.push((index + 1, text));
        for (path, name) in tests(line) {
            let defines = |file: &String| read(file).is_some_and(|text| has_test(&text, name));
            if !files(path).iter().any(defines) {
                find(format!("there is no `{name}` in `{path}`"));
            }
        }
        if is_row(line) && tests(line).next().is_none() && !line.contains("not tested: ") {
            find("a fault without a test needs `not tested: ` and the reason".to_owned());
        }
    }
    findings
}

/// All `path::name` in code spans.
fn tests(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.split('`').skip(1).step_by(2).filter_map(|span| span.split_once("::"))
}

/// Where a path may lead: `crate/file` to a file of its tests, `crate/src/file`, or a case of `suite`.
fn files(path: &str) -> Vec<String> {
    let Some((package, file)) = path.split_once('/') else { return Vec::new() };
    if package == "suite" {
        return vec![format!("crates/conformance/src/cases/{file}.rs")];
    }
    let roots = [format!("crates/{package}"), package.to_owned()];
    let both = |root: &String| [format!("{root}/tests/{file}.rs"), format!("{root}/{file}.rs")];
    roots.iter().flat_map(both).collect()
}

fn has_test(text: &str, name: &str) -> bool {
    let ends = |rest: &str| rest.starts_with(['(', '<']);
    text.split("fn ").skip(1).any(|rest| rest.strip_prefix(name).is_some_and(ends))
}

/// A row whose first cell is a number of the catalogue.
fn is_row(line: &str) -> bool {
    let cell = line.strip_prefix("| ").unwrap_or_default();
    cell.starts_with(|letter: char| letter.is_ascii_uppercase())
        && cell[1..].starts_with(|digit: char| digit.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
| | fault | tests |
|---|---|---|
| A1 | x | `suite/faults::one`, `redis/network::two` |
| A2 | x | `redis/src/deep::three`, `sim/replay::four` |
| A3 | not tested: why | – |
| A4 | x | simulation |
| A5 | x | `suite/faults::on`, `core/network::two` |
";

    fn read(file: &str) -> Option<String> {
        let text = match file {
            "crates/conformance/src/cases/faults.rs" => "pub async fn one(stage: &Stage) {}",
            "crates/redis/tests/network.rs" => "async fn two() {}",
            "crates/redis/src/deep.rs" => "mod tests { fn three() {} }",
            "sim/tests/replay.rs" => "fn four() {}",
            _ => return None,
        };
        Some(text.to_owned())
    }

    #[test]
    fn tests_that_are_not_there_and_rows_without_any_are_found() {
        let lines: Vec<_> = wrong(PAGE, read).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [6, 7, 7]);
    }
}
