//! What only reads: linearizable, and off the way of a hand-over.

use std::{collections::HashMap, sync::Arc};

use distlock_core::{Claim, Holder, Key, Mode, Occupancy};
use etcd_client::{GetOptions, KeyValue, SortOrder, SortTarget, Txn, TxnOpResponse};
use futures_util::future::join_all;
use tokio::time::{Duration, Instant};

use crate::{
    error::Failure,
    layout,
    request::{Own, Reading, parts, range},
    settle::token,
    store::Store,
    table::Place,
};

/// How many reads go into one transaction.
const BATCH: usize = 100;

/// Lines that could not be read, and why.
pub(crate) type Unread = HashMap<Arc<str>, Failure>;

/// Lines are being read: what is deleted meanwhile must not come back by the reading.
struct Asking<'a> {
    store: &'a Store,
    lines: &'a [Arc<str>],
}

impl<'a> Asking<'a> {
    fn new(store: &'a Store, lines: &'a [Arc<str>]) -> Self {
        let mut table = store.table();
        lines.iter().for_each(|line| table.name(line).asks += 1);
        Self { store, lines }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut table = self.store.table();
        self.lines.iter().for_each(|line| table.end_ask(line));
    }
}

impl Store {
    /// Reads lines, and takes in what was read. Tells which could not be read, and why.
    pub(crate) async fn take_in(self: &Arc<Self>, lines: &[Arc<str>]) -> Unread {
        let asking = Asking::new(self, lines);
        let readings = self.lines(lines).await;
        let (mut effects, mut unread) = (Vec::new(), Unread::new());
        {
            let mut table = self.table();
            for (line, reading) in lines.iter().zip(readings) {
                match (reading, table.names.get_mut(line)) {
                    (Ok(reading), Some(name)) => effects.extend(name.read(&reading)),
                    (Ok(_), None) => {}
                    (Err(failure), _) => drop(unread.insert(Arc::clone(line), failure)),
                }
            }
        }
        drop(asking);
        self.carry_out(effects);
        unread
    }

    /// Reads one line, and takes in what was read.
    pub(crate) async fn take_in_one(self: &Arc<Self>, line: &Arc<str>) -> Result<(), Failure> {
        let mut unread = self.take_in(std::slice::from_ref(line)).await;
        unread.remove(line).map_or(Ok(()), Err)
    }

    /// Reads lines, those of a batch at one revision.
    async fn lines(&self, lines: &[Arc<str>]) -> Vec<Result<Reading, Failure>> {
        let mut readings = Vec::with_capacity(lines.len());
        for batch in lines.chunks(BATCH) {
            match self.batch(batch).await {
                Ok(batch) => readings.extend(batch.into_iter().map(Ok)),
                // A right to one that somebody lost must not cost the others theirs.
                Err(failure) if failure.is_denied() && 1 < batch.len() => {
                    let alone = batch.iter().map(|line| self.line(line));
                    readings.extend(join_all(alone).await);
                }
                Err(failure) => {
                    readings.resize(lines.len(), Err(failure));
                    break;
                }
            }
        }
        readings
    }

    async fn line(&self, line: &Arc<str>) -> Result<Reading, Failure> {
        let mut readings = self.batch(std::slice::from_ref(line)).await?;
        readings.pop().ok_or_else(|| Failure::protocol("no line"))
    }

    async fn batch(&self, lines: &[Arc<str>]) -> Result<Vec<Reading>, Failure> {
        let ranges: Vec<_> = lines.iter().map(|line| range(line)).collect();
        let txn = Txn::new().and_then(ranges);
        let answer = self
            .members
            .call(|client| {
                let txn = txn.clone();
                async move { client.kv_client().txn(txn).await }
            })
            .await?
            .answer;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let mut parts = parts(&answer)?;
        let readings = lines.iter().map(|line| match parts.next() {
            Some(TxnOpResponse::Get(answer)) => Ok(Reading::of(line, &answer, revision)),
            _ => Err(Failure::protocol("a part is missing")),
        });
        readings.collect()
    }

    /// The key of a contender, if it is there.
    pub(crate) async fn own(&self, place: &Place) -> Result<Option<Own>, Failure> {
        let own = place.own();
        let answer = self
            .members
            .call(|client| {
                let own = own.clone();
                async move { client.kv_client().get(own, None).await }
            })
            .await?
            .answer;
        Ok(answer.kvs().first().map(Own::new))
    }

    /// Whether those in the line leave room for a claim that does not wait.
    pub(crate) async fn would_admit(&self, place: &Place, claim: &Claim) -> Result<bool, Failure> {
        let reading = self.line(&place.line).await?;
        if reading.created(&place.nonce).is_some() {
            return Ok(true);
        }
        let before = reading.entries.iter().filter_map(|entry| layout::contender(&entry.nonce));
        Ok(claim.mode().admitted_after(before.map(|(mode, _)| mode)))
    }

    /// Who holds a lock, and how many wait.
    pub(crate) async fn inspect(&self, key: &Key) -> Result<Occupancy, Failure> {
        self.check_open()?;
        let line = layout::line(&self.prefix, key);
        let sorted =
            || GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Ascend);
        let answer = self
            .members
            .call(|client| {
                let line = line.clone();
                async move { client.kv_client().get(line, Some(sorted())).await }
            })
            .await?
            .answer;
        let mut before: Vec<Mode> = Vec::new();
        let (mut holders, mut waiting) = (Vec::new(), 0);
        for kv in answer.kvs() {
            let Some(nonce) = kv.key().strip_prefix(line.as_bytes()) else { continue };
            let Some((mode, _)) = layout::contender(nonce) else { continue };
            if mode.admitted_after(before.iter().copied()) {
                holders.push(self.holder(&line, nonce, kv));
            } else {
                waiting += 1;
            }
            before.push(mode);
        }
        Ok(Occupancy::new(join_all(holders).await).waiting(waiting))
    }

    async fn holder(&self, line: &str, nonce: &[u8], kv: &KeyValue) -> Holder {
        let words = layout::words(kv.value());
        let (mode, owner) = layout::contender(nonce).unwrap_or((Mode::Exclusive, None));
        let place = Place { line: line.into(), nonce: nonce.into() };
        let mut holder = Holder::new(mode).metadata(words.metadata);
        if let Some(owner) = owner.filter(|_| !words.rests) {
            holder = holder.owner(owner).token(token(kv.create_revision()));
        }
        let known = self.table().record(&place).map(|record| record.until);
        match known {
            Some(until) => holder.expires_in(until.saturating_duration_since(Instant::now())),
            None => match self.time_left(kv.lease()).await {
                Some(left) => holder.expires_in(words.ttl.map_or(left, |ttl| left.min(ttl))),
                None => holder,
            },
        }
    }

    /// How long the server would keep a lease, at most; it tells whole seconds, rounded down.
    async fn time_left(&self, lease: i64) -> Option<Duration> {
        if lease == 0 {
            return None;
        }
        let answer = self
            .members
            .call(|client| async move { client.lease_client().time_to_live(lease, None).await })
            .await
            .ok()?
            .answer;
        let seconds = u64::try_from(answer.ttl()).unwrap_or(0);
        let granted = u64::try_from(answer.granted_ttl()).unwrap_or(0);
        // After a change of leader some servers tell an absurd number.
        Some(Duration::from_secs(seconds.saturating_add(1).min(granted)))
    }
}
