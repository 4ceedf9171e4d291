//! The core of distlock: the contract of a store of locks, and the client, mutex and guard on top of it. No driver, no I/O.
//!
//! # For users
//! Take a store's crate (`distlock-memory`, `distlock-redis`), make a [`Client`] of it, and lock a [`Mutex`] by name. The facade crate `distlock` brings
//! all of it together.
//!
//! # For authors of stores
//! Implement [`Backend`], and prove it with the crate `distlock-conformance`.

mod any;
mod backend;
mod claim;
mod client;
mod closing;
mod contender;
mod entropy;
mod error;
mod fence;
mod guard;
mod held;
#[cfg(all(test, shuttle))]
mod interleavings;
mod keeper;
mod key;
mod lease;
mod limits;
mod line;
mod mode;
mod mutex;
mod observer;
mod owner;
mod patience;
mod retry;
#[cfg(feature = "_simulation")]
#[doc(hidden)]
pub mod simulation;
mod sync;
mod tenure;

#[cfg(feature = "tracing")]
pub use observer::TracingObserver;
pub use {
    any::AnyBackend,
    backend::{Backend, Capabilities, Holder, Occupancy, Renewal, Standing},
    claim::Claim,
    client::{Client, ClientBuilder},
    error::{BackendError, Error, ErrorKind, LossReason},
    fence::{FenceGate, FencingToken},
    guard::{Guard, Released},
    key::Key,
    lease::Lease,
    mode::Mode,
    mutex::{Mutex, Report},
    observer::{Event, Observer},
    owner::Owner,
    retry::{Exponential, Jitter, Limit, Linear, NoRetry, RetryStrategy},
};

#[cfg(test)]
mod cancel_tests;
