//! The libraries, each behind the same few calls. A new one, or another store, is a variant here.

use std::{sync::Arc, time::Duration};

use distkit::{
    DistkitRedisKey,
    lock::{LockOptions, Mutex as DistkitMutex},
};
use distlock_benches::raw;
use distlock_core::Client;
use distlock_redis::RedisBackend;
use redis::aio::ConnectionManager;

use super::contest;

const TTL: Duration = Duration::from_secs(30);

/// Which library, and how it is set up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Library {
    /// The driver alone, with the commands of a lock: the floor of what does not wait.
    Floor,
    /// This library.
    Distlock,
    /// This one, with every waiter in the server's line.
    Strict,
    Rslock,
    /// With its shortest pause between two attempts, in place of 0 to 200 ms.
    RslockEager,
    AsyncRedisLock,
    AsyncRedisLockEager,
    Distkit,
    DistkitEager,
}

/// What an eager one waits between two attempts.
const EAGER: Duration = Duration::from_millis(5);

impl Library {
    pub(crate) const ALL: [Self; 9] = [
        Self::Floor,
        Self::Distlock,
        Self::Strict,
        Self::Rslock,
        Self::RslockEager,
        Self::AsyncRedisLock,
        Self::AsyncRedisLockEager,
        Self::Distkit,
        Self::DistkitEager,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Floor => "driver alone (fred)",
            Self::Distlock => "distlock",
            Self::Strict => "distlock, `cohort_limit(0)`",
            Self::Rslock => "rslock",
            Self::RslockEager => "rslock, 0 to 5 ms",
            Self::AsyncRedisLock => "async-redis-lock",
            Self::AsyncRedisLockEager => "async-redis-lock, 5 ms",
            Self::Distkit => "distkit",
            Self::DistkitEager => "distkit, 5 ms",
        }
    }

    /// Another setting of a library that is there already: no difference where nobody waits.
    pub(crate) const fn is_variant(self) -> bool {
        matches!(
            self,
            Self::Strict | Self::RslockEager | Self::AsyncRedisLockEager | Self::DistkitEager
        )
    }

    pub(crate) const fn waits(self) -> bool {
        !matches!(self, Self::Floor)
    }

    /// What it sends, outside of scripts.
    pub(crate) const fn requests(self) -> &'static [&'static str] {
        match self {
            Self::Rslock | Self::RslockEager | Self::Distkit | Self::DistkitEager => {
                &["set", "evalsha", "eval"]
            }
            _ => &["evalsha", "eval", "fcall"],
        }
    }

    /// A client with a connection of its own, for one key.
    pub(crate) async fn connect(self, url: &str, key: &str) -> Lock {
        match self {
            Self::Floor => {
                let driver = raw::connect(url).await;
                Lock::Floor(Arc::new(raw::Scripts::load(driver, key).await))
            }
            Self::Distlock | Self::Strict => {
                let backend = RedisBackend::connect(url).await.unwrap();
                let builder = Client::builder(backend);
                let limited = if self == Self::Strict { builder.cohort_limit(0) } else { builder };
                Lock::Distlock(limited.build().unwrap().mutex(key))
            }
            Self::Rslock | Self::RslockEager => {
                let mut manager = rslock::LockManager::new(vec![url]);
                if self == Self::RslockEager {
                    manager.set_retry(3, EAGER);
                }
                Lock::Rslock(manager, key.to_owned())
            }
            Self::AsyncRedisLock | Self::AsyncRedisLockEager => {
                let locker = async_redis_lock::Locker::from_redis_url(url).await.unwrap();
                let mut options = async_redis_lock::options::Options::new().timeout(None);
                if self == Self::AsyncRedisLockEager {
                    options = options.retry(EAGER);
                }
                Lock::AsyncRedis(locker, key.to_owned(), options)
            }
            Self::Distkit | Self::DistkitEager => {
                let client = redis::Client::open(url).unwrap();
                let manager = ConnectionManager::new(client).await.unwrap();
                Lock::Distkit(manager, key.to_owned(), self == Self::DistkitEager)
            }
        }
    }
}

/// A lock that can be taken.
#[derive(Clone)]
pub(crate) enum Lock {
    Floor(Arc<raw::Scripts>),
    Distlock(distlock_core::Mutex),
    Rslock(rslock::LockManager, String),
    AsyncRedis(async_redis_lock::Locker, String, async_redis_lock::options::Options),
    Distkit(ConnectionManager, String, bool),
}

/// A lock that is held.
pub(crate) enum Guard {
    Floor(Arc<raw::Scripts>),
    Distlock(distlock_core::Guard),
    Rslock(rslock::LockGuard),
    AsyncRedis(Box<async_redis_lock::Lock>),
    Distkit(distkit::lock::MutexGuard),
}

impl contest::Lock for Lock {
    type Guard = Guard;

    async fn lock(&self) -> Guard {
        match self {
            Self::Floor(scripts) => {
                scripts.acquire().await;
                Guard::Floor(Arc::clone(scripts))
            }
            Self::Distlock(mutex) => Guard::Distlock(mutex.lock().await.unwrap()),
            Self::Rslock(manager, key) => {
                Guard::Rslock(manager.acquire(key.as_str(), TTL).await.unwrap())
            }
            Self::AsyncRedis(locker, key, options) => {
                let lock = locker.acquire_with_options(options, key.as_str()).await.unwrap();
                Guard::AsyncRedis(Box::new(lock))
            }
            Self::Distkit(manager, key, eager) => {
                // One object for each: two that share one have the same owner id, and both hold.
                let key = DistkitRedisKey::new_or_panic(key.clone());
                let options = LockOptions::builder(key, manager.clone());
                let options = if *eager { options.retry_interval(EAGER) } else { options };
                Guard::Distkit(DistkitMutex::new(options.build()).lock().await.unwrap())
            }
        }
    }
}

impl Lock {
    /// Closes what the library would leave open.
    pub(crate) async fn close(self) {
        if let Self::Floor(scripts) = self {
            scripts.close().await;
        }
    }
}

impl contest::Guard for Guard {
    async fn release(self) {
        match self {
            Self::Floor(scripts) => scripts.release().await,
            Self::Distlock(guard) => drop(guard.release().await.unwrap()),
            Self::Rslock(guard) => guard.release().await,
            Self::AsyncRedis(lock) => lock.release().await.unwrap(),
            Self::Distkit(guard) => drop(guard.release().await.unwrap()),
        }
    }
}
