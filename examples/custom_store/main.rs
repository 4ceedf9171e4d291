//! A store of one's own, in under 100 lines, and a client on it.
//!
//! ```text
//! cargo run --example custom_store
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

mod store;

use std::time::Duration;

use distlock_core::{Client, Error};
use store::TableBackend;
use tokio::time::sleep;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let table = TableBackend::default();
    // Two clients, as two processes would have them.
    let (ours, theirs) = (Client::new(table.clone()), Client::new(table));
    let guard = ours.mutex("invoice/42").ttl(Duration::from_secs(1)).lock().await?;
    println!("we have it, with token {}", guard.fencing_token());
    sleep(Duration::from_secs(2)).await;
    assert!(guard.is_held(), "it is renewed");
    assert!(theirs.mutex("invoice/42").try_lock().await?.is_none());
    println!("they do not get it, twice its ttl later");
    let waiter = tokio::spawn(async move { theirs.mutex("invoice/42").lock().await });
    let token = guard.fencing_token();
    guard.release().await?;
    println!("we gave it back");
    let next = waiter.await.expect("nothing panics")?;
    println!("they have it, with token {}", next.fencing_token());
    assert!(token < next.fencing_token());
    next.release().await?;
    Ok(())
}
