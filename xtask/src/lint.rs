//! `lint`: what can be judged without running anything.

use crate::{
    Result,
    run::{self, Steps, cargo},
    supply, tidy, tree,
};

/// Formatting, clippy, rustdoc, the rules of the house, and of dependencies: who may have which, from where, under which license.
pub(crate) fn lint(steps: &mut Steps) -> Result {
    steps.step("formatting", || run::run(&cargo(&["fmt", "--all", "--check"])))?;
    steps.step("tidy", tidy::tidy)?;
    steps.step("clippy", || {
        let what = ["clippy", "--workspace", "--all-targets", "--all-features"];
        run::run(&cargo(&[&what[..], &["--", "-D", "warnings"]].concat()))
    })?;
    steps.step("rustdoc", || {
        let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--all-features"]);
        run::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    steps.step("dependencies", tree::check)?;
    steps.step("licenses and sources", supply::check)
}
