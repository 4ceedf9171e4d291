//! The names of a lock's four keys, all in one slot of a cluster.
//!
//! The lock itself is the plain key. The others are `__distlock:<kind>:{<tag>}<key>`: the kind is one letter, the tag has no closing
//! brace, and no lock may have a name with that prefix, so no two names of any two locks are the same.

use std::{borrow::Cow, sync::OnceLock};

use distlock_core::{BackendError, Key};

use crate::{backend::NAME, link::Link, words::Words};

/// What no lock's name may begin with.
pub(crate) const RESERVED: &str = "__distlock:";

/// The channel on which a process is told; its 32 hex digits follow.
pub(crate) const CHANNEL: &str = "__distlock:c:";

const SLOTS: usize = 16_384;

/// The names of a lock's keys.
#[derive(Debug)]
pub(crate) struct Names<'a> {
    key: &'a str,
    tag: Cow<'a, str>,
}

/// The keys that go with a lock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Side {
    /// The last fencing token.
    Fence,
    /// Who waits, in order.
    Line,
    /// What is to be granted to those who wait, and until when they are believed to live.
    Places,
}

impl<'a> Names<'a> {
    /// # Errors
    /// A permanent one when the key has the reserved prefix.
    pub(crate) fn of(key: &'a Key) -> Result<Self, BackendError> {
        let key = key.as_str();
        if key.starts_with(RESERVED) {
            return Err(BackendError::permanent(
                NAME,
                format!("the key `{key}` begins with `{RESERVED}`, which is reserved"),
            ));
        }
        Ok(Self { key, tag: tag(key) })
    }

    /// The slot of all of them.
    pub(crate) fn slot(&self) -> u16 {
        Link::slot(self.key.as_bytes())
    }

    /// Adds the lock's own name.
    pub(crate) fn lock(&self, words: &mut Words) {
        words.push(self.key.as_bytes());
    }

    /// Adds the name of another of its keys.
    pub(crate) fn side(&self, side: Side, words: &mut Words) {
        let kind = match side {
            Side::Fence => "f",
            Side::Line => "q",
            Side::Places => "p",
        };
        words.join(&[RESERVED, kind, ":{", &self.tag, "}", self.key]);
    }

    /// Adds all four.
    pub(crate) fn all(&self, words: &mut Words) {
        self.lock(words);
        self.side(Side::Fence, words);
        self.side(Side::Line, words);
        self.side(Side::Places, words);
    }
}

/// What, as a hash tag, leads to the key's own slot.
fn tag(key: &str) -> Cow<'_, str> {
    let own = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    match own {
        Some(tag) if !tag.is_empty() => Cow::Borrowed(tag),
        _ if !key.contains('}') => Cow::Borrowed(key),
        _ => Cow::Owned(number(Link::slot(key.as_bytes())).to_string()),
    }
}

/// A number whose digits lead to the slot, for keys that cannot stand between braces.
fn number(slot: u16) -> u32 {
    static NUMBERS: OnceLock<Box<[u32]>> = OnceLock::new();
    let numbers = NUMBERS.get_or_init(|| {
        let mut numbers = vec![u32::MAX; SLOTS];
        let mut missing = SLOTS;
        for number in 0.. {
            let entry = &mut numbers[usize::from(Link::slot(number.to_string().as_bytes()))];
            if *entry == u32::MAX {
                *entry = number;
                missing -= 1;
            }
            if missing == 0 {
                break;
            }
        }
        numbers.into()
    });
    numbers[usize::from(slot)]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn names(key: &str) -> Vec<Vec<u8>> {
        let key = Key::new(key).unwrap();
        let mut words = Words::default();
        Names::of(&key).unwrap().all(&mut words);
        words.finish().iter().map(|word| word.to_vec()).collect()
    }

    #[test]
    fn side_keys_read_as_documented() {
        for (key, fence) in [
            ("invoice/42", "__distlock:f:{invoice/42}invoice/42"),
            ("a{b}c", "__distlock:f:{b}a{b}c"),
            ("{{b}}", "__distlock:f:{{b}{{b}}"),
            ("a{b", "__distlock:f:{a{b}a{b"),
        ] {
            assert_eq!(names(key)[1], fence.as_bytes());
        }
    }

    #[test]
    fn the_reserved_prefix_is_refused_by_name() {
        let key = Key::new("__distlock:f:{a}a").unwrap();
        let error = Names::of(&key).unwrap_err();
        assert!(error.to_string().contains("`__distlock:`"), "{error}");
        assert!(!error.is_transient());
    }

    /// The slot by the book, not by the driver: CRC16 (XMODEM) of what stands between the first `{` and the next `}`, if that is something.
    fn slot(key: &[u8]) -> u16 {
        let between = key.iter().position(|&byte| byte == b'{').and_then(|open| {
            let rest = &key[open + 1..];
            rest.iter().position(|&byte| byte == b'}').map(|close| &rest[..close])
        });
        let hashed = between.filter(|tag| !tag.is_empty()).unwrap_or(key);
        let crc = hashed.iter().fold(0_u16, |crc, &byte| {
            (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
                (crc << 1) ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 }
            })
        });
        crc % 16_384
    }

    #[test]
    fn slots_are_those_of_the_book() {
        // From the specification of Redis Cluster, and from a server.
        for (key, expected) in [("123456789", 12_739), ("foo{bar}x", 5061), ("foo", 12_182)] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
            let key = Key::new(key).unwrap();
            assert_eq!(Names::of(&key).unwrap().slot(), expected, "{key}");
        }
    }

    /// Names with all that could be taken for a part of a side key.
    fn name() -> impl Strategy<Value = String> {
        let whole = "[a-z{}/:\\x00]{1024}";
        prop_oneof![
            4 => "[{}a:1]{1,12}",
            2 => "__distloc[k{}]?:?[fqpc]?:?[{}a]{0,6}",
            2 => "\\PC{1,20}",
            1 => "[\\x00-\\x20{}\u{e9}\u{1f512}]{1,20}",
            1 => whole,
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn names_never_collide_and_share_a_slot(
            (one, prefix) in (name(), "[{}a:]{0,3}"), two in name(),
        ) {
            let fits = |key: &str| key.len() <= Key::MAX_LEN && !key.starts_with(RESERVED);
            // Of clients with other prefixes too: what counts is the whole.
            let one = prefix + &one;
            prop_assume!(one != two && fits(&one) && fits(&two));
            let (one, two) = (names(&one), names(&two));
            prop_assert!(one.iter().all(|name| slot(name) == slot(&one[0])), "{:?}", one);
            prop_assert_eq!(slot(&one[0]), Link::slot(&one[0]));
            let all: HashSet<&Vec<u8>> = one.iter().chain(&two).collect();
            prop_assert_eq!(all.len(), 8, "{:?} {:?}", one, two);
            prop_assert!(all.iter().all(|name| !name.starts_with(CHANNEL.as_bytes())));
        }
    }
}
