//! A guest against the console: see `undercroft_vmm::virtio::hostile`.
#![no_main]

use std::sync::{Arc, atomic::AtomicBool};

libfuzzer_sys::fuzz_target!(
    init: {
        // A program of Rust's own start ignores SIGPIPE, as the VMM does; libFuzzer's does not, and a console whose reader has
        // gone is written to. Any handler makes it an error of the write.
        let _ = signal_hook::flag::register(signal_hook::consts::SIGPIPE, Arc::new(AtomicBool::new(false)));
    },
    |program: &[u8]| undercroft_vmm::virtio::hostile::run("console", program)
);
