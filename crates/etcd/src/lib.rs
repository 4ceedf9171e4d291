//! Locks in etcd for [distlock](https://docs.rs/distlock), in one line with those of Go's `clientv3/concurrency` and of `etcdctl lock`.
//!
//! # To build it
//! The driver, `etcd-client`, generates its code with `protoc`: `apt-get install protobuf-compiler libprotobuf-dev` on Debian, `brew install protobuf` on
//! macOS, or any `protoc` whose path is in the environment variable `PROTOC`.
//!
//! # What the server has to be
//! etcd 3.4 or newer; 3.5.23, 3.6.5 or newer to be rid of its known bugs with leases and watches: `docs/guarantees.md` tells which breaks what. A user
//! needs a role with `readwrite` on the range of the keys, and nothing else.

mod backend;
mod config;
mod error;
mod fence;
mod hub;
mod layout;
mod lease;
mod leases;
mod line;
mod members;
mod read;
mod release;
mod renew;
mod request;
mod settle;
mod store;
mod table;
mod upkeep;
mod url;
mod version;
mod writer;

pub use {backend::EtcdBackend, config::EtcdConfig, fence::Fence};
