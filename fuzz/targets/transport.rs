//! A guest against the transport and its queues: see `undercroft_vmm::virtio::hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|program: &[u8]| undercroft_vmm::virtio::hostile::run("transport", program));
