//! How long the judge takes for a million operations: `cargo run --release -p distlock-checker --example million`.

#![allow(clippy::print_stdout, reason = "it prints its figures")]

use std::time::Instant;

use distlock_checker::{Event, History, Kind, Rules, judge};

const OPERATIONS: u64 = 1_000_000;
const KEYS: u64 = 16;
const CLIENTS: u64 = 10;

#[expect(clippy::disallowed_methods, reason = "nothing is paused here")]
fn main() {
    let mut history = History::new();
    for operation in 0..OPERATIONS {
        // Ten clients stand in line for each key; the next one asked while the one before had it.
        let (key, turn) = (operation % KEYS, operation / KEYS);
        let start = turn * 100;
        let (process, client) = (key as u32 + 1, (turn % CLIENTS) as u32);
        let event = |t, kind| Event::new(t, kind).of(process, client).key(format!("k{key}"));
        history.push(&event(start.saturating_sub(150), Kind::Invoke));
        history.push(&event(start, Kind::Granted).fence(turn + 1).deadline(start + 1000));
        history.push(&event(start + 1, Kind::Enter));
        history.push(&event(start + 2, Kind::Write).value(1));
        history.push(&event(start + 90, Kind::Exit));
        history.push(&event(start + 95, Kind::ReleaseInvoke));
        history.push(&event(start + 98, Kind::Released));
    }
    let started = Instant::now();
    let verdict = judge(&mut history, &Rules::default());
    let took = started.elapsed();
    println!("{verdict}");
    println!("{OPERATIONS} operations, {} events judged in {took:?}", history.len());
    assert!(verdict.is_clean(), "the history is clean");
}
