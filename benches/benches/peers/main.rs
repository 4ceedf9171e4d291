//! The same work on this library and on others, side by side in one run.

mod contender;
mod contest;
mod etcd;

use std::time::Duration;

use contender::Library;
use contest::{Guard as _, Lock as _, contest, pass};
use distlock_benches::{
    Times, is_quick, median, micros, raw, redis_url,
    report::{Goal, Report},
    rounds,
    server::Counters,
    show,
};
use fred::prelude::{Client as Driver, ClientLike as _};
use tokio::time::{Instant, sleep};

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

/// Clients that come one after another, while the lock is held, and take it once each.
async fn baton(report: &mut Report, url: &str, driver: &Driver) {
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
        let passed = pass(&first, &locks).await;
        let counted = Counters::read(driver).await.since(&before);
        vec![
            passed.took.as_secs_f64() * 1e3,
            micros(passed.gaps.median()),
            micros(passed.gaps.percentile(0.99)),
            counted.calls(library.requests()) as f64 / (f64::from(waiters) + 1.0),
            passed.inverted_percent,
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
            let mut locks = Vec::new();
            let first = library.connect(url, &key).await;
            for _ in 1..tasks {
                locks.push(if shared { first.clone() } else { library.connect(url, &key).await });
            }
            locks.push(first);
            let lasts = Duration::from_millis(if is_quick() { 500 } else { 1500 });
            let count = async || Counters::read(driver).await;
            let seen = contest(locks, lasts, Duration::from_millis(hold), count).await;
            let [before, after] = &seen.counted;
            vec![
                seen.turns_per_second,
                after.since(before).calls(library.requests()) as f64 / seen.turns,
                seen.worst_share,
                micros(seen.waits.median()),
                seen.waits.percentile(0.99).as_secs_f64() * 1e3,
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
