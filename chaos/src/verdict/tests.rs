//! That a verdict can be bad: what must not be is planted into the history of a run.

use std::fs;

use distlock_checker::{Check, Event, Kind};
use distlock_servers::process::temp_dir;

use super::*;
use crate::{journal::Journal, ledger::Ledger, plan::Backend};

const SECOND: u64 = 1_000_000_000;
const LOCK: &str = "chaos/0";

fn plan() -> Plan {
    let mut plan = Plan::draw(Backend::Redis, 1, Duration::from_secs(10));
    plan.ttl = Duration::from_secs(1);
    plan
}

fn decks() -> Decks {
    Decks { harmless: vec![Wound::Restarted], fatal: vec![Wound::Flushed] }
}

/// A hold of a second, from this second on, by this process.
fn hold(second: u64, process: u32) -> Vec<Event> {
    let event = |t: u64, kind| Event::new(t, kind).of(process, 1).key(LOCK);
    let (start, end) = (second * SECOND, second * SECOND + SECOND / 2);
    vec![
        event(start - 3 * SECOND / 4, Kind::Invoke),
        event(start, Kind::Granted).fence(second).deadline(start + SECOND),
        event(start, Kind::Enter),
        event(start + 1, Kind::Write).value(1),
        event(end, Kind::Exit),
        event(end, Kind::ReleaseInvoke).deadline(start + SECOND),
        event(end + 1, Kind::Released),
    ]
}

/// What a run writes that goes well.
fn clean() -> Vec<Event> {
    let mut events: Vec<Event> =
        (10..30).flat_map(|second| hold(second, 1 + (second % 2) as u32)).collect();
    let fault = |t: u64, name| Event::new(t, Kind::Fault).name(name);
    events.push(fault(SECOND, "restarted"));
    events.push(fault(SECOND, "flushed"));
    events.push(fault(SECOND, "worker_killed"));
    events.push(Event::new(SECOND, Kind::Stall).of(9, 0));
    events.push(Event::new(2 * SECOND, Kind::Resume).of(9, 0));
    let lost = |t: u64, kind| Event::new(t, kind).of(9, 1).key("chaos/1");
    events.push(lost(3 * SECOND, Kind::Invoke));
    events.push(lost(4 * SECOND, Kind::Granted).fence(1).deadline(5 * SECOND));
    events.push(lost(5 * SECOND + 1, Kind::Lost).deadline(5 * SECOND));
    events.push(Event::new(25 * SECOND, Kind::Heal));
    events.push(Event::new(99 * SECOND, Kind::Left).name("locks").value(0));
    events
}

fn judged(events: &[Event], tokens: &[u64]) -> Outcome {
    let dir = temp_dir("verdict").unwrap();
    let journal = Journal::open(&dir, 0).unwrap();
    events.iter().for_each(|event| journal.write(event));
    drop(Ledger::open(&dir, 0).unwrap());
    let lines: String = tokens.iter().map(|token| format!("{token}\n")).collect();
    fs::write(dir.join("gated-0"), lines).unwrap();
    let outcome = look(&plan(), &decks(), &dir, Vec::new(), Vec::new()).unwrap();
    fs::remove_dir_all(dir).unwrap();
    outcome
}

/// What is found when this is done to a clean history.
fn found(change: impl FnOnce(&mut Vec<Event>)) -> Outcome {
    let mut events = clean();
    change(&mut events);
    judged(&events, &[])
}

#[test]
fn a_good_run_is_clean() {
    let outcome = judged(&clean(), &[1, 1, 2]);
    assert!(outcome.is_clean(), "{outcome}");
    assert_eq!((outcome.audit.gated.accepted, outcome.audit.gated.stale), (3, 0));
}

#[test]
fn a_guard_that_was_renewed_unseen_is_no_violation_and_one_that_is_believed_in_too_long_is() {
    let step =
        |t: u64, deadline: u64| Event::new(t, Kind::Step).of(1, 1).key(LOCK).deadline(deadline);
    let until = 21 * SECOND;
    let renewed = found(|events| events.push(step(20 * SECOND + 1, until + SECOND)));
    assert!(renewed.is_clean(), "{renewed}");
    let short = found(|events| {
        events.push(step(20 * SECOND + 1, 20 * SECOND + 2));
        events.push(step(20 * SECOND + 3, until));
    });
    assert!(short.is_clean(), "it was renewed between two looks: {short}");
    let late = found(|events| events.push(step(20 * SECOND + 3, 20 * SECOND + 2)));
    assert_eq!(late.verdict.count(Check::Late), 1, "{late}");
}

#[test]
fn a_second_holder_is_a_violation_unless_the_data_were_lost_between() {
    let second = |events: &mut Vec<Event>| {
        let mut rival = hold(20, 7);
        rival[0].t = 19 * SECOND + 900_000_000;
        rival.iter_mut().filter(|event| event.f.is_some()).for_each(|event| event.f = Some(30));
        // What it writes has no part in this, and later tokens would be lower.
        events.retain(|event| event.t < 21 * SECOND || event.e > Kind::Released);
        rival.iter_mut().for_each(|event| event.t += SECOND / 8);
        events.extend(rival);
    };
    let outcome = found(second);
    assert!(!outcome.is_clean());
    assert_eq!(outcome.verdict.count(Check::Exclusion), 1, "{outcome}");
    assert_eq!(outcome.verdict.count(Check::Work), 1, "{outcome}");
    let excused = found(|events| {
        second(events);
        events.push(Event::new(20 * SECOND + 1, Kind::Fault).name("flushed"));
    });
    assert_eq!(excused.verdict.count(Check::Exclusion), 0, "{excused}");
    assert_eq!(excused.verdict.negatives[&Check::Exclusion], 1, "{excused}");
    let elsewhere = |name: &'static str, key: &'static str| {
        found(|events| {
            second(events);
            events.push(Event::new(20 * SECOND + 1, Kind::Fault).name(name).key(key));
        })
    };
    for name in ["flushed", UNSETTLED] {
        let here = elsewhere(name, LOCK);
        assert_eq!(here.verdict.count(Check::Exclusion), 0, "of its own shard: {here}");
        let there = elsewhere(name, "chaos/1");
        assert_eq!(there.verdict.count(Check::Exclusion), 1, "of another shard: {there}");
    }
    let restarted = found(|events| {
        second(events);
        events.push(Event::new(20 * SECOND + 1, Kind::Fault).name("restarted"));
    });
    assert_eq!(restarted.verdict.count(Check::Exclusion), 1, "a lock survives that: {restarted}");
}

#[test]
fn a_guard_that_says_held_after_its_deadline_is_late_even_if_its_process_was_stopped() {
    let outcome = found(|events| {
        let step = Event::new(21 * SECOND + 100, Kind::Step).of(1, 1).key(LOCK);
        events.retain(|event| event.t < 20 * SECOND + 2 || event.e > Kind::Released);
        events.push(step.deadline(21 * SECOND));
        events.push(Event::new(20 * SECOND + 10, Kind::Stall).of(1, 0));
        events.push(Event::new(21 * SECOND + 99, Kind::Resume).of(1, 0));
    });
    assert!(0 < outcome.verdict.count(Check::Late), "{outcome}");
}

#[test]
fn work_may_overlap_for_want_of_a_processor_but_not_while_a_guard_says_held() {
    // It is told of its loss by the clock, and gets to run half a second later.
    let late = |exit: u64| {
        found(|events| {
            let mine =
                |event: &Event| event.p == 1 && (20 * SECOND..21 * SECOND).contains(&event.t);
            events.retain(|event| !mine(event) || event.t < 20 * SECOND + SECOND / 4);
            let event = |kind| Event::new(exit, kind).of(1, 1).key(LOCK);
            events
                .retain(|event| event.p != 1 || event.t < 21 * SECOND || event.e > Kind::Released);
            events.push(event(Kind::Exit));
            events.push(event(Kind::Lost).deadline(21 * SECOND));
        })
    };
    let outcome = late(21 * SECOND + SECOND / 4);
    assert!(outcome.is_clean(), "{outcome}");
    assert_eq!(outcome.verdict.figures.paused_overlaps, 1);
    let outcome = late(29 * SECOND);
    assert!(0 < outcome.verdict.count(Check::Work), "{outcome}");
    assert!(0 < outcome.verdict.count(Check::Late), "{outcome}");
}

#[test]
fn what_is_left_or_waits_for_ever_or_wrote_past_the_gate_is_found() {
    let outcome = found(|events| {
        events.push(Event::new(100 * SECOND, Kind::Left).name("places").value(2));
    });
    assert_eq!(outcome.verdict.count(Check::Leak), 1, "{outcome}");
    let outcome = found(|events| {
        events.push(Event::new(26 * SECOND, Kind::Invoke).of(8, 1).key(LOCK));
    });
    assert_eq!(outcome.verdict.count(Check::Liveness), 1, "{outcome}");
    let outcome = judged(&clean(), &[1, 3, 2]);
    assert!(outcome.verdict.is_clean() && !outcome.is_clean(), "{outcome}");
}

#[test]
fn a_run_in_which_too_little_happened_proves_nothing() {
    let outcome = found(|events| events.retain(|event| event.n != "restarted"));
    assert_eq!(outcome.verdict.count(Check::Vacuity), 1, "{outcome}");
    let outcome = found(|events| events.retain(|event| event.t < 12 * SECOND || event.p == 0));
    assert!(0 < outcome.verdict.count(Check::Vacuity), "{outcome}");
    let outcome = found(|events| events.retain(|event| event.e != Kind::Left));
    assert_eq!(outcome.verdict.count(Check::Vacuity), 1, "{outcome}");
}
