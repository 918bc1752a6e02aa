//! A kernel file, ELF or bzImage, against the loader.
#![no_main]

use std::io::Write;

const MIB: u64 = 32;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::Builder::new().tempfile_in("/dev/shm").expect("a file");
    file.write_all(bytes).expect("writing");
    let memory = undercroft_vmm::memory::map(MIB, None).expect("mmap");
    if let Ok(image) = undercroft_vmm::boot::load_kernel(file.path(), &memory) {
        assert!(image.end <= MIB << 20, "it fits");
        assert!(image.entry < image.end, "it begins where it was loaded");
    }
});
