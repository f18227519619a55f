//! Floor 6: the commands of `tandem`.

#[cfg(feature = "tools")]
pub mod capture;
pub mod report;
