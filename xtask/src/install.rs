//! Servers that are not there yet.

use std::{path::Path, process::Command};

use distlock_servers::process::find;

use crate::{Result, run};

/// Sharded channels, which scripts publish to, came with this version.
const OLDEST_REDIS: u32 = 7;

/// Makes sure that there is a `redis-server`, through apt where we may.
pub(crate) fn redis() -> Result {
    if let Err(missing) = find("redis-server") {
        let because =
            |why: &str| format!("{missing}\nIt was not installed by itself, because {why}");
        if find("apt-get").is_err() {
            return Err(because("there is no apt-get here.").into());
        }
        let Some(prefix) = root_prefix() else {
            return Err(
                because("neither are we root nor does sudo work without a password.").into()
            );
        };
        apt_install(prefix, "redis-server")?;
        stop_service(prefix, "redis-server");
        find("redis-server")?;
    }
    let version = run::output(Command::new("redis-server").arg("--version"))?;
    match major(&version) {
        Some(major) if major < OLDEST_REDIS => {
            Err(format!("redis-server {OLDEST_REDIS} or newer is needed, not: {version}").into())
        }
        _ => Ok(()),
    }
}

/// What to put before a command that root must run; `None` if we cannot be root.
fn root_prefix() -> Option<&'static [&'static str]> {
    if run::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0") {
        return Some(&[]);
    }
    run::succeeds(Command::new("sudo").args(["-n", "true"])).then_some(&["sudo", "-n"])
}

fn apt_install(prefix: &[&str], package: &str) -> Result {
    // In the rescue runlevel a package does not start its service; systemd does not care, see below.
    let quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get"];
    let apt = [prefix, &quiet].concat();
    run::run_aside(&command(&[&apt[..], &["update"]].concat()))?;
    run::run_aside(&command(
        &[&apt[..], &["install", "-y", "--no-install-recommends", package]].concat(),
    ))
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

/// The first number of `Redis server v=7.0.15 sha=…`.
fn major(version: &str) -> Option<u32> {
    version.split_once("v=")?.1.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read() {
        assert_eq!(major("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0"), Some(7));
        assert_eq!(major("Valkey server"), None);
    }
}
