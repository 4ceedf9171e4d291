//! Renewal of many held locks: what it costs, how late it is, and how evenly it is spread over time.

use std::{
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use distlock_benches::{
    Times, is_quick, median, raw, redis_url,
    report::{Goal, Report},
    rounds,
    server::Counters,
    show,
};
use distlock_core::{Client, Event, Guard, Key};
use distlock_redis::RedisBackend;
use distlock_servers::redis::RedisCluster;
use fred::prelude::{Client as Driver, ClientLike as _};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

const TTL: Duration = Duration::from_secs(30);

/// Every lock is renewed once in this time.
const CYCLE: Duration = Duration::from_secs(10);

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut report = Report::new(
            "renewal",
            "Locks that are only held, with a ttl of 30 s and so a renewal every 10 s, and waiters that only wait.",
        );
        let url = redis_url();
        let driver = raw::connect(&url).await;
        held(&mut report, &url, &driver).await;
        clustered(&mut report).await;
        idle(&mut report, &url, &driver).await;
        driver.quit().await.ok();
        report.finish();
    });
}

/// The renewals of a cycle: when each was confirmed, and how late it was sent.
type Seen = Arc<Mutex<Vec<(Instant, Duration)>>>;

struct Cycle {
    renewals: f64,
    commands: f64,
    late_p99: Duration,
    core: f64,
    server: f64,
    /// The most renewals in a second, as a part of the mean.
    peak: f64,
}

/// The columns of what is found of held locks, after one that tells which.
const HEAD: [&str; 8] = [
    "taken within",
    "renewals",
    "per command",
    "late p99 ms",
    "of a core, ours",
    "the server's",
    "peak/mean, first 10 s",
    "later",
];

async fn held(report: &mut Report, url: &str, driver: &Driver) {
    let counts: &[usize] = if is_quick() { &[1_000, 10_000] } else { &[1_000, 10_000, 100_000] };
    let drivers = std::slice::from_ref(driver);
    let mut rows = Vec::new();
    for &count in counts {
        let found = keep(url, drivers, count, |number| format!("held-{number}")).await;
        rows.push(found.row(show(count as f64)));
        if count == 10_000 {
            let Found { each, core, .. } = found;
            report.goal(&Goal {
                what: "Redis, 10 000 held locks, ttl 30 s",
                target: "≤ 1 command per 100 renewals, < 2 % of a core",
                measured: format!("1 per {}, {:.2} %", show(1.0 / each), core * 100.0),
                peer: "Redisson (Java, elsewhere) 1 per 100",
                hit: each <= 0.01 && core < 0.02,
            });
        }
    }
    let head: Vec<&str> = std::iter::once("locks").chain(HEAD).collect();
    report.table("Redis, held locks, in each 10 s", &head, &rows);
    report.say(
        "All locks are taken at once. The observer tells how late each renewal was sent; the peak is the busiest of the ten seconds, beside their mean. \
         Of a core: by the process's own accounts, with those of this benchmark.",
    );
}

/// Held locks in a cluster of three, where only those of one slot can share a command.
async fn clustered(report: &mut Report) {
    const TAGS: usize = 64;
    let cluster = RedisCluster::start(&[]).expect("a cluster can be started");
    let mut drivers = Vec::new();
    for node in cluster.nodes() {
        drivers.push(raw::connect(&node.url()).await);
    }
    let spread = |number: usize| format!("held-{number}");
    let tagged = |number: usize| format!("{{tenant-{}}}held-{number}", number % TAGS);
    let counts: &[usize] = if is_quick() { &[10_000] } else { &[10_000, 100_000] };
    let mut rows = Vec::new();
    for &count in counts {
        let found = keep(&cluster.url(), &drivers, count, spread).await;
        rows.push(found.row(format!("{} of all slots", show(count as f64))));
        let found = keep(&cluster.url(), &drivers, count, tagged).await;
        rows.push(found.row(format!("{} of {TAGS} slots", show(count as f64))));
    }
    let head: Vec<&str> = std::iter::once("locks").chain(HEAD).collect();
    report.table("Redis Cluster of three nodes, held locks, in each 10 s", &head, &rows);
    report.say(
        "A script may touch keys of one slot alone, and there are 16,384: names with a common part in braces are in the same slot, and are renewed together.",
    );
    for driver in drivers {
        driver.quit().await.ok();
    }
}

/// What was found of held locks.
struct Found {
    took: Duration,
    cycles: Vec<Cycle>,
    first_peak: f64,
    /// Commands for each renewal.
    each: f64,
    core: f64,
}

impl Found {
    fn row(&self, what: String) -> Vec<String> {
        let of = |figure: fn(&Cycle) -> f64| median(self.cycles.iter().map(figure).collect());
        vec![
            what,
            format!("{:.1} s", self.took.as_secs_f64()),
            show(of(|cycle| cycle.renewals)),
            show(1.0 / self.each),
            show(of(|cycle| cycle.late_p99.as_secs_f64() * 1e3)),
            format!("{:.2} %", self.core * 100.0),
            format!("{:.2} %", of(|cycle| cycle.server * 100.0)),
            format!("{:.1}", self.first_peak),
            format!("{:.1}", of(|cycle| cycle.peak)),
        ]
    }
}

/// Takes so many locks, and looks at their renewals.
async fn keep(
    url: &str,
    drivers: &[Driver],
    count: usize,
    name: impl Fn(usize) -> String + Clone + Send + 'static,
) -> Found {
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    let client = Client::builder(RedisBackend::connect(url).await.unwrap())
        .observer(move |_: &Key, event: &Event| match event {
            Event::Renewed { late } => noted.lock().unwrap().push((Instant::now(), *late)),
            Event::Lost { reason, .. } => panic!("lost: {reason}"),
            _ => {}
        })
        .build()
        .unwrap();
    let started = Instant::now();
    let guards = take(&client, count, name).await;
    let took = started.elapsed();
    // The first renewals are those of locks that were all taken at once.
    let mut cycles = Vec::new();
    for _ in 0..=rounds() {
        cycles.push(cycle(&seen, drivers).await);
    }
    let first = cycles.remove(0);
    assert!(guards.iter().all(Guard::is_held), "they are held");
    release(guards).await;
    client.shutdown().await;
    let of = |figure: fn(&Cycle) -> f64| median(cycles.iter().map(figure).collect());
    let (each, core) = (of(|cycle| cycle.commands / cycle.renewals), of(|cycle| cycle.core));
    Found { took, first_peak: first.peak, each, core, cycles }
}

async fn take(
    client: &Client,
    count: usize,
    name: impl Fn(usize) -> String + Clone + Send + 'static,
) -> Vec<Guard> {
    const TAKERS: usize = 64;
    let mut tasks = JoinSet::new();
    for taker in 0..TAKERS {
        let (client, name) = (client.clone(), name.clone());
        tasks.spawn(async move {
            let mut guards = Vec::new();
            for number in (taker..count).step_by(TAKERS) {
                guards.push(client.mutex(name(number)).ttl(TTL).lock().await.unwrap());
            }
            guards
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

async fn release(guards: Vec<Guard>) {
    let mut tasks = JoinSet::new();
    for guard in guards {
        tasks.spawn(guard.release());
        if tasks.len() >= 256 {
            tasks.join_next().await;
        }
    }
    while let Some(released) = tasks.join_next().await {
        released.unwrap().unwrap();
    }
}

async fn cycle(seen: &Seen, drivers: &[Driver]) -> Cycle {
    seen.lock().unwrap().clear();
    let (started, before, cpu) = (Instant::now(), Counters::read_all(drivers).await, cpu_time());
    sleep(CYCLE).await;
    let (took, cpu) = (started.elapsed().as_secs_f64(), cpu_time() - cpu);
    let counted = Counters::read_all(drivers).await.since(&before);
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    let mut seconds = [0_u32; 10];
    for (at, _) in &seen {
        let second = (*at - started).as_secs_f64().floor();
        if let Some(count) = seconds.get_mut(second as usize) {
            *count += 1;
        }
    }
    let most = seconds.iter().max().copied().unwrap_or_default();
    let times = Times::new(seen.iter().map(|(_, late)| *late).collect());
    Cycle {
        renewals: seen.len() as f64,
        commands: counted.scripts() as f64,
        late_p99: times.percentile(0.99),
        core: cpu.as_secs_f64() / took,
        server: counted.micros(&["evalsha"]) as f64 / 1e6 / took,
        peak: f64::from(most) * 10.0 / seen.len() as f64,
    }
}

/// What this process has used of a core, in steps of 10 ms.
fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux");
    let (_, rest) = stat.rsplit_once(')').expect("a name");
    let ticks: u64 = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().expect("a number"))
        .sum();
    Duration::from_millis(ticks * 10)
}

/// Commands in 10 s while somebody holds a lock, with no waiter and with ten.
async fn idle(report: &mut Report, url: &str, driver: &Driver) {
    let mut rows = Vec::new();
    let mut counts = Vec::new();
    for (what, waiters, clients) in [
        ("none waits", 0, 1),
        ("10 of one process wait", 10, 1),
        ("10 of ten processes wait", 10, 10),
    ] {
        let holder = Client::new(RedisBackend::connect(url).await.unwrap());
        let guard = holder.mutex("idle").lock().await.unwrap();
        let mut others = Vec::new();
        for _ in 0..clients {
            others.push(Client::new(RedisBackend::connect(url).await.unwrap()));
        }
        let mut tasks = JoinSet::new();
        for waiter in 0..waiters {
            let mutex = others[waiter % clients].mutex("idle");
            tasks.spawn(async move { mutex.lock().await });
        }
        sleep(Duration::from_secs(1)).await;
        let before = Counters::read(driver).await;
        sleep(CYCLE).await;
        let scripts = Counters::read(driver).await.since(&before).scripts();
        counts.push(scripts);
        rows.push(vec![what.to_owned(), scripts.to_string()]);
        tasks.shutdown().await;
        guard.release().await.unwrap();
        for client in others.into_iter().chain([holder]) {
            client.shutdown().await;
        }
    }
    report.table(
        "Redis, one lock held for 10 s: scripts run by the server",
        &["", "scripts"],
        &rows,
    );
    let (none, one, ten) = (counts[0], counts[1], counts[2]);
    report.say("One script is the holder's renewal. A process whose tasks wait renews its one place every third of the place's ttl of 15 s, or somewhat sooner.");
    report.goal(&Goal {
        what: "Redis, 10 waiters idle for 10 s",
        target: "as none, plus one poll per process and key per 5 s",
        measured: format!("{one} of one process, {ten} of ten processes, against {none}"),
        peer: "rueidislock (Go, elsewhere) 44 against 4",
        // A poll is up to an eighth early: three in ten seconds may be.
        hit: one <= none + 3 && ten <= none + 30,
    });
}
