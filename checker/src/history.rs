//! A history: events in the order of their times, read from and written as JSON lines.

use std::{collections::HashMap, io};

use crate::{Event, Kind, Mode, ParseError};

/// What processes wrote down, in the order of time. Of two events of the same time, the one that was added first is first.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub(crate) entries: Vec<Entry>,
    names: Names,
    sorted: bool,
}

/// An event in little room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) t: u64,
    pub(crate) f: Option<u64>,
    pub(crate) d: Option<u64>,
    pub(crate) v: Option<u64>,
    pub(crate) p: u32,
    pub(crate) c: u32,
    /// Of the key; 0 is the empty one.
    pub(crate) k: u32,
    /// Of the name.
    pub(crate) n: u32,
    pub(crate) e: Kind,
    pub(crate) m: Mode,
}

#[derive(Clone, Debug)]
struct Names {
    numbers: HashMap<String, u32>,
    names: Vec<String>,
}

impl Default for Names {
    fn default() -> Self {
        Self { numbers: HashMap::from([(String::new(), 0)]), names: vec![String::new()] }
    }
}

impl Names {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        number
    }
}

impl History {
    /// A history without events.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an event.
    pub fn push(&mut self, event: &Event) {
        let (k, n) = (self.names.number(&event.k), self.names.number(&event.n));
        let Event { t, p, c, e, f, d, v, m, .. } = *event;
        self.entries.push(Entry { t, f, d, v, p, c, k, n, e, m });
        self.sorted = false;
    }

    /// Adds the events of a file. A last line that was cut off by the death of its writer is left out.
    ///
    /// # Errors
    /// The first line that is no event.
    pub fn read(&mut self, text: &str) -> Result<(), ParseError> {
        let whole = text.ends_with('\n');
        let last = text.lines().count();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            match Event::parse(line) {
                Ok(event) => self.push(&event),
                Err(_) if !whole && index + 1 == last => {}
                Err(error) => return Err(ParseError { line: index + 1, ..error }),
            }
        }
        Ok(())
    }

    /// Writes all events as JSON lines, in the order of time.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&mut self, mut to: impl io::Write) -> io::Result<()> {
        for event in self.events() {
            writeln!(to, "{}", event.to_line())?;
        }
        Ok(())
    }

    /// All events, in the order of time.
    pub fn events(&mut self) -> impl Iterator<Item = Event> + '_ {
        self.sort();
        self.entries.iter().map(|entry| self.event(entry))
    }

    /// How many events there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A number that differs when the histories do: FNV-1a over the lines.
    #[must_use]
    pub fn digest(&mut self) -> u64 {
        let mut digest = 0xcbf2_9ce4_8422_2325_u64;
        for event in self.events() {
            for byte in event.to_line().bytes().chain([b'\n']) {
                digest = (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        digest
    }

    pub(crate) fn name(&self, number: u32) -> &str {
        &self.names.names[number as usize]
    }

    pub(crate) fn names(&self) -> usize {
        self.names.names.len()
    }

    pub(crate) fn sort(&mut self) {
        if !std::mem::replace(&mut self.sorted, true) {
            self.entries.sort_by_key(|entry| entry.t);
        }
    }

    fn event(&self, entry: &Entry) -> Event {
        let Entry { t, f, d, v, p, c, k, n, e, m } = *entry;
        Event { t, p, c, k: self.name(k).to_owned(), e, f, d, n: self.name(n).to_owned(), v, m }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut history = History::new();
        history.push(&Event::new(7, Kind::Granted).of(1, 2).key("a\"b").fence(9).deadline(10));
        history.push(&Event::new(3, Kind::Fault).name("failover"));
        history.push(&Event::new(3, Kind::Left).name("locks").value(0));
        history.push(&Event::new(4, Kind::Invoke).mode(Mode::Permits { want: 1, of: 3 }));
        history.push(&Event::new(5, Kind::Invoke).mode(Mode::Shared));
        let mut text = Vec::new();
        history.write(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(
            text.lines().next().unwrap(),
            r#"{"t":3,"e":"fault","n":"failover"}"#,
            "in the order of time, without what is not said"
        );
        let mut again = History::new();
        again.read(&text).unwrap();
        assert!(again.events().eq(history.events()));
        assert_eq!(again.digest(), history.digest());
        again.push(&Event::new(8, Kind::Heal));
        assert_ne!(again.digest(), history.digest());
    }

    #[test]
    fn a_line_cut_off_by_a_death_is_no_error_and_any_other_is() {
        let line = r#"{"t":3,"e":"heal"}"#;
        assert_eq!(History::new().read(&format!("{line}\n{{\"t\":4,\"e\":\"he")), Ok(()));
        let error = History::new().read(&format!("{line}\n{{\"t\":4,\n{line}\n")).unwrap_err();
        assert_eq!(error.line, 2);
        assert!(History::new().read("{\"t\":3,\"e\":\"heal\",\"x\":1}\n").is_err());
    }
}
