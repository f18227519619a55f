//! Floor 5: the deterministic simulator. It drives the real core of many nodes in one thread from one
//! seed, over a virtual network with virtual clocks, and a checker looks on from outside.

pub mod calls;
pub mod checker;
pub mod coverage;
pub mod fault;
pub mod layout;
pub mod model;
pub mod net;
pub mod node;
pub mod rng;
pub mod scenario;
pub mod spy;
pub mod test_app;
pub mod world;
