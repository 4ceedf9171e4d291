//! The cases. Each is named by what must be so.

pub mod cohort;
pub mod contract;
pub mod faults;
pub mod guard;
pub mod input;
pub mod lifecycle;
pub mod line;
pub mod modes;
pub mod origins;
pub mod peers;
pub mod waiting;
