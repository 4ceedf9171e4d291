//! The name of a lock, as the store sees it.

use std::{
    cmp::Ordering,
    collections::HashMap,
    fmt,
    hash::{BuildHasher as _, BuildHasherDefault, Hash, Hasher, RandomState},
    sync::{Arc, LazyLock},
};

use crate::Error;

/// The name of a lock, as the store sees it: the client's prefix and the name that the user gave, 1 to 1024 bytes.
///
/// It is hashed once, when it is made: with a secret of the process, as users may choose the names.
#[derive(Clone)]
pub struct Key {
    name: Arc<str>,
    hash: u64,
}

impl Key {
    /// The longest key, in bytes.
    pub const MAX_LEN: usize = 1024;

    /// Makes a key of a name.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the name is empty or longer than [`Key::MAX_LEN`] bytes.
    ///
    /// # Examples
    /// ```
    /// use distlock_core::Key;
    ///
    /// assert_eq!(Key::new("invoice/42")?.as_str(), "invoice/42");
    /// assert!(Key::new("").is_err());
    /// # Ok::<(), distlock_core::Error>(())
    /// ```
    pub fn new(name: impl Into<Arc<str>>) -> Result<Self, Error> {
        let key = Self::unchecked(name.into());
        key.check()?;
        Ok(key)
    }

    /// A key that is to be checked before it is used.
    pub(crate) fn unchecked(name: Arc<str>) -> Self {
        static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let hash = SECRET.hash_one(&*name);
        Self { name, hash }
    }

    /// Whether its length is within the limits.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.name.is_empty() {
            return Err(Error::invalid("key", "is empty"));
        }
        if self.name.len() > Self::MAX_LEN {
            let problem = format!("has {} bytes, the limit is {}", self.name.len(), Self::MAX_LEN);
            return Err(Error::invalid("key", problem));
        }
        Ok(())
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.name == other.name
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.name.cmp(&other.name)
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// A map of keys. They are hashed already.
pub(crate) type KeyMap<V> = HashMap<Key, V, BuildHasherDefault<Hashed>>;

/// Takes the hash that a key brings.
#[derive(Default)]
pub(crate) struct Hashed(u64);

impl Hasher for Hashed {
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        // No key comes here.
        for byte in bytes {
            self.0 = self.0.wrapping_mul(31).wrapping_add(u64::from(*byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new(name).unwrap()
    }

    #[test]
    fn a_key_has_1_to_1024_bytes() {
        for (length, right) in [(0, false), (1, true), (1023, true), (1024, true), (1025, false)] {
            assert_eq!(Key::new("x".repeat(length)).is_ok(), right, "{length}");
        }
    }

    #[test]
    fn a_key_is_its_name() {
        assert_eq!(key("a"), key("a"));
        assert_ne!(key("a"), key("b"));
        assert!(key("a") < key("b") && key("b") < key("ba") && key("ba") > key("a"));
        assert_eq!(key("a").cmp(&key("a")), Ordering::Equal);
        let key = key("a\n");
        assert_eq!((key.as_str(), key.as_ref()), ("a\n", "a\n"));
        assert_eq!((key.to_string(), format!("{key:?}")), ("a\n".into(), "\"a\\n\"".into()));
    }

    #[test]
    fn keys_are_spread_in_a_map_and_found_in_it() {
        let hash = |key: &Key| BuildHasherDefault::<Hashed>::default().hash_one(key);
        let map: KeyMap<usize> = (0..100).map(|n| (key(&n.to_string()), n)).collect();
        let mut hashes: Vec<_> = map.keys().map(hash).collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert!(90 < hashes.len(), "{} of 100", hashes.len());
        assert!((0..100).all(|n| map.get(&key(&n.to_string())) == Some(&n)));
    }
}
