//! The end of the VM.

use std::{fs, io::Write, path::Path};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill},
    },
    unistd::{Pid, sync},
};
use undercroft_guest::process::{Reaped, reap};

use crate::{early, log, port, swap};

/// What the VMM's command line calls the port and value that power the machine off, `PORT,VALUE`, where the kernel
/// cannot know them from ACPI.
const PARAMETER: &str = "undercroft.poweroff=";

/// A panic of PID 1 would be the kernel's panic: say what happened, save what can be saved, and go.
pub(crate) fn off_when_panicking() {
    std::panic::set_hook(Box::new(|panic| {
        log::line(log::Level::Error, &format!("{panic}"));
        if std::process::id() == 1 {
            sync();
            off()
        }
    }));
}

/// Kills what still runs, and unmounts what still is mounted from a disk. Gives what did not go, a line each.
pub(crate) fn stop_everything() -> Vec<String> {
    let mut complaints = Vec::new();
    // Everything but PID 1 itself. With no process left to kill it fails, which is well.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    reap_all(&mut complaints);
    // What lies in memory that nobody can see any more is not worth being read back from swap.
    let _ = umount2(early::SHARED, MntFlags::MNT_DETACH);
    swap::off();
    sync();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for target in disk_mounts(&mounts).into_iter().rev() {
        let Err(error) = umount2(target.as_str(), MntFlags::empty()) else { continue };
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let second = match mount(None::<&str>, target.as_str(), None::<&str>, flags, None::<&str>) {
            Ok(()) => "it was made read-only instead".to_owned(),
            Err(error) => format!("nor could it be made read-only ({error})"),
        };
        complaints.push(format!("{target} could not be unmounted ({error}); {second}"));
    }
    sync();
    end_reports();
    complaints
}

/// Takes the balloon's driver away. The kernel breaks every virtio queue before it powers off, and what reports free pages
/// at that moment would complain of it in a page of kernel log (6.12, virtio_balloon.c, virtballoon_free_page_report).
fn end_reports() {
    const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_balloon";
    let Ok(devices) = fs::read_dir(DRIVER) else { return };
    for device in devices.flatten() {
        let name = device.file_name();
        if name.as_encoded_bytes().starts_with(b"virtio") {
            // If it stays, it stays: the power goes all the same.
            let _ = fs::write(format!("{DRIVER}/unbind"), name.as_encoded_bytes());
        }
    }
}

/// Waits for killed processes, two seconds at most: one in an uninterruptible sleep must not keep the VM.
fn reap_all(complaints: &mut Vec<String>) {
    for _ in 0..200 {
        loop {
            match reap() {
                Reaped::Nothing => break,
                Reaped::Child(..) => {}
                Reaped::NoChildren => return,
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    complaints.push("processes were still there two seconds after SIGKILL".into());
}

/// Mount points of block devices, in the order in which they were mounted; /proc/self/mounts (fstab(5): octal escapes).
fn disk_mounts(table: &str) -> Vec<String> {
    let of_disk = |line: &str| {
        let mut fields = line.split(' ');
        fields.next()?.starts_with("/dev/").then_some(())?;
        Some(
            fields
                .next()?
                .replace("\\040", " ")
                .replace("\\011", "\t")
                .replace("\\012", "\n")
                .replace("\\134", "\\"),
        )
    };
    table.lines().filter_map(of_disk).collect()
}

/// Powers the machine off, by whichever way it has.
pub(crate) fn off() -> ! {
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if let Some((port, value)) = parse_parameter(&command_line)
        && let Err(error) = port::write(port, value)
    {
        log::line(log::Level::Error, &format!("writing {value:#x} to port {port:#x} to power off: {error}"));
    }
    // Without ACPI the kernel would halt instead, and the VMM would wait for ever. A restart ends the machine as well: the
    // VMM does not start it anew, and says that it was one.
    if Path::new("/sys/firmware/acpi").exists() {
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }
    log::line(log::Level::Error, "this kernel knows no way to power off; restarting the machine instead");
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    let _ =
        std::io::stderr().write_all(b"mini-init: this machine can be switched off by no way known here\n");
    loop {
        nix::unistd::pause();
    }
}

/// The port and value of the parameter, which are numbers in decimal or, with `0x`, hexadecimal.
fn parse_parameter(command_line: &str) -> Option<(u16, u8)> {
    let value = command_line.split_whitespace().find_map(|word| word.strip_prefix(PARAMETER))?;
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u16::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    let (port, value) = value.split_once(',')?;
    Some((number(port)?, number(value)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_is_read_in_either_base() {
        assert_eq!(parse_parameter("quiet undercroft.poweroff=0x600,0x34 x"), Some((0x600, 0x34)));
        assert_eq!(parse_parameter("undercroft.poweroff=1536,52"), Some((0x600, 52)));
        for wrong in
            ["", "undercroft.poweroff=", "undercroft.poweroff=1", "undercroft.poweroff=1,256", "poweroff=1,2"]
        {
            assert_eq!(parse_parameter(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_disks_are_unmounted() {
        let table = "rootfs / rootfs rw 0 0\nproc /proc proc rw 0 0\n/dev/vda /run/modules ext4 ro 0 0\n/dev/sda /a\\040b ext4 rw 0 0\n";
        assert_eq!(disk_mounts(table), ["/run/modules", "/a b"]);
    }
}
