//! A guest against the device of a folder whose server is gone: see `undercroft_vmm::virtio::hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|program: &[u8]| undercroft_vmm::virtio::hostile::run("fs", program));
