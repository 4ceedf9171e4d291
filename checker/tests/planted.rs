//! Violations of every kind, each planted into a history that is clean without it: the judge finds it, and nothing else.

mod common;

use std::time::Duration;

use common::verdict;
use distlock_checker::{Check, Event, Kind, Rules, Verdict};

const MS: u64 = 1_000_000;

/// A client's whole time with the lock: asks, has it until the deadline unless it gives it back, works.
fn hold(client: u32, ask: u64, grant: u64, release: u64, token: u64) -> Vec<Event> {
    let event = |t, kind| Event::new(t * MS, kind).of(client, 1).key("lock");
    vec![
        event(ask, Kind::Invoke),
        event(grant, Kind::Granted).fence(token).deadline((grant + 300) * MS),
        event(grant, Kind::Enter),
        event(grant + 1, Kind::Write).value(1),
        event(release, Kind::Exit),
        event(release, Kind::ReleaseInvoke),
        event(release + 1, Kind::Released),
    ]
}

fn rules() -> Rules {
    let mut rules = Rules::default();
    rules.bound = Some(Duration::from_secs(1));
    rules.leaks_looked_for = true;
    rules.contended = 1;
    rules
}

fn clean() -> Vec<Event> {
    let mut events = hold(1, 0, 1, 100, 5);
    events.extend(hold(2, 50, 102, 200, 6));
    events.push(Event::new(210 * MS, Kind::Heal));
    events.extend(hold(3, 220, 230, 300, 7));
    events.push(Event::new(900 * MS, Kind::Left).name("locks").value(0));
    events
}

/// Only this is found.
#[track_caller]
fn finds(events: &[Event], wanted: &[(Check, u64)]) -> Verdict {
    let verdict = verdict(events, &rules());
    let found: Vec<_> = verdict.counts.iter().map(|(check, count)| (*check, *count)).collect();
    assert_eq!(found, wanted, "{verdict}");
    verdict
}

fn event(t: u64, client: u32, kind: Kind) -> Event {
    Event::new(t * MS, kind).of(client, 1).key("lock")
}

#[test]
fn a_clean_history_passes() {
    let verdict = finds(&clean(), &[]);
    assert_eq!((verdict.figures.grants, verdict.figures.contended), (3, 1));
    assert_eq!(verdict.figures.writes, (3, 0));
    assert_eq!(verdict.figures.longest_wait, Duration::from_millis(10));
}

#[test]
fn two_holders_at_a_time_are_found_by_both_judges() {
    let mut events = clean();
    events.extend(hold(4, 390, 400, 500, 8));
    events.extend(hold(5, 390, 450, 550, 9));
    // Its work ended before: it still holds.
    events.retain(|event| !(event.p == 5 && matches!(event.e, Kind::Enter | Kind::Exit)));
    let verdict = finds(&events, &[(Check::Exclusion, 1)]);
    assert_eq!(verdict.second_opinion, (1, 0));
    assert!(verdict.to_string().ends_with("VIOLATED"));
}

#[test]
fn a_holder_ends_at_its_deadline_and_not_before() {
    // Nobody tells 4 of the loss, for it died; its deadline is at 700.
    let holder = |grant| {
        let mut events = clean();
        events.extend(hold(4, 390, 400, 500, 8).into_iter().take(3));
        events.push(event(690, 4, Kind::Step).deadline(700 * MS));
        events.extend(hold(5, 390, grant, 800, 9));
        events.push(Event::new(890 * MS, Kind::Death).of(4, 0));
        events
    };
    let verdict = verdict(&holder(699), &rules());
    assert_eq!(verdict.count(Check::Exclusion), 1);
    let verdict = crate::verdict(&holder(701), &rules());
    assert_eq!(verdict.count(Check::Exclusion), 0, "{verdict}");
}

#[test]
fn what_a_fault_explains_is_told_apart_and_what_it_does_not_is_not() {
    let mut events = clean();
    events.extend(hold(4, 390, 400, 500, 8));
    events.extend(hold(5, 390, 450, 550, 9));
    let fault = |t, key: &str| Event::new(t * MS, Kind::Fault).name("failover").key(key);
    let mut rules = rules().excusing(["failover"]);
    rules.reach = Duration::from_millis(20);
    for (fault, explains) in [
        (fault(420, ""), true),
        (fault(420, "lock"), true),
        (fault(420, "other"), false),
        (fault(460, ""), false),
        (fault(371, ""), true),
        (fault(369, ""), false),
        (Event::new(420 * MS, Kind::Fault).name("delay"), false),
    ] {
        let mut events = events.clone();
        events.push(fault.clone());
        let verdict = verdict(&events, &rules);
        assert_eq!(verdict.is_clean(), explains, "{fault:?}: {verdict}");
        assert_eq!(verdict.negatives.contains_key(&Check::Exclusion), explains);
    }
}

#[test]
fn a_fault_from_before_the_grants_explains_nothing_however_long_both_had_waited() {
    let mut events = clean();
    // Both asked at 305 and waited; 4 was granted the lock 30 ms before it was seen, at the earliest.
    events.extend(hold(4, 305, 400, 500, 8));
    events.extend(hold(5, 305, 450, 550, 9));
    let mut rules = rules().excusing(["failover"]);
    for (fault, lease, explains) in [
        (310, None, true),
        (310, Some(30), false),
        (369, Some(30), false),
        (371, Some(30), true),
        (310, Some(300), true),
    ] {
        rules.lease = lease.map(Duration::from_millis);
        let mut events = events.clone();
        events.push(Event::new(fault * MS, Kind::Fault).name("failover"));
        let verdict = verdict(&events, &rules);
        assert_eq!(verdict.is_clean(), explains, "{fault} {lease:?}: {verdict}");
    }
    // The same of tokens.
    let mut events = clean();
    events.extend(hold(4, 305, 400, 500, 7));
    let mut rules = crate::rules();
    rules.fence_excuses.push("counter lost".to_owned());
    rules.lease = Some(Duration::from_millis(5));
    // 3, whose token it is, asked at 220, and had it from 230 on.
    for (fault, explains) in [(226, true), (224, false)] {
        let mut events = events.clone();
        events.push(Event::new(fault * MS, Kind::Fault).name("counter lost"));
        assert_eq!(verdict(&events, &rules).is_clean(), explains, "{fault}");
    }
}

#[test]
fn two_at_work_are_found_unless_one_of_them_did_not_run() {
    let mut events = clean();
    let mut paused = hold(4, 390, 400, 500, 8);
    paused[4] = event(760, 4, Kind::Exit);
    paused.truncate(5);
    events.push(event(705, 4, Kind::Lost));
    events.extend(paused);
    events.extend(hold(5, 390, 710, 800, 9));
    finds(&events, &[(Check::Work, 1)]);
    events.push(Event::new(690 * MS, Kind::Stall).of(4, 0));
    events.push(Event::new(704 * MS, Kind::Resume).of(4, 0));
    let verdict = finds(&events, &[]);
    assert_eq!(verdict.figures.paused_overlaps, 1);
}

#[test]
fn tokens_that_go_back_or_come_again_are_found() {
    let mut events = clean();
    events.extend(hold(4, 390, 400, 500, 6));
    let verdict = verdict(&events, &rules());
    // It is below 7, and it was there before.
    assert_eq!(verdict.count(Check::Fence), 2, "{verdict}");
    events.push(Event::new(350 * MS, Kind::Fault).name("counter lost"));
    let mut rules = rules();
    rules.fence_excuses.push("counter lost".to_owned());
    let verdict = crate::verdict(&events, &rules);
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!(verdict.negatives[&Check::Fence], 2);
}

#[test]
fn holds_of_no_length_at_the_same_moment_follow_each_other_as_they_are_written() {
    let at_once = |tokens: [u64; 2]| {
        let mut events = clean();
        events.extend(
            hold(4, 390, 400, 400, tokens[0]).into_iter().filter(|event| event.t <= 400 * MS),
        );
        events.extend(
            hold(5, 390, 400, 400, tokens[1]).into_iter().filter(|event| event.t <= 400 * MS),
        );
        events
    };
    finds(&at_once([8, 9]), &[]);
    finds(&at_once([9, 8]), &[(Check::Fence, 1)]);
}

#[test]
fn a_late_write_that_is_accepted_is_found_and_one_that_is_refused_is_not() {
    let write = |accepted| event(299, 2, Kind::Write).value(u64::from(accepted));
    let mut events = clean();
    events.push(write(true));
    finds(&events, &[(Check::Stale, 1)]);
    events.pop();
    events.push(write(false));
    events.push(write(true).name("open"));
    // Somebody wrote there after it, or nothing is stale.
    events.push(event(240, 3, Kind::Write).value(1).name("open"));
    let verdict = finds(&events, &[]);
    assert_eq!((verdict.figures.writes, verdict.figures.open_stale), ((3, 1), 1));
}

#[test]
fn a_holder_that_is_told_too_late_is_found() {
    let lost = |t| {
        let mut events = clean();
        events.extend(hold(4, 390, 400, 500, 8).into_iter().take(4));
        events.push(event(t, 4, Kind::Exit));
        events.push(event(t, 4, Kind::Lost));
        events
    };
    assert_eq!(finds(&lost(709), &[]).figures.losses, 1);
    finds(&lost(711), &[(Check::Late, 1)]);
    let stalled = |from: u64, to: u64| {
        let mut events = lost(711);
        events.push(Event::new(from * MS, Kind::Stall).of(4, 0));
        events.push(Event::new(to * MS, Kind::Resume).of(4, 0));
        events
    };
    finds(&stalled(650, 702), &[]);
    finds(&stalled(650, 699), &[(Check::Late, 1)]);
    let mut events = lost(711);
    events.retain(|event| event.e != Kind::Lost);
    finds(&events, &[(Check::Late, 1)]);
}

#[test]
fn a_guard_that_is_believed_in_after_its_deadline_is_found() {
    let mut events = clean();
    events.push(event(250, 3, Kind::Step).deadline(240 * MS));
    finds(&events, &[(Check::Late, 1)]);
    let mut events = clean();
    events.iter_mut().filter(|event| event.p == 3).for_each(|event| {
        event.d = event.d.map(|_| 230 * MS);
    });
    finds(&events, &[(Check::Late, 1)]);
    // Stopped between the look and the writing; not so where these are one.
    let mut events = clean();
    events.push(event(250, 3, Kind::Step).deadline(240 * MS));
    events.push(Event::new(239 * MS, Kind::Stall).of(3, 0));
    events.push(Event::new(250 * MS, Kind::Resume).of(3, 0));
    finds(&events, &[]);
    let mut rules = rules();
    rules.exact = true;
    assert_eq!(verdict(&events, &rules).count(Check::Late), 1);
}

#[test]
fn a_guard_that_comes_back_to_life_is_found_where_every_rise_is_written_down() {
    let mut events = clean();
    events.push(event(232, 3, Kind::Step).deadline(240 * MS));
    events.push(event(241, 3, Kind::Step).deadline(400 * MS));
    finds(&events, &[]);
    let mut rules = rules();
    rules.rises = true;
    assert_eq!(verdict(&events, &rules).count(Check::Late), 1);
    // It rose in time.
    events.push(event(239, 3, Kind::Step).deadline(400 * MS));
    assert!(verdict(&events, &rules).is_clean());
}

#[test]
fn a_guard_that_counts_on_more_than_the_store_keeps_is_found() {
    let step = |kept: u64| {
        let mut events = clean();
        events.push(event(232, 3, Kind::Step).deadline(400 * MS).value(kept * MS));
        events
    };
    finds(&step(400), &[]);
    finds(&step(399), &[(Check::Truth, 1)]);
    let mut events = step(232);
    events.push(Event::new(232 * MS, Kind::Fault).name("failover"));
    finds(&events, &[(Check::Truth, 1)]);
    let verdict = verdict(&events, &rules().excusing(["failover"]));
    assert!(verdict.is_clean() && verdict.negatives[&Check::Truth] == 1, "{verdict}");
}

#[test]
fn a_lock_that_stays_taken_after_its_release_is_nobodys() {
    let rests = |until: u64| {
        let mut events = clean();
        let releases = |event: &&mut Event| event.p == 1 && event.e == Kind::ReleaseInvoke;
        events.iter_mut().filter(releases).for_each(|event| event.v = Some(until * MS));
        events
    };
    finds(&rests(102), &[]);
    finds(&rests(103), &[(Check::Exclusion, 1)]);
    // Whether the store heard of it is not known.
    let mut events = rests(103);
    events.retain(|event| event.p != 1 || event.e != Kind::Released);
    finds(&events, &[]);
}

#[test]
fn a_broken_promise_that_somebody_saw_is_found() {
    let mut events = clean();
    events.push(event(232, 3, Kind::Breach));
    finds(&events, &[(Check::Breach, 1)]);
}

#[test]
fn work_that_goes_on_for_want_of_a_processor_is_borne_as_long_as_is_said() {
    // 4 has it until 700, and works until 750; 5 comes at 720.
    let history = |from: u64| {
        let mut events = clean();
        events.extend(hold(4, 390, 400, 750, 8).into_iter().take(5));
        events.push(event(750, 4, Kind::Lost));
        events.extend(hold(5, 690, from, 800, 9));
        events
    };
    let mut rules = rules();
    rules.tolerance = Duration::from_millis(100);
    assert_eq!(verdict(&history(720), &rules).count(Check::Work), 1);
    rules.starvation = Duration::from_millis(30);
    let borne = verdict(&history(720), &rules);
    assert!(borne.is_clean(), "{borne}");
    assert_eq!(borne.figures.paused_overlaps, 1);
    assert_eq!(verdict(&history(740), &rules).count(Check::Work), 1, "it had the time to look");
    let held = verdict(&history(690), &rules);
    assert_eq!(held.count(Check::Work), 1, "its guard said that it is held: {held}");
}

#[test]
fn what_is_left_behind_is_found() {
    let mut events = clean();
    events.push(Event::new(901 * MS, Kind::Left).name("places").value(2));
    finds(&events, &[(Check::Leak, 1)]);
    events.retain(|event| event.e != Kind::Left);
    finds(&events, &[(Check::Vacuity, 1)]);
}

#[test]
fn who_waits_too_long_after_the_heal_is_found() {
    let waits = |from: u64, done: Option<u64>| {
        let mut events = clean();
        events.push(event(from, 6, Kind::Invoke));
        events.extend(done.map(|done| event(done, 6, Kind::Denied)));
        events.push(Event::new(5000 * MS, Kind::Left).name("locks").value(0));
        events
    };
    finds(&waits(100, Some(1200)), &[]);
    finds(&waits(100, Some(1211)), &[(Check::Liveness, 1)]);
    finds(&waits(1000, Some(2001)), &[(Check::Liveness, 1)]);
    finds(&waits(100, None), &[(Check::Liveness, 1)]);
    let mut dead = waits(100, None);
    dead.push(Event::new(150 * MS, Kind::Death).of(6, 0));
    finds(&dead, &[]);
    let mut events = clean();
    events.retain(|event| event.e != Kind::Heal);
    finds(&events, &[(Check::Vacuity, 1)]);
}

#[test]
fn a_history_in_which_too_little_happened_proves_nothing() {
    for (wanted, missing) in [
        ((4, 1, 0, 0), true),
        ((3, 2, 0, 0), true),
        ((3, 1, 1, 0), true),
        ((3, 1, 0, 2), true),
        ((3, 1, 0, 1), false),
    ] {
        let mut rules = rules();
        (rules.grants, rules.contended, rules.losses) = (wanted.0, wanted.1, wanted.2);
        rules.faults.push(("delay".to_owned(), wanted.3));
        let mut events = clean();
        events.push(Event::new(150 * MS, Kind::Fault).name("delay"));
        assert_eq!(verdict(&events, &rules).count(Check::Vacuity), u64::from(missing));
    }
}

#[test]
fn a_history_that_contradicts_itself_is_found() {
    for wrong in [
        event(310, 3, Kind::Granted).fence(9),
        event(310, 3, Kind::Step),
        event(310, 3, Kind::Lost),
        event(310, 3, Kind::Exit),
        event(310, 9, Kind::Released),
        event(60, 2, Kind::Invoke),
        event(110, 2, Kind::Invoke),
        event(110, 2, Kind::Step).key("another"),
        Event::new(310 * MS, Kind::Resume).of(3, 0),
        Event::new(310 * MS, Kind::Left).name("locks"),
    ] {
        let mut events = clean();
        events.push(wrong.clone());
        let verdict = verdict(&events, &rules());
        assert!(verdict.count(Check::Form) > 0, "{wrong:?}: {verdict}");
    }
}
