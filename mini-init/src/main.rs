//! PID 1 of the utility VM.

fn main() {}
