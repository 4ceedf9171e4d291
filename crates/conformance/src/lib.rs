//! Faults for any lock store of distlock, and the suite that every store runs.

mod dice;
mod faulty;

pub use {
    dice::Dice,
    faulty::{Fault, Faulty, Op, Rates},
};
