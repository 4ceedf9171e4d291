//! The comparison by which etcd itself refuses a holder that lost its lock.

use std::fmt;

use etcd_client::{Compare, CompareOp};

/// What is true in etcd for as long as a lock is held: that its key exists, with the create revision that it was granted with. When another one has
/// the lock it never is again; the rest of a minimal hold, and hand-overs inside the process, keep the key.
///
/// Put it into the conditions of a transaction ([`Fence::compare`]), and a holder that was too slow writes nothing. Made by
/// [`EtcdBackend::fence`](crate::EtcdBackend::fence). For another client than `etcd-client`, [`key`](Self::key) and
/// [`create_revision`](Self::create_revision) are all that is needed.
#[derive(Clone, Eq, PartialEq)]
pub struct Fence {
    key: String,
    create_revision: i64,
}

impl Fence {
    pub(crate) const fn new(key: String, create_revision: i64) -> Self {
        Self { key, create_revision }
    }

    /// The holder's key. Whoever knows it can delete it, and so take the lock away.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        self.key.as_bytes()
    }

    /// The create revision that it has while the lock is held.
    #[must_use]
    pub const fn create_revision(&self) -> i64 {
        self.create_revision
    }

    /// As a condition of a transaction.
    ///
    /// # Examples
    /// ```no_run
    /// use distlock_etcd::EtcdBackend;
    /// use etcd_client::{Client, Txn, TxnOp};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let backend = EtcdBackend::connect("etcd://127.0.0.1:2379").await?;
    /// let client = distlock_core::Client::new(backend.clone());
    /// let guard = client.mutex("report").lock().await?;
    /// let mut etcd = Client::connect(["127.0.0.1:2379"], None).await?;
    /// let txn = Txn::new()
    ///     .when([backend.fence(&guard).compare()])
    ///     .and_then([TxnOp::put("report", "written by the holder", None)]);
    /// assert!(etcd.txn(txn).await?.succeeded(), "the lock was lost before the write");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn compare(&self) -> Compare {
        Compare::create_revision(self.key(), CompareOp::Equal, self.create_revision)
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key has the owner id in it.
        f.debug_struct("Fence")
            .field("create_revision", &self.create_revision)
            .finish_non_exhaustive()
    }
}
