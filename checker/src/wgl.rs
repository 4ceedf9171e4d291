//! A second judge of exclusion: the search of Wing and Gong, with Lowe's memory, for an order in which a lock could have done it all.
//!
//! It knows nothing of intervals that overlap, so it fails in other ways than the first judge. Its time is exponential at worst: it gets the windows in
//! which the first judge found something, not whole histories.

use std::collections::HashSet;

use crate::Mode;

/// So many holds are too many.
const LIMIT: usize = 60;

/// What the search found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(clippy::exhaustive_enums, reason = "there is no fourth answer")]
pub enum Opinion {
    /// There is such an order.
    Possible,
    /// There is none.
    Impossible,
    /// There are too many holds to search.
    TooLarge,
}

#[derive(Clone, Copy)]
struct Op {
    call: u64,
    ret: u64,
    hold: usize,
    release: bool,
}

/// Whether a mutex can have granted these holds, each `[asked, granted, given back, answered]`, all in the same unit of time.
///
/// The lock was taken at some moment between the first two, and became free at some moment between the last two.
#[must_use]
pub fn linearizable(holds: &[[u64; 4]]) -> Opinion {
    let holds: Vec<_> = holds.iter().map(|hold| (*hold, Mode::Exclusive)).collect();
    linearizable_in(&holds)
}

/// The same for a lock that may be shared, each hold with its mode.
#[must_use]
pub fn linearizable_in(holds: &[([u64; 4], Mode)]) -> Opinion {
    if LIMIT < holds.len() {
        return Opinion::TooLarge;
    }
    let mut ops = Vec::new();
    for (hold, &([asked, granted, given, answered], _)) in holds.iter().enumerate() {
        ops.push(Op { call: asked, ret: granted, hold, release: false });
        // What is given back was given back after it was granted.
        ops.push(Op { call: given.max(granted), ret: answered.max(given), hold, release: true });
    }
    ops.sort_by_key(|op| (op.call, op.ret));
    let modes: Vec<Mode> = holds.iter().map(|(_, mode)| *mode).collect();
    match search(&ops, &modes, 0, 0, &mut HashSet::new()) {
        true => Opinion::Possible,
        false => Opinion::Impossible,
    }
}

/// Carries out one operation after the other; what is done, and so who holds, is all that matters of what was before.
fn search(ops: &[Op], modes: &[Mode], done: u128, holders: u64, seen: &mut HashSet<u128>) -> bool {
    let is_open = |index: &usize| done & (1 << index) == 0;
    // Whatever comes next was called before anything that is still open had returned.
    let Some(first_return) = (0..ops.len()).filter(is_open).map(|index| ops[index].ret).min()
    else {
        return true;
    };
    if !seen.insert(done) {
        return false;
    }
    (0..ops.len()).filter(is_open).any(|index| {
        let op = ops[index];
        let holds = |hold: usize| holders & (1 << hold) != 0;
        let beside = || (0..modes.len()).filter(|hold| holds(*hold)).map(|hold| modes[hold]);
        let is_possible = match op.release {
            true => holds(op.hold),
            false => modes[op.hold].fits_beside(beside()),
        };
        is_possible
            && op.call <= first_return
            && search(ops, modes, done | (1 << index), holders ^ (1 << op.hold), seen)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: u64 = u64::MAX;

    #[test]
    fn holds_that_follow_each_other_are_possible() {
        assert_eq!(linearizable(&[]), Opinion::Possible);
        assert_eq!(
            linearizable(&[[0, 1, 5, 6], [0, 5, 9, 10], [2, 9, 12, NEVER]]),
            Opinion::Possible
        );
        assert_eq!(linearizable(&[[0, 8, 9, 9], [0, 1, 5, 6]]), Opinion::Possible, "in any order");
    }

    #[test]
    fn holds_at_the_same_time_are_not() {
        assert_eq!(linearizable(&[[0, 1, 5, 6], [0, 4, 9, 10]]), Opinion::Impossible);
        assert_eq!(linearizable(&[[0, 1, NEVER, NEVER], [0, 4, 9, 10]]), Opinion::Impossible);
        assert_eq!(linearizable(&vec![[0, 1, 2, 3]; 61]), Opinion::TooLarge);
    }

    #[test]
    fn holds_that_share_are_possible_at_the_same_time_as_far_as_they_fit() {
        let all = |modes: &[Mode]| {
            let holds: Vec<_> = modes.iter().map(|mode| ([0, 1, 5, 6], *mode)).collect();
            linearizable_in(&holds)
        };
        let permits = |want| Mode::Permits { want, of: 3 };
        assert_eq!(all(&[Mode::Shared; 4]), Opinion::Possible);
        assert_eq!(all(&[Mode::Shared, Mode::Exclusive]), Opinion::Impossible);
        assert_eq!(all(&[permits(2), permits(1)]), Opinion::Possible);
        assert_eq!(all(&[permits(2), permits(2)]), Opinion::Impossible);
        assert_eq!(all(&[permits(1), Mode::Shared]), Opinion::Impossible);
    }
}
