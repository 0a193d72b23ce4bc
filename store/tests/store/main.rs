//! What the store promises, one file per promise. Everything runs in a directory under `/dev/shm` where there is one.
#![cfg(test)]

mod billed;
mod create_in_place;
mod golden;
mod hostile;
mod model;
mod mounted;
mod names;
mod packs;
mod put_and_get;
mod recycled;
mod streams;
mod support;
mod upkeep;
mod writer;
