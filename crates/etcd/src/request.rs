//! The requests that change something, each a small transaction that may be carried out twice, and what is answered to them.
//!
//! A put is bound to the state of the key that it was made for (`mod_revision`), so that a request which arrives late, when its sender has long given it up,
//! never binds a key to an old lease or an old ttl. A delete needs no condition, since no key is ever used twice.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use etcd_client::{
    Compare, CompareOp, DeleteResponse, GetOptions, GetResponse, KeyValue, PutOptions, Txn, TxnOp,
    TxnOpResponse, TxnResponse,
};

use crate::{error::Failure, layout::Nonce};

/// What is asked of etcd.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// Take the lock, or a place in its line.
    Ask(Ask),
    /// Delete a contender's key if it is still bound to this lease.
    Cut { own: String, lease: i64 },
    /// Delete a contender's key.
    Delete { own: String },
    /// Write a contender's key that exists, unless somebody wrote it since.
    Write(Write),
}

#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) own: String,
    pub(crate) line: String,
    pub(crate) value: String,
    pub(crate) lease: i64,
    /// Also where others are before it; else nothing is written then.
    pub(crate) queue: bool,
    /// It has, or may have, a key already.
    pub(crate) again: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) own: String,
    pub(crate) value: String,
    pub(crate) lease: i64,
    /// The revision of the key as it is known.
    pub(crate) modified: i64,
}

/// What etcd answers.
#[derive(Debug)]
pub(crate) enum Reply {
    Found(Found),
    /// Whether there was something to delete.
    Deleted(bool),
    /// At which revision; or what is there in the place of what was known.
    Written(Result<i64, Option<Own>>),
}

/// A line as it was at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) revision: i64,
    /// Everything that stands right under the name, in no order.
    pub(crate) entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) created: i64,
    pub(crate) modified: i64,
    pub(crate) nonce: Nonce,
}

/// What was found when the lock was asked for.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) reading: Reading,
    /// The own key as it was before, if it was there.
    pub(crate) before: Option<Own>,
    /// The own key was written.
    pub(crate) written: bool,
    /// There is nothing else under the name, longer names included.
    pub(crate) free: bool,
}

/// A contender's key.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    pub(crate) created: i64,
    pub(crate) modified: i64,
    pub(crate) lease: i64,
    pub(crate) value: Vec<u8>,
}

impl Request {
    pub(crate) fn own(&self) -> &str {
        match self {
            Self::Ask(Ask { own, .. })
            | Self::Cut { own, .. }
            | Self::Delete { own }
            | Self::Write(Write { own, .. }) => own,
        }
    }

    /// The line whose end it wants: at most one of a kind goes into a transaction, or two would have the same revision.
    pub(crate) fn line(&self) -> Option<&str> {
        match self {
            Self::Ask(Ask { line, .. }) => Some(line),
            _ => None,
        }
    }

    /// The line which somebody leaves by it.
    pub(crate) fn leaves(&self) -> Option<&str> {
        match self {
            Self::Delete { own } => own.rfind('/').map(|end| &own[..=end]),
            _ => None,
        }
    }

    /// How many operations of a transaction it takes.
    pub(crate) const fn operations(&self) -> usize {
        match self {
            Self::Ask(_) => 2,
            Self::Cut { .. } | Self::Delete { .. } | Self::Write(_) => 1,
        }
    }

    /// Whether [`Request::flat`] has something.
    pub(crate) const fn is_flat(&self) -> bool {
        match self {
            Self::Ask(ask) => ask.queue && !ask.again,
            Self::Delete { .. } => true,
            Self::Cut { .. } | Self::Write(_) => false,
        }
    }

    /// The condition under which it is sure to be carried out, with the operations and how many they are: for what succeeds nearly always, so that many
    /// can go into one transaction without a part of their own, which costs the server half as much.
    ///
    /// `free`: nobody is expected under the name. Then that is the condition, and the line is not read, which costs the server more than all the rest.
    pub(crate) fn flat(&self, free: bool) -> Option<(Option<Compare>, Vec<TxnOp>)> {
        match self {
            Self::Ask(ask) if self.is_flat() => Some(if free {
                (Some(ask.nobody()), vec![ask.put()])
            } else {
                (Some(ask.condition()), ask.ops().into())
            }),
            Self::Delete { own } => Some((None, vec![delete(own)])),
            _ => None,
        }
    }

    /// Reads its part of the answer to a transaction that was made of [`Request::flat`], whose condition was true.
    pub(crate) fn read_flat(
        &self,
        free: bool,
        parts: &mut impl Iterator<Item = TxnOpResponse>,
        revision: i64,
    ) -> Result<Reply, Failure> {
        match self {
            Self::Ask(ask) if free => ask.read_alone(parts.next(), revision),
            Self::Ask(ask) => ask.read(true, parts, revision),
            _ => read_delete(parts.next()),
        }
    }

    pub(crate) fn txn(&self) -> Txn {
        match self {
            Self::Ask(ask) => ask.txn(),
            Self::Cut { own, lease } => Txn::new()
                .when([Compare::lease(&**own, CompareOp::Equal, *lease)])
                .and_then([delete(own)]),
            Self::Delete { own } => Txn::new().and_then([delete(own)]),
            Self::Write(write) => Txn::new()
                .when([Compare::mod_revision(&*write.own, CompareOp::Equal, write.modified)])
                .and_then([put(&write.own, &write.value, write.lease)])
                .or_else([TxnOp::get(&*write.own, None)]),
        }
    }

    /// Reads the answer to [`Request::txn`].
    pub(crate) fn read(&self, answer: &TxnResponse, revision: i64) -> Result<Reply, Failure> {
        let mut parts = parts(answer)?;
        match self {
            Self::Ask(ask) => ask.read(answer.succeeded(), &mut parts, revision),
            Self::Cut { .. } | Self::Delete { .. } => read_delete(parts.next()),
            Self::Write(_) => match parts.next() {
                Some(TxnOpResponse::Put(_)) => Ok(Reply::Written(Ok(revision))),
                Some(TxnOpResponse::Get(answer)) => {
                    Ok(Reply::Written(Err(answer.kvs().first().map(Own::new))))
                }
                _ => Err(Failure::protocol("neither a put nor a get")),
            },
        }
    }
}

impl Ask {
    fn condition(&self) -> Compare {
        if self.queue {
            Compare::mod_revision(&*self.own, CompareOp::Equal, 0)
        } else {
            self.nobody()
        }
    }

    /// Nothing at all stands under the name.
    fn nobody(&self) -> Compare {
        Compare::create_revision(&*self.line, CompareOp::Equal, 0).with_prefix()
    }

    fn put(&self) -> TxnOp {
        put(&self.own, &self.value, self.lease)
    }

    fn ops(&self) -> [TxnOp; 2] {
        [self.put(), range(&self.line)]
    }

    fn txn(&self) -> Txn {
        Txn::new()
            .when([self.condition()])
            .and_then(self.ops())
            .or_else([TxnOp::get(&*self.own, None), range(&self.line)])
    }

    fn read(
        &self,
        written: bool,
        parts: &mut impl Iterator<Item = TxnOpResponse>,
        revision: i64,
    ) -> Result<Reply, Failure> {
        let before = match parts.next() {
            Some(TxnOpResponse::Put(_)) => None,
            Some(TxnOpResponse::Get(answer)) => answer.kvs().first().map(Own::new),
            _ => return Err(Failure::protocol("neither a put nor a get")),
        };
        let Some(TxnOpResponse::Get(answer)) = parts.next() else {
            return Err(Failure::protocol("a line is missing"));
        };
        let reading = Reading::of(&self.line, &answer, revision);
        let free = written && answer.kvs().len() == 1;
        Ok(Reply::Found(Found { reading, before, written, free }))
    }

    /// Nobody was there before the own key was written: so it stands alone, and was made by this.
    fn read_alone(&self, part: Option<TxnOpResponse>, revision: i64) -> Result<Reply, Failure> {
        let (Some(TxnOpResponse::Put(_)), Some(nonce)) = (part, self.own.strip_prefix(&self.line))
        else {
            return Err(Failure::protocol("not a put"));
        };
        let own = Entry { created: revision, modified: revision, nonce: nonce.as_bytes().into() };
        let reading = Reading { revision, entries: vec![own] };
        Ok(Reply::Found(Found { reading, before: None, written: true, free: true }))
    }
}

impl Reading {
    /// What stands under a name, by an answer to [`range`].
    pub(crate) fn of(line: &str, answer: &GetResponse, revision: i64) -> Self {
        let nonce = |kv: &KeyValue| {
            let nonce = kv.key().strip_prefix(line.as_bytes())?;
            let (created, modified) = (kv.create_revision(), kv.mod_revision());
            (!nonce.contains(&b'/')).then(|| Entry { created, modified, nonce: nonce.into() })
        };
        Self { revision, entries: answer.kvs().iter().filter_map(nonce).collect() }
    }

    pub(crate) fn by_nonce(&self) -> HashMap<&[u8], &Entry> {
        self.entries.iter().map(|entry| (&*entry.nonce, entry)).collect()
    }

    pub(crate) fn created(&self, nonce: &[u8]) -> Option<i64> {
        self.entries.iter().find(|entry| &*entry.nonce == nonce).map(|entry| entry.created)
    }
}

impl Own {
    pub(crate) fn new(kv: &KeyValue) -> Self {
        Self {
            created: kv.create_revision(),
            modified: kv.mod_revision(),
            lease: kv.lease(),
            value: kv.value().to_vec(),
        }
    }
}

/// Everything under a name, without the values.
pub(crate) fn range(line: &str) -> TxnOp {
    TxnOp::get(line, Some(GetOptions::new().with_prefix().with_keys_only()))
}

fn put(own: &str, value: &str, lease: i64) -> TxnOp {
    TxnOp::put(own, value, Some(PutOptions::new().with_lease(lease)))
}

fn delete(own: &str) -> TxnOp {
    TxnOp::delete(own, None)
}

pub(crate) fn deleted(answer: &DeleteResponse) -> Reply {
    Reply::Deleted(0 < answer.deleted())
}

/// What was answered to each operation of a transaction.
///
/// The driver panics at an answer of no kind, or of one that it does not know.
pub(crate) fn parts(answer: &TxnResponse) -> Result<std::vec::IntoIter<TxnOpResponse>, Failure> {
    catch_unwind(AssertUnwindSafe(|| answer.op_responses().into_iter()))
        .map_err(|_| Failure::protocol("a part of no kind"))
}

fn read_delete(part: Option<TxnOpResponse>) -> Result<Reply, Failure> {
    match part {
        Some(TxnOpResponse::Delete(answer)) => Ok(deleted(&answer)),
        // The condition was not true.
        None => Ok(Reply::Deleted(false)),
        _ => Err(Failure::protocol("something else than a delete")),
    }
}
