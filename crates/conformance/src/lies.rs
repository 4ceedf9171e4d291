//! A server that lies: what must be so of a store whatever its server answers.

use std::time::Duration;

use distlock_core::{Client, Guard};
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use crate::Dice;

/// Nothing takes so long, unless it hangs.
const HANG: Duration = Duration::from_secs(20);

/// How often each client does something.
const STEPS: u64 = 16;

/// What happened among lies, so that it can be seen that it proves something.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Told {
    /// Locks that a client believed to have.
    pub grants: usize,
    /// Calls that ended with an error.
    pub errors: usize,
}

/// Works with clients whose server lies, and looks that every call ends, that no guard is believed for longer than its ttl, and that the truth is
/// enough to set all right again.
///
/// Each client should be of a backend of its own. `hush` takes the server away for good, connections included; `repent` gives it back, and has it
/// say nothing but the truth. Panics in tasks of the store are the caller's to notice.
///
/// # Panics
/// When something is not as it must be.
pub async fn survive_lies(
    clients: &[Client],
    seed: u64,
    hush: impl FnOnce(),
    repent: impl FnOnce(),
) -> Told {
    let work = clients.iter().zip(0..).map(|(client, number)| {
        let mut worker = Worker {
            client: client.clone(),
            dice: Dice::new(seed.wrapping_mul(31).wrapping_add(number)),
            ttl: client.capabilities().resolution.max(Duration::from_millis(150)),
            held: Vec::new(),
            told: Told::default(),
        };
        async move {
            for _ in 0..STEPS {
                worker.step().await;
            }
            worker
        }
    });
    let mut workers = join_all(work).await;
    hush();
    let held = workers.iter_mut().flat_map(|worker| worker.held.drain(..));
    join_all(held.map(|(guard, ttl)| async move {
        sleep(ttl).await;
        assert!(!guard.is_held(), "seed {seed}: a lock is believed in that nobody has confirmed");
        // The time that a busy machine does not give us does not count.
        let lost = async {
            for _ in 0..50 {
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            biased;
            _ = guard.lost() => {}
            () = lost => panic!("seed {seed}: its holder is not told"),
        }
    }))
    .await;
    repent();
    let fresh = format!("truth-{seed}");
    for client in clients {
        let guard = lock(client, &fresh, seed).await;
        assert!(guard.is_held());
        // Whoever waits for it gets it.
        let other = clients.iter().find(|other| !std::ptr::eq(*other, client));
        let gives = async {
            sleep(Duration::from_millis(20)).await;
            guard.release().await
        };
        let (next, released) = tokio::join!(lock(other.unwrap_or(client), &fresh, seed), gives);
        for released in [released, next.release().await] {
            // A machine that is busy may take longer than the limit; the rest is done in the background.
            let fails = released.err().filter(|error| !error.is_transient());
            assert!(fails.is_none(), "seed {seed}: {fails:?}");
        }
    }
    workers.iter().fold(Told::default(), |sum, worker| Told {
        grants: sum.grants + worker.told.grants,
        errors: sum.errors + worker.told.errors,
    })
}

/// Locks, by the truth; an error may still be one of the time before.
async fn lock(client: &Client, name: &str, seed: u64) -> Guard {
    let locked = timeout(HANG, async {
        loop {
            match client.mutex(name).lock_timeout(HANG).await {
                Ok(guard) => return guard,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    });
    locked.await.unwrap_or_else(|_| panic!("seed {seed}: the truth does not help"))
}

struct Worker {
    client: Client,
    dice: Dice,
    ttl: Duration,
    /// With the longest ttl that was ever asked for it.
    held: Vec<(Guard, Duration)>,
    told: Told,
}

impl Worker {
    async fn step(&mut self) {
        let name = ["one", "two", "three"][usize::try_from(self.dice.below(3)).unwrap_or(0)];
        let mutex = self.client.mutex(name).ttl(self.ttl).metadata("words");
        let kind = self.dice.below(10);
        let step = async {
            match kind {
                0..=2 => Done::of(mutex.try_lock().await),
                3 | 4 => Done::of(mutex.lock_timeout(self.ttl).await.map(Some)),
                5 => Done::of(self.client.inspect(name).await.map(|_| None)),
                6 => Done::of(self.client.force_release(name).await.map(|_| None)),
                7 => match self.held.last_mut() {
                    Some((guard, ttl)) => {
                        *ttl = self.ttl * 2;
                        Done::of(guard.extend(self.ttl * 2).await.map(|()| None))
                    }
                    None => Done::Nothing,
                },
                8 => match self.held.pop() {
                    Some((guard, _)) => Done::of(guard.release().await.map(|_| None)),
                    None => Done::Nothing,
                },
                _ => {
                    sleep(self.ttl / 2).await;
                    Done::Nothing
                }
            }
        };
        match timeout(HANG, step).await.unwrap_or_else(|_| panic!("step {kind} hangs")) {
            Done::Failed => self.told.errors += 1,
            Done::Granted(guard) => {
                self.told.grants += 1;
                self.held.push((guard, self.ttl));
            }
            Done::Nothing => {}
        }
        for (guard, ttl) in &self.held {
            assert!(guard.remaining() <= *ttl, "believed for longer than was asked for");
        }
        self.held.retain(|(guard, _)| guard.is_held());
    }
}

/// What came of a step.
enum Done {
    Failed,
    Granted(Guard),
    Nothing,
}

impl Done {
    fn of(result: Result<Option<Guard>, distlock_core::Error>) -> Self {
        match result {
            Ok(Some(guard)) => Self::Granted(guard),
            Ok(_) => Self::Nothing,
            Err(_) => Self::Failed,
        }
    }
}
