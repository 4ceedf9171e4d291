//! What a failure means: for the next attempt, and for the caller.

use std::error::Error as _;

use distlock_core::{BackendError, ErrorKind};

use crate::backend::NAME;

/// What can be done about a failure of one request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Remedy {
    /// None: the caller has to hear it.
    Fail(ErrorKind),
    /// A new lease: this one is gone.
    Lease,
    /// A new token, from the same member.
    Login,
    /// Another member. `sent`: this one may have carried it out.
    Move { sent: bool },
    /// The same again, after a pause: the server has too much to do.
    Pause,
}

/// A request that failed, as far as it was tried.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) remedy: Remedy,
    /// A server may have carried it out, or still will.
    pub(crate) ambiguous: bool,
    /// There was no answer at all.
    pub(crate) silent: bool,
    message: String,
}

/// Somebody lacks a right.
const DENIED: &str = "permission denied";

/// What servers and driver say, by words of it, and what is to be done. The first row that fits counts.
const TABLE: &[(&str, Remedy)] = &[
    // In the driver, before anything was sent.
    ("tcp connect error", Remedy::Move { sent: false }),
    ("dns error", Remedy::Move { sent: false }),
    ("Connection refused", Remedy::Move { sent: false }),
    ("invalid peer certificate", Remedy::Fail(ErrorKind::Permanent)),
    ("received fatal alert", Remedy::Fail(ErrorKind::Permanent)),
    ("tls handshake", Remedy::Fail(ErrorKind::Permanent)),
    ("requested lease not found", Remedy::Lease),
    ("lease not found", Remedy::Lease),
    ("invalid auth token", Remedy::Login),
    ("user name is empty", Remedy::Fail(ErrorKind::Permanent)),
    ("revision of auth store is old", Remedy::Login),
    ("authentication failed", Remedy::Fail(ErrorKind::Permanent)),
    ("authentication is not enabled", Remedy::Fail(ErrorKind::Permanent)),
    (DENIED, Remedy::Fail(ErrorKind::Permanent)),
    ("too many requests", Remedy::Pause),
    ("database space exceeded", Remedy::Fail(ErrorKind::Transient)),
    ("too large", Remedy::Fail(ErrorKind::Permanent)),
    ("no leader", Remedy::Move { sent: true }),
    ("leader changed", Remedy::Move { sent: true }),
    ("request timed out", Remedy::Move { sent: true }),
    ("server stopped", Remedy::Move { sent: true }),
    ("learner", Remedy::Move { sent: false }),
];

impl Failure {
    /// Of what the driver says.
    pub(crate) fn new(error: &etcd_client::Error) -> Self {
        let (message, fallback) = describe(error);
        let row = TABLE.iter().find(|(words, _)| message.contains(words));
        let remedy = row.map_or(fallback, |(_, remedy)| *remedy);
        let ambiguous = matches!(remedy, Remedy::Move { sent: true });
        Self { remedy, ambiguous, silent: false, message }
    }

    /// No answer within the time of a request.
    pub(crate) fn timeout() -> Self {
        let message = "no answer in time".to_owned();
        Self { remedy: Remedy::Move { sent: true }, ambiguous: true, silent: true, message }
    }

    /// The backend was closed, or its runtime ended.
    pub(crate) fn closed() -> Self {
        let message = "the backend is closed, or the runtime that it was connected in has ended";
        Self {
            remedy: Remedy::Fail(ErrorKind::Permanent),
            ambiguous: false,
            silent: false,
            message: message.to_owned(),
        }
    }

    /// The server closed a watch, and said why or did not: a compaction has no words.
    pub(crate) fn canceled(reason: &str) -> Self {
        let remedy = TABLE.iter().find(|(words, _)| reason.contains(words));
        let remedy = remedy.map_or(Remedy::Move { sent: true }, |(_, remedy)| *remedy);
        let message = format!("the watch was closed: {reason}");
        Self { remedy, ambiguous: false, silent: false, message }
    }

    /// The server says what no server says.
    pub(crate) fn protocol(message: &str) -> Self {
        Self {
            remedy: Remedy::Fail(ErrorKind::Permanent),
            ambiguous: true,
            silent: false,
            message: format!("the server's answer makes no sense: {message}"),
        }
    }

    pub(crate) fn lease_gone() -> Self {
        let message = "the lease is gone".to_owned();
        Self { remedy: Remedy::Lease, ambiguous: false, silent: false, message }
    }

    /// There is no right to it, which says nothing of what else was asked for at the same time.
    pub(crate) fn is_denied(&self) -> bool {
        self.message.contains(DENIED)
    }

    /// The same, with what a member that closes connections without a word may want.
    pub(crate) fn wanting(mut self, what: &str) -> Self {
        if ["connection closed", "broken pipe", "reset by peer", "received fatal alert"]
            .iter()
            .any(|words| self.message.contains(words))
        {
            self.message = format!("{}; {what}", self.message);
        }
        self
    }

    /// Nothing was sent that changes anything.
    pub(crate) fn harmless(mut self) -> Self {
        self.ambiguous = false;
        self
    }

    /// An earlier attempt of the same request may have been carried out.
    pub(crate) fn after(mut self, ambiguous: bool) -> Self {
        self.ambiguous |= ambiguous;
        self
    }
}

impl From<Failure> for BackendError {
    fn from(failure: Failure) -> Self {
        let kind = match failure.remedy {
            Remedy::Fail(kind) => kind,
            Remedy::Login => ErrorKind::Permanent,
            Remedy::Lease | Remedy::Move { .. } | Remedy::Pause => ErrorKind::Transient,
        };
        Self::new(NAME, kind, failure.message)
    }
}

/// The whole of what is said, and what it means if no row of the table fits. The driver's own error is not kept: its parts may name what is secret.
fn describe(error: &etcd_client::Error) -> (String, Remedy) {
    use etcd_client::Error as E;
    match error {
        E::GRpcStatus(status) => {
            let mut message = status.message().to_owned();
            let mut cause = status.source();
            while let Some(error) = cause {
                message = format!("{message}: {error}");
                cause = error.source();
            }
            (message, by_code(status.code() as i32))
        }
        E::InvalidArgs(_) | E::InvalidUri(_) | E::InvalidMetadataValue(_) => {
            ("the configuration cannot work".to_owned(), Remedy::Fail(ErrorKind::Permanent))
        }
        E::LeaseKeepAliveError(message) | E::WatchError(message) => {
            (message.clone(), Remedy::Move { sent: true })
        }
        E::TransportError(error) => {
            let mut message = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                message = format!("{message}: {error}");
                cause = error.source();
            }
            (message, Remedy::Move { sent: true })
        }
        _ => ("the driver failed".to_owned(), Remedy::Move { sent: true }),
    }
}

/// By the number of a gRPC status: <https://grpc.io/docs/guides/status-codes/>.
const fn by_code(code: i32) -> Remedy {
    match code {
        // Cancelled, unknown, deadline exceeded, aborted, internal, unavailable, data loss.
        1 | 2 | 4 | 10 | 13 | 14 | 15 => Remedy::Move { sent: true },
        // Resource exhausted.
        8 => Remedy::Pause,
        // Unauthenticated.
        16 => Remedy::Login,
        _ => Remedy::Fail(ErrorKind::Permanent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_say_has_its_class() {
        use ErrorKind::{Permanent, Transient};
        for (words, kind) in [
            // FAULTS G12
            ("etcdserver: mvcc: database space exceeded", Transient),
            ("etcdserver: too many requests", Transient),
            ("etcdserver: requested lease not found", Transient),
            // G4, G5, G6
            ("etcdserver: no leader", Transient),
            ("etcdserver: leader changed", Transient),
            ("etcdserver: request timed out", Transient),
            ("etcdserver: request timed out, possibly due to connection lost", Transient),
            ("etcdserver: server stopped", Transient),
            ("etcdserver: rpc not supported for learner", Transient),
            // G10
            ("etcdserver: permission denied", Permanent),
            ("etcdserver: user name is empty", Permanent),
            ("etcdserver: authentication failed, invalid user ID or password", Permanent),
            ("etcdserver: authentication is not enabled", Permanent),
            // After a new login has not helped either.
            ("etcdserver: invalid auth token", Permanent),
            // G11
            ("etcdserver: request is too large", Permanent),
            // What nobody has heard of.
            ("etcdserver: something new", Transient),
        ] {
            let error = BackendError::from(Failure::canceled(words));
            assert_eq!(error.kind(), kind, "{words}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
