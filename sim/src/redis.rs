//! A store like Redis: the server's side of `distlock-redis`, script by script, and its client's side on top.

mod client;
mod scripts;
mod server;

pub(crate) use self::{client::Backend, server::Redis};
