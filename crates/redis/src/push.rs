//! What is said on the channel of a process.

use std::time::Duration;

use distlock_core::Owner;

use crate::script::Grant;

/// A message about one owner.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Push<'a> {
    pub(crate) owner: Owner,
    pub(crate) what: Pushed<'a>,
}

#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Pushed<'a> {
    /// It has the lock, since this time of the server, in microseconds.
    Granted { server: i64, grant: Grant, key: &'a str },
    /// Somebody waits for what it holds.
    Contended,
    /// It is at the head of the line, and the lock stays taken for a known rest.
    Hold,
    /// Its lock was taken from it.
    Lost,
}

impl<'a> Push<'a> {
    /// `None`: nobody of ours wrote it.
    pub(crate) fn read(message: &'a [u8]) -> Option<Self> {
        let message = str::from_utf8(message).ok()?;
        let (kind, rest) = message.split_once(':')?;
        let (owner, rest) = rest.split_at_checked(32)?;
        let what = match (kind, rest) {
            ("c", "") => Pushed::Contended,
            ("h", "") => Pushed::Hold,
            ("l", "") => Pushed::Lost,
            ("g", rest) => granted(rest.strip_prefix(':')?)?,
            _ => return None,
        };
        Some(Self { owner: owner.parse().ok()?, what })
    }
}

/// `<server's time>:<first token>:<last token>:<ttl>:<how many wait>:<key>`
fn granted(text: &str) -> Option<Pushed<'_>> {
    let mut parts = text.splitn(6, ':');
    let mut number = || parts.next()?.parse::<u64>().ok();
    let server = i64::try_from(number()?).ok()?;
    let (first, last) = (number()?, number()?);
    let ttl = Duration::from_millis(number()?);
    let awaited = number()? > 0;
    Some(Pushed::Granted { server, grant: Grant { first, last, ttl, awaited }, key: parts.next()? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWNER: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn messages_are_read() {
        let owner = OWNER.parse().unwrap();
        let message = format!("g:{OWNER}:1000:7:9:30000:2:a:{{b}}:c");
        let grant = Grant { first: 7, last: 9, ttl: Duration::from_secs(30), awaited: true };
        let what = Pushed::Granted { server: 1000, grant, key: "a:{b}:c" };
        assert_eq!(Push::read(message.as_bytes()), Some(Push { owner, what }));
        let message = message.replace(":2:a", ":0:a");
        let grant = Grant { awaited: false, ..grant };
        let what = Pushed::Granted { server: 1000, grant, key: "a:{b}:c" };
        assert_eq!(Push::read(message.as_bytes()), Some(Push { owner, what }));
        for (kind, what) in [("c", Pushed::Contended), ("h", Pushed::Hold), ("l", Pushed::Lost)] {
            let message = format!("{kind}:{OWNER}");
            assert_eq!(Push::read(message.as_bytes()), Some(Push { owner, what }));
        }
    }

    proptest! {
        #[test]
        fn no_message_whatsoever_makes_us_panic(
            text in "[gchl]?:?[0-9a-f]{0,40}(:[0-9]{0,22}){0,6}(:\\PC{0,4})?",
            bytes in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let _ = Push::read(text.as_bytes());
            let _ = Push::read(&bytes);
        }
    }
}
