//! The suite that every store runs, on three members.

use std::env;

use distlock_conformance::Setup;
use distlock_etcd::EtcdBackend;

async fn setup() -> Setup<EtcdBackend> {
    match env::var("DISTLOCK_TEST_ETCD_CLUSTER_URL") {
        Ok(url) => Setup::Ready(
            EtcdBackend::connect(&url).await.expect("the cluster of the tests answers"),
        ),
        Err(_) => Setup::Absent("set DISTLOCK_TEST_ETCD_CLUSTER_URL, or run `cargo xtask test`"),
    }
}

distlock_conformance::suite!(setup);
