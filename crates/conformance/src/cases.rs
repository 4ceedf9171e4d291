//! The cases. Each is named by what must be so.

pub mod contract;
pub mod guard;
pub mod line;
pub mod modes;
pub mod waiting;
