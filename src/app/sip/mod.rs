//! SIP calls: where they go, whether their targets live, and what is recorded of them.

pub mod cdr;
pub mod health;
pub mod keeper;
pub mod routes;
