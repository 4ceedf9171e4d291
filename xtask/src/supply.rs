//! Where dependencies come from, and under which licenses: what `deny.toml` says, checked without anything installed, and by `cargo deny` where
//! it is.

use std::fs;

use crate::{
    Result,
    manifest::Manifest,
    root,
    run::{self, cargo},
};

/// The only place that packages of others come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// What `cargo deny` can judge without a network; `advisories` needs the database of RustSec.
const DENY: [&str; 6] = ["deny", "--all-features", "check", "bans", "licenses", "sources"];

/// Fails with everything that `deny.toml` does not allow.
pub(crate) fn check() -> Result {
    let root = root();
    let mut findings = sources(&fs::read_to_string(root.join("Cargo.lock"))?);
    let allowed = Allowed::read(&Manifest::read(&root.join("deny.toml"))?)?;
    let tree = ["tree", "--workspace", "--all-features", "--edges", "normal,build,dev"];
    let format = ["--prefix", "none", "--format", "{p}|{l}"];
    findings.extend(licenses(&run::output(&mut cargo(&[&tree[..], &format].concat()))?, &allowed));
    if !findings.is_empty() {
        return Err(findings.join("\n").into());
    }
    if run::succeeds(&mut cargo(&["deny", "--version"])) {
        return run::run(&cargo(&DENY));
    }
    println!("`cargo deny` is not installed: licenses and sources were checked without it");
    Ok(())
}

/// A finding for each package in the lock file that is from elsewhere.
fn sources(lock: &str) -> Vec<String> {
    let sources = lock.lines().filter_map(|line| line.strip_prefix("source = "));
    let foreign = sources.map(|source| source.trim_matches('"')).filter(|&one| one != REGISTRY);
    foreign.map(|source| format!("Cargo.lock: a package is from `{source}`")).collect()
}

/// What `deny.toml` allows.
#[derive(Debug)]
struct Allowed {
    licenses: Vec<String>,
    /// A list of packages, each with more that it may have.
    exceptions: String,
}

impl Allowed {
    fn read(deny: &Manifest) -> Result<Self> {
        let entry = |name| deny.section("licenses").find(|entry| entry.name == name);
        let allow = entry("allow").ok_or("deny.toml allows no license")?;
        let licenses = allow.value.split('"').skip(1).step_by(2).map(str::to_owned).collect();
        let exceptions = entry("exceptions").map(|entry| entry.value.clone()).unwrap_or_default();
        Ok(Self { licenses, exceptions })
    }

    fn allows(&self, package: &str, license: &str) -> bool {
        let excepted = || {
            let mark = format!("crate = \"{package}\"");
            let (_, rest) = self.exceptions.split_once(&mark)?;
            rest.split('}').next()?.contains(&format!("\"{license}\"")).then_some(())
        };
        self.licenses.iter().any(|one| one == license) || excepted().is_some()
    }
}

/// A finding for each package whose license is not allowed. `tree`: lines of `package version (path)|license`.
fn licenses(tree: &str, allowed: &Allowed) -> Vec<String> {
    let mut findings = Vec::new();
    for line in tree.lines() {
        // A package that was listed before has ` (*)` behind it.
        let Some((package, license)) = line.trim_end_matches(" (*)").split_once('|') else {
            continue;
        };
        let name = package.split(' ').next().unwrap_or_default();
        let words = license.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        let mut words = words.split_whitespace().peekable();
        if !any(&mut words, &|license| allowed.allows(name, license)) || words.next().is_some() {
            findings.push(format!("`{name}` has the license `{license}`"));
        }
    }
    findings
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

/// Whether one side of each `OR` is allowed.
fn any(words: &mut Words<'_>, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut found = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        // Both sides are read, whatever the first one is.
        found |= all(words, allowed);
    }
    found
}

/// Whether both sides of each `AND` are allowed.
fn all(words: &mut Words<'_>, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut found = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        found &= one(words, allowed);
    }
    found
}

fn one(words: &mut Words<'_>, allowed: &dyn Fn(&str) -> bool) -> bool {
    match words.next() {
        Some("(") => {
            let found = any(words, allowed);
            words.next_if_eq(&")").is_some() && found
        }
        Some(license) if words.next_if_eq(&"WITH").is_some() => {
            let exception = words.next().unwrap_or_default();
            allowed(&format!("{license} WITH {exception}"))
        }
        Some(license) => allowed(license),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> Allowed {
        let deny = "[licenses]\nallow = [\"MIT\", \"ISC\"]\nexceptions = [\n    { crate = \"odd\", allow = [\"BSL-1.0\"] },\n]\n";
        Allowed::read(&Manifest::parse(deny)).unwrap()
    }

    #[test]
    fn an_expression_is_allowed_by_what_it_leaves_to_choose() {
        let fails = |license: &str| {
            let tree = format!("one v1.0.0|{license}\n\ntwo v1.0.0 (/somewhere)|MIT (*)\n");
            !licenses(&tree, &allowed()).is_empty()
        };
        for license in
            ["MIT", "GPL-3.0 OR MIT", "MIT AND ISC", "(GPL-3.0 OR MIT) AND ISC", "GPL-3.0/MIT"]
        {
            assert!(!fails(license), "{license}");
        }
        for license in [
            "",
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "GPL-3.0 OR MIT AND GPL-3.0",
            "MIT WITH exception",
            "(MIT",
            "MIT ISC",
            "BSL-1.0",
        ] {
            assert!(fails(license), "{license}");
        }
        assert_eq!(licenses("odd v1.0.0|BSL-1.0", &allowed()), [""; 0]);
    }

    #[test]
    fn what_we_depend_on_is_allowed() {
        check().unwrap();
    }

    #[test]
    fn a_package_from_elsewhere_is_found() {
        let lock = |source: &str| format!("[[package]]\nname = \"one\"\nsource = \"{source}\"\n");
        assert_eq!(sources(&lock(REGISTRY)), [""; 0]);
        assert_eq!(sources("[[package]]\nname = \"ours\"\n"), [""; 0]);
        for source in ["git+https://example.org/one#0", "registry+https://example.org/index"] {
            assert_eq!(sources(&lock(source)).len(), 1, "{source}");
        }
    }
}
