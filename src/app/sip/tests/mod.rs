//! Call flows, each run straight and over snapshots.

mod calls;
mod cancels;
mod dialogs;
mod endings;
mod harness;
mod targets;
mod ways;
