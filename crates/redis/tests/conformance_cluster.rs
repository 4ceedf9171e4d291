//! The suite that every store runs, on a Redis Cluster.

use std::env;

use distlock_conformance::Setup;
use distlock_redis::RedisBackend;

async fn setup() -> Setup<RedisBackend> {
    match env::var("DISTLOCK_TEST_REDIS_CLUSTER_URL") {
        Ok(url) => Setup::Ready(
            RedisBackend::connect(&url).await.expect("the cluster of the tests answers"),
        ),
        Err(_) => Setup::Absent("set DISTLOCK_TEST_REDIS_CLUSTER_URL, or run `cargo xtask test`"),
    }
}

distlock_conformance::suite!(setup);
