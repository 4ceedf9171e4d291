//! Encryption that cannot be trusted is an error that says so, in bounded time.
#![cfg(feature = "tls")]

mod common;

use common::{ms, server};
use distlock_core::{BackendError, ErrorKind};
use distlock_redis::{RedisBackend, RedisConfig};
use distlock_servers::{
    net::in_time,
    redis::{Flaw, RedisTls},
};

/// How connecting fails; it may take as long as was allowed.
async fn refused(config: RedisConfig) -> BackendError {
    let limit = ms(2000);
    let connecting = RedisBackend::connect_with(config.password("hunter2").connect_timeout(limit));
    let failed = in_time(limit * 2, connecting).await.expect("it gives up");
    let error = failed.expect_err("it must not get in");
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    let shown = format!("{error} {error:?} {cause:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    error
}

#[tokio::test]
async fn a_certificate_that_cannot_be_trusted_is_named() {
    let good = RedisTls::start(&[]).unwrap();
    let expired = RedisTls::flawed(Flaw::Expired).unwrap();
    let other_name = RedisTls::flawed(Flaw::Name).unwrap();
    let at = |tls: &RedisTls| RedisConfig::new("localhost", tls.server().port());
    for (config, words) in [
        (at(&good).ca_file(good.other_ca()), "UnknownIssuer"),
        (at(&good).tls(), "UnknownIssuer"),
        (at(&expired).ca_file(expired.ca()), "Expired"),
        (at(&other_name).ca_file(other_name.ca()), "elsewhere.example"),
    ] {
        let error = refused(config).await;
        assert_eq!(error.kind(), ErrorKind::Permanent, "{words}: {error}");
        let told = error.to_string();
        assert!(told.contains("certificate cannot be trusted") && told.contains(words), "{told}");
    }
}

#[tokio::test]
async fn speaking_in_the_clear_where_nobody_understands_it_is_an_error() {
    let tls = RedisTls::start(&[]).unwrap();
    let plain = server();
    let error = refused(RedisConfig::new("localhost", tls.server().port())).await;
    assert!(error.to_string().contains("`rediss`"), "{error}");
    let error = refused(RedisConfig::new("127.0.0.1", plain.port()).ca_file(tls.ca())).await;
    assert!(error.to_string().contains("no TLS"), "{error}");
}
