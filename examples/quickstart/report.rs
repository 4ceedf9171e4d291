//! What the workers tell, as it is shown, and the check that all of it was right.

use distlock::FencingToken;
use tokio::time::Instant;

use crate::{
    Result,
    ledger::Page,
    worker::{AMOUNT, ENTRIES},
};

/// What a worker tells of itself.
#[derive(Debug)]
pub(crate) enum Event {
    /// It has the lock.
    Acquired,
    /// It made an entry.
    Wrote { before: u64, after: u64 },
    /// It is about to give the lock back.
    Released,
    /// It stops running, with the lock.
    Paused,
    /// It runs again and was told that it lost the lock.
    Lost { reason: String },
    /// Its write was refused.
    Refused { highest: FencingToken },
}

impl Event {
    /// One line, for the way from a worker to the report.
    pub(crate) fn to_line(&self, who: &str, token: FencingToken) -> String {
        let what = match self {
            Self::Acquired => "acquired".to_owned(),
            Self::Wrote { before, after } => format!("wrote\t{before}\t{after}"),
            Self::Released => "released".to_owned(),
            Self::Paused => "paused".to_owned(),
            Self::Lost { reason } => format!("lost\t{reason}"),
            Self::Refused { highest } => format!("refused\t{highest}"),
        };
        format!("{who}\t{token}\t{what}\n")
    }

    fn parse(line: &str) -> Option<(&str, FencingToken, Self)> {
        let mut fields = line.split('\t');
        let (who, token) = (fields.next()?, fields.next()?.parse().ok()?);
        let event = match fields.next()? {
            "acquired" => Self::Acquired,
            "wrote" => Self::Wrote {
                before: fields.next()?.parse().ok()?,
                after: fields.next()?.parse().ok()?,
            },
            "released" => Self::Released,
            "paused" => Self::Paused,
            "lost" => Self::Lost { reason: fields.next()?.to_owned() },
            "refused" => Self::Refused { highest: FencingToken::new(fields.next()?.parse().ok()?) },
            _ => return None,
        };
        Some((who, FencingToken::new(token), event))
    }
}

/// Shows what happens, and keeps count.
///
/// The lines of all workers come through one pipe. A worker writes "acquired" when it has the lock and "released" before it gives it
/// back, so the order of the lines is the order of the holds, by one clock, which is this one.
pub(crate) struct Report {
    begun: Instant,
    hold: Option<Hold>,
    highest: FencingToken,
    holds: u32,
    told: u32,
    refused: u32,
    wrong: Vec<String>,
}

struct Hold {
    who: String,
    token: FencingToken,
    since: f64,
    wrote: Option<(u64, u64)>,
    paused: bool,
}

impl Report {
    pub(crate) fn new() -> Self {
        println!("{:>9}{:>9}   {:<6}{:>18}   ledger", "from", "to", "holder", "fencing token");
        Self {
            begun: Instant::now(),
            hold: None,
            highest: FencingToken::NONE,
            holds: 0,
            told: 0,
            refused: 0,
            wrong: Vec::new(),
        }
    }

    /// Takes in one line.
    pub(crate) fn line(&mut self, line: &str) {
        let now = self.begun.elapsed().as_secs_f64();
        let Some((who, token, event)) = Event::parse(line) else {
            self.wrong.push(format!("not understood: {line:?}"));
            return;
        };
        match event {
            Event::Acquired => self.acquired(who, token, now),
            Event::Wrote { before, after } => match &mut self.hold {
                Some(hold) if hold.token == token => hold.wrote = Some((before, after)),
                _ => self.wrong.push(format!("{who} wrote without the lock")),
            },
            Event::Released => match self.hold.take_if(|hold| hold.token == token) {
                Some(hold) => hold.show(now),
                None => self.wrong.push(format!("{who} released what it had not")),
            },
            Event::Paused => {
                let mut from = String::new();
                if let Some(hold) = self.hold.as_mut().filter(|hold| hold.token == token) {
                    hold.paused = true;
                    from = seconds(hold.since);
                }
                row(&from, "…", who, token, "stops running, with the lock in its hand");
            }
            Event::Lost { reason } => {
                self.told += 1;
                let text = format!("runs again: told that the lock was lost: {reason}");
                row("", &seconds(now), who, token, &text);
            }
            Event::Refused { highest } => {
                self.refused += 1;
                let text = format!("writes all the same: refused, the ledger has seen {highest}");
                row("", &seconds(now), who, token, &text);
            }
        }
    }

    fn acquired(&mut self, who: &str, token: FencingToken, now: f64) {
        self.holds += 1;
        if let Some(hold) = self.hold.take().filter(|hold| !hold.paused) {
            self.wrong.push(format!("{who} and {} held the lock at the same time", hold.who));
        }
        if token <= self.highest {
            self.wrong.push(format!("token {token} came after {}", self.highest));
        }
        self.highest = token;
        self.hold =
            Some(Hold { who: who.to_owned(), token, since: now, wrote: None, paused: false });
    }

    /// Whether the ledger, and all that was told, is as it must be.
    pub(crate) fn conclude(mut self, workers: &[&str], page: &Page) -> Result {
        let count = u64::from(ENTRIES) * workers.len() as u64;
        let complete = workers.iter().all(|worker| {
            page.entries.iter().filter(|who| who == worker).count() == ENTRIES as usize
        });
        if !complete || page.balance != count * AMOUNT || page.entries.len() as u64 != count {
            self.wrong.push(format!("the ledger says {page:?}"));
        }
        if (self.told, self.refused) != (1, 1) {
            let text = format!("{} losses told, {} writes refused", self.told, self.refused);
            self.wrong.push(text);
        }
        if !self.wrong.is_empty() {
            return Err(self.wrong.join("\n").into());
        }
        println!();
        println!("  ✔ {count} of {count} entries, balance {}: nothing was lost", page.balance);
        println!("  ✔ {} holds, one at a time, each with a higher token", self.holds);
        println!("  ✔ the one that overstayed was told, and its late write was refused");
        Ok(())
    }
}

impl Hold {
    fn show(&self, now: f64) {
        let Self { who, token, since, wrote, .. } = self;
        let ledger = wrote.map_or_else(|| "-".to_owned(), |(a, z)| format!("{a:>3} → {z:>3}"));
        row(&seconds(*since), &seconds(now), who, *token, &ledger);
    }
}

fn row(from: &str, to: &str, who: &str, token: FencingToken, text: &str) {
    println!("{from:>9}{to:>9}   {who:<6}{token:>18}   {text}");
}

fn seconds(time: f64) -> String {
    format!("{time:.3} s")
}
