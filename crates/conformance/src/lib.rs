//! The test suite that every lock store of distlock runs, ours or not, and faults for any of them.
//!
//! # The suite
//! A store's whole test file:
//! ```
//! use distlock_conformance::Setup;
//! use distlock_memory::MemoryBackend;
//!
//! async fn setup() -> Setup<MemoryBackend> {
//!     Setup::Ready(MemoryBackend::named("conformance"))
//! }
//!
//! distlock_conformance::suite!(setup);
//! # fn main() {}
//! ```
//! It expands to one `#[test]` per case, each on a runtime of its own and with keys of its own, so that all of them can run at once on one server. Two
//! stores of two calls of `setup` must see the same locks, as those of two processes would: cases that need another process
//! call it again.
//!
//! What a store [declares](distlock_core::Capabilities) is what is tested: a case for something that it cannot do says so and passes. A store that is
//! [absent](Setup::Absent) skips all cases, save when the variable `DISTLOCK_REQUIRE_BACKENDS` is `1`: then all fail.
//!
//! # Faults
//! [`Faulty`] wraps any store, and loses, delays, doubles, refuses or hangs its calls by a script or by a seed.
//!
//! # Lies
//! [`survive_lies`] is for a store whose server, or a proxy before it, answers what no server answers.

#![allow(clippy::future_not_send, reason = "a case runs on the thread of its test")]

// Cases are named by what must be so; their list is in `suite.rs`, in one place.
#[doc(hidden)]
pub mod cases;
mod dice;
mod faulty;
mod lies;
mod stage;
mod suite;
mod tools;

#[doc(hidden)]
pub use suite::run;
pub use {
    dice::Dice,
    faulty::{Fault, Faulty, Op, Rates},
    lies::{Told, survive_lies},
    stage::{Setup, Stage},
};
