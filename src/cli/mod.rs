//! Floor 6: the commands of `tandem`.

#[cfg(feature = "tools")]
pub mod capture;
#[cfg(feature = "tools")]
pub mod inspect;
#[cfg(feature = "tools")]
mod json;
