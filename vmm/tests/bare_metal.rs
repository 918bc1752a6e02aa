//! Tiny guests without a kernel, on the host's own KVM: the whole machine from an ELF file to its end.
//!
//! They also run where KVM interprets (CI machines), for they use only the plainest instructions.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use undercroft_vmm::config::{Description, Entry, Output, Seccomp};
use undercroft_vmm::{End, Machine, MachineConfig};

const LOAD_AT: u64 = 0x100_0000;

/// Nothing if there is no KVM here that this user may use; the reason is printed.
fn kvm() -> Option<()> {
    match undercroft_vmm::kvm::open() {
        Ok(_) => Some(()),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// An ELF file of one segment at 16 MiB that is entered at its first byte, by either protocol.
fn kernel(code: &[u8]) -> Vec<u8> {
    let note: Vec<u8> = [4_u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), LOAD_AT as u32]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    let mut file = vec![0; 176];
    let mut put = |at: usize, value: &[u8]| file[at..at + value.len()].copy_from_slice(value);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0]);
    put(24, &LOAD_AT.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &[56, 0, 2, 0]);
    for (at, kind, offset, size) in [(64, 1_u32, 176, code.len()), (120, 4, 176 + code.len(), note.len())] {
        put(at, &kind.to_le_bytes());
        put(at + 8, &(offset as u64).to_le_bytes());
        put(at + 24, &LOAD_AT.to_le_bytes());
        put(at + 32, &(size as u64).to_le_bytes());
        put(at + 40, &(size as u64).to_le_bytes());
    }
    file.extend_from_slice(code);
    file.extend_from_slice(&note);
    file
}

/// The configuration of a machine that runs `code` and prints to a file in `folder`.
fn config(folder: &TempDir, code: &[u8]) -> MachineConfig {
    let path = folder.path().join("kernel");
    std::fs::File::create(&path)
        .and_then(|mut file| file.write_all(&kernel(code)))
        .expect("a temporary file");
    MachineConfig {
        kernel: path,
        memory_mib: 32,
        rng: false,
        serial: Output::File(folder.path().join("serial")),
        seccomp: Seccomp::Off,
        ..MachineConfig::default()
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn run(config: MachineConfig) -> End {
    Machine::new(config).and_then(Machine::run).expect("the machine runs")
}

fn serial(folder: &TempDir) -> String {
    std::fs::read_to_string(folder.path().join("serial")).expect("the console's file")
}

/// mov dx, port; mov al, value; out dx, al
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

fn print(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|byte| out(0x3f8, byte)).collect()
}

#[test]
fn a_guest_prints_and_powers_off() {
    if kvm().is_none() {
        return;
    }
    let folder = folder();
    let code = [print("hello\n"), out(0x600, 0x34)].concat();
    assert_eq!(run(config(&folder, &code)), End::PowerOff);
    assert_eq!(serial(&folder), "hello\n");
}

#[test]
fn the_ends_are_told_apart() {
    if kvm().is_none() {
        return;
    }
    let ends = [
        (out(0x602, 1), End::Reset),
        (out(0x64, 0xfe), End::Reset),
        (out(0x505, 1), End::GuestPanic(String::new())),
        (
            [print("Kernel panic - not syncing: x\n"), out(0x64, 0xfe)].concat(),
            End::GuestPanic("Kernel panic - not syncing: x".into()),
        ),
        // ud2 without an interrupt table.
        (vec![0x0f, 0x0b], End::TripleFault),
    ];
    for (code, end) in ends {
        let folder = folder();
        assert_eq!(run(config(&folder, &code)), end, "{code:x?}");
    }
}

#[test]
fn a_kernel_that_is_told_by_the_command_line_finds_no_8259() {
    if kvm().is_none() {
        return;
    }
    for (description, found) in [(Description::CommandLine, "-"), (Description::DeviceTree, "P")] {
        let folder = folder();
        // Linux's probe: out 0x21, 0xfb; in al, dx; cmp al, 0xfb; je over `-` and a jump.
        let probe = [out(0xa1, 0xff), out(0x21, 0xfb), vec![0xec, 0x3c, 0xfb, 0x74, 0x09]].concat();
        let code = [probe, print("-"), vec![0xeb, 0x07], print("P"), out(0x600, 0x34)].concat();
        let config = MachineConfig { description, ..config(&folder, &code) };
        assert_eq!(run(config), End::PowerOff);
        assert_eq!(serial(&folder), found, "{description:?}");
    }
}

#[test]
fn pvh_enters_in_32_bit_mode_with_the_start_information() {
    if kvm().is_none() {
        return;
    }
    let folder = folder();
    // cmp dword [ebx], 0x336ec578; jne +7; then "P" (the same bytes in 32-bit mode), and the end.
    let code = [vec![0x81, 0x3b, 0x78, 0xc5, 0x6e, 0x33, 0x75, 0x07], print("P"), out(0x600, 0x34)].concat();
    let config = MachineConfig { entry: Entry::Pvh, ..config(&folder, &code) };
    assert_eq!(run(config), End::PowerOff);
    assert_eq!(serial(&folder), "P");
}

#[test]
fn virtio_registers_are_at_their_addresses() {
    if kvm().is_none() {
        return;
    }
    for description in [Description::Acpi, Description::CommandLine] {
        let folder = folder();
        // Paging is off, so all of the first 4 GiB can be read: mov ebx, 0xd0000000; mov eax, [ebx]; mov dx, 0x3f8; four times: out dx, al; shr eax, 8.
        let mut code = vec![0xbb, 0, 0, 0, 0xd0, 0x8b, 0x03, 0x66, 0xba, 0xf8, 0x03];
        for _ in 0..4 {
            code.extend_from_slice(&[0xee, 0xc1, 0xe8, 0x08]);
        }
        code.extend(out(0x600, 0x34));
        let config = MachineConfig { rng: true, entry: Entry::Pvh, description, ..config(&folder, &code) };
        assert_eq!(run(config), End::PowerOff);
        assert_eq!(serial(&folder), "virt", "the magic value of virtio 1.2, section 4.2.2");
    }
}

#[test]
fn a_guest_that_never_ends_is_ended() {
    if kvm().is_none() {
        return;
    }
    let folder = folder();
    // jmp to itself
    let machine = Machine::new(MachineConfig { cpus: 2, ..config(&folder, &[0xeb, 0xfe]) })
        .expect("the machine is made");
    let ending = machine.ending();
    let ender = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        ending.set(End::Killed);
    });
    assert_eq!(machine.run().expect("the machine runs"), End::Killed);
    ender.join().expect("the ending thread");
}

/// The binary, with its filters on and its statuses.
#[test]
fn the_binary_is_confined_and_says_how_it_ended() {
    if kvm().is_none() {
        return;
    }
    for (code, status) in
        [(out(0x600, 0x34), 0), (out(0x64, 0xfe), 3), (out(0x505, 1), 4), (vec![0x0f, 0x0b], 5)]
    {
        let folder = folder();
        let kernel = config(&folder, &code).kernel;
        let output = binary(&["--memory-mib", "32", "--cpus", "2", "--scsi"], &kernel);
        assert_eq!(output.status.code(), Some(status), "{output:?}");
    }
}

fn binary(arguments: &[&str], kernel: &Path) -> std::process::Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_undercroft-vmm"))
        .args(arguments)
        .arg("--kernel")
        .arg(kernel)
        .output()
        .expect("the binary runs")
}

#[test]
fn bad_input_gives_one_line_and_a_status() {
    let folder = folder();
    let script = folder.path().join("script");
    std::fs::write(&script, "#!/bin/sh\n").expect("a temporary file");
    let missing = folder.path().join("missing");
    for (arguments, kernel, status, text) in [
        (&["--cpus", "65"][..], &script, 1, "cpus = 65: expected 1 to 64"),
        (&["--memory-mib", "1"], &script, 1, "memory_mib = 1: expected 32"),
        (&["--nonsense", "1"], &script, 2, "there is no option --nonsense"),
        (&["--description", "pci"], &script, 2, "unknown variant `pci`"),
    ] {
        let output = binary(arguments, kernel);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{said}");
        assert!(said.contains(text), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    if kvm().is_none() {
        return;
    }
    for (kernel, text) in
        [(&script, "it is neither an ELF vmlinux nor a bzImage"), (&missing, "No such file")]
    {
        let output = binary(&[], kernel);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(text) && said.lines().count() == 1, "{said}");
    }
}
