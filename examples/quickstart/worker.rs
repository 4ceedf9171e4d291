//! What a worker does: this is the part that uses the library.

use std::{io::Write, thread, time::Duration};

use distlock::{Client, Error, Guard};
use tokio::time::{Instant, sleep};

use crate::{
    Result,
    ledger::{Ledger, Refused},
    report::Event,
};

/// Everybody's lock.
const NAME: &str = "quickstart/ledger";
/// For how long the store keeps the lock of somebody it does not hear of.
const TTL: Duration = Duration::from_secs(1);
/// For how long the one who overstays does not run: beyond the ttl.
const PAUSE: Duration = Duration::from_millis(1200);

/// How many entries each worker makes.
pub(crate) const ENTRIES: u32 = 5;
/// What an entry adds to the balance.
pub(crate) const AMOUNT: u64 = 10;

/// A worker and its tools.
pub(crate) struct Worker<W> {
    pub(crate) name: String,
    /// It stops running in the middle of its second entry.
    pub(crate) overstays: bool,
    pub(crate) client: Client,
    pub(crate) ledger: Ledger,
    /// Where it tells what it does.
    pub(crate) out: W,
}

impl<W: Write> Worker<W> {
    /// Makes all its entries, one lock each.
    pub(crate) async fn work(mut self) -> Result {
        let mutex = self.client.mutex(NAME).ttl(TTL).metadata(self.name.as_str());
        let mut made = 0;
        let mut overstays = self.overstays;
        while made < ENTRIES {
            let guard = mutex.lock().await?;
            self.tell(&guard, Event::Acquired)?;
            let pauses = made == 1 && std::mem::take(&mut overstays);
            if self.make_entry(&guard, pauses).await? {
                made += 1;
                self.tell(&guard, Event::Released)?;
            }
            guard.release().await?;
        }
        self.client.shutdown().await;
        Ok(())
    }

    /// Reads, thinks, writes: without the lock, two workers would overwrite each other. `false`: the lock was lost meanwhile.
    async fn make_entry(&mut self, guard: &Guard, pauses: bool) -> Result<bool> {
        let token = guard.fencing_token();
        let Ok(balance) = self.ledger.balance(token)? else {
            return Err("refused before it had paused: a busy machine, or no lock".into());
        };
        sleep(Duration::from_millis(30)).await;
        if pauses {
            self.pause(guard).await?;
        }
        // A careful worker stops here when `guard.is_held()` is false. The one that overstays shall try to write all the same.
        match self.ledger.write(token, &self.name, balance + AMOUNT)? {
            Ok(()) => {
                self.tell(guard, Event::Wrote { before: balance, after: balance + AMOUNT })?;
                Ok(true)
            }
            Err(Refused { highest }) => {
                self.tell(guard, Event::Refused { highest })?;
                Ok(false)
            }
        }
    }

    /// Does not run for a while, and neither does anything else of its runtime: nobody renews the lock. A stop signal or a stuck disk
    /// does the same.
    async fn pause(&mut self, guard: &Guard) -> Result {
        self.tell(guard, Event::Paused)?;
        thread::sleep(PAUSE);
        // Reads the clock, so it is right at once, before any task had the time to notice.
        if guard.is_held() {
            return Err(Error::invalid("the lock", "must be lost by now").into());
        }
        let reason = guard.lost().await;
        self.tell(guard, Event::Lost { reason: reason.to_string() })?;
        // For the show: on a slow machine the next holder may need a moment.
        let begun = Instant::now();
        while self.ledger.highest()? <= guard.fencing_token() && begun.elapsed() < 10 * TTL {
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    fn tell(&mut self, guard: &Guard, event: Event) -> Result {
        // One write for each line, so that the lines of several workers do not mix.
        let line = event.to_line(&self.name, guard.fencing_token());
        Ok(self.out.write_all(line.as_bytes())?)
    }
}
