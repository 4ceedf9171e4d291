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
