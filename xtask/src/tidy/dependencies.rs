//! Rules for the manifests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Result, manifest::Manifest, tidy::Finding};

/// Checks the root's manifest and every member's.
pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let workspace = Manifest::read(&root.join("Cargo.toml"))?;
    let mut findings = Vec::new();
    for entry in workspace.dependencies() {
        let Some(path) = entry.field("path") else { continue };
        let member = Manifest::read(&root.join(path).join("Cargo.toml"))?;
        let text = workspace.text("workspace.package", "version");
        if let Some(text) = path_rule(&entry.name, &member, entry.field("version"), text) {
            findings.push(Finding { path: PathBuf::from("Cargo.toml"), line: entry.line, text });
        }
    }
    for path in members(root)? {
        let manifest = Manifest::read(&root.join(&path))?;
        findings.extend(inherited(&path, &manifest));
    }
    Ok(findings)
}

/// A published crate can only depend on what has a version; what is not published has none to have,
/// and cargo leaves it out of a published manifest if it is for the tests alone.
fn path_rule(
    name: &str,
    member: &Manifest,
    version: Option<&str>,
    ours: Option<&str>,
) -> Option<String> {
    match (member.is_published(), version) {
        (true, None) => Some(format!("`{name}` is published, so its path needs a version")),
        (true, Some(_)) if version != ours => {
            Some(format!("`{name}` must have the workspace's version"))
        }
        (false, Some(_)) => Some(format!("`{name}` is not published, so it has no version")),
        _ => None,
    }
}

/// Dependencies are declared once, in the root; save a path without a version, which a crate needs whose tests use what depends on it: cargo
/// leaves it out of a published manifest.
fn inherited(path: &Path, manifest: &Manifest) -> Vec<Finding> {
    let own = manifest.dependencies().filter(|entry| {
        let for_tests = entry.field("path").is_some() && entry.field("version").is_none();
        !for_tests && !entry.value.contains("workspace = true")
    });
    own.map(|entry| Finding {
        path: path.to_owned(),
        line: entry.line,
        text: format!("declare `{}` in the workspace and inherit it", entry.name),
    })
    .collect()
}

/// The members' manifests, relative to the root.
fn members(root: &Path) -> Result<Vec<PathBuf>> {
    let mut members = Vec::new();
    for dir in ["", "crates"] {
        for entry in fs::read_dir(root.join(dir))? {
            let path = Path::new(dir).join(entry?.file_name()).join("Cargo.toml");
            if root.join(&path).is_file() {
                members.push(path);
            }
        }
    }
    members.sort();
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_published_crates_carry_the_version() {
        let published = Manifest::parse("[package]\nname = \"a\"");
        let private = Manifest::parse("[package]\nname = \"b\"\npublish = false");
        let rule = |member, version| path_rule("it", member, version, Some("0.1.0"));
        assert_eq!(rule(&published, Some("0.1.0")), None);
        assert!(rule(&published, None).is_some());
        assert!(rule(&published, Some("0.2.0")).is_some());
        assert_eq!(rule(&private, None), None);
        assert!(rule(&private, Some("0.1.0")).is_some());
    }

    #[test]
    fn members_inherit() {
        let manifest = Manifest::parse("[dependencies]\na.workspace = true\nb = \"1\"\n");
        let findings = inherited(Path::new("Cargo.toml"), &manifest);
        assert_eq!(findings.iter().map(|finding| finding.line).collect::<Vec<_>>(), [3]);
        let manifest = Manifest::parse("[dev-dependencies]\na = { path = \"../a\" }\n");
        assert!(inherited(Path::new("Cargo.toml"), &manifest).is_empty());
    }
}
