//! A guest, and its cable's other end, against the network device: see `undercroft_vmm::virtio::hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|program: &[u8]| undercroft_vmm::virtio::hostile::run("net", program));
