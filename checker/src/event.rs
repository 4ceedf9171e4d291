//! One line of a history.

use std::{error, fmt};

use serde::{Deserialize, Serialize};

/// One line of a history. Which fields count depends on the [`Kind`].
///
/// A client (`c`) of a process (`p`) does one thing at a time: it asks for a lock, has it, and gives it back.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::exhaustive_structs, reason = "it is a line of a file, made of all its fields")]
pub struct Event {
    /// When, in nanoseconds of a clock that all processes of the history share.
    pub t: u64,
    /// The process; 0 where it is nobody's, as with faults of a server.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub p: u32,
    /// The client in it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub c: u32,
    /// The lock; empty where it is about all of them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub k: String,
    /// What happened.
    pub e: Kind,
    /// The fencing token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f: Option<u64>,
    /// The deadline of the guard, as it says itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d: Option<u64>,
    /// A name: of a fault, of what is left.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub n: String,
    /// A number: of what is left; 1 for a write that was accepted; with a grant or a step, until when the store keeps the lock for this client, where
    /// somebody looked; with a release, until when the lock is to stay taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v: Option<u64>,
    /// How the client wants the lock, where it asks for it.
    #[serde(default, skip_serializing_if = "Mode::is_exclusive")]
    pub m: Mode,
}

/// How a client wants a lock.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "a judge must know each")]
pub enum Mode {
    /// Alone.
    #[default]
    Exclusive,
    /// Some of a number of permits.
    Permits {
        /// How many it wants.
        want: u32,
        /// How many there are.
        of: u32,
    },
    /// Together with others who want the same.
    Shared,
}

/// What happened.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "a judge must know each")]
pub enum Kind {
    /// The client asks for the lock.
    Invoke,
    /// It has the lock, with token `f` and until `d`.
    Granted,
    /// It did not get the lock, and was told so.
    Denied,
    /// It does not know whether it got the lock: an error, or it was cancelled.
    Unknown,
    /// It begins the work that the lock protects.
    Enter,
    /// It is at work, and its guard says that the lock is held, until `d`.
    Step,
    /// It wrote to the resource: `v` is 1 if that was accepted.
    Write,
    /// It ended the work.
    Exit,
    /// It gives the lock back.
    ReleaseInvoke,
    /// It gave the lock back.
    Released,
    /// It was told that it lost the lock.
    Lost,
    /// The process is no more.
    Death,
    /// The process `p` does not run, until it resumes.
    Stall,
    /// The process runs again.
    Resume,
    /// A fault, of name `n`, that can befall the key `k` or all of them.
    Fault,
    /// All faults are over.
    Heal,
    /// Long after everybody is gone, there are `v` of `n` left.
    Left,
    /// Somebody who sees both sides saw that a promise was broken: `n` says which.
    Breach,
}

impl Event {
    /// An event of this kind, with nothing else said.
    #[must_use]
    pub const fn new(t: u64, e: Kind) -> Self {
        let m = Mode::Exclusive;
        Self { t, p: 0, c: 0, k: String::new(), e, f: None, d: None, n: String::new(), v: None, m }
    }

    /// Of this client of this process.
    #[must_use]
    pub const fn of(mut self, p: u32, c: u32) -> Self {
        (self.p, self.c) = (p, c);
        self
    }

    /// About this lock.
    #[must_use]
    pub fn key(mut self, k: impl Into<String>) -> Self {
        self.k = k.into();
        self
    }

    /// With this token.
    #[must_use]
    pub const fn fence(mut self, f: u64) -> Self {
        self.f = Some(f);
        self
    }

    /// With this deadline.
    #[must_use]
    pub const fn deadline(mut self, d: u64) -> Self {
        self.d = Some(d);
        self
    }

    /// With this name.
    #[must_use]
    pub fn name(mut self, n: impl Into<String>) -> Self {
        self.n = n.into();
        self
    }

    /// With this number.
    #[must_use]
    pub const fn value(mut self, v: u64) -> Self {
        self.v = Some(v);
        self
    }

    /// In this mode.
    #[must_use]
    pub const fn mode(mut self, m: Mode) -> Self {
        self.m = m;
        self
    }

    /// Reads a line.
    ///
    /// # Errors
    /// When it is no event; the line number is the caller's to tell.
    pub fn parse(line: &str) -> Result<Self, ParseError> {
        serde_json::from_str(line)
            .map_err(|error| ParseError { line: 1, message: error.to_string() })
    }

    /// The line, without its end.
    #[must_use]
    pub fn to_line(&self) -> String {
        // Numbers, strings and a name: nothing that JSON cannot say.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Mode {
    /// Whether a lock can be held in this mode beside those who hold it in these.
    #[must_use]
    pub fn fits_beside(self, others: impl IntoIterator<Item = Self>) -> bool {
        let mut others = others.into_iter();
        match self {
            Self::Exclusive => others.next().is_none(),
            Self::Permits { want, of } => others
                .try_fold(want, |taken, other| match other {
                    Self::Permits { want, of: same } if same == of => taken.checked_add(want),
                    _ => None,
                })
                .is_some_and(|taken| taken <= of),
            Self::Shared => others.all(|other| other == Self::Shared),
        }
    }

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
    const fn is_exclusive(&self) -> bool {
        matches!(self, Self::Exclusive)
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A line that is no event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ParseError {
    pub(crate) line: usize,
    pub(crate) message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl error::Error for ParseError {}
