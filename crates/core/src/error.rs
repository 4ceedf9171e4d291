//! What can go wrong, told by what the caller can do about it.

use std::{borrow::Cow, error, fmt, sync::Arc, time::Duration};

use crate::Key;

/// Everything that can go wrong. That somebody else holds a lock is not an error where one does not wait: that is `Ok(None)`.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store could not be reached or refused the request: see [`BackendError::kind`] for whether asking again can help.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The client was shut down.
    #[error("the client is shut down")]
    Closed,
    /// A value is outside its limits. Nothing was sent.
    #[error("{what} {problem}")]
    Invalid {
        /// Which value.
        what: &'static str,
        /// What it is, and what the limit is.
        problem: Cow<'static, str>,
    },
    /// The lock was held and is no more: stop what it protects.
    #[error("lock `{key}` was lost: {reason}")]
    Lost {
        /// The lock.
        key: Key,
        /// Why.
        reason: LossReason,
    },
    /// The client already has as many waiters or locks as it may: shed load, or raise the limit.
    #[error("the client has {limit} {what} already, its limit")]
    Overloaded {
        /// Of what there are too many.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The lock stayed taken for all the attempts that the retry strategy allows.
    #[error("the lock is still held after {attempts} attempts in {waited:?}")]
    RetriesExhausted {
        /// Attempts, the first one too.
        attempts: u32,
        /// How long they took.
        waited: Duration,
    },
    /// The lock stayed taken for the whole wait.
    #[error("the lock is still held after {waited:?}")]
    Timeout {
        /// How long it was.
        waited: Duration,
    },
}

impl Error {
    /// A value outside its limits.
    pub fn invalid(what: &'static str, problem: impl Into<Cow<'static, str>>) -> Self {
        Self::Invalid { what, problem: problem.into() }
    }

    /// Whether the same call may succeed when it is made again later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Backend(error) => error.is_transient(),
            Self::Overloaded { .. } | Self::RetriesExhausted { .. } | Self::Timeout { .. } => true,
            Self::Closed | Self::Invalid { .. } | Self::Lost { .. } => false,
        }
    }
}

/// A failure of a store, with the driver's own error as its source.
#[derive(Clone, Debug)]
pub struct BackendError {
    backend: &'static str,
    kind: ErrorKind,
    message: Cow<'static, str>,
    source: Option<Arc<dyn error::Error + Send + Sync>>,
}

impl BackendError {
    /// A failure of a kind. The message must hold no secrets.
    pub fn new(
        backend: &'static str,
        kind: ErrorKind,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { backend, kind, message: message.into(), source: None }
    }

    /// Something that is not a lock of ours stands at the lock's name.
    pub fn conflict(backend: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(backend, ErrorKind::Conflict, message)
    }

    /// Asking again will not help.
    pub fn permanent(backend: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(backend, ErrorKind::Permanent, message)
    }

    /// Asking again may help.
    pub fn transient(backend: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(backend, ErrorKind::Transient, message)
    }

    /// The same, with what caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// The store's name.
    #[must_use]
    pub const fn backend(&self) -> &'static str {
        self.backend
    }

    /// What kind of failure it is.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether asking again may help.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Transient)
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.backend, self.message)
    }
}

impl error::Error for BackendError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// What can be done about a failure of a store.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "these three are all that a caller can do: mend the data, mend the configuration, ask again"
)]
pub enum ErrorKind {
    /// Something that is not a lock stands at the lock's name. Mend the data.
    Conflict,
    /// The configuration, the rights or the request are wrong. Asking again will not help.
    Permanent,
    /// The store is away, busy or moving. Asking again may help.
    Transient,
}

/// Why a lock was lost.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum LossReason {
    /// Its deadline passed before a renewal was confirmed, or it is not renewed.
    Expired,
    /// The store says that it is not ours any more: deleted, evicted, released by force, or taken.
    Gone,
    /// It was held for as long as [`Mutex::max_hold`](crate::Mutex::max_hold) allows.
    MaxHold,
    /// The guard gave it back.
    Released,
    /// The client was shut down.
    Shutdown,
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "its deadline passed before a renewal was confirmed",
            Self::Gone => "the store no longer has it for us",
            Self::MaxHold => "it was held for as long as allowed",
            Self::Released => "it was released",
            Self::Shutdown => "the client was shut down",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    const WAITED: Duration = Duration::from_secs(3);

    #[test]
    fn an_error_says_whether_asking_again_can_help() {
        let key = Key::new("k").unwrap();
        for (error, again, words) in [
            (BackendError::transient("store", "is away").into(), true, "store: is away"),
            (BackendError::permanent("store", "no").into(), false, "store: no"),
            (BackendError::conflict("store", "a list").into(), false, "store: a list"),
            (Error::Closed, false, "the client is shut down"),
            (Error::invalid("ttl", "is 0"), false, "ttl is 0"),
            (
                Error::Lost { key, reason: LossReason::Gone },
                false,
                "lock `k` was lost: the store no longer has it for us",
            ),
            (
                Error::Overloaded { what: "locks", limit: 7 },
                true,
                "the client has 7 locks already, its limit",
            ),
            (
                Error::RetriesExhausted { attempts: 2, waited: WAITED },
                true,
                "the lock is still held after 2 attempts in 3s",
            ),
            (Error::Timeout { waited: WAITED }, true, "the lock is still held after 3s"),
        ] {
            assert_eq!((error.is_transient(), error.to_string()), (again, words.into()));
        }
    }

    #[test]
    fn a_failure_of_a_store_names_the_store_its_kind_and_its_cause() {
        for (error, kind) in [
            (BackendError::conflict("store", "no"), ErrorKind::Conflict),
            (BackendError::permanent("store", "no"), ErrorKind::Permanent),
            (BackendError::transient("store", "no"), ErrorKind::Transient),
        ] {
            assert_eq!((error.backend(), error.kind()), ("store", kind));
            assert!(error.source().is_none());
            let error = error.with_source(fmt::Error);
            assert!(error.source().is_some_and(|source| source.is::<fmt::Error>()));
            assert!(Error::from(error).source().is_some());
        }
    }

    #[test]
    fn a_loss_has_a_reason_of_its_own() {
        use LossReason::{Expired, Gone, MaxHold, Released, Shutdown};

        let reasons = [Expired, Gone, MaxHold, Released, Shutdown].map(|reason| reason.to_string());
        let mut words: Vec<_> = reasons.iter().filter(|words| !words.is_empty()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), reasons.len());
    }
}
