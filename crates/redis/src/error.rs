//! What a failure means for the caller: one table.

use distlock_core::{BackendError, ErrorKind};

use crate::{backend::NAME, link::LinkError};

/// What servers say, by the code that their answer begins with or has inside, and what that means. The first row that fits counts.
const TABLE: &[(&str, ErrorKind, &str)] = &[
    // Inside a script the answer begins with `ERR`, whatever the reason is.
    (
        "can't run this command",
        ErrorKind::Permanent,
        "gives this user no right to a command that the scripts need",
    ),
    (
        "can't publish to the channel",
        ErrorKind::Permanent,
        "gives this user no right to the channel",
    ),
    // The same from Redis 7.2 on, and for channels too.
    (
        "ACL failure in script",
        ErrorKind::Permanent,
        "gives this user no right to a command or a channel that the scripts need",
    ),
    ("NOPERM", ErrorKind::Permanent, "gives this user no right to do this"),
    ("NOAUTH", ErrorKind::Permanent, "wants a password"),
    ("WRONGPASS", ErrorKind::Permanent, "does not accept the user or the password"),
    ("invalid password", ErrorKind::Permanent, "does not accept the password"),
    ("without any password configured", ErrorKind::Permanent, "has no password, but one was given"),
    ("WRONGTYPE", ErrorKind::Conflict, "has something at the lock's name that is not a lock"),
    ("CROSSSLOT", ErrorKind::Permanent, "sees the keys of one lock in several slots"),
    ("LOADING", ErrorKind::Transient, "is loading its data"),
    ("BUSY", ErrorKind::Transient, "is busy with a script"),
    ("UNKILLABLE", ErrorKind::Transient, "is busy with a script that cannot be ended"),
    ("OOM", ErrorKind::Transient, "has no memory left"),
    ("READONLY", ErrorKind::Transient, "is a replica"),
    ("MASTERDOWN", ErrorKind::Transient, "is a replica without its primary"),
    ("NOREPLICAS", ErrorKind::Transient, "has too few replicas to accept writes"),
    ("MISCONF", ErrorKind::Transient, "cannot save its data and refuses writes"),
    ("CLUSTERDOWN", ErrorKind::Transient, "belongs to a cluster that is down"),
    ("TRYAGAIN", ErrorKind::Transient, "is moving the keys of this slot"),
    ("MOVED", ErrorKind::Transient, "has moved the slot"),
    ("ASK", ErrorKind::Transient, "is moving the slot"),
    ("NOSCRIPT", ErrorKind::Transient, "has forgotten the script"),
    ("max number of clients", ErrorKind::Transient, "has too many clients"),
    ("ERR", ErrorKind::Permanent, "refused the request"),
    ("", ErrorKind::Transient, "refused the request"),
];

/// Makes a failure of the link what core and the caller understand.
pub(crate) fn classify(error: LinkError) -> BackendError {
    let (kind, message) = match &error {
        LinkError::Closed => (ErrorKind::Permanent, "the connection was closed by this program"),
        LinkError::Config(_) => (ErrorKind::Permanent, "the configuration cannot work"),
        LinkError::Disconnected { .. } | LinkError::Timeout => {
            (ErrorKind::Transient, message(&error))
        }
        LinkError::Moved => (ErrorKind::Transient, "the slot is moving to another node"),
        LinkError::Overloaded => {
            (ErrorKind::Transient, "too many requests wait for the connection")
        }
        LinkError::Protocol(_) => (ErrorKind::Permanent, "the server's answer makes no sense"),
        LinkError::Server(text) => {
            let (kind, meaning) = refusal(text);
            return BackendError::new(NAME, kind, format!("the server {meaning}: {text}"));
        }
        LinkError::Untrusted(why) => {
            let message = format!("the server's certificate cannot be trusted: {why}");
            return BackendError::permanent(NAME, message);
        }
    };
    match &error {
        LinkError::Closed | LinkError::Moved | LinkError::Overloaded | LinkError::Timeout => {
            BackendError::new(NAME, kind, message)
        }
        _ => BackendError::new(NAME, kind, message).with_source(error),
    }
}

/// As [`classify`], for connecting: whoever speaks TLS and whoever does not understand each other so little that there is no word of it.
pub(crate) fn at_connect(error: LinkError, encrypted: bool) -> BackendError {
    let closed = ["ConnectionReset", "BrokenPipe", "UnexpectedEof", "InvalidMessage"];
    let silent = match &error {
        LinkError::Disconnected { reason, .. } => closed.iter().any(|word| reason.contains(word)),
        LinkError::Timeout => true,
        _ => false,
    };
    if !silent {
        return classify(error);
    }
    let hint = match encrypted {
        true => "it may speak no TLS (`redis` in the place of `rediss`)",
        false => "it may want an encrypted connection (`rediss` in the place of `redis`)",
    };
    let message = format!("{}; {hint}", message(&error));
    BackendError::transient(NAME, message).with_source(error)
}

fn message(error: &LinkError) -> &'static str {
    match error {
        LinkError::Timeout => "the server gave no answer in time",
        _ => "the server cannot be reached",
    }
}

/// Something that is not a lock stands at the lock's name.
pub(crate) fn wrong_type(key: &str) -> BackendError {
    BackendError::conflict(NAME, format!("what stands at `{key}` is not a lock"))
}

/// A lock that another program took and that never ends.
pub(crate) fn unending(key: &str) -> BackendError {
    BackendError::conflict(
        NAME,
        format!("what stands at `{key}` is not ours and has no ttl: it would never end"),
    )
}

fn refusal(text: &str) -> (ErrorKind, &'static str) {
    let row = TABLE.iter().find(|(code, ..)| fits(text, code));
    row.map_or((ErrorKind::Transient, "refused the request"), |&(_, kind, meaning)| (kind, meaning))
}

fn fits(text: &str, code: &str) -> bool {
    // Before Redis 7 the code of an error in a script stands inside, behind the place in the script.
    let inside = text.contains("Error running script");
    if code.contains(|letter: char| letter.is_ascii_lowercase()) {
        text.contains(code)
    } else if inside && code != "ERR" {
        text.split([' ', ':', '-']).any(|word| word == code && !code.is_empty())
    } else {
        code.is_empty() || text.split(' ').next() == Some(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_of_a_server_has_its_class() {
        use ErrorKind::{Conflict, Permanent, Transient};
        for (text, kind) in [
            // E1
            ("LOADING Redis is loading the dataset in memory", Transient),
            // E2
            (
                "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
                Transient,
            ),
            // E3
            (
                "UNKILLABLE Sorry the script already executed write commands against the dataset.",
                Transient,
            ),
            // E4
            ("OOM command not allowed when used memory > 'maxmemory'.", Transient),
            (
                "OOM command not allowed when used memory > 'maxmemory'. script: 6d2d, on @user_script:1.",
                Transient,
            ),
            // E5
            ("READONLY You can't write against a read only replica.", Transient),
            // E6
            (
                "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
                Transient,
            ),
            // E7
            ("NOREPLICAS Not enough good replicas to write.", Transient),
            // E8
            (
                "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
                Transient,
            ),
            // E9
            ("NOAUTH Authentication required.", Permanent),
            ("WRONGPASS invalid username-password pair or user is disabled.", Permanent),
            ("ERR invalid password", Permanent),
            (
                "ERR AUTH <password> called without any password configured for the default user.",
                Permanent,
            ),
            // E10
            ("NOPERM this user has no permissions to run the 'evalsha' command", Permanent),
            // E11
            (
                "NOPERM this user has no permissions to access one of the keys used as arguments",
                Permanent,
            ),
            // E12
            (
                "ERR The user executing the script can't run this command or subcommand script: 6d2d, on @user_script:1.",
                Permanent,
            ),
            (
                "ERR ACL failure in script: User u has no permissions to run the 'pexpire' command script: 6d2d, on @user_script:13.",
                Permanent,
            ),
            // E13
            (
                "ERR The user executing the script can't publish to the channel mentioned in the command script: 6d2d, on @user_script:1.",
                Permanent,
            ),
            // E14
            ("WRONGTYPE Operation against a key holding the wrong kind of value", Conflict),
            (
                "WRONGTYPE Operation against a key holding the wrong kind of value script: 6d2d, on @user_script:9.",
                Conflict,
            ),
            // E15
            ("NOSCRIPT No matching script. Please use EVAL.", Transient),
            // E16
            ("CLUSTERDOWN Hash slot not served", Transient),
            ("MOVED 3999 127.0.0.1:6381", Transient),
            ("ASK 3999 127.0.0.1:6381", Transient),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Transient),
            ("CROSSSLOT Keys in request don't hash to the same slot", Permanent),
            // E19
            ("ERR max number of clients reached", Transient),
            // Redis 6
            (
                "ERR Error running script (call to f_6d2d): @user_script:3: WRONGTYPE Operation against a key holding the wrong kind of value",
                Conflict,
            ),
            (
                "ERR Error running script (call to f_6d2d): @user_script:3: @user_script: 3: -OOM command not allowed",
                Transient,
            ),
            (
                "ERR Error running script (call to f_6d2d): @user_script:3: OOM command not allowed",
                Transient,
            ),
            // What nobody has heard of.
            ("ERR unknown command 'EVALSHA'", Permanent),
            ("SOMETHING new", Transient),
        ] {
            let error = classify(LinkError::Server(text.to_owned()));
            assert_eq!(error.kind(), kind, "{text}");
            assert!(error.to_string().ends_with(text), "{error}");
        }
    }

    #[test]
    fn each_failure_of_the_link_has_its_class() {
        use ErrorKind::{Permanent, Transient};
        let cut = LinkError::Disconnected { reason: "connection reset".to_owned(), sent: true };
        for (error, kind) in [
            (LinkError::Closed, Permanent),
            (LinkError::Config("no host".to_owned()), Permanent),
            (cut, Transient),
            (LinkError::Moved, Transient),
            (LinkError::Overloaded, Transient),
            (LinkError::Protocol("a string".to_owned()), Permanent),
            (LinkError::Timeout, Transient),
            (LinkError::Untrusted("UnknownIssuer".to_owned()), Permanent),
        ] {
            assert_eq!(classify(error.clone()).kind(), kind, "{error}");
        }
    }
}
