//! Locks on etcd: beside bare requests of the same server, and beside its own Lock service.
//!
//! Each row is a ratio of two figures that were taken in turns in the same run, on one member that stores to disk.
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use distlock_benches::{Times, each, median, micros};
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

const ROUNDS: usize = 5;

/// A ttl that no round waits for.
const TTL: i64 = 60;

fn main() {
    // The name of one part, if no more is wanted.
    let part = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let wanted = |name| part.as_deref().is_none_or(|part| part == name);
    let server = Arc::new(EtcdServer::start(&[]).expect("an etcd server can be started"));
    if wanted("uncontended") {
        // A round trip between two threads is as long as the scheduler likes.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = Arc::clone(&server);
        runtime.block_on(async { tokio::spawn(uncontended(server)).await.unwrap() });
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        if wanted("names") {
            many_names(&server).await;
        }
        if wanted("handover") {
            hand_over(&server).await;
        }
        if wanted("held") {
            many_locks(&server).await;
        }
    });
}

async fn client(server: &EtcdServer) -> Client {
    let backend = EtcdBackend::connect(&server.url()).await.unwrap();
    Client::builder(backend).ttl(Duration::from_secs(60)).cohort_limit(0).build().unwrap()
}

async fn driver(server: &EtcdServer) -> Driver {
    Driver::connect([server.endpoint()], None).await.unwrap()
}

/// A lock and its release, one after another, beside what the server cannot do without: a put in a transaction, and a delete.
async fn uncontended(server: Arc<EtcdServer>) {
    const COUNT: u32 = 200;
    const ROUNDS: usize = 15;
    let client = client(&server).await;
    let mutex = client.mutex("uncontended");
    let bare = driver(&server).await;
    let lease = bare.clone().lease_grant(TTL, None).await.unwrap().id();
    let (mut floor, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let least = each(COUNT, || bare_cycle(bare.clone(), lease)).await;
        let lock = each(COUNT, || async {
            mutex.lock().await.unwrap().release().await.unwrap();
        })
        .await;
        floor.push(micros(least));
        ours.push(micros(lock));
        ratios.push(micros(lock) / micros(least));
    }
    println!("etcd, nobody contends, µs per lock and release, medians of {ROUNDS} rounds");
    println!("{:>8.1}  a bare transaction with a put, a bare delete", median(floor));
    println!("{:>8.1}  lock, release", median(ours));
    println!("{:>8.2}  ratio", median(ratios));
}

/// As the lock does it: a put bound to a lease, if the key is not there, and a look at the line.
async fn bare_cycle(mut driver: Driver, lease: i64) {
    let own = format!("floor/w{}", distlock_core::Owner::random().unwrap());
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
async fn many_names(server: &EtcdServer) {
    const TASKS: usize = 64;
    const COUNT: u32 = 100;
    let client = client(server).await;
    let driver = driver(server).await;
    let lease = driver.clone().lease_grant(TTL, None).await.unwrap().id();
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
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
    println!(
        "\netcd, {TASKS} tasks on as many names, cycles per second, medians of {ROUNDS} rounds"
    );
    println!("{:>8.0}  the Lock service", median(theirs));
    println!("{:>8.0}  lock, release", median(ours));
    println!("{:>8.2}  ratio", median(ratios));
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
async fn hand_over(server: &EtcdServer) {
    println!("\netcd, hand-over between processes, medians of {ROUNDS} rounds");
    println!("waiters  hand-overs/s  gap p50 µs  p99 µs  over 50 ms  proposals each  reads each");
    let mut service = Vec::new();
    for round in 0..ROUNDS {
        service.push(service_round(server, 8, &format!("service-{round}")).await);
    }
    for waiters in [2, 8, 32] {
        let mut rounds = Vec::new();
        for round in 0..ROUNDS {
            rounds.push(our_round(server, waiters, &format!("ours-{waiters}-{round}")).await);
        }
        row(&waiters.to_string(), &rounds);
        let of = |rounds: &[Round]| median(rounds.iter().map(|round| round.rate).collect());
        println!("         {:.1} × the Lock service at 8", of(&rounds) / of(&service));
    }
    row("service 8", &service);
}

fn row(what: &str, rounds: &[Round]) {
    let of = |figure: &dyn Fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
    println!(
        "{what:>7}  {:>12.0}  {:>10.0}  {:>6.0}  {:>10.0}  {:>14.2}  {:>10.3}",
        of(&|round| round.rate),
        of(&|round| micros(round.gaps.median())),
        of(&|round| micros(round.gaps.percentile(0.99))),
        of(&|round| round.gaps.count_over(Duration::from_millis(50)) as f64),
        of(&|round| round.proposals),
        of(&|round| round.reads),
    );
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
                (Instant::now(), async move { drop(driver.unlock(locked.key()).await.unwrap()) })
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
async fn many_locks(server: &EtcdServer) {
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
    println!("\netcd, {LOCKS} locks held for two ttls of 3 s");
    println!("{:>8.0}  keep-alive streams opened", streams() - before.0);
    println!("{:>8.0}  keep-alives sent", messages() - before.1);
    client.shutdown().await;
}
