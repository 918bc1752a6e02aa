//! A guest against the console: see `undercroft_vmm::virtio::hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|program: &[u8]| undercroft_vmm::virtio::hostile::run("console", program));
