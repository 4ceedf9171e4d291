//! `bench`: measurements against a server of their own, and the page that tells of them.

use std::{fs, path::Path, process::Command, thread, time::Duration};

use crate::{
    Result, install, root,
    run::{self, cargo, output},
    servers::Servers,
};

/// All benchmarks, in the order of the page. One of another store: its name here, its file in `benches/benches`, and its server in
/// [`Servers::start_standalone`].
const NAMES: &[&str] =
    &["overhead", "contention", "handover", "renewal", "memory", "etcd", "peers"];

/// Where a benchmark puts its piece of the page.
const DIR: &str = "DISTLOCK_BENCH_DIR";

/// Runs the benchmark named first, the rest goes to it. Without a name all of them, and writes `docs/benchmarks.md`; only if arguments follow
/// it does not.
pub(crate) fn bench(args: &[String]) -> Result {
    install::servers()?;
    let servers = Servers::start_standalone()?;
    let command = |name: &str, rest: &[String]| {
        let mut command = cargo(&["bench", "-p", "distlock-benches", "--bench", name, "--"]);
        command.args(rest).envs(servers.env());
        command
    };
    match args.split_first() {
        Some((name, rest)) if !name.starts_with('-') => return run::run(&command(name, rest)),
        Some(_) => return NAMES.iter().try_for_each(|name| run::run(&command(name, args))),
        None => {}
    }
    // What compiles is not to be measured.
    run::run(&cargo(&["bench", "-p", "distlock-benches", "--benches", "--no-run"]))?;
    let dir = root().join("target/benchmarks");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let mut busy = Vec::new();
    for name in NAMES {
        busy.push((*name, busyness()?));
        run::run(command(name, &[]).env(DIR, &dir))?;
    }
    write_page(&dir, &busy)
}

fn write_page(dir: &Path, busy: &[(&str, f64)]) -> Result {
    let docs = root().join("docs");
    let (mut goals, mut sections) = (String::new(), String::new());
    for name in NAMES {
        goals += &fs::read_to_string(dir.join(format!("{name}.goals")))?;
        sections += "\n";
        sections += &fs::read_to_string(dir.join(format!("{name}.md")))?;
    }
    let plots = docs.join("benchmarks");
    let _ = fs::remove_dir_all(&plots);
    fs::create_dir_all(&plots)?;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if let (Some(name), true) = (path.file_name(), path.extension() == Some("svg".as_ref())) {
            fs::copy(&path, plots.join(name))?;
        }
    }
    let about = about(busy)?;
    let page = format!(
        "# Benchmarks\n\n\
         Written by `cargo xtask bench`; do not edit.\n\
         Figures are medians of at least five rounds, ratios are taken within one run, commands are counted by the server.\n\
         Compare figures within this page only: on another machine all of them are different.\n\n\
         {about}\n\
         ## Goals\n\n\
         Peers marked as \"elsewhere\" were measured on another day, with the same server on a machine of the same kind.\n\n\
         | what | target | measured | peer | |\n|---|---|---|---|---|\n{goals}{sections}"
    );
    fs::write(docs.join("benchmarks.md"), page)?;
    println!("\nxtask: docs/benchmarks.md is written");
    Ok(())
}

/// The machine, the versions, and how busy others kept it.
fn about(busy: &[(&str, f64)]) -> Result<String> {
    let file = |path| fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key));
        let value = line.and_then(|line| line.split_once([':', '=']));
        value.map_or_else(|| "?".to_owned(), |(_, value)| value.trim().trim_matches('"').to_owned())
    };
    let lock = fs::read_to_string(root().join("Cargo.lock"))?;
    let version = |name: &str| {
        let package = format!("name = \"{name}\"\nversion = \"");
        let rest = lock.split_once(&package).map(|(_, rest)| rest);
        let version = rest.and_then(|rest| rest.split('"').next()).unwrap_or("?");
        format!("{name} {version}")
    };
    let crates =
        ["fred", "etcd-client", "tokio", "rslock", "async-redis-lock", "distkit"].map(version);
    let redis = output(Command::new("redis-server").arg("--version"))?;
    let redis = redis.split_whitespace().find_map(|word| word.strip_prefix("v=")).unwrap_or("?");
    let etcd = output(Command::new("etcd").arg("--version"))?;
    let etcd = etcd.lines().find_map(|line| line.strip_prefix("etcd Version: ")).unwrap_or("?");
    let rustc = output(Command::new("rustc").arg("--version"))?;
    let commit =
        output(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(root()))?;
    let date = output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let cores = thread::available_parallelism()?;
    let most = busy.iter().fold(0.0_f64, |most, (_, part)| most.max(*part));
    let state = match most {
        part if part < 0.1 => "quiet",
        part if part < 0.3 => "not quite quiet",
        _ => {
            "**busy with other work: the times are worth little, the counts and the ratios of one run more**"
        }
    };
    let busy: Vec<_> =
        busy.iter().map(|(name, part)| format!("{name} {:.0} %", part * 100.0)).collect();
    Ok(format!(
        "- Date: {}, commit {}\n\
         - Command: `cargo xtask bench`\n\
         - Machine: {cores} cores, {}, {}, Linux {}; the server runs on the same cores, over loopback\n\
         - State of the machine: {state}; others used of all cores, in the two seconds before each benchmark: {}\n\
         - Versions: redis-server {redis}, etcd {etcd}, {}, {}\n",
        date.trim(),
        commit.trim(),
        value(&file("/proc/cpuinfo"), "model name"),
        value(&file("/etc/os-release"), "PRETTY_NAME"),
        // The two numbers that matter, without what its builder added.
        file("/proc/sys/kernel/osrelease").split('.').take(2).collect::<Vec<_>>().join("."),
        busy.join(", "),
        rustc.trim(),
        crates.join(", "),
    ))
}

/// How much of all cores is in use while we do nothing.
fn busyness() -> Result<f64> {
    let read = || -> Result<(f64, f64)> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().unwrap_or_default();
        let times: Vec<f64> =
            line.split_whitespace().skip(1).filter_map(|time| time.parse().ok()).collect();
        Ok((times.iter().sum(), times.iter().skip(3).take(2).sum()))
    };
    let (all, idle) = read()?;
    thread::sleep(Duration::from_secs(2));
    let (all_later, idle_later) = read()?;
    Ok(1.0 - (idle_later - idle) / (all_later - all).max(1.0))
}
