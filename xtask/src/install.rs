//! Servers that are not there yet.

use std::{path::Path, process::Command};

use distlock_servers::process::find;

use crate::{Result, run};

/// A program that the tests run.
struct Program {
    name: &'static str,
    /// Who brings it, in Debian and its children.
    package: &'static str,
    /// What the package starts by itself.
    service: Option<&'static str>,
    /// Where its output names a version, and the oldest that will do.
    version: Option<(&'static str, Version)>,
}

/// Major and minor.
type Version = (u32, u32);

const PROGRAMS: &[Program] = &[
    Program {
        name: "redis-server",
        package: "redis-server",
        service: Some("redis-server"),
        // Sharded channels, which scripts publish to, came with this version.
        version: Some(("v=", (7, 0))),
    },
    Program {
        name: "etcd",
        package: "etcd-server",
        service: Some("etcd"),
        // The oldest that speaks the third protocol without being told to.
        version: Some(("etcd Version: ", (3, 4))),
    },
    Program { name: "etcdctl", package: "etcd-client", service: None, version: None },
];

/// Makes sure that all servers are there, through apt where we may, and new enough.
pub(crate) fn servers() -> Result {
    let missing: Vec<_> = PROGRAMS.iter().filter(|program| find(program.name).is_err()).collect();
    if !missing.is_empty() {
        let prefix = may_install().map_err(|why| {
            let missing = missing.iter().filter_map(|program| find(program.name).err());
            let lines: Vec<_> = missing.map(|error| error.to_string()).collect();
            format!("{}\nIt was not installed by itself, because {why}", lines.join("\n"))
        })?;
        let packages: Vec<_> = missing.iter().map(|program| program.package).collect();
        apt_install(prefix, &packages)?;
        for program in &missing {
            if let Some(service) = program.service {
                stop_service(prefix, service);
            }
            find(program.name)?;
        }
    }
    PROGRAMS.iter().try_for_each(is_new_enough)
}

fn is_new_enough(program: &Program) -> Result {
    let Some((before, oldest)) = program.version else { return Ok(()) };
    let told = run::output(Command::new(program.name).arg("--version"))?;
    match version(&told, before) {
        Some(version) if version < oldest => {
            let (major, minor) = oldest;
            let name = program.name;
            Err(format!("{name} {major}.{minor} or newer is needed, not: {told}").into())
        }
        _ => Ok(()),
    }
}

/// What to put before a command that root must run, or why we cannot install anything.
fn may_install() -> std::result::Result<&'static [&'static str], &'static str> {
    if find("apt-get").is_err() {
        return Err("there is no apt-get here.");
    }
    if run::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0") {
        return Ok(&[]);
    }
    match run::succeeds(Command::new("sudo").args(["-n", "true"])) {
        true => Ok(&["sudo", "-n"]),
        false => Err("neither are we root nor does sudo work without a password."),
    }
}

fn apt_install(prefix: &[&str], packages: &[&str]) -> Result {
    // In the rescue runlevel a package does not start its service; systemd does not care, see below.
    let quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get"];
    let apt = [prefix, &quiet].concat();
    run::run_aside(&command(&[&apt[..], &["update"]].concat()))?;
    let install = ["install", "-y", "--no-install-recommends"];
    run::run_aside(&command(&[&apt[..], &install, packages].concat()))
}

/// Stops the service that an installation of ours started on the well-known port.
fn stop_service(prefix: &[&str], service: &str) {
    let stop: &[&str] = match Path::new("/run/systemd/system").exists() {
        true => &["systemctl", "disable", "--now", service],
        false => &["service", service, "stop"],
    };
    // It may well not run at all; then there is nothing to stop.
    run::succeeds(&mut command(&[prefix, stop].concat()));
}

fn command(line: &[&str]) -> Command {
    let mut command = Command::new(line[0]);
    command.args(&line[1..]);
    command
}

/// The numbers that follow `before`.
fn version(told: &str, before: &str) -> Option<Version> {
    let mut numbers = told.split_once(before)?.1.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read() {
        let redis = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0";
        assert_eq!(version(redis, "v="), Some((7, 0)));
        assert_eq!(version("Valkey server", "v="), None);
        let etcd = "etcd Version: 3.4.23\nGit SHA: Not provided\nGo Version: go1.19.8\n";
        assert_eq!(version(etcd, "etcd Version: "), Some((3, 4)));
    }

    #[test]
    fn what_is_missing_tells_who_brings_it() {
        for program in PROGRAMS {
            if let Err(error) = find(program.name) {
                assert!(error.to_string().contains(program.package), "{error}");
            }
        }
    }
}
