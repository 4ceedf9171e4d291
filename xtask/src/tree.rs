//! Who may depend on whom, as `cargo tree` and the manifests see it.

use std::fs;

use crate::{Result, manifest::Manifest, root, run, run::cargo};

/// A store of ours, by the name of its feature, and what it alone may bring along.
struct Store {
    name: &'static str,
    /// The one crate that it talks through, and so the only one it may name.
    driver: Option<&'static str>,
    brings: &'static [&'static str],
}

/// Those of tomorrow too: what is not there yet is passed over.
const STORES: &[Store] = &[
    Store {
        name: "etcd",
        driver: Some("etcd-client"),
        brings: &["etcd-client", "hyper", "prost", "tonic"],
    },
    Store { name: "memory", driver: None, brings: &[] },
    Store { name: "redis", driver: Some("fred"), brings: &["fred", "redis", "redis-protocol"] },
];

/// What any driver may bring along, but nothing else.
const TLS: &[&str] = &["rustls"];

/// The one of our crates that a store builds on.
const CORE: &str = "distlock-core";

/// The one that has a feature for each store.
const FACADE: &str = "distlock";

/// Crates in `crates/` that are no store.
const NO_STORES: &[&str] = &[FACADE, "distlock-conformance", CORE];

/// The sections for tests.
const DEV: &str = "dev-dependencies";

impl Store {
    fn package(&self) -> String {
        format!("{FACADE}-{}", self.name)
    }

    /// The packages of the other stores, and what only those may bring.
    fn strangers(&self) -> Vec<String> {
        let others = || STORES.iter().filter(|other| other.name != self.name);
        let brought = others().flat_map(|other| other.brings).map(|&name| name.to_owned());
        let tls = if self.driver.is_none() { TLS } else { &[] };
        let tls = tls.iter().map(|&name| name.to_owned());
        others().map(Self::package).chain(brought).chain(tls).collect()
    }
}

/// Checks every rule and fails with all that are broken.
pub(crate) fn check() -> Result {
    let drivers = drivers();
    let mut findings = Vec::new();
    findings.extend(forbidden(&["-p", CORE, "--all-features"], &drivers)?);
    let facade = Manifest::read(&root().join("crates/distlock/Cargo.toml"))?;
    for (package, manifest) in stores()? {
        let Some(store) = STORES.iter().find(|store| store.package() == package) else {
            findings.push(format!("`{package}` is a store that xtask/src/tree.rs does not know"));
            continue;
        };
        findings.extend(foreign_names(store, &manifest, &drivers));
        let strangers = store.strangers();
        findings.extend(forbidden(&["-p", &package, "--all-features"], &strangers)?);
        if facade.section("features").any(|feature| feature.name == store.name) {
            let alone = ["-p", FACADE, "--no-default-features", "--features", store.name];
            findings.extend(forbidden(&alone, &strangers)?);
        }
    }
    match findings.is_empty() {
        true => Ok(()),
        false => Err(findings.join("\n").into()),
    }
}

/// Everything that only a store may bring along.
fn drivers() -> Vec<String> {
    let brought = STORES.iter().flat_map(|store| store.brings).chain(TLS);
    brought.map(|&name| name.to_owned()).collect()
}

/// A finding for each crate of ours other than core, and each driver other than its own, that a
/// store's manifest names outside of its tests.
fn foreign_names(store: &Store, manifest: &Manifest, drivers: &[String]) -> Vec<String> {
    let named = manifest.dependencies().filter(|entry| !entry.section.ends_with(DEV));
    let foreign = named.map(|entry| entry.name.as_str()).filter(|&name| {
        let ours = name.starts_with(FACADE) && name != CORE;
        let driver = drivers.iter().any(|driver| driver == name) && store.driver != Some(name);
        ours || driver
    });
    foreign.map(|name| format!("`{}` must not name `{name}`", store.package())).collect()
}

/// The packages that implement a store, with their manifests.
fn stores() -> Result<Vec<(String, Manifest)>> {
    let mut stores = Vec::new();
    for entry in fs::read_dir(root().join("crates"))? {
        let manifest = entry?.path().join("Cargo.toml");
        if manifest.exists() {
            let manifest = Manifest::read(&manifest)?;
            stores.push((manifest.name().to_owned(), manifest));
        }
    }
    stores.retain(|(name, _)| !NO_STORES.contains(&name.as_str()));
    stores.sort_by(|(left, _), (right, _)| left.cmp(right));
    Ok(stores)
}

/// A finding for each package of `names` in the tree that `selection` gives.
fn forbidden(selection: &[&str], names: &[String]) -> Result<Vec<String>> {
    let tree = ["tree", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"];
    let tree = run::output(&mut cargo(&[&tree[..], selection].concat()))?;
    Ok(hits(&tree, names)
        .into_iter()
        .map(|name| format!("`cargo tree {}` must not contain `{name}`", selection.join(" ")))
        .collect())
}

fn hits<'a>(tree: &str, names: &'a [String]) -> Vec<&'a str> {
    let is_in = |name: &&str| tree.lines().any(|line| line.split(' ').next() == Some(*name));
    names.iter().map(String::as_str).filter(is_in).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_names_hit() {
        let tree = "distlock-core v0.1.0 (/somewhere/redis)\nredis-protocol v6.0.0\ntokio v1.45.0";
        assert_eq!(hits(tree, &drivers()), ["redis-protocol"]);
        assert_eq!(hits("tokio v1.45.0 (*)", &drivers()), [""; 0]);
    }

    #[test]
    fn a_store_names_core_and_its_driver_alone() {
        let etcd = &STORES[0];
        let names = |text| foreign_names(etcd, &Manifest::parse(text), &drivers()).len();
        assert_eq!(names("[dependencies]\ndistlock-core = 1\netcd-client = 1\ntokio = 1\n"), 0);
        assert_eq!(names("[dev-dependencies]\ndistlock-servers = 1\nfred = 1\n"), 0);
        assert_eq!(names("[dependencies]\ndistlock-redis = 1\ntonic = 1\n"), 2);
        assert_eq!(names("[build-dependencies]\nprost = 1\n"), 1);
    }

    #[test]
    fn a_store_keeps_out_what_others_bring() {
        let memory = STORES.iter().find(|store| store.driver.is_none()).unwrap();
        let names = memory.strangers();
        for name in ["distlock-etcd", "distlock-redis", "fred", "rustls", "tonic"] {
            assert!(names.iter().any(|own| own == name), "{name}");
        }
        assert!(!STORES[0].strangers().iter().any(|name| name == "rustls" || name == "tonic"));
    }
}
