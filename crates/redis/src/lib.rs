//! Under construction.

#[allow(dead_code, reason = "the backend that uses it comes next")]
mod link;
