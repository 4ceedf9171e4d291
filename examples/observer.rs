//! What happens to the locks of a client, for logs and metrics: any closure is an observer.
//!
//! ```text
//! cargo run --example observer [URL]
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use distlock::{Client, Error, Event, Key};
use tokio::time::sleep;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url = env::args().nth(1).unwrap_or_else(|| "memory://".to_owned());
    let lost = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&lost);
    let client = Client::builder(distlock::backend(&url).await?)
        .prefix("examples/")
        .ttl(Duration::from_millis(600))
        .observer(move |key: &Key, event: &Event| {
            println!("{key:<18} {event:?}");
            if matches!(event, Event::Lost { .. }) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        })
        .build()?;

    // Renewed once a third of the ttl has passed; a second one waits for it meanwhile.
    let guard = client.mutex("renewed").lock().await?;
    let second = client.mutex("renewed");
    let waiter = tokio::spawn(async move { second.lock().await?.release().await });
    sleep(Duration::from_millis(300)).await;
    guard.release().await?;
    waiter.await.expect("the waiter does not panic")?;

    // Held for longer than allowed, and not renewed at all.
    let kept = client.mutex("kept").max_hold(Duration::from_millis(100)).lock().await?;
    kept.lost().await;
    let lapsed = client.mutex("lapsed").no_renewal().lock().await?;
    lapsed.lost().await;

    client.shutdown().await;
    let lost = lost.load(Ordering::Relaxed);
    println!("{lost} lost");
    assert_eq!(lost, 2);
    Ok(())
}
