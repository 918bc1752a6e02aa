//! A guest against the virtio-scsi controller: see `undercroft_vmm::virtio::hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|program: &[u8]| undercroft_vmm::virtio::hostile::run("scsi", program));
