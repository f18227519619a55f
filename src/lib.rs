//! Tandem keeps stateful UDP calls alive when machines die: every call runs on a small group of nodes in
//! mirror, and the next node answers from the very packet at which the master fell silent.
//!
//! The floors, each importing only from those below it (`tests/tidy.rs` enforces it), are described in
//! ARCHITECTURE.md: [`types`]; `wire`, `config`; `proto`, [`app`]; [`engine`]; `sim`, `io`; `cli`.

pub mod app;
pub mod cli;
pub mod config;
pub mod engine;
pub mod io;
pub mod proto;
pub mod sim;
pub mod types;
pub mod wire;
