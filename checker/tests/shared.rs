//! Locks that may be shared: what must not be at the same time is found, and what may is not.

mod common;

use common::verdict;
use distlock_checker::{Check, Event, Kind, Mode, Opinion, Rules, Verdict, linearizable_in};
use proptest::prelude::*;

const SHARED: Mode = Mode::Shared;

const LATE_READER: [Mode; 14] = {
    let mut modes = [SHARED; 14];
    modes[1] = Mode::Exclusive;
    modes
};

const fn permits(want: u32) -> Mode {
    Mode::Permits { want, of: 3 }
}

/// A client's whole time with the lock: asked for 5 before the grant.
fn hold(client: u32, mode: Mode, grant: u64, release: u64, token: u64) -> Vec<Event> {
    let event = |t, kind| Event::new(t, kind).of(client, 1).key("lock");
    vec![
        event(grant - 5, Kind::Invoke).mode(mode),
        event(grant, Kind::Granted).fence(token).deadline(release + 100),
        event(grant, Kind::Enter),
        event(release, Kind::Exit),
        event(release, Kind::ReleaseInvoke),
        event(release + 1, Kind::Released),
    ]
}

/// What is found in holds of these modes, all at the same time.
fn together(modes: &[Mode]) -> Verdict {
    let holds = modes
        .iter()
        .zip(1..)
        .map(|(mode, n)| hold(n, *mode, 100 + u64::from(n), 200, u64::from(n)));
    let events: Vec<Event> = holds.flatten().collect();
    verdict(&events, &Rules::default())
}

#[test]
fn who_may_share_a_lock_does() {
    for modes in [&[SHARED; 4][..], &[permits(1); 3], &[permits(2), permits(1)], &[permits(3)]] {
        let verdict = together(modes);
        assert!(verdict.is_clean(), "{modes:?}: {verdict}");
        assert_eq!(verdict.figures.together, modes.len() as u64 - 1);
        assert_eq!(verdict.figures.contended, 0);
    }
    assert_eq!(together(&[SHARED; 4]).figures.shared, 4);
    assert_eq!(together(&[permits(1); 3]).figures.permits, 3);
}

#[test]
fn who_may_not_share_a_lock_is_found_by_both_judges() {
    for modes in [
        &[SHARED, Mode::Exclusive][..],
        &[Mode::Exclusive, SHARED],
        &[SHARED, SHARED, SHARED, Mode::Exclusive],
        &[permits(1), permits(1), permits(1), permits(1)],
        &[permits(2), permits(2)],
        &[permits(4)],
        &[permits(1), SHARED],
        &[SHARED, permits(1)],
        &[permits(1), Mode::Exclusive],
        &[Mode::Exclusive, permits(1)],
        &[permits(1), Mode::Permits { want: 1, of: 4 }],
        // In the way of the last one is neither the first of those who have it, nor any of the many that came since.
        &LATE_READER,
    ] {
        let verdict = together(modes);
        let found: Vec<_> = verdict.counts.keys().copied().collect();
        assert_eq!(found, [Check::Exclusion, Check::Work], "{modes:?}: {verdict}");
        assert_eq!(verdict.second_opinion.1, 0, "{modes:?}");
    }
}

#[test]
fn a_fault_has_to_explain_every_reader_and_one_holder_of_permits() {
    let fault = Event::new(100, Kind::Fault).name("failover");
    let rules = Rules::default().excusing(["failover"]);
    let with = |modes: [Mode; 3]| {
        let mut events = vec![fault.clone()];
        // The second one was asked for, and granted, after the fault; the first one before.
        for (n, (mode, grant)) in (1..).zip(modes.into_iter().zip([98, 120, 140])) {
            events.extend(hold(n, mode, grant, 200, u64::from(n)));
        }
        verdict(&events, &rules)
    };
    let readers = with([SHARED, SHARED, Mode::Exclusive]);
    assert_eq!(readers.count(Check::Exclusion), 1, "{readers}");
    let overdrawn = with([permits(1), permits(1), permits(2)]);
    assert!(overdrawn.is_clean() && overdrawn.negatives[&Check::Exclusion] == 1, "{overdrawn}");
}

#[test]
fn a_reader_may_hear_late_of_an_early_token_and_a_writer_may_not() {
    let after = |mode, token| {
        let mut events = hold(1, SHARED, 100, 150, 7);
        events.extend(hold(2, mode, 200, 250, token));
        verdict(&events, &Rules::default()).count(Check::Fence)
    };
    assert_eq!((after(SHARED, 6), after(Mode::Exclusive, 6), after(Mode::Exclusive, 8)), (0, 1, 0));
    assert_eq!(after(SHARED, 7), 1, "no token comes twice");
    let mut events = hold(1, Mode::Exclusive, 100, 150, 7);
    events.extend(hold(2, SHARED, 200, 250, 6));
    assert_eq!(verdict(&events, &Rules::default()).count(Check::Fence), 1);
}

#[test]
fn a_lock_that_a_reader_leaves_taken_keeps_writers_out_alone() {
    let after = |mode| {
        let mut events = hold(1, SHARED, 100, 150, 7);
        events
            .iter_mut()
            .filter(|event| event.e == Kind::ReleaseInvoke)
            .for_each(|event| event.v = Some(220));
        events.extend(hold(2, mode, 200, 250, 8));
        verdict(&events, &Rules::default()).count(Check::Exclusion)
    };
    assert_eq!((after(SHARED), after(Mode::Exclusive)), (0, 1));
}

#[test]
fn who_waits_for_a_writer_or_as_a_writer_is_contended() {
    let contended = |first, second| {
        let mut events = hold(1, first, 100, 150, 7);
        events.extend(hold(2, second, 151, 250, 8));
        verdict(&events, &Rules::default()).figures.contended
    };
    assert_eq!(contended(SHARED, Mode::Exclusive), 1);
    assert_eq!(contended(Mode::Exclusive, SHARED), 1);
    assert_eq!(contended(SHARED, SHARED), 0);
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Exclusive), Just(SHARED), (1..4_u32).prop_map(permits)]
}

proptest! {
    #[test]
    fn both_judges_agree(holds in prop::collection::vec((0..30_u64, 0..10_u64, 1..10_u64, mode()), 1..7)) {
        let (mut events, mut windows) = (Vec::new(), Vec::new());
        for (n, &(ask, wait, time, mode)) in (1..).zip(&holds) {
            let event = |t, kind| Event::new(t, kind).of(n, 1).key("k");
            let (grant, end) = (ask + wait, ask + wait + time);
            events.push(event(ask, Kind::Invoke).mode(mode));
            events.push(event(grant, Kind::Granted).deadline(end + 1));
            events.push(event(end, Kind::ReleaseInvoke));
            events.push(event(end, Kind::Released));
            windows.push(([ask, grant, end, end], mode));
        }
        let clean = verdict(&events, &Rules::default()).count(Check::Exclusion) == 0;
        let opinion = if clean { Opinion::Possible } else { Opinion::Impossible };
        prop_assert_eq!(linearizable_in(&windows), opinion);
    }
}
