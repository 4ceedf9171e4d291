//! The in-process store of distlock: the reference implementation of the contract, and the test double of every other store.
//!
//! It does all that a store can: exclusive and shared claims and permits, the order of arrival, fencing tokens, hand-over by push. Its only clock
//! is `tokio::time::Instant`, so a test with tokio's paused clock sees leases end at the very millisecond.
//!
//! # Examples
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), distlock_core::Error> {
//! use distlock_core::Client;
//! use distlock_memory::MemoryBackend;
//!
//! let store = MemoryBackend::new();
//! let (ours, theirs) = (Client::new(store.clone()), Client::new(store));
//! let guard = ours.mutex("invoice/42").lock().await?;
//! assert!(theirs.mutex("invoice/42").try_lock().await?.is_none());
//! guard.release().await?;
//! assert!(theirs.mutex("invoice/42").try_lock().await?.is_some());
//! # Ok(()) }
//! ```

mod backend;
mod line;
mod store;

pub use backend::MemoryBackend;
