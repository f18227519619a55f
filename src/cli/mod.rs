//! Floor 6: the commands.

#[cfg(feature = "tools")]
pub mod load;
#[cfg(feature = "tools")]
pub mod replay;
pub mod report;
