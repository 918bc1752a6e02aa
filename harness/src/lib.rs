//! The lab, the fixtures and the tests that boot real kernels.

pub mod archive;
pub mod console;
pub mod guest;
pub mod lab;
pub mod oci;
pub mod outcome;
pub mod product;
pub mod registry;
pub mod suite;
pub mod turn;
pub mod typist;
pub mod vm;
