//! The sidecar as its clients, its pod and strangers see it: every test drives the real binary over its socket.

mod harness;

mod end;
mod frames;
mod metrics;
mod others;
mod reserve;
mod restart;
