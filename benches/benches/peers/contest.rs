//! How a lock goes from one to the next, for any library: what the tables of all stores measure.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use distlock_benches::Times;
use tokio::{
    sync::Barrier,
    task::JoinSet,
    time::{Instant, sleep},
};

/// A lock that can be taken.
pub(crate) trait Lock: Clone + Send + Sync + 'static {
    type Guard: Guard;

    fn lock(&self) -> impl Future<Output = Self::Guard> + Send;
}

/// A lock that is held.
pub(crate) trait Guard: Send {
    fn release(self) -> impl Future<Output = ()> + Send;
}

/// What was seen of a lock that went through a line.
pub(crate) struct Passed {
    pub(crate) took: Duration,
    pub(crate) gaps: Times,
    /// Of all pairs, one served right after the other: those of which the second had come first.
    pub(crate) inverted_percent: f64,
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

/// Clients that come one after another, while the first has the lock, and take it once each. They stay until all were served: taking leave costs requests too.
pub(crate) async fn pass<L: Lock>(first: &L, locks: &[L]) -> Passed {
    const HOLD: Duration = Duration::from_millis(2);
    let course = Arc::new(Mutex::new(Course::default()));
    let guard = first.lock().await;
    let mut tasks = JoinSet::new();
    for (who, lock) in locks.iter().enumerate() {
        let (lock, course) = (lock.clone(), Arc::clone(&course));
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
    tasks.join_all().await;
    let took = started.elapsed();
    let Course { gaps, served, .. } = std::mem::take(&mut *course.lock().unwrap());
    let inverted = served.windows(2).filter(|pair| pair[1] < pair[0]).count();
    let inverted_percent = inverted as f64 * 100.0 / (served.len() as f64 - 1.0);
    Passed { took, gaps: Times::new(gaps), inverted_percent }
}

/// What was seen of a lock that all want all the time.
pub(crate) struct Contest<C> {
    pub(crate) turns: f64,
    pub(crate) turns_per_second: f64,
    /// The turns of who had the fewest, beside an equal share.
    pub(crate) worst_share: f64,
    pub(crate) waits: Times,
    /// What was counted before and after.
    pub(crate) counted: [C; 2],
}

/// Lets all take the lock again and again for a while, and hold it for so long.
pub(crate) async fn contest<L: Lock, C>(
    locks: Vec<L>,
    lasts: Duration,
    hold: Duration,
    count: impl AsyncFn() -> C,
) -> Contest<C> {
    let tasks = locks.len();
    let (stop, ready) = (Arc::new(AtomicBool::new(false)), Arc::new(Barrier::new(tasks + 1)));
    let mut set = JoinSet::new();
    for lock in locks {
        let (stop, ready) = (Arc::clone(&stop), Arc::clone(&ready));
        set.spawn(async move {
            ready.wait().await;
            let mut waits = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let guard = lock.lock().await;
                let waited = asked.elapsed();
                // Those who pause between two attempts may be long in coming: what they do after the time counts for nobody.
                if !stop.load(Ordering::Relaxed) {
                    waits.push(waited);
                }
                if !hold.is_zero() {
                    sleep(hold).await;
                }
                guard.release().await;
            }
            waits
        });
    }
    let before = count().await;
    let started = Instant::now();
    ready.wait().await;
    sleep(lasts).await;
    stop.store(true, Ordering::Relaxed);
    let took = started.elapsed();
    let counted = [before, count().await];
    let waits = set.join_all().await;
    let fewest = waits.iter().map(Vec::len).min().unwrap_or_default();
    let waits = Times::new(waits.into_iter().flatten().collect());
    let turns = waits.len() as f64;
    Contest {
        turns,
        turns_per_second: turns / took.as_secs_f64(),
        worst_share: fewest as f64 * tasks as f64 / turns,
        waits,
        counted,
    }
}
