//! The lab, the fixtures and the tests that boot real kernels.

pub mod guest;
pub mod lab;
