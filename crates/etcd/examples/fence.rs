//! A holder that was too slow writes nothing: etcd itself refuses its transaction.
//!
//! Whatever a lock does, its holder may stand still at any moment, and go on when the lock has long passed to somebody else. What it writes into etcd is
//! safe all the same, if each of its transactions has a condition: that its key is there, as it was when it was granted the lock.
//!
//! ```text
//! cargo run -p distlock-etcd --example fence [URL]
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::{env, error::Error};

use distlock_core::{Client, Guard};
use distlock_etcd::EtcdBackend;
use etcd_client::{Txn, TxnOp};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::args().nth(1).unwrap_or_else(|| "etcd://127.0.0.1:2379".to_owned());
    let etcd = {
        let hosts = url.trim_start_matches("etcd://").trim_end_matches('/');
        etcd_client::Client::connect(hosts.split(',').collect::<Vec<_>>(), None).await?
    };
    let (slow, quick) = (Machine::new(&url, &etcd).await?, Machine::new(&url, &etcd).await?);

    let stale = slow.locks.mutex("example/report").lock().await?;
    check(slow.write(&stale, "by the slow one").await?, "the holder writes")?;

    // It stands still, and its lease runs out. That takes long, so here its lock is taken away.
    check(quick.locks.force_release("example/report").await?, "it was held")?;
    let fresh = quick.locks.mutex("example/report").lock().await?;
    check(quick.write(&fresh, "by the quick one").await?, "the new holder writes")?;

    // It goes on, and has not looked at its guard.
    check(!slow.write(&stale, "too late").await?, "what comes too late is refused")?;
    println!(
        "the slow one was refused: {} is not {}",
        stale.fencing_token(),
        fresh.fencing_token()
    );
    let mut etcd = etcd.clone();
    let found = etcd.get("example/report", None).await?;
    let found = found.kvs().first().map(|kv| kv.value_str().map(str::to_owned)).transpose()?;
    check(found.as_deref() == Some("by the quick one"), "nothing was overwritten")?;

    fresh.release().await?;
    etcd.delete("example/report", None).await?;
    Ok(())
}

/// One of the machines that write the report.
struct Machine {
    backend: EtcdBackend,
    locks: Client,
    etcd: etcd_client::Client,
}

impl Machine {
    async fn new(url: &str, etcd: &etcd_client::Client) -> Result<Self, Box<dyn Error>> {
        let backend = EtcdBackend::connect(url).await?;
        Ok(Self { locks: Client::new(backend.clone()), backend, etcd: etcd.clone() })
    }

    /// Writes the report, if the lock is still held. Whether it was, etcd says.
    async fn write(&self, guard: &Guard, report: &str) -> Result<bool, Box<dyn Error>> {
        let txn = Txn::new().when([self.backend.fence(guard).compare()]).and_then([TxnOp::put(
            "example/report",
            report,
            None,
        )]);
        Ok(self.etcd.clone().txn(txn).await?.succeeded())
    }
}

fn check(so: bool, what: &str) -> Result<(), Box<dyn Error>> {
    if so { Ok(()) } else { Err(format!("it is not so that {what}").into()) }
}
