//! What the server itself counts, so that no library is believed about its own commands.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use fred::{
    prelude::{Client, ClientLike as _},
    types::InfoKind,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::Instant,
};

use crate::Times;

/// The server's counters at a moment, or between two.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Calls and microseconds of each command, scripts' own calls included.
    commands: BTreeMap<String, (u64, u64)>,
}

impl Counters {
    /// Reads them.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn read(driver: &Client) -> Self {
        let info: String = driver.info(Some(InfoKind::CommandStats)).await.expect("an answer");
        let line = |line: &str| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            let (calls, rest) = rest.split_once(",usec=")?;
            let micros = rest.split(',').next()?;
            Some((name.to_owned(), (calls.parse().ok()?, micros.parse().ok()?)))
        };
        Self { commands: info.lines().filter_map(line).collect() }
    }

    /// Reads those of several servers, and adds them up.
    ///
    /// # Panics
    /// When one does not answer.
    pub async fn read_all(drivers: &[Client]) -> Self {
        let mut sum = Self::default();
        for driver in drivers {
            for (name, (calls, micros)) in Self::read(driver).await.commands {
                let entry = sum.commands.entry(name).or_default();
                *entry = (entry.0 + calls, entry.1 + micros);
            }
        }
        sum
    }

    /// What was added since.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut commands = self.commands.clone();
        for (name, (calls, micros)) in &earlier.commands {
            if let Some(now) = commands.get_mut(name) {
                *now = (now.0.saturating_sub(*calls), now.1.saturating_sub(*micros));
            }
        }
        Self { commands }
    }

    /// Calls of these commands.
    #[must_use]
    pub fn calls(&self, names: &[&str]) -> u64 {
        names.iter().filter_map(|name| self.commands.get(*name)).map(|(calls, _)| calls).sum()
    }

    /// Scripts that were run.
    #[must_use]
    pub fn scripts(&self) -> u64 {
        self.calls(&["evalsha", "eval"])
    }

    /// The server's time in these commands, in microseconds.
    #[must_use]
    pub fn micros(&self, names: &[&str]) -> u64 {
        names.iter().filter_map(|name| self.commands.get(*name)).map(|(_, micros)| micros).sum()
    }

    /// All calls but our own questions, those inside of scripts included.
    #[must_use]
    pub fn all_calls(&self) -> u64 {
        let others = self.commands.iter().filter(|(name, _)| *name != "info");
        others.map(|(_, (calls, _))| calls).sum()
    }
}

/// The half-way time of a PING, one after another.
///
/// # Panics
/// When the server does not answer.
pub async fn ping(driver: &Client) -> Duration {
    let mut times = Vec::new();
    for _ in 0..2000 {
        let sent = Instant::now();
        driver.ping::<String>(None).await.expect("an answer");
        times.push(sent.elapsed());
    }
    Times::new(times).median()
}

/// The memory of the server's data, in bytes.
///
/// # Panics
/// When the server does not answer.
pub async fn memory(driver: &Client) -> u64 {
    let info: String = driver.info(Some(InfoKind::Memory)).await.expect("an answer");
    let line = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
    line.and_then(|bytes| bytes.trim().parse().ok()).expect("a number of bytes")
}

/// The order in which owner ids came to the server, whatever connection they came on: there is one server, and it does one thing after another.
#[derive(Debug)]
pub struct Arrivals {
    stop: oneshot::Sender<()>,
    seen: JoinHandle<HashMap<String, usize>>,
}

impl Arrivals {
    /// Watches all commands from now on. That slows the server down: no times are taken while somebody watches.
    ///
    /// # Panics
    /// When the server cannot be reached.
    pub async fn watch(url: &str) -> Self {
        let place = url.strip_prefix("redis://").expect("a plain server").trim_end_matches('/');
        let mut stream = BufReader::new(TcpStream::connect(place).await.expect("a server"));
        stream.write_all(b"MONITOR\r\n").await.expect("a connection");
        let mut line = String::new();
        stream.read_line(&mut line).await.expect("an answer");
        assert_eq!(line, "+OK\r\n");
        let (stop, mut stopped) = oneshot::channel();
        let seen = tokio::spawn(async move {
            let mut seen = HashMap::new();
            let mut lines = stream.lines();
            loop {
                let line = tokio::select! {
                    line = lines.next_line() => line.expect("a connection").expect("more lines"),
                    _ = &mut stopped => return seen,
                };
                for owner in newcomers(&line) {
                    let number = seen.len();
                    seen.entry(owner.to_owned()).or_insert(number);
                }
            }
        });
        Self { stop, seen }
    }

    /// Ends it, and counts which of those served in this order came before the one that was served just before them.
    ///
    /// # Panics
    /// When somebody was served whose request the server never saw.
    pub async fn inversions(self, served: &[String]) -> u64 {
        // What the server wrote before its last answer to us is in our buffers soon.
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(self.stop);
        let seen = self.seen.await.expect("it does not panic");
        let numbers: Vec<usize> = served.iter().map(|owner| seen[owner]).collect();
        numbers.windows(2).map(|pair| u64::from(pair[1] < pair[0])).sum()
    }
}

/// The owner ids in a request to acquire, in the order in which the server serves them: those that come up together share one. The first argument of each
/// after the keys is `"dl1:<owner>:<process>:"`.
fn newcomers(line: &str) -> impl Iterator<Item = &str> {
    let requests = if line.contains(" lua] ") { "" } else { line };
    let owners = requests.split("\"dl1:").skip(1).filter_map(|rest| rest.split(':').next());
    owners.filter(|owner| owner.len() == 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newcomers_are_known_by_their_owner_ids() {
        let newcomers = |line: &str| newcomers(line).map(str::to_owned).collect::<Vec<_>>();
        let [one, other] = ["0123456789abcdef0123456789abcdef", "123456789abcdef0123456789abcdef0"];
        let line =
            format!(r#"1.2 [0 127.0.0.1:1] "evalsha" "x" "4" "k" "f" "q" "p" "dl1:{one}:p:""#);
        assert_eq!(newcomers(&line), [one]);
        assert_eq!(newcomers(&line.replace("127.0.0.1:1]", "lua] ")), [""; 0]);
        assert_eq!(newcomers(r#"1.2 [0 127.0.0.1:1] "evalsha" "x""#), [""; 0]);
        let shared = format!(r#"{line} "30000" "m" "j11" "dl1:{other}:p:" "30000" "m" "j11""#);
        assert_eq!(newcomers(&shared), [one, other]);
    }
}
