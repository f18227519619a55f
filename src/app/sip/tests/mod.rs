//! Call flows, each run straight and over snapshots.

mod calls;
mod harness;
