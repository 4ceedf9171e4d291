//! What is known of the line of one name: who stands in it, in which order.
//!
//! It is put together from readings, each true at one revision, and from events in between. The two may come in any order, so each counts only for what
//! was made before it: what a reading does not have, and was made before it, is gone; what is gone does not come back. Our own keys are never used twice,
//! but other libraries make one of the same name again.

use std::collections::{BTreeMap, HashMap};

use distlock_core::Mode;

use crate::{
    layout::{self, Nonce},
    request::Entry,
};

/// Who stands in a line, as far as this process knows.
#[derive(Debug, Default)]
pub(crate) struct Line {
    entries: BTreeMap<(i64, Nonce), Mode>,
    created: HashMap<Nonce, i64>,
    /// What was deleted, and at which revision, for readings that are still under way.
    gone: HashMap<Nonce, i64>,
}

impl Line {
    /// Takes in what stood in the line at one revision.
    pub(crate) fn merge(&mut self, revision: i64, here: &HashMap<&[u8], &Entry>) {
        let left: Vec<_> = self
            .entries
            .keys()
            .filter(|(created, nonce)| {
                let stays = here.get(&**nonce).is_some_and(|entry| entry.created == *created);
                *created <= revision && !stays
            })
            .map(|(_, nonce)| nonce.clone())
            .collect();
        for nonce in left {
            self.remove(&nonce);
        }
        for (nonce, entry) in here {
            self.add(nonce, entry.created);
        }
    }

    /// Somebody came.
    pub(crate) fn add(&mut self, nonce: &[u8], created: i64) {
        if self.gone.get(nonce).is_some_and(|deleted| created < *deleted)
            || self.created.get(nonce).is_some_and(|known| created <= *known)
        {
            return;
        }
        let Some((mode, _)) = layout::contender(nonce) else { return };
        self.remove(nonce);
        self.created.insert(nonce.into(), created);
        self.entries.insert((created, nonce.into()), mode);
    }

    /// Somebody left, at this revision.
    pub(crate) fn delete(&mut self, nonce: &[u8], revision: i64, remember: bool) {
        // An event may come after a reading that has its key again already.
        if self.created.get(nonce).is_some_and(|created| *created < revision) {
            self.remove(nonce);
        }
        if remember {
            self.gone.insert(nonce.into(), revision);
        }
    }

    /// No reading is under way: there is nothing to be remembered for.
    pub(crate) fn forget(&mut self) {
        self.gone.clear();
    }

    /// Whether the one that came at this revision was deleted since.
    pub(crate) fn is_gone(&self, nonce: &[u8], created: i64) -> bool {
        self.gone.get(nonce).is_some_and(|deleted| created < *deleted)
    }

    /// Those who are admitted: from the front of the line, until nobody behind can be.
    pub(crate) fn admitted(&self) -> impl Iterator<Item = (&Nonce, i64)> {
        let mut before: Vec<Mode> = Vec::new();
        let mut closed = false;
        self.entries
            .iter()
            .map_while(move |((created, nonce), mode)| {
                if closed {
                    return None;
                }
                let admitted = mode.admitted_after(before.iter().copied());
                before.push(*mode);
                // Nobody is admitted behind one who wants the lock alone.
                closed = *mode == Mode::Exclusive;
                Some(admitted.then_some((nonce, *created)))
            })
            .flatten()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    fn remove(&mut self, nonce: &[u8]) {
        if let Some((nonce, created)) = self.created.remove_entry(nonce) {
            self.entries.remove(&(created, nonce));
        }
    }
}

#[cfg(test)]
mod tests {
    use distlock_core::Owner;

    use super::*;
    use crate::request::Reading;

    fn nonce(mode: Mode, id: u128) -> Nonce {
        layout::nonce(mode, Owner::new(id)).into_bytes().into()
    }

    fn reading(revision: i64, entries: &[(&Nonce, i64)]) -> Reading {
        let entry = |(nonce, created): &(&Nonce, i64)| Entry {
            created: *created,
            modified: *created,
            nonce: (*nonce).clone(),
        };
        Reading { revision, entries: entries.iter().map(entry).collect() }
    }

    fn merge(line: &mut Line, reading: &Reading) {
        line.merge(reading.revision, &reading.by_nonce());
    }

    fn admitted(line: &Line) -> Vec<i64> {
        line.admitted().map(|(_, created)| created).collect()
    }

    #[test]
    fn readings_and_events_may_come_in_any_order() {
        let [a, b, c] = [1, 2, 3].map(|id| nonce(Mode::Exclusive, id));
        let mut line = Line::default();
        // An event overtakes the reading in which the deleted one still stands.
        line.delete(&a, 12, true);
        merge(&mut line, &reading(11, &[(&a, 10), (&b, 11)]));
        assert_eq!(admitted(&line), [11]);
        assert!(line.is_gone(&a, 10));
        // One who came after the reading stays, one who left before it goes.
        line.add(&c, 15);
        merge(&mut line, &reading(14, &[]));
        assert_eq!(admitted(&line), [15]);
        line.forget();
        assert!(!line.is_gone(&a, 10));
        assert_eq!(line.len(), 1);
    }

    #[test]
    fn news_of_a_key_that_was_made_again_since_says_nothing_of_the_new_one() {
        let foreign: Nonce = b"694d7c1bd4e3a20f"[..].into();
        let own = nonce(Mode::Exclusive, 1);
        let mut line = Line::default();
        merge(&mut line, &reading(20, &[(&foreign, 15), (&own, 18)]));
        // The events of its first life come late.
        line.add(&foreign, 5);
        line.delete(&foreign, 10, true);
        assert_eq!(admitted(&line), [15], "it is still before us");
        merge(&mut line, &reading(9, &[(&foreign, 5)]));
        assert_eq!(admitted(&line), [15]);
        line.delete(&foreign, 21, true);
        assert_eq!(admitted(&line), [18]);
    }

    #[test]
    fn the_rule_of_admission_decides() {
        use Mode::{Exclusive, Permits, Shared};
        let lined_up = |modes: &[Mode]| {
            let mut line = Line::default();
            for (n, mode) in (1..).zip(modes) {
                line.add(&nonce(*mode, n), i64::try_from(n).unwrap());
            }
            line
        };
        let mut line = lined_up(&[Shared, Shared, Exclusive, Shared]);
        assert_eq!(admitted(&line), [1, 2]);
        line.delete(&nonce(Exclusive, 3), 5, false);
        assert_eq!(admitted(&line), [1, 2, 4]);
        let permits = |want| Permits { want, of: 3 };
        assert_eq!(admitted(&lined_up(&[permits(1), permits(2), permits(1)])), [1, 2]);
        assert_eq!(admitted(&lined_up(&[permits(2), permits(2), permits(1)])), [1]);
        let mut line = Line::default();
        line.add(b"694d7c1bd4e3a20f", 1);
        line.add(&nonce(Exclusive, 1), 2);
        assert_eq!(admitted(&line), [1], "another library's comes first");
    }
}
