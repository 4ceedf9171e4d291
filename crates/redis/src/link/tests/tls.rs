//! Encrypted connections.

use std::path::PathBuf;

use distlock_servers::redis::RedisTls;

use super::*;
use crate::link::TlsSettings;

fn settings(server: &RedisTls, ca_file: Option<PathBuf>) -> LinkConfig {
    LinkConfig {
        topology: Topology::Standalone(Endpoint::new("localhost", server.server().port())),
        tls: Some(TlsSettings { ca_file }),
        ..config(0)
    }
}

async fn failure(config: LinkConfig) -> LinkError {
    within(Link::connect(config, Arc::new(Ears::default()))).await.unwrap_err()
}

#[tokio::test]
async fn a_trusted_server_is_used_for_commands_and_pushes() {
    let server = RedisTls::start(&[]).unwrap();
    let (link, ears) = connect_whole(settings(&server, Some(server.ca()))).await;
    wait_works(&link).await;
    server.server().command(&["PUBLISH", CHANNEL, "hello"]).unwrap();
    ears.wait_heard(1).await;
}

#[tokio::test]
async fn a_stranger_is_refused() {
    let server = RedisTls::start(&[]).unwrap();
    for ca in [Some(server.other_ca()), None] {
        let error = failure(settings(&server, ca)).await;
        assert!(!error.may_have_run(), "{error:?}");
    }
}

#[tokio::test]
async fn a_missing_file_is_named() {
    let server = RedisTls::start(&[]).unwrap();
    let error = failure(settings(&server, Some("/no/such/file.pem".into()))).await;
    assert!(matches!(error, LinkError::Config(_)), "{error:?}");
    assert!(error.to_string().contains("/no/such/file.pem"), "{error}");
    let empty = server.server().dir().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let error = failure(settings(&server, Some(empty))).await;
    assert!(matches!(error, LinkError::Config(_)), "{error:?}");
}
