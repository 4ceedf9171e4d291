//! A request handler that does not wait: 200 when it got the lock, 409 when somebody else has it, 503 when the store is away.
//!
//! ```text
//! cargo run --example web [URL]
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::{env, time::Duration};

use distlock::{Client, Error};
use tokio::time::sleep;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url = env::args().nth(1).unwrap_or_else(|| "memory://".to_owned());
    let client = distlock::connect(&url).await?;

    // A user who clicks twice.
    let (first, second) = tokio::join!(pay(&client, 42), pay(&client, 42));
    show("POST /invoices/42/pay", &first);
    show("POST /invoices/42/pay, again", &second);
    let third = pay(&client, 43).await;
    show("POST /invoices/43/pay", &third);

    client.shutdown().await;
    let late = pay(&client, 42).await;
    show("POST /invoices/42/pay, at shutdown", &late);
    assert_eq!([first.0, second.0, third.0, late.0], [200, 409, 200, 503]);
    Ok(())
}

async fn pay(client: &Client, invoice: u32) -> (u16, String) {
    let mutex = client.mutex(format!("examples/invoice/{invoice}")).ttl(Duration::from_secs(10));
    match mutex.try_lock().await {
        Ok(Some(guard)) => {
            // The token goes with the payment; who comes with an older one is refused there.
            let receipt = charge(invoice, guard.fencing_token().as_u64()).await;
            // The payment is made. A release that fails is tried again in the background.
            let _ = guard.release().await;
            (200, receipt)
        }
        Ok(None) => (409, "this invoice is being paid".to_owned()),
        Err(error) if error.is_transient() || matches!(error, Error::Closed) => {
            (503, format!("try again later: {error}"))
        }
        Err(error) => (500, error.to_string()),
    }
}

async fn charge(invoice: u32, token: u64) -> String {
    sleep(Duration::from_millis(20)).await;
    format!("invoice {invoice} paid, fenced by {token}")
}

fn show(request: &str, (status, body): &(u16, String)) {
    println!("{request:<36} {status}  {body}");
}
