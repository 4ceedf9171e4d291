//! Who may depend on whom, as `cargo tree` sees it.

use std::fs;

use crate::{Result, manifest::Manifest, root, run, run::cargo};

/// Crates that talk to a store, or that only such a crate brings along.
const DRIVERS: &[&str] =
    &["etcd-client", "fred", "hyper", "prost", "redis", "redis-protocol", "rustls", "tonic"];

/// Crates in `crates/` that are no store.
const NO_STORES: &[&str] = &["distlock", "distlock-conformance", "distlock-core"];

/// Checks every rule and fails with all that are broken.
pub(crate) fn check() -> Result {
    let mut findings = Vec::new();
    findings.extend(forbidden(&["-p", "distlock-core", "--all-features"], DRIVERS)?);
    let memory = ["-p", "distlock", "--no-default-features", "--features", "memory"];
    findings.extend(forbidden(&memory, DRIVERS)?);
    let stores = stores()?;
    for store in &stores {
        let others: Vec<_> =
            stores.iter().filter(|other| *other != store).map(String::as_str).collect();
        findings.extend(forbidden(&["-p", store, "--all-features"], &others)?);
    }
    match findings.is_empty() {
        true => Ok(()),
        false => Err(findings.join("\n").into()),
    }
}

/// The packages that implement a store.
fn stores() -> Result<Vec<String>> {
    let mut stores = Vec::new();
    for entry in fs::read_dir(root().join("crates"))? {
        let manifest = entry?.path().join("Cargo.toml");
        if manifest.exists() {
            stores.push(Manifest::read(&manifest)?.name().to_owned());
        }
    }
    stores.retain(|name| !NO_STORES.contains(&name.as_str()));
    stores.sort();
    Ok(stores)
}

/// A finding for each package of `names` in the tree that `selection` gives.
fn forbidden(selection: &[&str], names: &[&str]) -> Result<Vec<String>> {
    let tree = ["tree", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"];
    let tree = run::output(&mut cargo(&[&tree[..], selection].concat()))?;
    Ok(hits(&tree, names)
        .into_iter()
        .map(|name| format!("`cargo tree {}` must not contain `{name}`", selection.join(" ")))
        .collect())
}

fn hits<'a>(tree: &str, names: &[&'a str]) -> Vec<&'a str> {
    let is_in = |name: &&&str| tree.lines().any(|line| line.split(' ').next() == Some(**name));
    names.iter().filter(is_in).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_names_hit() {
        let tree = "distlock-core v0.1.0 (/somewhere/redis)\nredis-protocol v6.0.0\ntokio v1.45.0";
        assert_eq!(hits(tree, DRIVERS), ["redis-protocol"]);
        assert_eq!(hits("tokio v1.45.0 (*)", DRIVERS), [""; 0]);
    }
}
