//! A deterministic simulation: the real core over simulated stores, under every fault that a seed can draw.
//!
//! [`run`] is a whole simulation of one seed: some processes with some clients each, one server, a network between them. The client, mutex, guard,
//! keeper and line are those of `distlock-core`. All of it runs in one thread, on tokio's paused clock, and whatever is random comes from the seed, so
//! that the same seed gives the same history to the byte. The history is judged by `distlock-checker`.

mod bug;
mod clock;
mod etcd;
mod nemesis;
mod net;
mod plan;
mod process;
mod redis;
mod run;
mod witness;
mod worker;
mod world;

pub use self::{
    bug::Bug,
    plan::{Kind, Plan, Rates, Wound},
    run::{Outcome, Store, run, run_plan, run_with},
};
