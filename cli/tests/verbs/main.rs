//! The command line as its users meet it: the real binary, its output and its exit codes.

#![expect(clippy::unwrap_used, reason = "a test stops where it fails")]

mod bills;
mod check;
mod objects;
mod session;
mod usage;
