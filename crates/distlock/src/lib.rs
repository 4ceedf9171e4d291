#![doc = include_str!("../../../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod url;

pub use distlock_core::*;
/// The etcd store.
#[cfg(feature = "etcd")]
pub use distlock_etcd as etcd;
/// The in-process store.
#[cfg(feature = "memory")]
pub use distlock_memory as memory;
/// The Redis store.
#[cfg(feature = "redis")]
pub use distlock_redis as redis;

pub use self::url::{backend, connect};

/// The process-wide client, if [`set_global`] was called.
#[must_use]
pub fn global() -> Option<&'static Client> {
    Client::global()
}

/// Makes a client the process-wide one. Once only.
///
/// # Errors
/// [`Error::Invalid`] when there is one already.
pub fn set_global(client: Client) -> Result<(), Error> {
    client.set_global()
}
