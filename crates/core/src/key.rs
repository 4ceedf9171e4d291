//! The name of a lock, as the store sees it.

use std::{fmt, sync::Arc};

use crate::Error;

/// The name of a lock, as the store sees it: the client's prefix and the name that the user gave, 1 to 1024 bytes.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key(Arc<str>);

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
        let name = name.into();
        if name.is_empty() {
            return Err(Error::invalid("key", "is empty"));
        }
        if name.len() > Self::MAX_LEN {
            let problem = format!("has {} bytes, the limit is {}", name.len(), Self::MAX_LEN);
            return Err(Error::invalid("key", problem));
        }
        Ok(Self(name))
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
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
