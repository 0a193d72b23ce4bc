//! Whole volumes change their payer, on real cgroups. Needs root.

#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]
#![allow(
    unreachable_pub,
    clippy::allow_attributes,
    reason = "the modules of one test program"
)]

mod faults;
mod looked_at;
mod order;
mod others;
#[path = "../support/mod.rs"]
mod support;
mod whole;
