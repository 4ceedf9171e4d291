//! Nothing prints a password; fred's own settings do.

use super::*;

#[test]
fn settings_hide_their_passwords() {
    let config = LinkConfig {
        username: Some("alice".into()),
        password: Some("s3cret".into()),
        topology: Topology::Sentinel {
            sentinels: vec![Endpoint::new("host", 1)],
            master: "main".into(),
            username: Some("bob".into()),
            password: Some("s3cret".into()),
        },
        ..config(1)
    };
    for text in [format!("{config:?}"), format!("{config:#?}")] {
        assert!(!text.contains("s3cret"), "{text}");
        for shown in ["alice", "bob", "main", "host"] {
            assert!(text.contains(shown), "{text}");
        }
    }
    assert!(format!("{:?}", config.to_fred().unwrap()).contains("s3cret"), "fred has changed");
}

#[tokio::test]
async fn a_link_hides_its_password() {
    let server = RedisServer::start(&["--requirepass", "s3cret"]).unwrap();
    let config = LinkConfig { password: Some("s3cret".into()), ..config(server.port()) };
    let (link, _ears) = connect(config).await;
    let text = format!("{link:?}");
    assert!(text.contains("Up") && !text.contains("s3cret"), "{text}");
}

/// A server that does not know AUTH quotes what it was told.
#[tokio::test]
async fn a_server_that_quotes_the_password_is_not_quoted() {
    let server = RedisServer::start(&["--rename-command", "AUTH", ""]).unwrap();
    for username in [None, Some("alice".to_owned())] {
        let password = Some("s3cret".to_owned());
        let config = LinkConfig { username, password, ..config(server.port()) };
        let error = within(Link::connect(config, Arc::new(Ears::default()))).await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("unknown command") && !text.contains("s3cret"), "{text}");
    }
}

#[test]
fn what_we_log_in_with_is_in_no_error_however_it_came_there() {
    let text = || "s3cret is not hunter2".to_owned();
    for error in [
        LinkError::Config(text()),
        LinkError::Disconnected { reason: text(), sent: false },
        LinkError::Server(text()),
    ] {
        let text = format!("{:?}", error.without(&["s3cret", "", "hunter2"]));
        assert!(text.contains("… is not …"), "{text}");
    }
    let error = LinkError::server("ERR unknown command 'AUTH', with args beginning with: 's3cret'");
    assert_eq!(error, LinkError::Server("ERR unknown command 'AUTH'".to_owned()));
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let refused = |config: LinkConfig| config.to_fred().unwrap_err();
    let error = refused(LinkConfig { channel: "__keyspace@0__:x".into(), ..config(1) });
    assert!(matches!(error, LinkError::Config(_)), "{error:?}");
    let nobody = Topology::Cluster { seeds: Vec::new() };
    let error = refused(LinkConfig { topology: nobody, ..config(1) });
    assert!(matches!(error, LinkError::Config(_)), "{error:?}");
}

#[cfg(not(feature = "tls"))]
#[test]
fn tls_without_the_feature_is_an_error_that_names_it() {
    let config = LinkConfig { tls: Some(crate::link::TlsSettings::default()), ..config(1) };
    let error = config.to_fred().unwrap_err();
    assert!(error.to_string().contains("feature `tls`"), "{error}");
}
