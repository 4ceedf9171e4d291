//! Histories at random: what a mutex did is clean for both judges, whatever the times; and they agree on what it cannot have done.

use distlock_checker::{Check, Event, History, Kind, Opinion, Rules, judge, linearizable};
use proptest::prelude::*;

/// One hold after another: wait before the grant, hold, gap to the next, how it ends.
type Hold = (u64, u64, u64, u8);

fn holds() -> impl Strategy<Value = Vec<Hold>> {
    prop::collection::vec((0..500_u64, 0..300_u64, 0..50_u64, 0..4_u8), 1..60)
}

/// A history of a real mutex, of three keys with clients of their own.
fn history(keys: &[Vec<Hold>]) -> History {
    let mut history = History::new();
    for (key, holds) in keys.iter().enumerate() {
        let mut now = 1000;
        for (index, &(wait, hold, gap, end)) in holds.iter().enumerate() {
            let process = (key * 1000 + index + 1) as u32;
            let event = |t, kind| Event::new(t, kind).of(process, 1).key(format!("{key}"));
            let until = now + hold;
            history.push(&event(now - wait, Kind::Invoke));
            let deadline = if end == 2 { until + 1 } else { until + 5 };
            history.push(&event(now, Kind::Granted).fence(index as u64 * 7 + 1).deadline(deadline));
            history.push(&event(now, Kind::Enter));
            history.push(&event(now, Kind::Write).value(1));
            history.push(&event(until, Kind::Exit));
            let after = match end {
                0 => until + 3,
                1 => {
                    history.push(&event(until, Kind::Lost));
                    until
                }
                2 => {
                    history.push(&event(until + 1, Kind::Lost));
                    until + 1
                }
                _ => {
                    history.push(&Event::new(until, Kind::Death).of(process, 0));
                    until
                }
            };
            if end == 0 {
                history.push(&event(until, Kind::ReleaseInvoke));
                history.push(&event(after, Kind::Released));
            }
            // Who gave it back is done before the answer is there.
            now = until.max(after - u64::from(end == 0) * 3) + gap;
        }
    }
    history
}

proptest! {
    #[test]
    fn what_a_mutex_did_is_clean(keys in prop::collection::vec(holds(), 3)) {
        let mut history = history(&keys);
        let verdict = judge(&mut history, &Rules::default());
        prop_assert!(verdict.is_clean(), "{}", verdict);
        prop_assert_eq!(verdict.figures.grants, keys.iter().map(Vec::len).sum::<usize>() as u64);
    }

    #[test]
    fn whoever_is_let_in_while_another_holds_is_found(
        keys in prop::collection::vec(holds(), 3), key in 0..3_usize, at in any::<prop::sample::Index>(),
    ) {
        let mut history = history(&keys);
        let events: Vec<Event> = history.events().collect();
        let grants: Vec<usize> = events
            .iter()
            .enumerate()
            .filter(|(_, event)| event.e == Kind::Granted && event.k == key.to_string())
            .map(|(index, _)| index)
            .collect();
        let victim = events[*at.get(&grants)].clone();
        let end = events.iter().find(|event| {
            event.p == victim.p && matches!(event.e, Kind::ReleaseInvoke | Kind::Lost | Kind::Death)
        });
        let end = end.unwrap().t;
        prop_assume!(victim.t + 1 < end);
        let thief = |t, kind| Event::new(t, kind).of(9999, 1).key(victim.k.clone());
        history.push(&thief(victim.t, Kind::Invoke));
        history.push(&thief(victim.t + 1, Kind::Granted).fence(1 << 40).deadline(end));
        history.push(&thief(end, Kind::Lost));
        let verdict = judge(&mut history, &Rules::default());
        prop_assert!(verdict.count(Check::Exclusion) > 0, "{}", verdict);
        let (agrees, differs) = verdict.second_opinion;
        prop_assert!(agrees > 0 && differs == 0, "{}", verdict);
    }

    #[test]
    fn both_judges_agree(holds in prop::collection::vec((0..30_u64, 0..10_u64, 1..10_u64), 1..7)) {
        let mut history = History::new();
        let mut windows = Vec::new();
        for (index, &(ask, wait, hold)) in holds.iter().enumerate() {
            let event = |t, kind| Event::new(t, kind).of(index as u32 + 1, 1).key("k");
            let (grant, end) = (ask + wait, ask + wait + hold);
            history.push(&event(ask, Kind::Invoke));
            history.push(&event(grant, Kind::Granted).deadline(end + 1));
            history.push(&event(end, Kind::ReleaseInvoke));
            history.push(&event(end, Kind::Released));
            windows.push([ask, grant, end, end]);
        }
        let clean = judge(&mut history, &Rules::default()).count(Check::Exclusion) == 0;
        let opinion = if clean { Opinion::Possible } else { Opinion::Impossible };
        prop_assert_eq!(linearizable(&windows), opinion);
    }
}
