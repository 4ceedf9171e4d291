//! What tests of the judge share.

use distlock_checker::{Event, History, Rules, Verdict, judge};

/// What the judge says of a history.
pub(crate) fn verdict(events: &[Event], rules: &Rules) -> Verdict {
    let mut history = History::new();
    events.iter().for_each(|event| history.push(event));
    // By way of the file, as everybody's history comes.
    let mut file = Vec::new();
    history.write(&mut file).unwrap();
    let mut history = History::new();
    history.read(&String::from_utf8(file).unwrap()).unwrap();
    judge(&mut history, rules)
}
