//! A store like etcd: keys with revisions under leases, and a client that locks by the lowest of them.

mod client;
mod server;

pub(crate) use self::{client::Backend, server::Etcd};
