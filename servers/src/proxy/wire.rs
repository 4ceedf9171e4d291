//! The sockets of a connection: how bytes are written, and how it ends.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::yield_now,
};

/// How a connection ends before its time.
#[derive(Clone, Copy)]
pub(super) enum End {
    Cut,
    Reset,
}

/// Prepares the end. The sockets close when their owner drops them, which is next.
pub(super) fn finish(how: Option<End>, sockets: &[&TcpStream]) {
    if matches!(how, Some(End::Reset)) {
        for socket in sockets {
            #[allow(deprecated, reason = "no linger is no blocking; the new name is too new")]
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
    }
}

/// Writes all of it, in slices of so many bytes if that is not zero.
pub(super) async fn write(
    mut to: impl AsyncWrite + Unpin,
    bytes: &[u8],
    slice: usize,
) -> io::Result<()> {
    if slice == 0 {
        return to.write_all(bytes).await;
    }
    for bytes in bytes.chunks(slice) {
        to.write_all(bytes).await?;
        // The reader may look in between.
        yield_now().await;
    }
    Ok(())
}
