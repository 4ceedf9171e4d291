//! Lies in the Redis protocol.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::{Chance, Shared};

/// Numbers that are none, or too much, or below what a number can be.
const NUMBERS: &[&[u8]] = &[
    b"0",
    b"1",
    b"-1",
    b"-9223372036854775808",
    b"9223372036854775807",
    b"18446744073709551615",
    b"99999999999999999999999",
    b"9007199254740993",
    b"1.5",
    b"nan",
    b"",
    b"\xff\xfe",
    b"4000000000",
];

/// Words that a client looks for, and some that it does not expect.
const WORDS: &[&[u8]] = &[
    b"held",
    b"queued",
    b"busy",
    b"gone",
    b"late",
    b"wrong",
    b"message",
    b"subscribe",
    b"dl1:",
    b"dl1:::::::",
    b"0:0:0",
    b"18446744073709551615:1:2",
    b"g:00000000000000000000000000000000:1:1:1:1:0:",
    b"\xc3\x28",
    b"OK",
];

/// What an error may begin with.
const ERRORS: &[&[u8]] = &[
    b"-ERR no\r\n",
    b"-\r\n",
    b"-MOVED 1 127.0.0.1:1\r\n",
    b"-MOVED\r\n",
    b"-ASK 99999 nowhere\r\n",
    b"-NOSCRIPT no\r\n",
    b"-LOADING\r\n",
    b"-READONLY no\r\n",
    b"-NOAUTH\r\n",
    b"-WRONGTYPE no\r\n",
    b"-OOM script: 0, on @user_script:1.\r\n",
    b"-\xff\r\n",
];

/// What is no frame at all, or one of another protocol, or the beginning of one that never ends.
const RUBBISH: &[&[u8]] = &[
    b"\r\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"$9223372036854775807\r\n",
    b"$-7\r\n",
    b"$x\r\n",
    b"*1073741824\r\n",
    b"*-9\r\n",
    b"*4294967296\r\n",
    b":\r\n",
    b":12345678901234567890123\r\n",
    b"%1\r\n+a\r\n:1\r\n",
    b"~1\r\n:1\r\n",
    b">3\r\n+message\r\n+a\r\n+b\r\n",
    b",nan\r\n",
    b"#t\r\n",
    b"_\r\n",
    b"(123456789012345678901234567890\r\n",
    b"|1\r\n+a\r\n:1\r\n",
    b"$3\r\nabcXX",
];

/// A frame of what a server says.
#[derive(Clone, Debug, PartialEq)]
enum Frame {
    Array(Vec<Self>),
    Bulk(Vec<u8>),
    /// All of it is on its first line.
    Line(Vec<u8>),
}

pub(super) async fn serve(client: TcpStream, server: TcpStream, shared: Arc<Shared>) {
    let (mut client_read, client_write) = client.into_split();
    let (server_read, mut server_write) = server.into_split();
    tokio::select! {
        _ = copy(&mut client_read, &mut server_write) => {}
        () = answer(server_read, client_write, &shared) => {}
    }
}

async fn answer(mut server: OwnedReadHalf, mut client: OwnedWriteHalf, shared: &Shared) {
    let mut bytes = Vec::new();
    while let Ok(1..) = server.read_buf(&mut bytes).await {
        while let Some((frame, length)) = Frame::read(&bytes) {
            let truth: Vec<u8> = bytes.drain(..length).collect();
            let (said, goes_on) = match shared.lie() {
                Some(mut chance) => bend(frame, truth, &mut chance),
                None => (truth, true),
            };
            if client.write_all(&said).await.is_err() || !goes_on {
                return;
            }
        }
    }
}

/// What is said in the place of a frame, and whether the connection goes on.
fn bend(frame: Frame, truth: Vec<u8>, chance: &mut Chance) -> (Vec<u8>, bool) {
    match chance.below(16) {
        0 => (truth[..chance.index(truth.len())].to_vec(), false),
        1 => (chance.one_of(RUBBISH).to_vec(), chance.below(2) == 0),
        2 => (Vec::new(), true),
        3 => ([&truth[..], &truth].concat(), true),
        4 => (chance.bytes(40), true),
        5 | 6 => (chance.one_of(ERRORS).to_vec(), true),
        7 | 8 => (any(chance, 3).write(), true),
        9 => (nested(64).write(), true),
        _ => (bent(frame, chance).write(), true),
    }
}

/// Any frame.
fn any(chance: &mut Chance, depth: u64) -> Frame {
    match chance.below(if depth == 0 { 4 } else { 6 }) {
        0 => Frame::Line([&b":"[..], chance.one_of(NUMBERS)].concat()),
        1 => Frame::Line(b"$-1".to_vec()),
        2 => Frame::Bulk(chance.one_of(WORDS).to_vec()),
        3 => Frame::Bulk(chance.one_of(NUMBERS).to_vec()),
        _ => Frame::Array((0..chance.below(7)).map(|_| any(chance, depth - 1)).collect()),
    }
}

fn nested(depth: usize) -> Frame {
    (0..depth).fold(Frame::Array(Vec::new()), |inner, _| Frame::Array(vec![inner]))
}

/// The frame with one thing in it another.
fn bent(frame: Frame, chance: &mut Chance) -> Frame {
    match frame {
        Frame::Array(mut elements) if !elements.is_empty() => {
            let at = chance.index(elements.len());
            match chance.below(8) {
                0 => drop(elements.remove(at)),
                1 => elements.insert(at, elements[at].clone()),
                2 => elements[at] = any(chance, 1),
                3 => elements.swap(0, at),
                _ => elements[at] = bent(elements[at].clone(), chance),
            }
            Frame::Array(elements)
        }
        Frame::Bulk(text) => Frame::Bulk(bent_text(text, chance)),
        Frame::Line(line) if line.starts_with(b":") && chance.below(4) != 0 => {
            Frame::Line([&b":"[..], chance.one_of(NUMBERS)].concat())
        }
        Frame::Line(line) if line.starts_with(b":") => Frame::Bulk(line[1..].to_vec()),
        _ => any(chance, 2),
    }
}

/// A text whose parts are told apart by colons, with one of them another.
fn bent_text(mut text: Vec<u8>, chance: &mut Chance) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = text.split(|&byte| byte == b':').collect();
    let at = chance.index(parts.len());
    match chance.below(6) {
        0 => drop(parts.remove(at)),
        1 => parts.insert(at, chance.one_of(NUMBERS)),
        2 => {
            text.truncate(chance.index(text.len()));
            return text;
        }
        3 => return [&text, &chance.bytes(4)[..]].concat(),
        _ => parts[at] = chance.one_of(NUMBERS),
    }
    parts.join(&b':')
}

impl Frame {
    /// The first whole frame, and how long it is.
    fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
        let (line, mut length) = (&bytes[..end], end + 2);
        let number = line.get(1..).and_then(|digits| str::from_utf8(digits).ok()?.parse().ok());
        match (line.first(), number) {
            (Some(b'$'), Some(size)) => {
                let text = bytes.get(length..length + size)?.to_vec();
                length += size + 2;
                (length <= bytes.len()).then_some((Self::Bulk(text), length))
            }
            (Some(b'*'), Some(count)) => {
                let mut elements = Vec::new();
                for _ in 0..count {
                    let (element, size) = Self::read(&bytes[length..])?;
                    elements.push(element);
                    length += size;
                }
                Some((Self::Array(elements), length))
            }
            _ => Some((Self::Line(line.to_vec()), length)),
        }
    }

    fn write(&self) -> Vec<u8> {
        match self {
            Self::Array(elements) => {
                let head = format!("*{}\r\n", elements.len()).into_bytes();
                [head, elements.iter().flat_map(Self::write).collect()].concat()
            }
            Self::Bulk(text) => [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat(),
            Self::Line(line) => [line, &b"\r\n"[..]].concat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_written_as_it_was_read() {
        for bytes in [&b"*3\r\n$2\r\na\n\r\n:7\r\n*1\r\n$-1\r\n"[..], b"+OK\r\n", b"*-1\r\n"] {
            let (frame, length) = Frame::read(bytes).unwrap();
            assert_eq!((frame.write().as_slice(), length), (bytes, bytes.len()));
            for cut in 0..bytes.len() {
                assert_eq!(Frame::read(&bytes[..cut]), None, "{bytes:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_lie_is_another_answer_as_a_rule() {
        let truth = b"*2\r\n$5\r\n1:2:3\r\n:9\r\n".to_vec();
        let (frame, _) = Frame::read(&truth).unwrap();
        let mut chance = Chance(1);
        let mut lies = (0..1000).map(|_| bend(frame.clone(), truth.clone(), &mut chance));
        assert!(lies.by_ref().filter(|(said, _)| *said != truth).count() > 900);
    }
}
