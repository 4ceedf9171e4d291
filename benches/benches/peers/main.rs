//! The same work on this library and on others, side by side in one run.

mod contender;
mod etcd;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use contender::Library;
use distlock_benches::{
    Times, is_quick, median, micros, raw, redis_url,
    report::{Goal, Report},
    rounds,
    server::Counters,
    show,
};
use fred::prelude::{Client as Driver, ClientLike as _};
use tokio::{
    sync::Barrier,
    task::JoinSet,
    time::{Instant, sleep},
};

const LEFT_OUT: &str = "\
Left out, of those that we know of, and why: \
`redlock` (its async call blocks the runtime's thread: blocking connections, and sleeps), \
`distributed-lock-redis` (its mutex does not wait, and when it was tried did not exclude: 5355 of 9573 acquisitions overlapped), \
`redis-lock` (its script gives a ttl of milliseconds to the server as seconds, so a lock that is left behind stays for a thousand times as long), \
`redsync` (blocking), \
`rds_lock`, `redisson` (not tried: the one looked idle, the renewal of the other broken, when their sources were read), \
`dlock` (another store: DynamoDB). \
Of those for etcd: `elock` (idle; it calls the Lock service, whose row is its own, and leaves a lease behind when it is dropped), \
`tokio-etcd-lock` (an alpha version that calls itself unfinished; all who wait watch the same key and ask at once when it goes), \
`photon-etcd-cluster` (it elects a leader, and locks nothing). \
A library of a name with a pause polls that often in place of its default.";

fn main() {
    // Where one task is measured, all is on one thread: between two, a round trip is as long as the scheduler likes.
    let one = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let two =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let url = redis_url();
    let mut report = one.block_on(async {
        let mut report = Report::new(
            "peers",
            "The same work on this library and on others, in turns in one run, each as its own documentation shows it.",
        );
        let driver = raw::connect(&url).await;
        alone(&mut report, &url, &driver).await;
        driver.quit().await.ok();
        report
    });
    two.block_on(async {
        let driver = raw::connect(&url).await;
        baton(&mut report, &url, &driver).await;
        crowd(&mut report, &url, &driver).await;
        etcd::measure(&mut report).await;
        report.say(LEFT_OUT);
        driver.quit().await.ok();
        report.finish();
    });
}

/// Figures of one round, in the order of the table's columns.
type Round = Vec<f64>;

/// The medians of some rounds, column by column.
fn medians(rounds: &[Round]) -> Round {
    let columns = rounds.first().map_or(0, Vec::len);
    (0..columns).map(|column| median(rounds.iter().map(|round| round[column]).collect())).collect()
}

/// Runs a round of each library in turns, so that what befalls the machine befalls all of them.
async fn in_turns<F: Future<Output = Round>>(
    libraries: &[Library],
    round: impl Fn(Library, usize) -> F,
) -> Vec<(Library, Round)> {
    let mut all = vec![Vec::new(); libraries.len()];
    for number in 0..rounds() {
        for (rounds, library) in all.iter_mut().zip(libraries) {
            rounds.push(round(*library, number).await);
        }
    }
    libraries.iter().copied().zip(all.iter().map(|rounds| medians(rounds))).collect()
}

fn rows(measured: &[(Library, Round)]) -> Vec<Vec<String>> {
    let row = |(library, round): &(Library, Round)| {
        let figures = round.iter().map(|figure| show(*figure));
        std::iter::once(library.name().to_owned()).chain(figures).collect()
    };
    measured.iter().map(row).collect()
}

fn bars(measured: &[(Library, Round)], column: usize) -> Vec<(String, f64)> {
    let bar =
        |(library, round): &(Library, Round)| (library.name().replace('`', ""), round[column]);
    measured.iter().map(bar).collect()
}

/// The best of the others in a column, and whether it is ahead of ours: then `why` tells what for.
fn best_peer(
    measured: &[(Library, Round)],
    column: usize,
    more_is_better: bool,
    why: &str,
) -> (String, bool) {
    let ours = |library: &Library| matches!(library, Library::Distlock | Library::Strict);
    let sign = if more_is_better { -1.0 } else { 1.0 };
    let figure = |(_, round): &&(Library, Round)| sign * round[column];
    let least = |ours_too: bool| {
        let chosen = measured
            .iter()
            .filter(|(library, _)| *library != Library::Floor && ours(library) == ours_too);
        chosen.min_by(|a, b| figure(a).total_cmp(&figure(b))).expect("somebody is measured")
    };
    let (best, mine) = (least(false), least(true));
    let ahead = figure(&best) < figure(&mine);
    let peer = format!("{} {}", best.0.name(), show(best.1[column]));
    (if ahead { format!("{peer}: {why}") } else { peer }, ahead)
}

/// One task, one lock that nobody else wants.
async fn alone(report: &mut Report, url: &str, driver: &Driver) {
    let count = if is_quick() { 300 } else { 2_000 };
    let libraries: Vec<_> = Library::ALL.into_iter().filter(|one| !one.is_variant()).collect();
    let measured = in_turns(&libraries, |library, round| async move {
        let lock = library.connect(url, &format!("alone_{library:?}_{round}")).await;
        lock.lock().await.release().await;
        let before = Counters::read(driver).await;
        // The main future is polled in another way than a task is.
        let task = lock.clone();
        let times = tokio::spawn(async move {
            let mut times = Vec::new();
            for _ in 0..count {
                let asked = Instant::now();
                task.lock().await.release().await;
                times.push(asked.elapsed());
            }
            times
        });
        let times = Times::new(times.await.unwrap());
        let counted = Counters::read(driver).await.since(&before);
        lock.close().await;
        let each = |count: u64| count as f64 / times.len() as f64;
        let requests = library.requests();
        vec![
            micros(times.median()),
            micros(times.percentile(0.99)),
            each(counted.calls(requests)),
            each(counted.all_calls()),
            each(counted.micros(requests)),
        ]
    })
    .await;
    report.table(
        "One task, nobody else: lock and release",
        &["", "p50 µs", "p99 µs", "requests", "with calls inside scripts", "server µs"],
        &rows(&measured),
    );
    report.bars("alone", "Lock and release, nobody else: p50, µs", &bars(&measured, 0));
    let of = |wanted: Library, column: usize| {
        let found = measured.iter().find(|(library, _)| *library == wanted);
        found.expect("it was measured").1[column]
    };
    let (ours, theirs) = (Library::Distlock, Library::Rslock);
    let why = format!(
        "of the {:.1} µs between them {:.1} are the server's time, in which it looks at a line and counts a token",
        of(ours, 0) - of(theirs, 0),
        of(ours, 4) - of(theirs, 4),
    );
    let (peer, ahead) = best_peer(&measured, 0, false, &why);
    report.goal(&Goal {
        what: "peers: lock and release, nobody else, p50 µs",
        target: "no peer ahead",
        measured: show(measured[1].1[0]),
        peer: &peer,
        hit: !ahead,
    });
}

/// Who had the lock, one after the other.
#[derive(Default)]
struct Course {
    released: Option<Instant>,
    gaps: Vec<Duration>,
    served: Vec<usize>,
}

impl Course {
    fn taken(&mut self, who: usize) {
        let now = Instant::now();
        if let Some(released) = self.released.take() {
            self.gaps.push(now - released);
        }
        self.served.push(who);
    }

    fn released(&mut self) {
        self.released = Some(Instant::now());
    }
}

/// Clients that come one after another, while the lock is held, and take it once each.
async fn baton(report: &mut Report, url: &str, driver: &Driver) {
    const HOLD: Duration = Duration::from_millis(2);
    let waiters = 16;
    let libraries: Vec<_> = Library::ALL.into_iter().filter(|one| one.waits()).collect();
    let measured = in_turns(&libraries, |library, round| async move {
        let key = format!("baton_{library:?}_{round}");
        let first = library.connect(url, &key).await;
        let mut locks = Vec::new();
        for _ in 0..waiters {
            locks.push(library.connect(url, &key).await);
        }
        let before = Counters::read(driver).await;
        let course = Arc::new(Mutex::new(Course::default()));
        let guard = first.lock().await;
        let mut tasks = JoinSet::new();
        for (who, lock) in locks.into_iter().enumerate() {
            let course = Arc::clone(&course);
            tasks.spawn(async move {
                let guard = lock.lock().await;
                course.lock().unwrap().taken(who);
                sleep(HOLD).await;
                course.lock().unwrap().released();
                guard.release().await;
            });
            // The order of arrival is no matter of opinion.
            sleep(Duration::from_millis(5)).await;
        }
        let started = Instant::now();
        course.lock().unwrap().released();
        guard.release().await;
        while tasks.join_next().await.is_some() {}
        let took = started.elapsed();
        let counted = Counters::read(driver).await.since(&before);
        let course = std::mem::take(&mut *course.lock().unwrap());
        let inverted = course.served.windows(2).filter(|pair| pair[1] < pair[0]).count();
        let gaps = Times::new(course.gaps);
        vec![
            took.as_secs_f64() * 1e3,
            micros(gaps.median()),
            micros(gaps.percentile(0.99)),
            counted.calls(library.requests()) as f64 / (f64::from(waiters) + 1.0),
            inverted as f64 * 100.0 / (f64::from(waiters) - 1.0),
        ]
    })
    .await;
    report.table(
        "16 clients, come one after another, each takes the lock once and holds it for 2 ms",
        &["", "all done ms", "gap p50 µs", "p99 µs", "requests each", "inversions %"],
        &rows(&measured),
    );
    report.say("All done in 32 ms would be the ideal. Inversions: pairs, one served right after the other, of which the second had come first; 50 % is chance. The clients come 5 ms apart: who polls at a fixed interval keeps that distance, so that its few inversions are this measurement's doing, not the library's.");
    report.bars("baton", "Hand-over between 16 clients: gap p50, µs", &bars(&measured, 1));
    let idle = idle_ping(driver).await;
    report.say(&format!(
        "A PING after 2 ms of doing nothing, when the processors have to wake up first, takes {} µs here (p50).",
        show(micros(idle))
    ));
    for (what, column) in [("gap p50 µs", 1), ("requests each", 3)] {
        let why = "by polling all the time: see its requests";
        let (peer, ahead) = best_peer(&measured, column, false, why);
        report.goal(&Goal {
            what: &format!("peers: 16 clients wait, {what}"),
            target: "no peer ahead",
            measured: show(measured[0].1[column]),
            peer: &peer,
            hit: !ahead,
        });
    }
}

async fn idle_ping(driver: &Driver) -> Duration {
    let mut times = Vec::new();
    for _ in 0..200 {
        sleep(Duration::from_millis(2)).await;
        let sent = Instant::now();
        driver.ping::<String>(None).await.expect("an answer");
        times.push(sent.elapsed());
    }
    Times::new(times).median()
}

/// Clients, or tasks of one client, that want the lock all the time.
async fn crowd(report: &mut Report, url: &str, driver: &Driver) {
    let libraries: Vec<_> = Library::ALL.into_iter().filter(|one| one.waits()).collect();
    for (tasks, shared, hold) in [(8, false, 1), (16, true, 0)] {
        let measured = in_turns(&libraries, |library, round| async move {
            let key = format!("crowd_{library:?}_{tasks}_{round}");
            let shared = if shared { Some(library.connect(url, &key).await) } else { None };
            let (stop, ready) =
                (Arc::new(AtomicBool::new(false)), Arc::new(Barrier::new(tasks + 1)));
            let mut set = JoinSet::new();
            for _ in 0..tasks {
                let lock = match &shared {
                    Some(lock) => lock.clone(),
                    None => library.connect(url, &key).await,
                };
                let (stop, ready) = (Arc::clone(&stop), Arc::clone(&ready));
                set.spawn(async move {
                    ready.wait().await;
                    let mut waits = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let asked = Instant::now();
                        let guard = lock.lock().await;
                        waits.push(asked.elapsed());
                        if hold > 0 {
                            sleep(Duration::from_millis(hold)).await;
                        }
                        guard.release().await;
                    }
                    waits
                });
            }
            let before = Counters::read(driver).await;
            let started = Instant::now();
            ready.wait().await;
            sleep(Duration::from_millis(if is_quick() { 500 } else { 1500 })).await;
            stop.store(true, Ordering::Relaxed);
            let took = started.elapsed();
            // Those who pause between two attempts may be long in coming: what they do after the time counts for nobody.
            let counted = Counters::read(driver).await.since(&before);
            let waits = set.join_all().await;
            let fewest = waits.iter().map(Vec::len).min().unwrap_or_default();
            let times = Times::new(waits.into_iter().flatten().collect());
            let turns = times.len() as f64;
            vec![
                turns / took.as_secs_f64(),
                counted.calls(library.requests()) as f64 / turns,
                fewest as f64 * tasks as f64 / turns,
                micros(times.median()),
                times.percentile(0.99).as_secs_f64() * 1e3,
            ]
        })
        .await;
        let what = match shared {
            true => format!("{tasks} tasks of one client that want the lock all the time"),
            false => format!("{tasks} clients that want the lock all the time, held for {hold} ms"),
        };
        report.table(
            &what,
            &["", "turns/s", "requests each", "worst share", "wait p50 µs", "p99 ms"],
            &rows(&measured),
        );
        let file = if shared { "process" } else { "clients" };
        report.bars(file, &format!("{what}: turns per second"), &bars(&measured, 0));
        for (figure, column, more) in [("turns/s", 0, true), ("worst share", 2, true)] {
            let why = "who has just released takes it again and again, before anybody else asks: see its worst share";
            let (peer, ahead) = best_peer(&measured, column, more, why);
            report.goal(&Goal {
                what: &format!("peers: {what}, {figure}"),
                target: "no peer ahead",
                measured: show(measured[0].1[column]),
                peer: &peer,
                hit: !ahead,
            });
        }
    }
    report.say("The worst share is 1 where all have the same number of turns.");
}
