//! Rules for the README: what it says of features and versions is true.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{Result, manifest::Manifest, tidy::Finding};

const FACADE: &str = "crates/distlock/Cargo.toml";

/// Checks the README, if there is one.
pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let readme = match fs::read_to_string(root.join("README.md")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        readme => readme?,
    };
    let facade = Manifest::read(&root.join(FACADE))?;
    let features: BTreeSet<_> = facade
        .section("features")
        .map(|entry| entry.name.as_str())
        .filter(|name| *name != "default" && !name.starts_with('_'))
        .collect();
    let workspace = Manifest::read(&root.join("Cargo.toml"))?;
    let version = workspace.text("workspace.package", "version").unwrap_or_default();
    let mut found = feature_table(&readme, &features);
    found.extend(versions(&readme, version));
    let finding = |(line, text)| Finding { path: PathBuf::from("README.md"), line, text };
    Ok(found.into_iter().map(finding).collect())
}

/// Compares the table whose first column is headed "feature" with the features there are.
fn feature_table(readme: &str, features: &BTreeSet<&str>) -> Vec<(usize, String)> {
    let rows = || readme.lines().enumerate().map(|(index, line)| (index + 1, first_cell(line)));
    let is_head = |cell: &str| cell.eq_ignore_ascii_case("feature");
    let Some((head, _)) = rows().find(|(_, cell)| cell.is_some_and(is_head)) else {
        return Vec::new();
    };
    let mut missing = features.clone();
    let mut findings = Vec::new();
    for (line, cell) in rows().skip(head).map_while(|(line, cell)| Some((line, cell?))) {
        let Some(name) = cell.strip_prefix('`').and_then(|cell| cell.split('`').next()) else {
            continue;
        };
        if !missing.remove(name) {
            findings
                .push((line, format!("`{name}` is no feature of {FACADE}, or is listed twice")));
        }
    }
    findings.extend(missing.iter().map(|name| (head, format!("the feature `{name}` is missing"))));
    findings
}

/// Lines such as `distlock = "0.1"` name the version that is being built.
fn versions(readme: &str, version: &str) -> Vec<(usize, String)> {
    let wrong = |line: &str| {
        let (name, value) = line.split_once(" = ")?;
        let named = match value.split_once("version = ") {
            Some((_, value)) => value,
            None => value,
        };
        let named = named.strip_prefix('"')?.split('"').next()?;
        let ours = name.starts_with("distlock") && !name.contains(' ');
        let matches = version == named || version.starts_with(&format!("{named}."));
        (ours && !matches).then(|| format!("`{name}` {named} is not the version here, {version}"))
    };
    let lines = readme.lines().enumerate();
    lines.filter_map(|(index, line)| Some((index + 1, wrong(line)?))).collect()
}

/// The text of the first column, if the line is a row of a table.
fn first_cell(line: &str) -> Option<&str> {
    Some(line.strip_prefix('|')?.split('|').next()?.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = "\
# distlock

distlock = \"0.1\"
distlock-redis = { version = \"0.2\", features = [] }

| Feature | brings |
|---|---|
| `memory` | x |
| `redis` | y |

| `other` | table |
";

    #[test]
    fn the_table_matches_the_features() {
        assert_eq!(feature_table(README, &BTreeSet::from(["memory", "redis"])), []);
        let findings = feature_table(README, &BTreeSet::from(["memory", "tracing"]));
        assert_eq!(findings.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [9, 6]);
        assert_eq!(feature_table("no table", &BTreeSet::from(["memory"])), []);
    }

    #[test]
    fn versions_are_compared() {
        let findings = versions(README, "0.1.0");
        assert_eq!(findings.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [4]);
        assert_eq!(versions("distlock = \"0.1.0\"", "0.1.0"), []);
    }
}
