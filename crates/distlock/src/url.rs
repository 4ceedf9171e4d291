//! Choosing a store by URL.

use distlock_core::{AnyBackend, Client, Error};

/// A client of the store that the URL names, with the defaults.
///
/// | URL | store | feature |
/// |---|---|---|
/// | `memory://`, `memory://name` | this process's own; the same for the same name | `memory` |
/// | `etcd://host:2379,host:2379`, `etcds://…` | etcd, see `distlock-etcd` | `etcd`, `etcd-tls` |
/// | `redis://`, `rediss://`, `redis+unix://`, `redis-cluster://`, `redis-sentinel://` … | Redis, see `distlock-redis` | `redis`, `redis-tls` |
///
/// # Errors
/// [`Error::Invalid`] for a scheme that is not known, or whose feature is not on: it names the feature. [`Error::Backend`] when
/// the store cannot be reached. The URL itself is in no error, as it may hold a password.
///
/// # Cancel safety
/// Dropping the future closes what was opened.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), distlock::Error> {
/// let client = distlock::connect("memory://").await?;
/// let guard = client.mutex("invoice/42").lock().await?;
/// guard.release().await?;
/// # Ok(()) }
/// ```
pub async fn connect(url: &str) -> Result<Client, Error> {
    Ok(Client::new(backend(url).await?))
}

/// The store that the URL names, for a [`Client::builder`] of one's own. See [`connect`].
///
/// # Errors
/// As [`connect`].
///
/// # Cancel safety
/// As [`connect`].
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), distlock::Error> {
/// let backend = distlock::backend("memory://").await?;
/// let client = distlock::Client::builder(backend).prefix("billing/").build()?;
/// assert_eq!(client.mutex("invoice/42").key(), "billing/invoice/42");
/// # Ok(()) }
/// ```
pub async fn backend(url: &str) -> Result<AnyBackend, Error> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(Error::invalid("store URL", "has no `scheme://` at its start"));
    };
    match scheme {
        "etcd" | "etcds" => etcd(url).await,
        "memory" => memory(rest),
        _ if scheme.starts_with("redis") => redis(url).await,
        _ if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) => {
            let problem = format!("has the scheme `{scheme}`, known are {SCHEMES}");
            Err(Error::invalid("store URL", problem))
        }
        // There may be a user and a password before it.
        _ => Err(Error::invalid("store URL", format!("has no scheme, known are {SCHEMES}"))),
    }
}

const SCHEMES: &str = "etcd, etcds, memory, redis, rediss, redis+unix, redis-cluster, rediss-cluster, redis-sentinel, rediss-sentinel";

#[cfg(feature = "etcd")]
async fn etcd(url: &str) -> Result<AnyBackend, Error> {
    Ok(AnyBackend::new(distlock_etcd::EtcdBackend::connect(url).await?))
}

#[cfg(not(feature = "etcd"))]
#[allow(clippy::unused_async, reason = "its twin with the feature connects")]
async fn etcd(_: &str) -> Result<AnyBackend, Error> {
    Err(missing("etcd"))
}

#[cfg(feature = "memory")]
fn memory(name: &str) -> Result<AnyBackend, Error> {
    Ok(AnyBackend::new(distlock_memory::MemoryBackend::named(name.trim_end_matches('/'))))
}

#[cfg(not(feature = "memory"))]
fn memory(_: &str) -> Result<AnyBackend, Error> {
    Err(missing("memory"))
}

#[cfg(feature = "redis")]
async fn redis(url: &str) -> Result<AnyBackend, Error> {
    Ok(AnyBackend::new(distlock_redis::RedisBackend::connect(url).await?))
}

#[cfg(not(feature = "redis"))]
#[allow(clippy::unused_async, reason = "its twin with the feature connects")]
async fn redis(_: &str) -> Result<AnyBackend, Error> {
    Err(missing("redis"))
}

#[cfg(not(all(feature = "etcd", feature = "memory", feature = "redis")))]
fn missing(feature: &str) -> Error {
    Error::invalid(
        "store URL",
        format!("needs the feature `{feature}` of the crate distlock, which is off"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn unknown_schemes_are_named_and_known_ones_listed() {
        let error = backend("zookeeper://user:secret@host").await.unwrap_err().to_string();
        assert!(error.contains("`zookeeper`") && error.contains("redis-cluster"), "{error}");
        assert!(!error.contains("secret"), "{error}");
        let error = backend("user:secret@host://x").await.unwrap_err().to_string();
        assert!(error.contains("no scheme") && !error.contains("secret"), "{error}");
        assert!(backend("localhost:6379").await.unwrap_err().to_string().contains("scheme"));
    }

    #[cfg(not(feature = "redis"))]
    #[tokio::test]
    async fn a_missing_feature_is_named() {
        let error = connect("redis://127.0.0.1").await.unwrap_err().to_string();
        assert!(error.contains("feature `redis`"), "{error}");
    }

    #[cfg(not(feature = "etcd"))]
    #[tokio::test]
    async fn the_feature_for_etcd_is_named() {
        let error = connect("etcd://127.0.0.1").await.unwrap_err().to_string();
        assert!(error.contains("feature `etcd`"), "{error}");
    }

    #[cfg(feature = "memory")]
    #[tokio::test]
    async fn the_same_name_is_the_same_store() {
        let one = connect("memory://same").await.unwrap();
        let other = connect("memory://same/").await.unwrap();
        let third = connect("memory://third").await.unwrap();
        let _guard = one.mutex("a").lock().await.unwrap();
        assert!(other.mutex("a").try_lock().await.unwrap().is_none());
        assert!(third.mutex("a").try_lock().await.unwrap().is_some());
    }
}
