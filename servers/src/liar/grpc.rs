//! Lies in gRPC, without knowledge of the messages: whatever reads as fields is bent as fields.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream,
    client::SendRequest,
    server::{self, SendResponse},
};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::TcpStream;

use super::{Chance, Shared};

/// Numbers at the ends of what a number can be.
const NUMBERS: &[u64] = &[
    0,
    1,
    2,
    7,
    u64::MAX,
    u64::MAX - 1,
    1 << 63,
    (1 << 63) - 1,
    1 << 53,
    1 << 32,
    (1 << 31) - 1,
    3_000_000_000,
];

/// What the end of an answer may say.
const STATUS: &[(&str, &str)] = &[
    ("1", "cancelled"),
    ("2", "unknown"),
    ("3", "etcdserver: key is not provided"),
    ("5", "etcdserver: requested lease not found"),
    ("7", "etcdserver: permission denied"),
    ("8", "etcdserver: too many requests"),
    ("11", "etcdserver: mvcc: required revision has been compacted"),
    ("14", "etcdserver: no leader"),
    ("14", "etcdserver: leader changed"),
    ("16", "etcdserver: invalid auth token"),
    ("99", "%00%ff"),
    ("x", ""),
    ("", ""),
];

pub(super) async fn serve(client: TcpStream, server: TcpStream, shared: Arc<Shared>) {
    let Ok((upstream, connection)) = h2::client::handshake(server).await else { return };
    let requests = async {
        let Ok(mut client) = server::handshake(client).await else { return };
        let mut exchanges = tokio::task::JoinSet::new();
        while let Some(Ok((request, respond))) = client.accept().await {
            exchanges.spawn(exchange(request, respond, upstream.clone(), Arc::clone(&shared)));
        }
    };
    tokio::select! {
        _ = connection => {}
        () = requests => {}
    }
}

async fn exchange(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    upstream: SendRequest<Bytes>,
    shared: Arc<Shared>,
) {
    let (parts, body) = request.into_parts();
    let is_txn = parts.uri.path().ends_with("/Txn");
    let answered = async {
        let mut upstream = upstream.ready().await?;
        let (response, send) = upstream.send_request(Request::from_parts(parts, ()), false)?;
        let asking = async {
            let _ = forward(body, send).await;
            // The answer decides when it is over.
            std::future::pending::<()>().await;
        };
        let mut asking = pin!(asking);
        let answering = async {
            let (parts, body) = response.await?.into_parts();
            let ends = body.is_end_stream();
            let send = respond.send_response(Response::from_parts(parts, ()), ends)?;
            if ends { Ok(()) } else { answer(body, send, is_txn, &shared).await }
        };
        tokio::select! {
            () = &mut asking => Ok(()),
            answered = answering => answered,
        }
    };
    let _: Result<(), h2::Error> = answered.await;
}

/// Passes on what is asked.
async fn forward(mut from: RecvStream, mut to: SendStream<Bytes>) -> Result<(), h2::Error> {
    while let Some(data) = from.data().await {
        let data = data?;
        from.flow_control().release_capacity(data.len())?;
        to.send_data(data, false)?;
    }
    to.send_data(Bytes::new(), true)
}

/// Passes on what is answered, or something else.
async fn answer(
    mut from: RecvStream,
    mut to: SendStream<Bytes>,
    is_txn: bool,
    shared: &Shared,
) -> Result<(), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = from.data().await {
        let data = data?;
        from.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
        while let Some(length) = message(&bytes) {
            let truth: Vec<u8> = bytes.drain(..length).collect();
            let (said, goes_on) = match shared.lie() {
                Some(mut chance) => bend(&truth, &mut chance),
                None if is_txn && shared.hollow.load(Ordering::Relaxed) => (hollow(&truth), true),
                None => (truth, true),
            };
            to.send_data(said.into(), false)?;
            if !goes_on {
                to.send_reset(Reason::INTERNAL_ERROR);
                return Ok(());
            }
        }
    }
    let mut trailers = from.trailers().await?.unwrap_or_default();
    if let Some(mut chance) = shared.lie() {
        trailers = status(&mut chance);
    }
    to.send_trailers(trailers)
}

fn status(chance: &mut Chance) -> HeaderMap {
    let (code, words) = STATUS[chance.index(STATUS.len())];
    let pairs = [("grpc-status", code), ("grpc-message", words)];
    let pairs = pairs.map(|(name, value)| {
        (http::HeaderName::from_static(name), HeaderValue::from_static(value))
    });
    pairs.into_iter().skip(chance.index(2)).collect()
}

/// The length of the first whole message, its head included.
fn message(bytes: &[u8]) -> Option<usize> {
    let head = bytes.get(1..5)?;
    let length = 5 + head.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
    (length <= bytes.len()).then_some(length)
}

/// What is said in the place of a message, and whether the answer goes on.
fn bend(truth: &[u8], chance: &mut Chance) -> (Vec<u8>, bool) {
    let body = &truth[5..];
    match chance.below(16) {
        0 => (truth[..chance.index(truth.len())].to_vec(), false),
        1 => (whole(&chance.bytes(40)), true),
        2 => (whole(&[]), true),
        3 => ([truth, truth].concat(), true),
        4 => {
            let mut said = truth.to_vec();
            said[chance.index(5)] ^= 1 << chance.index(8);
            (said, true)
        }
        5 => (Vec::new(), true),
        _ => (whole(&bent(body, chance, 6)), true),
    }
}

/// The answer to a transaction, with its parts but nothing in them.
fn hollow(truth: &[u8]) -> Vec<u8> {
    let mut fields = fields(&truth[5..]).unwrap_or_default();
    for part in fields.iter_mut().filter(|field| field.number == 3) {
        part.value = Value::Bytes(Vec::new());
    }
    whole(&write(&fields))
}

/// A message with its head.
fn whole(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0], &length[..], body].concat()
}

/// A field of a message: its number, and its value as it is written.
#[derive(Clone, Debug, PartialEq)]
struct Field {
    number: u64,
    value: Value,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Bytes(Vec<u8>),
    Number(u64),
}

/// The message with one thing in it another.
fn bent(body: &[u8], chance: &mut Chance, depth: usize) -> Vec<u8> {
    let Some(mut fields) = fields(body).filter(|fields| !fields.is_empty() && depth != 0) else {
        return chance.bytes(12);
    };
    let at = chance.index(fields.len());
    match chance.below(12) {
        0 | 1 => drop(fields.remove(at)),
        2 => fields.insert(at, fields[at].clone()),
        3 => fields[at].number = 1 + chance.below(12),
        4 => {
            let number = NUMBERS[chance.index(NUMBERS.len())];
            fields.push(Field { number: 1 + chance.below(12), value: Value::Number(number) });
        }
        _ => {
            fields[at].value = match &fields[at].value {
                Value::Bytes(inner) => Value::Bytes(bent(inner, chance, depth - 1)),
                Value::Number(_) => Value::Number(NUMBERS[chance.index(NUMBERS.len())]),
            };
        }
    }
    write(&fields)
}

/// What reads as the fields of a message, if it does.
fn fields(mut body: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !body.is_empty() {
        let tag = varint(&mut body)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut body)?),
            2 => {
                let length = usize::try_from(varint(&mut body)?).ok()?;
                let (value, rest) = body.split_at_checked(length)?;
                body = rest;
                Value::Bytes(value.to_vec())
            }
            // Nothing else is in the messages of etcd.
            _ => return None,
        };
        fields.push(Field { number: tag >> 3, value });
    }
    fields.iter().all(|field| field.number != 0).then_some(fields)
}

fn write(fields: &[Field]) -> Vec<u8> {
    let mut body = Vec::new();
    for Field { number, value } in fields {
        match value {
            Value::Bytes(bytes) => {
                put(number << 3 | 2, &mut body);
                put(bytes.len() as u64, &mut body);
                body.extend_from_slice(bytes);
            }
            Value::Number(value) => {
                put(number << 3, &mut body);
                put(*value, &mut body);
            }
        }
    }
    body
}

fn varint(body: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = body.split_first()?;
        *body = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn put(mut value: u64, body: &mut Vec<u8>) {
    while value >= 0x80 {
        body.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    body.push(value.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_written_as_it_was_read() {
        let inner = [Field { number: 3, value: Value::Number(u64::MAX) }];
        let all = [
            Field { number: 1, value: Value::Bytes(write(&inner)) },
            Field { number: 200, value: Value::Number(300) },
            Field { number: 2, value: Value::Bytes(Vec::new()) },
        ];
        let body = write(&all);
        assert_eq!(fields(&body).unwrap(), all);
        assert_eq!(fields(&body[..body.len() - 1]), None);
        let sent = [whole(&body), whole(&[])].concat();
        assert_eq!(message(&sent), Some(body.len() + 5));
        assert_eq!(message(&sent[..8]), None);
    }

    #[test]
    fn a_lie_is_another_answer_as_a_rule() {
        let field = |number, value| Field { number, value: Value::Number(value) };
        let truth = whole(&write(&[field(1, 3), field(2, 4)]));
        let mut chance = Chance(1);
        let lies = (0..1000).filter(|_| bend(&truth, &mut chance).0 != truth).count();
        assert!(lies > 800, "{lies}");
    }
}
