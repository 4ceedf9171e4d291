//! The same work on this library and on etcd's own Lock service, side by side on one member.

use std::time::Duration;

use distlock_benches::{
    Times, is_quick, micros,
    report::{Goal, Report},
    rounds, show,
};
use distlock_core::{Client, Owner};
use distlock_etcd::EtcdBackend;
use distlock_servers::etcd::EtcdServer;
use etcd_client::{Client as Driver, LockOptions};
use tokio::time::Instant;

use super::contest::{self, Guard as _, Lock as _};

const TTL: Duration = Duration::from_secs(60);

/// Whose locks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Whose {
    Ours,
    /// Ours, with every waiter in etcd's line.
    Strict,
    /// The server's Lock service, by the driver. A lease for each client: two that share one do not exclude each other.
    Service,
}

impl Whose {
    const ALL: [Self; 3] = [Self::Ours, Self::Strict, Self::Service];

    const fn name(self) -> &'static str {
        match self {
            Self::Ours => "distlock",
            Self::Strict => "distlock, `cohort_limit(0)`",
            Self::Service => "etcd-client, Lock service",
        }
    }

    /// A client with a connection of its own, for one name.
    async fn connect(self, server: &EtcdServer, name: &str) -> Lock {
        if self == Self::Service {
            let driver = Driver::connect([server.endpoint()], None).await.unwrap();
            let ttl = i64::try_from(TTL.as_secs()).unwrap();
            let lease = driver.clone().lease_grant(ttl, None).await.unwrap().id();
            return Lock::Service(Box::new(driver), lease, name.to_owned());
        }
        let backend = EtcdBackend::connect(&server.url()).await.unwrap();
        let builder = Client::builder(backend).ttl(TTL);
        let builder = if self == Self::Strict { builder.cohort_limit(0) } else { builder };
        let client = builder.build().unwrap();
        // Its lease too is there before anything is measured.
        let warm = client.mutex(format!("{name}-warm-{}", Owner::random().unwrap()));
        warm.lock().await.unwrap().release().await.unwrap();
        Lock::Ours(client.mutex(name))
    }
}

#[derive(Clone)]
enum Lock {
    Ours(distlock_core::Mutex),
    Service(Box<Driver>, i64, String),
}

enum Guard {
    Ours(distlock_core::Guard),
    Service(Box<Driver>, Vec<u8>),
}

impl contest::Lock for Lock {
    type Guard = Guard;

    async fn lock(&self) -> Guard {
        match self {
            Self::Ours(mutex) => Guard::Ours(mutex.lock().await.unwrap()),
            Self::Service(driver, lease, name) => {
                let mut driver = driver.clone();
                let options = LockOptions::new().with_lease(*lease);
                let locked = driver.lock(name.as_str(), Some(options)).await.unwrap();
                Guard::Service(driver, locked.key().to_vec())
            }
        }
    }
}

impl contest::Guard for Guard {
    async fn release(self) {
        match self {
            Self::Ours(guard) => drop(guard.release().await.unwrap()),
            Self::Service(mut driver, key) => drop(driver.unlock(key).await.unwrap()),
        }
    }
}

/// Figures of one round, in the order of the table's columns.
type Round = Vec<f64>;

/// Measures both, and tells whether the other one is ahead in a column.
pub(crate) async fn measure(report: &mut Report) {
    let server = EtcdServer::start(&[]).expect("an etcd server can be started");
    let alone = in_turns(|whose, round| alone(&server, whose, round)).await;
    let title = "etcd: one task, nobody else: lock and release";
    table(report, title, &["p50 µs", "p99 µs", "proposals", "reads"], &alone);
    report.say("Both have their lease before anything is measured. Nobody keeps that of the Lock service alive, and its answer has no fencing token. Its request is a name, of which the server makes the transaction; ours is that transaction, which the server has to read, and its answer tells who else stands in the line.");
    goal(report, "etcd, lock and release, nobody else, p50 µs", &alone, 0, false);
    let baton = in_turns(|whose, round| baton(&server, whose, round)).await;
    let title =
        "etcd: 16 clients, come one after another, each takes the lock once and holds it for 2 ms";
    let head = ["all done ms", "gap p50 µs", "p99 µs", "proposals each", "inversions %"];
    table(report, title, &head, &baton);
    goal(report, "etcd, 16 clients wait, gap p50 µs", &baton, 1, false);
    let crowd = in_turns(|whose, round| crowd(&server, whose, round)).await;
    let title = "etcd: 8 clients that want the lock all the time, held for 1 ms";
    let head = ["turns/s", "proposals each", "worst share", "wait p50 µs", "p99 ms"];
    table(report, title, &head, &crowd);
    goal(report, "etcd, 8 clients that want the lock all the time, turns/s", &crowd, 0, true);
    goal(report, "etcd, 8 clients that want the lock all the time, worst share", &crowd, 2, true);
}

/// Runs a round of each in turns, so that what befalls the machine befalls both; the medians, column by column.
async fn in_turns<F: Future<Output = Round>>(
    round: impl Fn(Whose, usize) -> F,
) -> Vec<(Whose, Round)> {
    let mut all = vec![Vec::new(); Whose::ALL.len()];
    for number in 0..rounds() {
        for (rounds, whose) in all.iter_mut().zip(Whose::ALL) {
            rounds.push(round(whose, number).await);
        }
    }
    Whose::ALL.into_iter().zip(all.iter().map(|rounds| super::medians(rounds))).collect()
}

fn table(report: &mut Report, title: &str, columns: &[&str], measured: &[(Whose, Round)]) {
    let row = |(whose, round): &(Whose, Round)| {
        let figures = round.iter().map(|figure| show(*figure));
        std::iter::once(whose.name().to_owned()).chain(figures).collect()
    };
    let head: Vec<&str> = std::iter::once("").chain(columns.iter().copied()).collect();
    report.table(title, &head, &measured.iter().map(row).collect::<Vec<_>>());
}

fn goal(report: &mut Report, what: &str, measured: &[(Whose, Round)], column: usize, more: bool) {
    let of = |wanted: Whose| {
        let found = measured.iter().find(|(whose, _)| *whose == wanted);
        found.expect("it was measured").1[column]
    };
    let (ours, theirs) = (of(Whose::Ours), of(Whose::Service));
    report.goal(&Goal {
        what: &format!("peers: {what}"),
        target: "no peer ahead",
        measured: show(ours),
        peer: &format!("{} {}", Whose::Service.name(), show(theirs)),
        hit: if more { theirs <= ours } else { ours <= theirs },
    });
}

/// How many proposals the server has seen, and how many requests that only read.
fn counters(server: &EtcdServer) -> (f64, f64) {
    let reads = server
        .metric_where("grpc_server_started_total", r#"grpc_method="Range""#)
        .expect("the server tells");
    (server.metric("etcd_server_proposals_committed_total").expect("the server tells"), reads)
}

async fn alone(server: &EtcdServer, whose: Whose, round: usize) -> Round {
    let count = if is_quick() { 100 } else { 500 };
    let lock = whose.connect(server, &format!("alone-{whose:?}-{round}")).await;
    lock.lock().await.release().await;
    let before = counters(server);
    let task = tokio::spawn(async move {
        let mut times = Vec::new();
        for _ in 0..count {
            let asked = Instant::now();
            lock.lock().await.release().await;
            times.push(asked.elapsed());
        }
        times
    });
    let times = Times::new(task.await.unwrap());
    let after = counters(server);
    let each = |before: f64, after: f64| (after - before) / f64::from(count);
    vec![
        micros(times.median()),
        micros(times.percentile(0.99)),
        each(before.0, after.0),
        each(before.1, after.1),
    ]
}

async fn baton(server: &EtcdServer, whose: Whose, round: usize) -> Round {
    let waiters = 16;
    let name = format!("baton-{whose:?}-{round}");
    let first = whose.connect(server, &name).await;
    let mut locks = Vec::new();
    for _ in 0..waiters {
        locks.push(whose.connect(server, &name).await);
    }
    let before = counters(server);
    let passed = contest::pass(&first, &locks).await;
    let proposals = counters(server).0 - before.0;
    vec![
        passed.took.as_secs_f64() * 1e3,
        micros(passed.gaps.median()),
        micros(passed.gaps.percentile(0.99)),
        proposals / (f64::from(waiters) + 1.0),
        passed.inverted_percent,
    ]
}

async fn crowd(server: &EtcdServer, whose: Whose, round: usize) -> Round {
    let name = format!("crowd-{whose:?}-{round}");
    let mut locks = Vec::new();
    for _ in 0..8 {
        locks.push(whose.connect(server, &name).await);
    }
    let lasts = Duration::from_millis(if is_quick() { 500 } else { 2_000 });
    let count = async || counters(server).0;
    let seen = contest::contest(locks, lasts, Duration::from_millis(1), count).await;
    vec![
        seen.turns_per_second,
        (seen.counted[1] - seen.counted[0]) / seen.turns,
        seen.worst_share,
        micros(seen.waits.median()),
        seen.waits.percentile(0.99).as_secs_f64() * 1e3,
    ]
}
