//! Floor 6: the commands of `tandem`.

#[cfg(feature = "tools")]
pub mod capture;
#[cfg(feature = "tools")]
pub mod load;
#[cfg(feature = "tools")]
pub mod replay;
pub mod report;
