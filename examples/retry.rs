//! How long to wait for a lock: the strategies there are, and recipes of one's own.
//!
//! With a store that pushes, the push says when it is our turn; a strategy then bounds how long we wait.
//!
//! ```text
//! cargo run --example retry [URL]
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::{env, iter, time::Duration};

use distlock::{Error, Exponential, Linear, Mutex, NoRetry, RetryStrategy as _};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url = env::args().nth(1).unwrap_or_else(|| "memory://".to_owned());
    let client = distlock::connect(&url).await?;
    let mutex = client.mutex("examples/retry").ttl(Duration::from_secs(5));
    let guard = mutex.lock().await?;

    attempt("NoRetry", &mutex.clone().retry(NoRetry)).await;
    attempt("every 20 ms, 5 times", &mutex.clone().retry(Linear::new(ms(20)).limit(5))).await;
    let exponential = Exponential::new(ms(16), ms(128)).jitter().limit(6);
    attempt("16 to 128 ms with jitter, 6 times", &mutex.clone().retry(exponential)).await;
    // Anything that makes durations is a strategy: an array, a builder of another crate, an iterator.
    attempt("an array", &mutex.clone().retry(|| [ms(5), ms(50)])).await;
    attempt("Fibonacci up to 100 ms", &mutex.clone().retry(fibonacci)).await;

    guard.release().await?;
    let guard = mutex.retry(fibonacci).lock().await?;
    println!("free again: taken with token {}", guard.fencing_token());
    guard.release().await?;
    client.shutdown().await;
    Ok(())
}

/// A recipe: each `lock()` starts it anew.
fn fibonacci() -> impl Iterator<Item = Duration> + Send {
    let numbers = iter::successors(Some((1, 1)), |&(a, b)| Some((b, a + b)));
    numbers.map(|(a, _)| ms(a)).take_while(|delay| *delay <= ms(100))
}

async fn attempt(what: &str, mutex: &Mutex) {
    match mutex.lock().await {
        Err(Error::RetriesExhausted { attempts, waited }) => {
            println!("{what:<35} gave up after {attempts:>2} attempts in {waited:.0?}");
        }
        other => panic!("{what}: somebody has the lock, but the answer is {other:?}"),
    }
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
