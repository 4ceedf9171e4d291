//! Work that ends when the lock does: `select!` with `lost()`, and a tree of tasks under `lost_token()`.
//!
//! Here an operator takes the lock away by force; a holder that was cut off from the store, or was paused, is told in the same way.
//!
//! ```text
//! cargo run --example lost [URL]
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::{env, time::Duration};

use distlock::Error;
use tokio::time::sleep;

const NAME: &str = "examples/import";

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url = env::args().nth(1).unwrap_or_else(|| "memory://".to_owned());
    let client = distlock::connect(&url).await?;
    let guard = client.mutex(NAME).ttl(Duration::from_secs(3)).lock().await?;

    let lost = guard.lost_token();
    let helper = tokio::spawn(async move {
        lost.cancelled().await;
        println!("helper task: ends with the lock");
    });
    let operator = tokio::spawn(take_away(url));

    tokio::select! {
        reason = guard.lost() => println!("worker: stops, {reason}"),
        () = import() => println!("worker: done"),
    }
    // What was under way cannot be taken back. This is why a write carries the token, and why the resource refuses an old one.
    assert!(!guard.is_held());
    println!("worker: release says {:?}", guard.release().await?);

    operator.await.expect("the operator does not panic")?;
    helper.await.expect("the helper does not panic");
    client.shutdown().await;
    Ok(())
}

async fn import() {
    for row in 1.. {
        println!("worker: imports row {row}");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn take_away(url: String) -> Result<(), Error> {
    let client = distlock::connect(&url).await?;
    sleep(Duration::from_millis(350)).await;
    let had = client.force_release(NAME).await?;
    println!("operator: took the lock away by force: {had}");
    client.shutdown().await;
    Ok(())
}
