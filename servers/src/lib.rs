//! Real lock stores for tests, benchmarks and people.
//!
//! Every server listens on 127.0.0.1 on a free port, works in a temporary folder of its own, and
//! dies with the value that started it. It also dies when the whole process is killed: see
//! [`process`].
//!
//! All calls block for milliseconds to seconds and need no runtime. They are made for tests, which
//! may call them from async code as they are.

mod certificate;
pub mod etcd;
pub mod liar;
pub mod net;
pub mod process;
pub mod proxy;
pub mod redis;
pub mod resp;
