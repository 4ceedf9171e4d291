//! What can go wrong on a link, without the driver's types.

use fred::error::{Error, ErrorKind};

/// Why a command has no reply. Never contains a password or an argument.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LinkError {
    /// The link was closed before the command was sent.
    #[error("the link is closed")]
    Closed,
    /// The settings cannot work.
    #[error("invalid configuration: {0}")]
    Config(String),
    /// There is no connection, or it ended before the reply came.
    #[error("no connection: {reason}")]
    Disconnected { reason: String, sent: bool },
    /// The key's slot is being moved to another node.
    #[error("the slot is moving to another node")]
    Moved,
    /// Too many commands wait to be written.
    #[error("too many commands are waiting for the connection")]
    Overloaded,
    /// The server said something that makes no sense.
    #[error("unexpected reply: {0}")]
    Protocol(String),
    /// The server's own error, word for word.
    #[error("{0}")]
    Server(String),
    /// No reply in time.
    #[error("no reply in time")]
    Timeout,
    /// The server shows a certificate that proves nothing.
    #[error("the certificate is not valid: {0}")]
    Untrusted(String),
}

const CERTIFICATE: &str = "InvalidCertificate(";

/// A server that does not know a command quotes its arguments, of which one may be a password or an owner id.
const QUOTE: &str = ", with args beginning with:";

impl LinkError {
    /// What a server says, but for what it quotes of us.
    pub(crate) fn server(text: &str) -> Self {
        Self::Server(text.split_once(QUOTE).map_or(text, |(said, _)| said).to_owned())
    }

    /// The same without these words, whoever brought them in.
    pub(super) fn without(self, secrets: &[&str]) -> Self {
        let hide = |text: String| {
            let secrets = secrets.iter().filter(|secret| !secret.is_empty());
            secrets.fold(text, |text, secret| text.replace(secret, "…"))
        };
        match self {
            Self::Config(text) => Self::Config(hide(text)),
            Self::Disconnected { reason, sent } => {
                Self::Disconnected { reason: hide(reason), sent }
            }
            Self::Server(text) => Self::Server(hide(text)),
            other => other,
        }
    }

    /// Whether the command may have been executed, now or later.
    pub(crate) fn may_have_run(&self) -> bool {
        match self {
            Self::Closed
            | Self::Config(_)
            | Self::Moved
            | Self::Overloaded
            | Self::Untrusted(_) => false,
            Self::Disconnected { sent, .. } => *sent,
            Self::Protocol(_) | Self::Timeout => true,
            // An error that comes from inside a script leaves what the script did before it.
            Self::Server(text) => {
                text.contains("user_script") || text.contains("Error running script")
            }
        }
    }

    /// Nothing that [`Link::run`](super::Link::run) could do would help.
    pub(super) fn is_for_good(&self) -> bool {
        match self {
            Self::Disconnected { .. } | Self::Moved => false,
            _ => !self.is_noscript(),
        }
    }

    pub(super) fn is_noscript(&self) -> bool {
        matches!(self, Self::Server(text) if text.starts_with("NOSCRIPT"))
    }

    /// This error, when an earlier send of the same call may have been executed.
    pub(super) fn ran(self) -> Self {
        match self {
            error if error.may_have_run() => error,
            Self::Disconnected { reason, .. } => Self::Disconnected { reason, sent: true },
            other => Self::Disconnected { reason: other.to_string(), sent: true },
        }
    }

    /// The same trouble, for a command that was not even sent because of it.
    pub(super) fn unsent(self) -> Self {
        match self {
            Self::Disconnected { reason, .. } => Self::Disconnected { reason, sent: false },
            Self::Timeout => {
                Self::Disconnected { reason: "the server does not answer".into(), sent: false }
            }
            other => other,
        }
    }

    /// From an error of a command.
    pub(super) fn in_exchange(error: Error) -> Self {
        let sent = match (error.kind(), error.details()) {
            (ErrorKind::Timeout, _) => return Self::Timeout,
            (ErrorKind::Backpressure, _) => return Self::Overloaded,
            // We allow none, so this is the first one. After MOVED fred has read the new slots.
            (ErrorKind::Routing, "Too many redirections.") => return Self::Moved,
            // Refused by the fail-fast check, or still queued when the connection ended.
            (ErrorKind::Canceled, _) => false,
            (
                ErrorKind::Unknown,
                "Failed to route command."
                | "Client is not initialized."
                | "Failed to send command to router.",
            ) => false,
            _ => true,
        };
        Self::Disconnected { reason: error.details().to_owned(), sent }
    }

    /// From an error while connecting.
    pub(super) fn at_start(error: Error) -> Self {
        let details = error.details();
        // A server's error begins with a word in capitals; fred's own and the system's do not.
        let word = details.split(' ').next().unwrap_or_default();
        let from_server = 1 < word.len() && word.bytes().all(|byte| byte.is_ascii_uppercase());
        match error.kind() {
            ErrorKind::Timeout => Self::Timeout,
            // What rustls says comes in the clothes of an error of the system.
            _ if details.contains(CERTIFICATE) => {
                let why = details.split_once(CERTIFICATE).map_or("", |(_, why)| why);
                Self::Untrusted(why.strip_suffix(") }").unwrap_or(why).to_owned())
            }
            ErrorKind::IO => Self::Disconnected { reason: details.to_owned(), sent: false },
            _ if from_server => Self::server(details),
            ErrorKind::Config => Self::Config(details.to_owned()),
            _ => Self::Disconnected { reason: details.to_owned(), sent: false },
        }
    }
}
