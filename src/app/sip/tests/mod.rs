//! Call flows, each run straight and over snapshots.

mod calls;
mod cancels;
mod harness;
mod targets;
