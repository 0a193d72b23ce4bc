//! The sidecar as its clients, its pod and strangers see it: every test drives the real binary over its socket.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, in its harness too"
)]

mod harness;

mod end;
mod frames;
mod fuzz;
mod metrics;
mod others;
mod privilege;
mod reserve;
mod restart;
