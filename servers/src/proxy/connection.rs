//! One connection through the proxy: four loops in one task, so that all end together.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::AsyncReadExt,
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot, watch,
    },
    time::{Instant, sleep_until},
};

use super::{
    Fate, Parcel, Shared, frame,
    wire::{End, finish, write},
};

/// Whose reply comes next on one connection.
type Pending = Mutex<VecDeque<Expected>>;

struct Expected {
    /// One, or one per channel of a SUBSCRIBE.
    replies: usize,
    fate: ReplyFate,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ReplyFate {
    Cut,
    CutWithin(usize),
    Discard,
    /// So much later than others.
    Pass(Duration),
    Silence,
}

impl ReplyFate {
    const IN_TIME: Self = Self::Pass(Duration::ZERO);
}

pub(super) async fn serve(listener: TcpListener, upstream: SocketAddr, shared: Arc<Shared>) {
    for id in 0.. {
        let Ok((client, _)) = listener.accept().await else { continue };
        if shared.state().refuse {
            continue;
        }
        let (end, ended) = oneshot::channel();
        shared.state().connections.insert(id, Some(end));
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            connect(client, upstream, id, &shared, ended).await;
            shared.state().connections.remove(&id);
        });
    }
}

async fn connect(
    mut client: TcpStream,
    upstream: SocketAddr,
    id: u64,
    shared: &Shared,
    mut ended: oneshot::Receiver<End>,
) {
    let dial = async {
        // In a black hole not even the handshake passes.
        open(&mut shared.blackhole.subscribe()).await;
        TcpStream::connect(upstream).await
    };
    let server = tokio::select! {
        server = dial => server,
        how = &mut ended => return finish(how.ok(), &[&client]),
    };
    let Ok(mut server) = server else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let how = {
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = server.split();
        let (to_server, for_server) = unbounded_channel();
        let (to_client, for_client) = unbounded_channel();
        let pending = Pending::default();
        let silent = watch::Sender::new(false);
        let requests = Requests { id, shared, pending: &pending, silent: &silent };
        let upward = async {
            tokio::join!(
                requests.forward(client_read, to_server),
                deliver(for_server, server_write, shared),
            );
        };
        let downward = async {
            tokio::join!(
                requests.answer(server_read, to_client),
                deliver(for_client, client_write, shared),
            );
        };
        tokio::select! {
            () = upward => None,
            () = downward => None,
            how = &mut ended => how.ok(),
        }
    };
    finish(how, &[&client, &server]);
}

/// What both directions of a connection share.
struct Requests<'a> {
    id: u64,
    shared: &'a Shared,
    pending: &'a Pending,
    silent: &'a watch::Sender<bool>,
}

impl Requests<'_> {
    /// From the client to the server, until the client goes away or the connection is cut.
    async fn forward(&self, from: ReadHalf<'_>, to: UnboundedSender<Parcel>) {
        let mut frames = Frames::new(from);
        while let Ok(frame) = frames.next().await {
            if *self.silent.borrow() {
                continue;
            }
            let request = frame::strings(&frame);
            let replies = match request.first() {
                Some(name) if name.to_ascii_lowercase().ends_with(b"subscribe") => {
                    (request.len() - 1).max(1)
                }
                _ => 1,
            };
            let (copies, fate) = match self.shared.judge(self.id, request) {
                Fate::CutAfter => (1, ReplyFate::Cut),
                Fate::CutBefore => return,
                Fate::CutReply(bytes) => (1, ReplyFate::CutWithin(bytes)),
                Fate::CutRequest(bytes) => {
                    // What was sent before it is delivered first.
                    let part = frame[..bytes.min(frame.len())].to_vec();
                    let _ = to.send((Instant::now() + self.shared.state().delay_to_server, part));
                    return;
                }
                Fate::Late(duration) => (1, ReplyFate::Pass(duration)),
                Fate::Pass => (1, ReplyFate::IN_TIME),
                Fate::SilenceAfter => (1, ReplyFate::Silence),
                Fate::SilenceBefore => {
                    self.silent.send_replace(true);
                    continue;
                }
                Fate::Twice => (2, ReplyFate::IN_TIME),
            };
            for copy in 0..copies {
                let fate = if copy == 0 { fate } else { ReplyFate::Discard };
                self.pending().push_back(Expected { replies, fate });
                let at = Instant::now() + self.shared.state().delay_to_server;
                let _ = to.send((at, frame.clone()));
            }
        }
    }

    /// From the server to the client, until the server goes away or the connection is cut.
    async fn answer(&self, from: ReadHalf<'_>, to: UnboundedSender<Parcel>) {
        let mut frames = Frames::new(from);
        while let Ok(mut frame) = frames.next().await {
            self.shared.translate(&mut frame);
            let (delay, drop_messages) = {
                let state = self.shared.state();
                (state.delay_to_client, state.drop_messages)
            };
            let fate = match is_message(&frame) {
                true if drop_messages => ReplyFate::Discard,
                true => ReplyFate::IN_TIME,
                false => self.expected(&frame),
            };
            match fate {
                ReplyFate::Cut => return,
                ReplyFate::CutWithin(bytes) => {
                    let part = frame[..bytes.min(frame.len())].to_vec();
                    let _ = to.send((Instant::now() + delay, part));
                    return;
                }
                ReplyFate::Discard => {}
                ReplyFate::Silence => {
                    self.silent.send_replace(true);
                }
                ReplyFate::Pass(_) if *self.silent.borrow() => {}
                ReplyFate::Pass(later) => {
                    let _ = to.send((Instant::now() + delay + later, frame));
                }
            }
        }
    }

    fn expected(&self, frame: &[u8]) -> ReplyFate {
        let mut pending = self.pending();
        let Some(front) = pending.front_mut() else { return ReplyFate::IN_TIME };
        let fate = front.fate;
        // One error refuses all channels of a SUBSCRIBE at once.
        front.replies = if frame[0] == b'-' { 0 } else { front.replies.saturating_sub(1) };
        if front.replies == 0 {
            pending.pop_front();
        }
        fate
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, VecDeque<Expected>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message of a subscription answers no request.
fn is_message(frame: &[u8]) -> bool {
    const HEADS: [&[u8]; 3] = [b"$7\r\nmessage\r\n", b"$8\r\npmessage\r\n", b"$8\r\nsmessage\r\n"];
    let [b'*' | b'>', b'3' | b'4', b'\r', b'\n', head @ ..] = frame else { return false };
    HEADS.iter().any(|start| head.starts_with(start))
}

/// Reads whole frames.
struct Frames<'a> {
    from: ReadHalf<'a>,
    buffer: Vec<u8>,
    /// Of the buffer, what has been returned.
    used: usize,
}

impl<'a> Frames<'a> {
    fn new(from: ReadHalf<'a>) -> Self {
        Self { from, buffer: Vec::new(), used: 0 }
    }

    async fn next(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(length) = frame::length(&self.buffer[self.used..]) {
                let frame = self.buffer[self.used..self.used + length].to_vec();
                self.used += length;
                return Ok(frame);
            }
            self.buffer.drain(..self.used);
            self.used = 0;
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Writes what is due, while the way is open.
async fn deliver(mut parcels: UnboundedReceiver<Parcel>, mut to: WriteHalf<'_>, shared: &Shared) {
    let mut blackhole = shared.blackhole.subscribe();
    while let Some((at, bytes)) = parcels.recv().await {
        if Duration::ZERO < at.saturating_duration_since(Instant::now()) {
            sleep_until(at).await;
        }
        open(&mut blackhole).await;
        let slice = shared.state().slice;
        if write(&mut to, &bytes, slice).await.is_err() {
            return;
        }
    }
}

async fn open(blackhole: &mut watch::Receiver<bool>) {
    let _ = blackhole.wait_for(|on| !on).await;
}
