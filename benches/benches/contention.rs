//! Many tasks at once: on as many keys, where the driver is the limit, and on one, which a process passes among its own.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use distlock_benches::{
    Times, is_quick, median, micros, raw, redis_url,
    report::{Goal, Report},
    rounds,
    server::Counters,
    show,
};
use distlock_core::Client;
use distlock_memory::MemoryBackend;
use distlock_redis::RedisBackend;
use fred::prelude::{Client as Driver, ClientLike as _};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut report = Report::new(
            "contention",
            "Many tasks at once, each of which takes a lock and gives it back, again and again.",
        );
        let url = redis_url();
        let driver = raw::connect(&url).await;
        spread(&mut report, &url, &driver).await;
        one_process(&mut report, &url, &driver).await;
        two_processes(&mut report, &url, &driver).await;
        driver.quit().await.ok();
        report.finish();
    });
}

/// How long each measurement lasts.
fn time() -> Duration {
    Duration::from_millis(if is_quick() { 300 } else { 1_000 })
}

/// What the tasks of a round did.
struct Round {
    /// Turns per second.
    rate: f64,
    /// Scripts per turn.
    scripts: f64,
    /// The turns of the task that had the fewest, as a part of the mean.
    worst: f64,
    wait: Duration,
    wait_p99: Duration,
    longest: Duration,
}

/// Tasks take turns until the time is over: the task's number is `turn`'s argument, and how long it waited its result.
async fn race<F>(
    tasks: usize,
    driver: Option<&Driver>,
    turn: impl Fn(usize) -> F + Clone + Send + 'static,
) -> Round
where
    F: Future<Output = Duration> + Send,
{
    let stop = Arc::new(AtomicBool::new(false));
    let count = async |driver: Option<&Driver>| match driver {
        Some(driver) => Counters::read(driver).await,
        None => Counters::default(),
    };
    let (before, started) = (count(driver).await, Instant::now());
    let mut set = JoinSet::new();
    for task in 0..tasks {
        let (turn, stop) = (turn.clone(), Arc::clone(&stop));
        set.spawn(async move {
            let mut waits = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                waits.push(turn(task).await);
            }
            waits
        });
    }
    sleep(time()).await;
    stop.store(true, Ordering::Relaxed);
    let (took, waits) = (started.elapsed(), set.join_all().await);
    let scripts = count(driver).await.since(&before).scripts();
    let fewest = waits.iter().map(Vec::len).min().unwrap_or_default();
    let times = Times::new(waits.into_iter().flatten().collect());
    let turns = times.len() as f64;
    Round {
        rate: turns / took.as_secs_f64(),
        scripts: scripts as f64 / turns,
        worst: fewest as f64 * tasks as f64 / turns,
        wait: times.median(),
        wait_p99: times.percentile(0.99),
        longest: times.percentile(1.0),
    }
}

fn of(rounds: &[Round], figure: fn(&Round) -> f64) -> f64 {
    median(rounds.iter().map(figure).collect())
}

/// Tasks on as many keys, beside the driver alone with the same commands.
async fn spread(report: &mut Report, url: &str, driver: &Driver) {
    let mut rows = Vec::new();
    let client = Client::new(RedisBackend::connect(url).await.unwrap());
    for tasks in [1, 8, 64, 256] {
        let mutexes: Arc<[_]> =
            (0..tasks).map(|task| client.mutex(format!("contention-{task}"))).collect();
        let mut scripts = Vec::new();
        for task in 0..tasks {
            scripts.push(raw::Scripts::load(driver.clone(), &format!("floor-{task}")).await);
        }
        let scripts: Arc<[_]> = scripts.into();
        let (mut floor, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds() {
            let scripts = Arc::clone(&scripts);
            let bare = race(tasks, Some(driver), move |task| {
                let scripts = Arc::clone(&scripts);
                async move {
                    let asked = Instant::now();
                    scripts[task].cycle().await;
                    asked.elapsed()
                }
            });
            floor.push(bare.await);
            let mutexes = Arc::clone(&mutexes);
            let lock = race(tasks, Some(driver), move |task| {
                let mutexes = Arc::clone(&mutexes);
                async move {
                    let asked = Instant::now();
                    mutexes[task].lock().await.unwrap().release().await.unwrap();
                    asked.elapsed()
                }
            });
            ours.push(lock.await);
            ratios.push(ours[ours.len() - 1].rate / floor[floor.len() - 1].rate);
        }
        let ratio = median(ratios);
        rows.push(vec![
            format!("{tasks} × {tasks}"),
            show(of(&floor, |round| round.rate)),
            show(of(&ours, |round| round.rate)),
            format!("{ratio:.2}"),
            show(of(&ours, |round| round.scripts)),
            show(of(&ours, |round| micros(round.wait))),
            show(of(&ours, |round| micros(round.wait_p99))),
        ]);
        if tasks == 64 {
            report.goal(&Goal {
                what: "Redis, 64 tasks on 64 keys, one connection",
                target: "≥ 0.8 × the driver's pipelined rate",
                measured: format!("{ratio:.2} ×, {}/s", show(of(&ours, |round| round.rate))),
                peer: "–",
                hit: ratio >= 0.8,
            });
        }
    }
    report.table(
        "Redis, each task on a key of its own, one connection: cycles of lock and release per second",
        &["tasks × keys", "driver alone", "distlock", "ratio", "scripts each", "p50 µs", "p99 µs"],
        &rows,
    );
    client.shutdown().await;
}

/// One lock that all tasks of a process want, on Redis, in memory, and as a mutex of tokio.
async fn one_process(report: &mut Report, url: &str, driver: &Driver) {
    let (mut rows, mut bars) = (Vec::new(), Vec::new());
    for (tasks, keys) in [(16, 1), (128, 1), (1000, 1), (128, 8)] {
        let mut redis = Vec::new();
        let (mut memory, mut tokio) = (Vec::new(), Vec::new());
        for _ in 0..rounds() {
            let client = Client::new(RedisBackend::connect(url).await.unwrap());
            redis.push(contend(&client, tasks, keys, Some(driver)).await);
            client.shutdown().await;
            memory.push(contend(&Client::new(MemoryBackend::new()), tasks, keys, None).await);
            tokio.push(tokio_contend(tasks, keys).await);
        }
        let cost = of(&redis, |round| round.scripts);
        let rate = of(&redis, |round| round.rate);
        for (store, rounds) in [
            ("distlock, Redis", &redis),
            ("distlock, memory", &memory),
            ("`tokio::sync::Mutex`", &tokio),
        ] {
            rows.push(row(&format!("{tasks} × {keys}"), store, rounds));
            bars.push((
                format!("{store}, {tasks} × {keys}").replace('`', ""),
                of(rounds, |round| round.rate),
            ));
        }
        if keys == 1 && tasks < 1000 {
            report.goal(&Goal {
                what: &format!("Redis, {tasks} tasks of one process on one key"),
                target: "≥ 200 k hand-overs/s, < 0.1 command each",
                measured: format!("{} k/s, {cost:.3}", show(rate / 1000.0)),
                peer: "rueidislock (Go, elsewhere) 11.8 k/s, 3 commands",
                hit: rate >= 200_000.0 && cost < 0.1,
            });
        }
    }
    report.table(
        "One process, all tasks on few keys: hand-overs per second",
        &[
            "tasks × keys",
            "",
            "per s",
            "scripts each",
            "worst task's share",
            "wait p50 µs",
            "p99",
            "longest",
        ],
        &rows,
    );
    report.say("The worst task's share is 1 where all have the same number of turns. Nothing is done while a lock is held.");
    report.bars("process", "One process: hand-overs per second", &bars);
}

fn row(what: &str, who: &str, rounds: &[Round]) -> Vec<String> {
    vec![
        what.to_owned(),
        who.to_owned(),
        show(of(rounds, |round| round.rate)),
        show(of(rounds, |round| round.scripts)),
        format!("{:.2}", of(rounds, |round| round.worst)),
        show(of(rounds, |round| micros(round.wait))),
        show(of(rounds, |round| micros(round.wait_p99))),
        show(of(rounds, |round| micros(round.longest))),
    ]
}

async fn contend(client: &Client, tasks: usize, keys: usize, driver: Option<&Driver>) -> Round {
    let mutexes: Arc<[_]> = (0..keys).map(|key| client.mutex(format!("contended-{key}"))).collect();
    race(tasks, driver, move |task| {
        let mutexes = Arc::clone(&mutexes);
        async move {
            let asked = Instant::now();
            let guard = mutexes[task % mutexes.len()].lock().await.unwrap();
            let waited = asked.elapsed();
            guard.release().await.unwrap();
            waited
        }
    })
    .await
}

async fn tokio_contend(tasks: usize, keys: usize) -> Round {
    let mutexes: Arc<[_]> = (0..keys).map(|_| tokio::sync::Mutex::new(())).collect();
    race(tasks, None, move |task| {
        let mutexes = Arc::clone(&mutexes);
        async move {
            let asked = Instant::now();
            let guard = mutexes[task % mutexes.len()].lock().await;
            let waited = asked.elapsed();
            drop(guard);
            waited
        }
    })
    .await
}

/// Who had the last turns.
#[derive(Default)]
struct Course {
    last: usize,
    row: u32,
    longest_row: u32,
}

/// Two clients, as two processes are, with tasks each, all on one key.
async fn two_processes(report: &mut Report, url: &str, driver: &Driver) {
    const TASKS: usize = 16;
    let mut rows = Vec::new();
    for (limit, hold) in [(0, 0), (32, 0), (0, 1), (1, 1), (32, 1), (256, 1)] {
        let (mut measured, mut rows_of_turns) = (Vec::new(), Vec::new());
        for _ in 0..rounds() {
            let mut clients = Vec::new();
            for _ in 0..2 {
                let backend = RedisBackend::connect(url).await.unwrap();
                clients.push(Client::builder(backend).cohort_limit(limit).build().unwrap());
            }
            let mutexes: Arc<[_]> =
                clients.iter().map(|client| client.mutex("contended-by-two")).collect();
            let course = Arc::new(Mutex::new(Course::default()));
            let seen = Arc::clone(&course);
            let round = race(2 * TASKS, Some(driver), move |task| {
                let (mutexes, course) = (Arc::clone(&mutexes), Arc::clone(&course));
                async move {
                    let asked = Instant::now();
                    let guard = mutexes[task % 2].lock().await.unwrap();
                    let waited = asked.elapsed();
                    course.lock().unwrap().note(task % 2);
                    if hold > 0 {
                        sleep(Duration::from_millis(hold)).await;
                    }
                    guard.release().await.unwrap();
                    waited
                }
            });
            measured.push(round.await);
            rows_of_turns.push(f64::from(seen.lock().unwrap().longest_row));
            for client in clients {
                client.shutdown().await;
            }
        }
        let mut cells = row(&limit.to_string(), &format!("{hold} ms"), &measured);
        cells.insert(2, show(median(rows_of_turns)));
        rows.push(cells);
    }
    report.table(
        "Two clients with 16 tasks each on one key of Redis, by `cohort_limit`: hand-overs per second",
        &["limit", "held for", "longest row", "per s", "scripts each", "worst task's share", "wait p50 µs", "p99", "longest"],
        &rows,
    );
    report.say(
        "The longest row is that of turns which one client had while the other one had none. \
         With 0 it is the other's whole line, in the order of arrival. \
         A process is known to wait from when the server has said so, and for a second after it did. \
         Where a lock is held for no time at all, a client may take it several times before the request of the other one comes to the server.",
    );
}

impl Course {
    fn note(&mut self, client: usize) {
        self.row = if client == self.last { self.row + 1 } else { 1 };
        self.last = client;
        self.longest_row = self.longest_row.max(self.row);
    }
}
