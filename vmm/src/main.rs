//! The virtual machine monitor as a program.
fn main() {}
