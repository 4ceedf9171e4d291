//! Locks in Redis for [distlock](https://docs.rs/distlock): standalone, Sentinel and Cluster.
//!
//! # What the server has to allow
//! The commands, keys and channels that a user needs are listed in `docs/redis-acl.md`. The eviction policy should be `noeviction`:
//! [`RedisBackend::warnings`] tells of another one.

mod backend;
mod clock;
mod config;
mod error;
mod eviction;
mod keys;
mod link;
mod pace;
mod places;
mod push;
mod renewal;
mod script;
mod store;
mod together;
mod url;
mod words;

pub use {backend::RedisBackend, config::RedisConfig};
