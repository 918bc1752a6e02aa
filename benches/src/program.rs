//! The program whose first instruction ends a span: small enough that nothing of its own is counted.

/// The address that it is loaded at.
const ADDRESS: u64 = 0x40_0000;
/// An ELF file's header and one program header (System V ABI, chapters 4 and 5).
const HEADERS: u64 = 64 + 56;

/// The marker with [`TAG_PROGRAM`](undercroft_ruler_runner::TAG_PROGRAM), then `exit_group(0)`.
pub fn that_ends() -> Vec<u8> {
    // xor edi, edi; mov eax, 231; syscall
    elf(&[0x31, 0xff, 0xb8, 231, 0, 0, 0, 0x0f, 0x05])
}

/// The same marker, then `reboot(LINUX_REBOOT_CMD_RESTART)`: for PID 1 of a machine, which its monitor ends at a reset.
pub fn that_restarts() -> Vec<u8> {
    let mut code = vec![0xbf]; // mov edi, LINUX_REBOOT_MAGIC1
    code.extend(0xfee1_dead_u32.to_le_bytes());
    code.push(0xbe); // mov esi, LINUX_REBOOT_MAGIC2
    code.extend(672_274_793_u32.to_le_bytes());
    code.push(0xba); // mov edx, LINUX_REBOOT_CMD_RESTART
    code.extend(0x0123_4567_u32.to_le_bytes());
    code.extend([0xb8, 169, 0, 0, 0, 0x0f, 0x05]); // mov eax, 169; syscall
    code.extend([0xeb, 0xfe]); // jmp to itself: PID 1 does not end
    elf(&code)
}

fn elf(code: &[u8]) -> Vec<u8> {
    let displacement = 0x5543_0000 + u32::from(undercroft_ruler_runner::TAG_PROGRAM);
    let mut text = vec![0x0f, 0x1f, 0x84, 0x00];
    text.extend(displacement.to_le_bytes());
    text.extend(code);
    let size = HEADERS + text.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version
    elf.extend([ADDRESS + HEADERS, 64, 0].iter().flat_map(|word| word.to_le_bytes())); // entry, headers, sections
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // one program header of 56 bytes
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, readable, executable
    elf.extend([0, ADDRESS, ADDRESS, size, size, 4096].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend(text);
    elf
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _};

    #[test]
    fn it_runs_and_ends_well() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("marker");
        std::fs::write(&path, super::that_ends()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let status = std::process::Command::new(&path).status().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(0), None));
    }
}
