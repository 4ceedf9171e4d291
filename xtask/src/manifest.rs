//! As much of a Cargo.toml as the rules of the house look at.

use std::{fs, path::Path};

use crate::Result;

/// A manifest as sections of `name = value` entries.
#[derive(Debug)]
pub(crate) struct Manifest {
    entries: Vec<Entry>,
}

/// One entry, with all its lines joined.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) section: String,
    pub(crate) name: String,
    pub(crate) value: String,
    /// Where it starts, from 1.
    pub(crate) line: usize,
}

impl Manifest {
    /// Reads and parses a file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self::parse(&text))
    }

    /// Parses the plain style in which our manifests are written.
    pub(crate) fn parse(text: &str) -> Self {
        let mut section = String::new();
        let mut entries: Vec<Entry> = Vec::new();
        // Brackets that the last entry still has to close.
        let mut open = 0;
        for (index, line) in text.lines().enumerate() {
            let line = line.split(" #").next().unwrap_or_default().trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if open > 0 {
                let last = entries.last_mut().expect("somebody opened the bracket");
                last.value.push_str(line);
                open += depth(line);
            } else if line.starts_with('[') {
                section = line.trim_matches(['[', ']']).to_owned();
            } else if let Some((name, value)) = line.split_once('=') {
                open = depth(value);
                // `name.workspace = true` says the same as `name = { workspace = true }`.
                let (name, value) = match name.trim().split_once('.') {
                    Some((name, key)) => (name, format!("{{ {key} ={value} }}")),
                    None => (name.trim(), value.trim().to_owned()),
                };
                let (section, name) = (section.clone(), name.trim_matches('"').to_owned());
                entries.push(Entry { section, name, value, line: index + 1 });
            }
        }
        Self { entries }
    }

    /// The name of the package, or nothing.
    pub(crate) fn name(&self) -> &str {
        self.text("package", "name").unwrap_or_default()
    }

    /// Whether the package may go to a registry.
    pub(crate) fn is_published(&self) -> bool {
        self.section("package").all(|entry| entry.name != "publish" || entry.value != "false")
    }

    /// The entries of one section.
    pub(crate) fn section(&self, section: &str) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.section == section)
    }

    /// The entries of all sections that list dependencies.
    pub(crate) fn dependencies(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.section.ends_with("dependencies"))
    }

    /// A string of a section.
    pub(crate) fn text(&self, section: &str, name: &str) -> Option<&str> {
        let entry = self.section(section).find(|entry| entry.name == name)?;
        Some(entry.value.trim_matches('"'))
    }
}

impl Entry {
    /// A string in an inline table: `version` of `{ version = "1", … }`.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let table = self.value.strip_prefix('{')?;
        let mut rest = table;
        loop {
            let (before, after) = rest.split_once(name)?;
            let value = after.trim_start().strip_prefix('=');
            match (before.ends_with([' ', ',', '{']) || before.is_empty(), value) {
                (true, Some(value)) => {
                    return value.trim_start().strip_prefix('"')?.split('"').next();
                }
                _ => rest = after,
            }
        }
    }
}

/// How many more brackets a line opens than it closes.
fn depth(line: &str) -> i32 {
    line.chars().map(|c| i32::from("[{".contains(c)) - i32::from("]}".contains(c))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
[package]
name = "one" # not "two"
publish = false

[features]
# A comment.
default = []
full = [
    "memory",
    "redis",
]
redis = ["dep:distlock-redis"]

[target.'cfg(unix)'.dev-dependencies]
tokio.workspace = true
fred = { default-features = false, version = "10.1" }
"#;

    #[test]
    fn sections_and_entries_are_told_apart() {
        let manifest = Manifest::parse(TEXT);
        assert_eq!(manifest.name(), "one");
        assert!(!manifest.is_published());
        let features: Vec<_> = manifest.section("features").map(|entry| &*entry.name).collect();
        assert_eq!(features, ["default", "full", "redis"]);
        let dependencies: Vec<_> = manifest.dependencies().collect();
        assert_eq!(dependencies[0].value, "{ workspace = true }");
        assert_eq!((dependencies[1].line, dependencies[1].field("version")), (17, Some("10.1")));
        assert_eq!(dependencies[1].field("path"), None);
    }
}
