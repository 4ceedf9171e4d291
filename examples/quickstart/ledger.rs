//! The resource that the lock protects: a file with a balance. It refuses who comes late.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use distlock::{FenceGate, FencingToken};

use crate::Result;

/// A folder with the file in it. Several processes may use it.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    folder: PathBuf,
}

/// Who came had a token lower than one that the ledger has seen.
#[derive(Debug)]
pub(crate) struct Refused {
    /// The highest it has seen.
    pub(crate) highest: FencingToken,
}

/// What the file says.
#[derive(Debug)]
pub(crate) struct Page {
    /// The highest token that has come to the ledger.
    highest: FencingToken,
    pub(crate) balance: u64,
    /// Who made the entries, in their order.
    pub(crate) entries: Vec<String>,
}

impl Ledger {
    /// Opens a new one, with nothing in it.
    pub(crate) fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let ledger = Self::at(folder);
        ledger.store(&Page { highest: FencingToken::NONE, balance: 0, entries: Vec::new() })?;
        Ok(ledger)
    }

    /// The one in this folder.
    pub(crate) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The balance. Reading counts as coming, too: whoever comes later with a lower token is refused.
    pub(crate) fn balance(&self, token: FencingToken) -> Result<Result<u64, Refused>> {
        self.enter(token, |page| page.balance)
    }

    /// Enters a new balance.
    pub(crate) fn write(
        &self,
        token: FencingToken,
        who: &str,
        balance: u64,
    ) -> Result<Result<(), Refused>> {
        self.enter(token, |page| {
            page.balance = balance;
            page.entries.push(who.to_owned());
        })
    }

    /// The highest token that has come so far.
    pub(crate) fn highest(&self) -> Result<FencingToken> {
        Ok(self.load()?.highest)
    }

    /// What the file says.
    pub(crate) fn load(&self) -> Result<Page> {
        let text = fs::read_to_string(self.folder.join("ledger"))?;
        Page::parse(&text).ok_or_else(|| format!("the ledger is damaged: {text:?}").into())
    }

    /// Asks the gate and does something in one step: otherwise a late writer would slip in between.
    fn enter<T>(
        &self,
        token: FencingToken,
        something: impl FnOnce(&mut Page) -> T,
    ) -> Result<Result<T, Refused>> {
        let _latch = Latch::close(self.folder.join("latch"))?;
        let mut page = self.load()?;
        // The gate is as old as the data: what it has seen is stored with them.
        let gate = FenceGate::starting_at(page.highest);
        if !gate.admit(token) {
            return Ok(Err(Refused { highest: page.highest }));
        }
        page.highest = gate.highest();
        let value = something(&mut page);
        self.store(&page)?;
        Ok(Ok(value))
    }

    fn store(&self, page: &Page) -> Result {
        let draft = self.folder.join("draft");
        fs::write(&draft, page.to_text())?;
        Ok(fs::rename(draft, self.folder.join("ledger"))?)
    }
}

impl Page {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let highest = FencingToken::new(words.next()?.parse().ok()?);
        let balance = words.next()?.parse().ok()?;
        Some(Self { highest, balance, entries: words.map(str::to_owned).collect() })
    }

    fn to_text(&self) -> String {
        format!("{} {} {}\n", self.highest, self.balance, self.entries.join(" "))
    }
}

/// Makes a step on the file atomic, for microseconds, as a transaction does in a database. It exists while its file does.
struct Latch(PathBuf);

impl Latch {
    fn close(path: PathBuf) -> Result<Self> {
        for _ in 0..10_000 {
            match fs::OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(_) => return Ok(Self(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(format!("{} stays closed", path.display()).into())
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        // An error here shows as a latch that stays closed.
        let _ = fs::remove_file(&self.0);
    }
}
