//! Judges histories of locks: whether a lock was held by one at a time, or by as many as may share it, fenced, lost in time, and left nothing behind.
//!
//! A history is what some processes wrote down about what they did with locks: [`Event`]s, as JSON lines. It is judged from that alone, so the same
//! judge serves a simulation, a store in one process, and many processes on real servers. What is checked, and against what limits, is a [`Rules`];
//! what was found is a [`Verdict`].

mod check;
mod event;
mod history;
mod rivals;
mod rules;
mod session;
mod verdict;
mod wgl;

pub use self::{
    check::judge,
    event::{Event, Kind, Mode, ParseError},
    history::History,
    rules::Rules,
    verdict::{Check, Figures, Finding, Verdict},
    wgl::{Opinion, linearizable, linearizable_in},
};
