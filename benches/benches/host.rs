//! What the host's side does without a machine: runs anywhere, in a minute.
//!
//!     cargo bench -p undercroft-benches

use std::{fs, hint::black_box, io};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use undercroft_kernel_config::initramfs;
use undercroft_protocol::{
    read_frame,
    session::{Exec, InitRequest, Program, Stdio},
    write_frame,
};
use undercroft_vmm::{boot, memory};

/// A kernel of the tuned one's size.
const KERNEL_BYTES: usize = 24 << 20;
/// A module of a common size; a stock kernel's initramfs holds a dozen.
const MODULE_BYTES: usize = 200 << 10;

/// The longest message of everyday: a program with the environment of a login shell.
fn frames(criterion: &mut Criterion) {
    let variable = |n: usize| (format!("VARIABLE_{n}").into_bytes(), vec![b'x'; 60]);
    let request = InitRequest::Exec(Exec {
        session: 7,
        program: Program::Argv(vec![b"cargo".to_vec(), b"build".to_vec(), b"--release".to_vec()]),
        environment: (0..40).map(variable).collect(),
        directory: Some(b"/home/someone/src".to_vec()),
        user: None,
        stdio: Stdio::Pipes { stdin: None, stdout: None, stderr: None },
    });
    let mut bytes = Vec::new();
    write_frame(&mut bytes, &request).expect("a vector takes any frame");
    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("write", |bencher| {
        bencher.iter(|| write_frame(&mut io::sink(), black_box(&request)).expect("a sink takes any frame"));
    });
    group.bench_function("read", |bencher| {
        bencher.iter(|| read_frame::<InitRequest>(&mut black_box(&bytes[..])).expect("it was just written"));
    });
}

/// From a file in the page cache into guest memory that is there already.
fn load_kernel(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("vmlinux");
    fs::write(&path, vmlinux(KERNEL_BYTES)).expect("room for a kernel");
    let memory = memory::map(128, None).expect("128 MiB");
    let mut group = criterion.benchmark_group("boot");
    group.throughput(Throughput::Bytes(KERNEL_BYTES as u64)).sample_size(20);
    group.bench_function("load_kernel", |bencher| {
        bencher.iter(|| boot::load_kernel(&path, &memory).expect("a well-formed kernel"));
    });
}

/// An ELF file (System V ABI, chapters 4 and 5) with one segment to be loaded at 16 MiB.
fn vmlinux(size: usize) -> Vec<u8> {
    const ADDRESS: u64 = 16 << 20;
    const CONTENT: u64 = 4096;
    let mut elf = Vec::with_capacity(CONTENT as usize + size);
    elf.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version
    elf.extend([ADDRESS, 64, 0].iter().flat_map(|word| word.to_le_bytes())); // entry, program headers, sections
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // one program header of 56 bytes
    elf.extend([1, 0, 0, 0, 7, 0, 0, 0]); // PT_LOAD, readable, writable, executable
    let size = size as u64;
    elf.extend([CONTENT, ADDRESS, ADDRESS, size, size, 4096].iter().flat_map(|word| word.to_le_bytes()));
    elf.resize(CONTENT as usize + size as usize, 0xcc);
    elf
}

/// A stock kernel's initramfs.
fn build_initramfs(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = |name: String| {
        let path = directory.path().join(name);
        fs::write(&path, vec![0x5a; MODULE_BYTES]).expect("room for a module");
        path
    };
    let (mini_init, init) = (file("mini-init".into()), file("init".into()));
    let modules: Vec<_> = (0..14).map(|n| file(format!("module{n}.ko"))).collect();
    let out = directory.path().join("initramfs");
    let mut group = criterion.benchmark_group("initramfs");
    group.throughput(Throughput::Bytes(16 * MODULE_BYTES as u64)).sample_size(20);
    group.bench_function("build", |bencher| {
        bencher.iter(|| initramfs::build(&mini_init, &init, &modules, &out).expect("all files are there"));
    });
}

criterion_group!(benches, frames, load_kernel, build_initramfs);
criterion_main!(benches);
