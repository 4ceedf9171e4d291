//! A second judge of exclusion: the search of Wing and Gong, with Lowe's memory, for an order in which a mutex could have done it all.
//!
//! It knows nothing of intervals that overlap, so it fails in other ways than the first judge. Its time is exponential at worst: it gets the windows in
//! which the first judge found something, not whole histories.

use std::collections::HashSet;

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
    if LIMIT < holds.len() {
        return Opinion::TooLarge;
    }
    let mut ops = Vec::new();
    for (hold, &[asked, granted, given, answered]) in holds.iter().enumerate() {
        ops.push(Op { call: asked, ret: granted, hold, release: false });
        // What is given back was given back after it was granted.
        ops.push(Op { call: given.max(granted), ret: answered.max(given), hold, release: true });
    }
    ops.sort_by_key(|op| (op.call, op.ret));
    let mut seen = HashSet::new();
    match search(&ops, 0, None, &mut seen) {
        true => Opinion::Possible,
        false => Opinion::Impossible,
    }
}

/// Carries out one operation after the other; `done` and the holder are all that matters of what was before.
fn search(
    ops: &[Op],
    done: u128,
    holder: Option<usize>,
    seen: &mut HashSet<(u128, Option<usize>)>,
) -> bool {
    let is_open = |index: &usize| done & (1 << index) == 0;
    // Whatever comes next was called before anything that is still open had returned.
    let Some(first_return) = (0..ops.len()).filter(is_open).map(|index| ops[index].ret).min()
    else {
        return true;
    };
    if !seen.insert((done, holder)) {
        return false;
    }
    (0..ops.len()).filter(is_open).any(|index| {
        let op = ops[index];
        let after = match (op.release, holder) {
            (false, None) => Some(op.hold),
            (true, Some(held)) if held == op.hold => None,
            _ => return false,
        };
        op.call <= first_return && search(ops, done | (1 << index), after, seen)
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
}
