//! The scripts, one for each transition, and what they answer.

use std::{borrow::Cow, sync::LazyLock, time::Duration};

use crate::link::{LinkError, Reply, Script};

pub(crate) static ACQUIRE: LazyLock<Script> =
    LazyLock::new(|| load("acquire", include_str!("lua/acquire.lua")));
pub(crate) static CHANGE: LazyLock<Script> =
    LazyLock::new(|| load("change", include_str!("lua/change.lua")));
pub(crate) static INSPECT: LazyLock<Script> =
    LazyLock::new(|| load("inspect", include_str!("lua/inspect.lua")));
pub(crate) static POLL: LazyLock<Script> =
    LazyLock::new(|| load("poll", include_str!("lua/poll.lua")));
pub(crate) static RELEASE: LazyLock<Script> =
    LazyLock::new(|| load("release", include_str!("lua/release.lua")));
pub(crate) static RENEW: LazyLock<Script> =
    LazyLock::new(|| load("renew", include_str!("lua/renew.lua")));

/// Puts the shared functions where the script wants them: after its fast way, which does without.
fn load(name: &str, script: &'static str) -> Script {
    let common = source("common", include_str!("lua/common.lua"));
    Script::new(source(name, script).replace("--@common", &common))
}

/// A script as it was written.
#[cfg(not(mutants))]
const fn source(_: &str, script: &'static str) -> Cow<'static, str> {
    Cow::Borrowed(script)
}

/// A script as `cargo xtask mutants` wants it: what lies in its folder goes before.
#[cfg(mutants)]
fn source(name: &str, script: &'static str) -> Cow<'static, str> {
    let folder = std::env::var_os("DISTLOCK_TEST_SCRIPTS").map(std::path::PathBuf::from);
    let file = folder.map(|folder| folder.join(name).with_extension("lua"));
    let text = file.and_then(|file| std::fs::read_to_string(file).ok());
    text.map_or(Cow::Borrowed(script), Cow::Owned)
}

/// How an owner stands, as a script tells it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Answer {
    Held(Grant),
    /// Somebody else has the lock, and the owner a place in the line.
    Queued {
        lock: Taken,
        rank: u32,
    },
    /// Somebody else has it.
    Busy(Taken),
    /// The owner has nothing.
    Gone,
    /// The request came too late to be carried out.
    Late,
    /// Something that is not a lock stands there.
    Wrong,
}

/// A grant, as it stands in the lock's value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Grant {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) ttl: Duration,
    /// Others stand in line.
    pub(crate) awaited: bool,
}

/// A lock in other hands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Taken {
    /// How long it will stay without a renewal; none: it does not end by itself.
    pub(crate) left: Option<Duration>,
    /// By our protocol, in whatever process.
    pub(crate) ours: bool,
}

impl Answer {
    /// The answer to an acquisition, with the server's time.
    pub(crate) fn acquired(reply: &Reply, ttl: Duration) -> Result<(Self, i64), LinkError> {
        let Reply::Bulk(text) = reply else { return Self::timed(reply) };
        // The common case: held, for the ttl that was asked for.
        let read = || {
            let mut numbers = str::from_utf8(text).ok()?.splitn(3, ':');
            let server = numbers.next()?.parse().ok()?;
            let (first, last) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
            Some((Self::Held(Grant { first, last, ttl, awaited: false }), server))
        };
        read().ok_or_else(|| nonsense(reply))
    }

    /// An answer with the server's time in it.
    pub(crate) fn timed(reply: &Reply) -> Result<(Self, i64), LinkError> {
        let words = array(reply)?;
        let [state, time, rest @ ..] = words else { return Err(nonsense(reply)) };
        Ok((
            Self::read(state, rest).ok_or_else(|| nonsense(reply))?,
            int(time).ok_or_else(|| nonsense(reply))?,
        ))
    }

    /// An answer among others.
    pub(crate) fn plain(reply: &Reply) -> Result<Self, LinkError> {
        let [state, rest @ ..] = array(reply)? else { return Err(nonsense(reply)) };
        Self::read(state, rest).ok_or_else(|| nonsense(reply))
    }

    fn read(state: &Reply, rest: &[Reply]) -> Option<Self> {
        let Reply::Bulk(state) = state else { return None };
        Some(match (&state[..], rest) {
            (b"held", [first, last, ttl, waiting]) => Self::Held(Grant {
                first: natural(first)?,
                last: natural(last)?,
                ttl: millis(ttl)??,
                awaited: int(waiting)? > 0,
            }),
            (b"queued", [left, ours, rank]) => Self::Queued {
                lock: Taken::read(left, ours)?,
                rank: natural(rank)?.try_into().ok()?,
            },
            (b"busy", [left, ours]) => Self::Busy(Taken::read(left, ours)?),
            (b"gone", []) => Self::Gone,
            (b"late", []) => Self::Late,
            (b"wrong", []) => Self::Wrong,
            _ => return None,
        })
    }
}

impl Taken {
    fn read(left: &Reply, ours: &Reply) -> Option<Self> {
        Some(Self { left: millis(left)?, ours: int(ours)? == 1 })
    }

    /// It is not known whether it would ever end.
    pub(crate) const fn is_unending(&self) -> bool {
        self.left.is_none() && !self.ours
    }
}

/// What the renewal of a held lock found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Renewed {
    Held { first: u64, ttl: Duration, awaited: bool },
    Gone,
    Wrong,
}

impl Renewed {
    pub(crate) fn read(reply: &Reply) -> Result<Self, LinkError> {
        match reply {
            Reply::Int(0) => Ok(Self::Gone),
            Reply::Int(-1) => Ok(Self::Wrong),
            reply => Self::held(reply).ok_or_else(|| nonsense(reply)),
        }
    }

    fn held(reply: &Reply) -> Option<Self> {
        let [first, ttl, waiting] = array(reply).ok()? else { return None };
        Some(Self::Held { first: natural(first)?, ttl: millis(ttl)??, awaited: int(waiting)? > 0 })
    }
}

/// The elements of an array.
pub(crate) fn array(reply: &Reply) -> Result<&[Reply], LinkError> {
    match reply {
        Reply::Array(elements) => Ok(elements),
        other => Err(nonsense(other)),
    }
}

/// A number, however it is written.
pub(crate) fn int(reply: &Reply) -> Option<i64> {
    match reply {
        Reply::Int(number) => Some(*number),
        Reply::Bulk(digits) => str::from_utf8(digits).ok()?.parse().ok(),
        _ => None,
    }
}

fn natural(reply: &Reply) -> Option<u64> {
    int(reply)?.try_into().ok()
}

/// A time to live; below zero there is none.
fn millis(reply: &Reply) -> Option<Option<Duration>> {
    int(reply).map(|ms| u64::try_from(ms).ok().map(Duration::from_millis))
}

/// A reply that no script of ours gives. What is in it is not told, for it may be anybody's.
pub(crate) fn nonsense(reply: &Reply) -> LinkError {
    let what = match reply {
        Reply::Array(elements) => {
            return LinkError::Protocol(format!("an array of {}", elements.len()));
        }
        Reply::Bulk(_) => "a string",
        Reply::Error(text) => return LinkError::server(text),
        Reply::Int(_) => "a number",
        Reply::Nil => "nothing",
    };
    LinkError::Protocol(what.to_owned())
}

#[cfg(test)]
mod on_a_server;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::link::Bytes;

    fn bulk(text: &str) -> Reply {
        Reply::Bulk(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn answers_are_read_whether_numbers_come_as_such_or_as_text() {
        let ttl = Duration::from_millis(30_000);
        let grant = Grant { first: 7, last: 9, ttl, awaited: true };
        let reply = vec![
            bulk("held"),
            Reply::Int(5),
            bulk("7"),
            Reply::Int(9),
            bulk("30000"),
            Reply::Int(2),
        ];
        assert_eq!(Answer::timed(&Reply::Array(reply)).unwrap(), (Answer::Held(grant), 5));
        let grant = Grant { awaited: false, ..grant };
        assert_eq!(Answer::acquired(&bulk("5:7:9"), ttl).unwrap(), (Answer::Held(grant), 5));
        let reply = vec![bulk("queued"), Reply::Int(-1), Reply::Int(0), Reply::Int(3)];
        let lock = Taken { left: None, ours: false };
        assert_eq!(Answer::plain(&Reply::Array(reply)).unwrap(), Answer::Queued { lock, rank: 3 });
    }

    fn reply() -> impl Strategy<Value = Reply> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Reply::Int),
            "held|queued|busy|gone|late|[0-9]{0,20}|\\PC{0,8}".prop_map(|text| bulk(&text)),
            Just(Reply::Nil),
        ];
        leaf.prop_recursive(3, 24, 7, |inner| {
            prop::collection::vec(inner, 0..8).prop_map(Reply::Array)
        })
    }

    proptest! {
        #[test]
        fn no_reply_whatsoever_makes_us_panic(reply in reply()) {
            let _ = Answer::timed(&reply);
            let _ = Answer::acquired(&reply, Duration::ZERO);
            let _ = Answer::plain(&reply);
            let _ = Renewed::read(&reply);
        }
    }
}
