//! Free ports, and waiting for something to become true.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    io,
    net::TcpListener,
    pin::pin,
    thread,
    time::Duration,
};

use tokio::time::sleep;

/// Below the range from which Linux (32768) and macOS (49152) take the ports of outgoing
/// connections. A client that keeps dialing a stopped server on a port of that range can end up
/// connected to itself, and then holds the port when the server comes back.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

const POLL: Duration = Duration::from_millis(5);

/// A TCP port of 127.0.0.1 that nobody listens on.
///
/// Somebody else may take it before the caller does, so the caller tries again with another one
/// when its server cannot bind.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if none of a hundred random ports was free.
pub fn free_port() -> io::Result<u16> {
    let width = u64::from(PORTS.end - PORTS.start);
    for _ in 0..100 {
        // Each `RandomState` has keys of its own: a random number without a dependency.
        let offset = RandomState::new().build_hasher().finish() % width;
        let port = PORTS.start + u16::try_from(offset).expect("the range fits u16");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, format!("no free port in {PORTS:?}")))
}

/// Polls `ready` until it is true.
///
/// # Errors
/// What `ready` failed with, or [`io::ErrorKind::TimedOut`] naming `what` after about `limit`.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> io::Result<bool>,
) -> io::Result<()> {
    let mut waited = Duration::ZERO;
    while !ready()? {
        if limit <= waited {
            let message = format!("{what}: not within {limit:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        thread::sleep(POLL);
        waited += POLL;
    }
    Ok(())
}

/// The outcome of a future, unless it takes longer than this while the process runs: a stretch in which the machine does other things counts as one tick.
pub async fn in_time<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    const TICK: Duration = Duration::from_millis(20);
    let mut future = pin!(future);
    for _ in 0..limit.as_millis() / TICK.as_millis() {
        tokio::select! {
            biased;
            outcome = &mut future => return Some(outcome),
            () = sleep(TICK) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_bound() {
        let port = free_port().unwrap();
        assert!(PORTS.contains(&port));
        TcpListener::bind(("127.0.0.1", port)).unwrap();
    }

    #[test]
    fn waiting_ends_with_what_it_waited_for() {
        let mut calls = 0;
        wait_until("three calls", Duration::from_secs(5), || {
            calls += 1;
            Ok(calls == 3)
        })
        .unwrap();
        assert_eq!(calls, 3);
        let error = wait_until("never", Duration::ZERO, || Ok(false)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("never"));
    }
}
