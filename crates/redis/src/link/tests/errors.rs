//! What each of the driver's errors means for the command.

use fred::error::{Error, ErrorKind};

use super::*;

#[test]
fn an_error_of_a_command_tells_whether_it_may_have_run() {
    let rows = [
        (ErrorKind::Backpressure, "Max in-flight commands reached.", false),
        (ErrorKind::Canceled, "Canceled.", false),
        (ErrorKind::Canceled, "Connection closed unexpectedly.", false),
        (ErrorKind::IO, "Connection closed.", true),
        (ErrorKind::Protocol, "what is this", true),
        (ErrorKind::Routing, "Max attempts reached.", true),
        (ErrorKind::Routing, "Too many redirections.", false),
        (ErrorKind::Timeout, "Request timed out.", true),
        (ErrorKind::Unknown, "Client is not initialized.", false),
        (ErrorKind::Unknown, "Failed to route command.", false),
        (ErrorKind::Unknown, "Too many failed write attempts.", true),
        (ErrorKind::Unknown, "channel closed", true),
    ];
    for (kind, details, expected) in rows {
        let error = LinkError::in_exchange(Error::new(kind.clone(), details));
        assert_eq!(error.may_have_run(), expected, "{kind:?}: {details}");
    }
}

#[test]
fn an_error_of_connecting_is_the_servers_or_not() {
    let server = |text: &str| LinkError::Server(text.to_owned());
    let nobody = |text: &str| LinkError::Disconnected { reason: text.to_owned(), sent: false };
    let rows = [
        (ErrorKind::Auth, "WRONGPASS invalid", server("WRONGPASS invalid")),
        (ErrorKind::Unknown, "LOADING Redis is", server("LOADING Redis is")),
        (ErrorKind::Sentinel, "NOAUTH needed", server("NOAUTH needed")),
        (ErrorKind::Config, "ERR cluster support", server("ERR cluster support")),
        (ErrorKind::Config, "Expected that", LinkError::Config("Expected that".to_owned())),
        (ErrorKind::IO, "Os { code: 111 }", nobody("Os { code: 111 }")),
        (ErrorKind::Sentinel, "Failed to", nobody("Failed to")),
        (ErrorKind::Timeout, "Request timed out.", LinkError::Timeout),
    ];
    for (kind, details, expected) in rows {
        assert_eq!(LinkError::at_start(Error::new(kind, details)), expected);
    }
}

/// A later send that failed before it left does not undo an earlier one.
#[test]
fn what_an_earlier_send_may_have_done_is_not_forgotten() {
    let errors = [
        LinkError::Closed,
        LinkError::Disconnected { reason: "lost".to_owned(), sent: false },
        LinkError::Moved,
        LinkError::Overloaded,
        LinkError::Server("WRONGPASS".to_owned()),
        LinkError::Timeout,
    ];
    for error in errors {
        assert!(error.clone().ran().may_have_run(), "{error:?}");
    }
    assert_eq!(LinkError::Timeout.ran(), LinkError::Timeout);
}
