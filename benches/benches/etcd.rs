//! Locks on etcd: beside bare requests of the same server, and beside its own Lock service.
//!
//! Each row is a ratio of two figures that were taken in turns in the same run, on one member.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use distlock_benches::{
    Times, each, is_quick, median, micros,
    report::{Goal, Report},
    rounds, show,
};
use distlock_core::{Client, Owner};
use distlock_etcd::EtcdBackend;
use distlock_servers::etcd::EtcdServer;
use etcd_client::{
    Client as Driver, Compare, CompareOp, GetOptions, LockOptions, PutOptions, Txn, TxnOp,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

/// A ttl that no round waits for.
const TTL: i64 = 60;

fn main() {
    // The name of one part, if no more is wanted.
    let part = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let wanted = |name| part.as_deref().is_none_or(|part| part == name);
    let server = Arc::new(EtcdServer::start(&[]).expect("an etcd server can be started"));
    let mut report = Report::new(
        "etcd",
        "Locks on etcd, one member: beside bare requests, and beside its own Lock service.",
    );
    if wanted("uncontended") {
        // A round trip between two threads is as long as the scheduler likes.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = Arc::clone(&server);
        report =
            runtime.block_on(async { tokio::spawn(uncontended(server, report)).await.unwrap() });
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        if wanted("names") {
            many_names(&server, &mut report).await;
        }
        if wanted("handover") {
            hand_over(&server, &mut report).await;
        }
        if wanted("held") {
            many_locks(&server, &mut report).await;
        }
    });
    if part.is_none() {
        report.finish();
    }
}

async fn client(server: &EtcdServer) -> Client {
    let backend = EtcdBackend::connect(&server.url()).await.unwrap();
    Client::builder(backend).ttl(Duration::from_secs(60)).cohort_limit(0).build().unwrap()
}

async fn driver(server: &EtcdServer) -> Driver {
    Driver::connect([server.endpoint()], None).await.unwrap()
}

/// A lock and its release, one after another, beside what the server cannot do without: a put in a transaction, and a delete.
async fn uncontended(server: Arc<EtcdServer>, mut report: Report) -> Report {
    const COUNT: u32 = 200;
    let rounds = if is_quick() { 5 } else { 21 };
    let client = client(&server).await;
    let mutex = client.mutex("uncontended");
    let bare = driver(&server).await;
    let lease = bare.clone().lease_grant(TTL, None).await.unwrap().id();
    let (mut floor, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let least = each(COUNT, || bare_cycle(bare.clone(), lease)).await;
        let lock = each(COUNT, || async {
            mutex.lock().await.unwrap().release().await.unwrap();
        })
        .await;
        floor.push(micros(least));
        ours.push(micros(lock));
        ratios.push(micros(lock) / micros(least));
    }
    let ratio = median(ratios);
    report.table(
        "etcd, nobody contends, µs per lock and release",
        &["", "round trips"],
        &[
            vec!["a bare transaction with a put, a bare delete".to_owned(), show(median(floor))],
            vec!["lock, release".to_owned(), show(median(ours))],
        ],
    );
    report.say(&format!("Medians of {rounds} rounds, on one thread; the ratio is {ratio:.2}."));
    report.goal(&Goal {
        what: "etcd, lock and release, one task",
        target: "≤ 1.1 × a bare transaction and a bare delete",
        measured: format!("{ratio:.2} ×"),
        peer: "the Lock service: 1.15 ×",
        hit: ratio <= 1.1,
    });
    report
}

/// As the lock does it: a put of a new key bound to a lease, if it is not there, and a look at the line.
async fn bare_cycle(mut driver: Driver, lease: i64) {
    let own = format!("floor/w{}", Owner::random().unwrap());
    let own = &*own;
    let range = || TxnOp::get("floor/", Some(GetOptions::new().with_prefix().with_keys_only()));
    let put = TxnOp::put(own, "words", Some(PutOptions::new().with_lease(lease)));
    let txn = Txn::new()
        .when([Compare::mod_revision(own, CompareOp::Equal, 0)])
        .and_then([put, range()])
        .or_else([TxnOp::get(own, None), range()]);
    driver.txn(txn).await.unwrap();
    driver.delete(own, None).await.unwrap();
}

/// Many tasks, each with a name of its own.
async fn many_names(server: &EtcdServer, report: &mut Report) {
    const TASKS: usize = 64;
    const COUNT: u32 = 100;
    let client = client(server).await;
    let driver = driver(server).await;
    let lease = driver.clone().lease_grant(TTL, None).await.unwrap().id();
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds() {
        let lock = rate(TASKS, COUNT, |task| {
            let mutex = client.mutex(format!("many-{task}"));
            move || {
                let mutex = mutex.clone();
                async move {
                    mutex.lock().await.unwrap().release().await.unwrap();
                }
            }
        })
        .await;
        let service = rate(TASKS, COUNT, |task| {
            let (driver, name) = (driver.clone(), format!("service-{task}"));
            move || service_cycle(driver.clone(), name.clone(), lease)
        })
        .await;
        ours.push(lock);
        theirs.push(service);
        ratios.push(lock / service);
    }
    let ratio = median(ratios);
    report.table(
        &format!("etcd, {TASKS} tasks on as many names, cycles per second"),
        &["", "cycles / s"],
        &[
            vec!["the Lock service, one lease".to_owned(), show(median(theirs))],
            vec!["lock, release".to_owned(), show(median(ours))],
        ],
    );
    report.say(&format!("The ratio is {ratio:.2}."));
    report.goal(&Goal {
        what: "etcd, 64 tasks on 64 names",
        target: "≥ 3 × the Lock service's rate",
        measured: format!("{ratio:.1} ×"),
        peer: "the Lock service",
        hit: 3.0 <= ratio,
    });
}

async fn service_cycle(mut driver: Driver, name: String, lease: i64) {
    let options = LockOptions::new().with_lease(lease);
    let locked = driver.lock(name, Some(options)).await.unwrap();
    driver.unlock(locked.key()).await.unwrap();
}

/// How many cycles a second all tasks make together.
async fn rate<C, F>(tasks: usize, count: u32, mut cycle: impl FnMut(usize) -> C) -> f64
where
    C: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send,
{
    let mut set = JoinSet::new();
    let started = Instant::now();
    for task in 0..tasks {
        let cycle = cycle(task);
        set.spawn(async move {
            for _ in 0..count {
                cycle().await;
            }
        });
    }
    set.join_all().await;
    tasks as f64 * f64::from(count) / started.elapsed().as_secs_f64()
}

/// What was counted in a round of hand-overs.
struct Round {
    rate: f64,
    gaps: Times,
    proposals: f64,
    reads: f64,
}

/// Waiters that ask again as soon as they were served; nothing is done while the lock is held.
async fn hand_over(server: &EtcdServer, report: &mut Report) {
    let mut service = Vec::new();
    for round in 0..rounds() {
        service.push(service_round(server, 8, &format!("service-{round}")).await);
    }
    let rate = |rounds: &[Round]| median(rounds.iter().map(|round| round.rate).collect());
    let (mut rows, mut bars, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut proposals, mut reads) = (0.0_f64, 0.0_f64);
    for waiters in [2, 8, 32] {
        let mut measured = Vec::new();
        for round in 0..rounds() {
            measured.push(our_round(server, waiters, &format!("ours-{waiters}-{round}")).await);
        }
        rows.push(row(&waiters.to_string(), &measured));
        bars.push((format!("{waiters} waiters"), rate(&measured)));
        ratios.push(rate(&measured) / rate(&service));
        proposals = measured.iter().map(|round| round.proposals).fold(proposals, f64::max);
        reads = measured.iter().map(|round| round.reads).fold(reads, f64::max);
    }
    rows.push(row("8, the Lock service", &service));
    bars.push(("8, the Lock service".to_owned(), rate(&service)));
    report.table(
        "etcd, hand-over between processes",
        &[
            "waiters",
            "hand-overs / s",
            "gap p50 µs",
            "p99 µs",
            "over 50 ms",
            "proposals each",
            "reads each",
        ],
        &rows,
    );
    report.bars("handover", "etcd, hand-overs per second", &bars);
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    report.goal(&Goal {
        what: "etcd, hand-over between processes, 2 / 8 / 32 waiters",
        target: "≥ 10 × the Lock service's rate at 8, 0 reads, 2 proposals each",
        measured: format!(
            "{:.1} / {:.1} / {:.1} ×, {reads:.2} reads, {proposals:.2} proposals",
            ratios[0], ratios[1], ratios[2]
        ),
        peer: "the Lock service, with steps of 100 ms",
        hit: 10.0 <= least && reads < 0.01 && proposals < 2.1,
    });
}

fn row(what: &str, rounds: &[Round]) -> Vec<String> {
    let of = |figure: &dyn Fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
    vec![
        what.to_owned(),
        show(of(&|round| round.rate)),
        show(of(&|round| micros(round.gaps.median()))),
        show(of(&|round| micros(round.gaps.percentile(0.99)))),
        show(of(&|round| round.gaps.count_over(Duration::from_millis(50)) as f64)),
        format!("{:.2}", of(&|round| round.proposals)),
        format!("{:.3}", of(&|round| round.reads)),
    ]
}

async fn our_round(server: &EtcdServer, waiters: usize, name: &str) -> Round {
    let mut tasks = Vec::new();
    let mut clients = Vec::new();
    for waiter in 0..waiters {
        // Up to four processes, with as many waiters each.
        if clients.len() < waiters.min(4) {
            clients.push(client(server).await);
        }
        let mutex = clients[waiter % clients.len()].mutex(name);
        tasks.push(move || {
            let mutex = mutex.clone();
            async move {
                let guard = mutex.lock().await.unwrap();
                (Instant::now(), async move {
                    guard.release().await.unwrap();
                })
            }
        });
    }
    let round = run(server, 3_000, tasks).await;
    for client in clients {
        client.shutdown().await;
    }
    round
}

async fn service_round(server: &EtcdServer, waiters: usize, name: &str) -> Round {
    let mut tasks = Vec::new();
    for _ in 0..waiters {
        let driver = driver(server).await;
        // Without one of its own each would take the lock of the others.
        let lease = driver.clone().lease_grant(TTL, None).await.unwrap().id();
        let name = name.to_owned();
        tasks.push(move || {
            let (mut driver, name) = (driver.clone(), name.clone());
            async move {
                let options = LockOptions::new().with_lease(lease);
                let locked = driver.lock(name, Some(options)).await.unwrap();
                (Instant::now(), async move {
                    driver.unlock(locked.key()).await.unwrap();
                })
            }
        });
    }
    run(server, 200, tasks).await
}

/// Lets all tasks lock and release until there were enough hand-overs.
async fn run<L, F, R>(server: &EtcdServer, hand_overs: u64, tasks: Vec<L>) -> Round
where
    L: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = (Instant, R)> + Send,
    R: Future<Output = ()> + Send,
{
    let record = Arc::new(Mutex::new((None::<Instant>, Vec::new())));
    let turns = Arc::new(AtomicU64::new(0));
    let (proposals, reads) = counters(server);
    let started = Instant::now();
    let mut set = JoinSet::new();
    for lock in tasks {
        let (record, turns) = (Arc::clone(&record), Arc::clone(&turns));
        set.spawn(async move {
            while turns.load(Ordering::Relaxed) < hand_overs {
                let (locked, release) = lock().await;
                turns.fetch_add(1, Ordering::Relaxed);
                {
                    let mut record = record.lock().unwrap();
                    let gap = record.0.map(|released| locked.saturating_duration_since(released));
                    record.1.extend(gap);
                    record.0 = Some(Instant::now());
                }
                release.await;
            }
        });
    }
    set.join_all().await;
    let took = started.elapsed();
    let done = turns.load(Ordering::Relaxed) as f64;
    let (proposals_after, reads_after) = counters(server);
    let gaps = std::mem::take(&mut record.lock().unwrap().1);
    Round {
        rate: done / took.as_secs_f64(),
        gaps: Times::new(gaps),
        proposals: (proposals_after - proposals) / done,
        reads: (reads_after - reads) / done,
    }
}

/// How many proposals the server has seen, and how many requests that only read.
fn counters(server: &EtcdServer) -> (f64, f64) {
    let reads = server
        .metric_where("grpc_server_started_total", r#"grpc_method="Range""#)
        .expect("the server tells");
    (server.metric("etcd_server_proposals_committed_total").expect("the server tells"), reads)
}

/// Many locks of one ttl, kept alive together.
async fn many_locks(server: &EtcdServer, report: &mut Report) {
    const LOCKS: usize = 100;
    let backend = EtcdBackend::connect(&server.url()).await.unwrap();
    let client = Client::builder(backend).ttl(Duration::from_secs(3)).build().unwrap();
    let streams = || {
        server
            .metric_where("grpc_server_started_total", r#"grpc_method="LeaseKeepAlive""#)
            .expect("the server tells")
    };
    let messages = || {
        server
            .metric_where("grpc_server_msg_received_total", r#"grpc_method="LeaseKeepAlive""#)
            .expect("the server tells")
    };
    let before = (streams(), messages());
    let mut guards = Vec::new();
    for lock in 0..LOCKS {
        guards.push(client.mutex(format!("held-{lock}")).lock().await.unwrap());
    }
    sleep(Duration::from_secs(6)).await;
    assert!(guards.iter().all(distlock_core::Guard::is_held));
    let (streams, messages) = (streams() - before.0, messages() - before.1);
    report.table(
        &format!("etcd, {LOCKS} locks held for two ttls of 3 s"),
        &["", "number"],
        &[
            vec!["keep-alive streams opened".to_owned(), show(streams)],
            vec!["keep-alives sent".to_owned(), show(messages)],
        ],
    );
    report.goal(&Goal {
        what: "etcd, 100 locks of a ttl on one client",
        target: "one keep-alive stream",
        measured: format!("{streams:.0}, with {messages:.0} keep-alives in two ttls"),
        peer: "one for each session",
        hit: streams < 1.5,
    });
    client.shutdown().await;
}
