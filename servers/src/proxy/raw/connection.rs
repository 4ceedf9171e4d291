//! One connection through the proxy that knows only bytes.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot,
    },
    time::{Instant, sleep_until},
};

use super::{Connection, Direction, Shared, Ways};
use crate::proxy::{
    Parcel,
    wire::{End, finish, write},
};

/// At most this much is read at once.
const CHUNK: usize = 64 * 1024;

pub(super) async fn serve(listener: TcpListener, upstream: SocketAddr, shared: Arc<Shared>) {
    for id in 0.. {
        let Ok((client, _)) = listener.accept().await else { continue };
        let (end, ended) = oneshot::channel();
        let silent = Arc::new(Ways::default());
        let wanted = shared.note(|state| {
            state.accepted += 1;
            if !state.refuse {
                let silent = Arc::clone(&silent);
                state.connections.insert(id, Connection { end: Some(end), silent });
            }
            !state.refuse
        });
        if wanted {
            let pipe = Pipe { shared: Arc::clone(&shared), silent };
            tokio::spawn(async move {
                pipe.run(client, upstream, ended).await;
                pipe.shared.note(|state| state.connections.remove(&id));
            });
        }
    }
}

struct Pipe {
    shared: Arc<Shared>,
    silent: Arc<Ways<AtomicBool>>,
}

impl Pipe {
    async fn run(
        &self,
        mut client: TcpStream,
        upstream: SocketAddr,
        mut ended: oneshot::Receiver<End>,
    ) {
        let server = tokio::select! {
            server = self.dial(upstream) => server,
            how = &mut ended => return finish(how.ok(), &[&client]),
        };
        let Ok(mut server) = server else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let how = {
            let (from_client, to_client) = client.split();
            let (from_server, to_server) = server.split();
            let both = async {
                tokio::try_join!(
                    self.pass(Direction::ToServer, from_client, to_server),
                    self.pass(Direction::ToClient, from_server, to_client),
                )
            };
            tokio::select! {
                _ = both => None,
                how = &mut ended => how.ok(),
            }
        };
        finish(how, &[&client, &server]);
    }

    async fn dial(&self, upstream: SocketAddr) -> io::Result<TcpStream> {
        // In a black hole not even the handshake passes.
        self.shared.open(Direction::ToServer).await;
        TcpStream::connect(upstream).await
    }

    /// One direction, to its end. An error ends the other too.
    async fn pass(
        &self,
        direction: Direction,
        from: ReadHalf<'_>,
        to: WriteHalf<'_>,
    ) -> io::Result<()> {
        let (parcels, due) = unbounded_channel();
        tokio::try_join!(self.read(direction, from, parcels), self.deliver(direction, due, to))?;
        Ok(())
    }

    async fn read(
        &self,
        direction: Direction,
        mut from: ReadHalf<'_>,
        to: UnboundedSender<Parcel>,
    ) -> io::Result<()> {
        loop {
            let mut bytes = Vec::with_capacity(CHUNK);
            let count = from.read_buf(&mut bytes).await?;
            if count == 0 {
                return Ok(());
            }
            let silent = direction.of(&self.silent).load(Ordering::SeqCst);
            let delay = self.shared.note(|state| {
                *direction.of_mut(&mut state.bytes) += count;
                *direction.of(&state.delay)
            });
            if !silent {
                let _ = to.send((Instant::now() + delay, bytes));
            }
        }
    }

    /// Writes what is due, while the way is open, and the end after it.
    async fn deliver(
        &self,
        direction: Direction,
        mut parcels: UnboundedReceiver<Parcel>,
        mut to: WriteHalf<'_>,
    ) -> io::Result<()> {
        while let Some((at, bytes)) = parcels.recv().await {
            if Duration::ZERO < at.saturating_duration_since(Instant::now()) {
                sleep_until(at).await;
            }
            self.shared.open(direction).await;
            let cut = self.shared.cut(direction, bytes.len());
            let slice = self.shared.state().slice;
            write(&mut to, &bytes[..cut.unwrap_or(bytes.len())], slice).await?;
            if cut.is_some() {
                to.shutdown().await?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        self.shared.open(direction).await;
        to.shutdown().await
    }
}
