//! Tests across processes, users and cgroups: the real sidecar, real clients, real billing.
//!
//! Here is what the tests in `tests/` share: [`pod`]s made of [`cgroups`] and [`process`]es on a [`volume_mount`], the
//! test [`client`], and a [`model`] of who must pay for which page. `docs/testing.md` explains how to run and repeat.

pub mod account;
pub mod binaries;
pub mod body;
pub mod cgroups;
pub mod client;
pub mod cluster;
pub mod commands;
pub mod inspect;
pub mod kubelet;
pub mod kubepods;
pub mod ledger;
pub mod leftovers;
pub mod model;
pub mod node;
pub mod pattern;
pub mod performer;
pub mod pod;
pub mod process;
pub mod progress;
pub mod random;
pub mod recharge;
pub mod requirements;
pub mod sequence;
pub mod sidecar;
pub mod steps;
pub mod trace;
pub mod volume_mount;
pub mod watchdog;
