//! What stands in etcd: the names of keys, and their values.
//!
//! A lock called `name` is the keys right under `<prefix><name>/`. Each contender has one of its own, `<mode><owner id>`, and the order of their create revisions
//! is the line. Names are literal, so that Go's `clientv3/concurrency` and `etcdctl lock`, whose keys are `<name>/<lease id>`, stand in the same
//! line; keys with a further slash belong to the lock of a longer name.

use std::time::Duration;

use distlock_core::{Key, Mode, Owner};

/// The part of a contender's key behind the lock's name.
pub(crate) type Nonce = Box<[u8]>;

/// The start of all keys of a lock.
pub(crate) fn line(prefix: &str, key: &Key) -> String {
    [prefix, key.as_str(), "/"].concat()
}

/// The end of a contender's own key. No lease id of another library looks like it: those have 16 digits at most.
pub(crate) fn nonce(mode: Mode, owner: Owner) -> String {
    match mode {
        Mode::Exclusive => format!("w{owner}"),
        Mode::Permits { want, of } => format!("p{want}.{of}.{owner}"),
        Mode::Shared => format!("r{owner}"),
        // A mode that this store does not declare never gets here; as the strictest it does no harm.
        _ => format!("w{owner}"),
    }
}

/// Reads the end of a key: how its contender wants the lock and, if it is one of ours, who that is. `None` for a key of another lock.
pub(crate) fn contender(nonce: &[u8]) -> Option<(Mode, Option<Owner>)> {
    if nonce.contains(&b'/') {
        return None;
    }
    // What other libraries put there wants the lock alone.
    Some(ours(nonce).map_or((Mode::Exclusive, None), |(mode, owner)| (mode, Some(owner))))
}

fn ours(nonce: &[u8]) -> Option<(Mode, Owner)> {
    let nonce = str::from_utf8(nonce).ok()?;
    let (kind, rest) = nonce.split_at_checked(1)?;
    let (mode, owner) = match kind {
        "w" => (Mode::Exclusive, rest),
        "r" => (Mode::Shared, rest),
        "p" => {
            let mut parts = rest.splitn(3, '.');
            let mut number = || parts.next()?.parse().ok();
            let (want, of) = (number()?, number()?);
            (Mode::Permits { want, of }, parts.next()?)
        }
        _ => return None,
    };
    Some((mode, owner.parse().ok()?))
}

/// What the value of a key says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Words {
    /// For how long it is kept without a renewal.
    pub(crate) ttl: Option<Duration>,
    /// Nobody has it any more: what is left is a minimal hold.
    pub(crate) rests: bool,
    pub(crate) metadata: String,
}

const MARK: &str = "distlock ";
const REST: &str = "distlock rest ";

/// The value of a contender's key: readable with `etcdctl get`.
pub(crate) fn value(ttl: Duration, metadata: &str) -> String {
    format!("{MARK}{}\n{metadata}", millis(ttl))
}

/// The value of what is left of a lock for a minimal hold.
pub(crate) fn resting(rest: Duration) -> String {
    format!("{REST}{}\n", millis(rest))
}

/// Reads a value; of one that is not ours, all is metadata.
pub(crate) fn words(value: &[u8]) -> Words {
    let text = String::from_utf8_lossy(value);
    let read = |mark: &str| {
        let (ttl, metadata) = text.strip_prefix(mark)?.split_once('\n')?;
        Some((Some(Duration::from_millis(ttl.parse().ok()?)), metadata.to_owned()))
    };
    if let Some((ttl, _)) = read(REST) {
        return Words { ttl, rests: true, metadata: String::new() };
    }
    let (ttl, metadata) = read(MARK).unwrap_or_else(|| (None, text.to_string()));
    Words { ttl, rests: false, metadata }
}

fn millis(time: Duration) -> u128 {
    time.as_nanos().div_ceil(1_000_000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWNER: Owner = Owner::new(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

    #[test]
    fn a_nonce_comes_back_as_what_it_was_made_of() {
        for mode in [Mode::Exclusive, Mode::Shared, Mode::Permits { want: 2, of: 30 }] {
            assert_eq!(contender(nonce(mode, OWNER).as_bytes()), Some((mode, Some(OWNER))));
        }
    }

    #[test]
    fn what_others_put_there_wants_the_lock_alone() {
        for nonce in ["694d7c1bd4e3a20f", "", "w", "wait", "r0123", "p1.x.0123", "w\u{e9}"] {
            assert_eq!(contender(nonce.as_bytes()), Some((Mode::Exclusive, None)), "{nonce}");
        }
        assert_eq!(contender(&[0xff]), Some((Mode::Exclusive, None)));
        assert_eq!(contender(b"b/694d7c1bd4e3a20f"), None, "it belongs to a longer name");
    }

    #[test]
    fn values_say_what_was_asked() {
        let said = words(value(Duration::from_micros(1_500_001), "a\nb").as_bytes());
        assert_eq!((said.ttl, &*said.metadata), (Some(Duration::from_millis(1501)), "a\nb"));
        assert!(words(resting(Duration::from_secs(1)).as_bytes()).rests);
        let foreign = Words { ttl: None, rests: false, metadata: "distlock x".into() };
        assert_eq!(words(b"distlock x"), foreign);
    }

    /// Names with all that could be taken for a part of a key.
    fn name() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => "[ab/]{1,6}",
            2 => "[a/]{1,2}/[wrp][0-9a-f]{32}(/[ab]?)?",
            2 => "\\PC{1,20}",
            1 => "[\\x00-\\x20/\u{e9}\u{1f512}]{1,20}",
            1 => "[ab/\\x00]{1024}",
        ]
    }

    fn mode() -> impl Strategy<Value = Mode> {
        prop_oneof![
            Just(Mode::Exclusive),
            Just(Mode::Shared),
            (any::<u32>(), any::<u32>()).prop_map(|(want, of)| Mode::Permits { want, of }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn no_two_locks_share_a_key_and_none_counts_for_another(
            (a, b) in (name(), name()), (one, two) in (mode(), mode()), id in any::<u128>(), prefix in "[ab/]{0,3}",
        ) {
            let line = |name: &str| line(&prefix, &Key::new(name).unwrap());
            let own = |name: &str, mode| line(name) + &nonce(mode, Owner::new(id));
            prop_assert_eq!(own(&a, one) == own(&b, two), a == b && one == two);
            // A key counts for no lock but its own.
            let own = own(&a, one);
            let told = own.strip_prefix(&line(&b)).and_then(|nonce| contender(nonce.as_bytes()));
            prop_assert_eq!(told, (a == b).then_some((one, Some(Owner::new(id)))));
        }

        #[test]
        fn what_is_written_is_read_again(
            metadata in "(distlock (rest )?[0-9]{0,3}\n)?[\\PC\\x00\\n]{0,40}", ns in any::<u64>(),
        ) {
            let ttl = Duration::from_nanos(ns);
            let said = words(value(ttl, &metadata).as_bytes());
            prop_assert_eq!(&said.metadata, &metadata);
            prop_assert!(!said.rests && said.ttl.is_some_and(|read| ttl <= read && read - ttl < Duration::from_millis(1)));
        }

        #[test]
        fn no_key_or_value_whatsoever_makes_us_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
            text in "(distlock (rest )?)?[0-9]{0,25}\n?[a-z]{0,3}|[wrp][0-9a-f.]{0,50}",
        ) {
            let _ = (contender(&bytes), words(&bytes));
            let _ = (contender(text.as_bytes()), words(text.as_bytes()));
        }
    }
}
