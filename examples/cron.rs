//! A job on five machines: whoever comes first does it, the others skip it.
//!
//! The job is quick and the machines' clocks differ, so the lock stays taken for a while after it: `min_hold`. Without that, a machine whose
//! clock is behind would find the lock free and do the job once more.
//!
//! ```text
//! cargo run --example cron [URL]
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::{env, time::Duration};

use distlock::Error;
use tokio::{task::JoinSet, time::sleep};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url = env::args().nth(1).unwrap_or_else(|| "memory://".to_owned());
    for night in ["monday", "tuesday"] {
        println!("{night}");
        let mut machines = JoinSet::new();
        for number in 1..=5 {
            machines.spawn(machine(number, url.clone()));
        }
        let done = machines.join_all().await.into_iter().collect::<Result<Vec<bool>, Error>>()?;
        assert_eq!(done.iter().filter(|did_it| **did_it).count(), 1, "it was done once");
        sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

async fn machine(number: u32, url: String) -> Result<bool, Error> {
    let client = distlock::connect(&url).await?;
    // This machine's clock is behind by so much.
    sleep(Duration::from_millis(50) * number).await;
    let mutex = client.mutex("examples/nightly").min_hold(Duration::from_secs(1));
    let report = mutex
        .try_run(async |guard| {
            println!("  machine {number} does the job, with token {}", guard.fencing_token());
            sleep(Duration::from_millis(10)).await;
        })
        .await?;
    match &report {
        Some(report) => println!("  machine {number} is done after {:?}", report.held),
        None => println!("  machine {number} skips it: somebody does it, or just did"),
    }
    client.shutdown().await;
    Ok(report.is_some())
}
