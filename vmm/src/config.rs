//! One description of a machine: the library's builder, the binary's arguments and its JSON file are all this type.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::virtio::fs::TAG_LENGTH;

/// A virtual machine. Every field but [`kernel`](Self::kernel) has a default that suits a utility VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MachineConfig {
    /// The kernel: an ELF `vmlinux` or a bzImage, told apart by content.
    pub kernel: PathBuf,
    /// An initramfs, or several concatenated; loaded as it is.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line. What the machine itself must say (devices, `reboot=`) is put before it.
    pub command_line: String,
    /// Virtual CPUs, 1 to 64.
    pub cpus: u8,
    /// Guest memory at boot in MiB, at least 32.
    pub memory_mib: u64,
    /// What guest memory can grow to while the machine runs, in MiB (virtio-mem; a kernel with `CONFIG_VIRTIO_MEM`). The
    /// boot costs nothing for what is not there yet. It stays as it is if absent.
    pub max_memory_mib: Option<u64>,
    /// Ticks that the kernel counts in a second (its `CONFIG_HZ`): with it the VMM can tell a kernel that starts further
    /// CPUs how long a delay is (`lpj=`), which each of them would find out for itself otherwise.
    pub timer_hz: Option<u32>,
    /// Whether the host backs guest memory with huge pages.
    pub huge_pages: HugePages,
    /// How the machine is described to the guest.
    pub description: Description,
    /// How the kernel is entered.
    pub entry: Entry,
    /// virtio-blk disks, present from the boot on, in this order (`vda`, `vdb`, …).
    pub disks: Vec<DiskConfig>,
    /// Whether the host's page cache holds what the guest reads from and writes to disks: a second copy of what the guest
    /// caches itself. Without, files are read and written directly where their filesystem can, and elsewhere what went
    /// through the page cache is dropped from it.
    pub page_cache: bool,
    /// A virtio-scsi controller, whose logical units come and go over the control socket.
    pub scsi: bool,
    /// A virtio-vsock device.
    pub vsock: Option<VsockConfig>,
    /// A virtio-net device.
    pub network: Option<NetConfig>,
    /// virtio-fs devices. With any, guest memory is made so that other processes can be given it.
    pub folders: Vec<FolderConfig>,
    /// A virtio-rng device, fed by the host's getrandom(2).
    pub rng: bool,
    /// A virtio-balloon device.
    pub balloon: Option<BalloonConfig>,
    /// The 16550 at port 0x3f8 (`console=ttyS0`).
    pub serial: Output,
    /// A virtio-console (`console=hvc0`); none if absent.
    pub console: Option<Output>,
    /// What a system call outside a thread's filter does.
    pub seccomp: Seccomp,
    /// An inherited stream socket on which the machine is controlled; see [`crate::control`].
    pub control_fd: Option<i32>,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            kernel: PathBuf::new(),
            initramfs: None,
            command_line: "console=ttyS0 quiet panic=-1".into(),
            cpus: 1,
            memory_mib: 512,
            max_memory_mib: None,
            timer_hz: None,
            huge_pages: HugePages::Host,
            description: Description::Acpi,
            entry: Entry::LongMode,
            disks: Vec::new(),
            page_cache: false,
            scsi: false,
            vsock: None,
            network: None,
            folders: Vec::new(),
            rng: true,
            balloon: None,
            serial: Output::Stdout,
            console: None,
            seccomp: Seccomp::Enforce,
            control_fd: None,
        }
    }
}

impl MachineConfig {
    /// Looks for what no machine can be, before anything is made.
    ///
    /// # Errors
    /// What is wrong, with the field's name and what would be right.
    pub fn check(&self) -> Result<(), String> {
        const CPUS_MAX: u8 = 64;
        const MEMORY_MIN: u64 = 32;
        /// 4 TiB; the guest's physical addresses end somewhere, and mmap(2) says where before.
        const MEMORY_MAX: u64 = 4 << 20;
        if self.kernel.as_os_str().is_empty() {
            return Err("kernel: no kernel is given; it is the path of a vmlinux or a bzImage".into());
        }
        if !(1..=CPUS_MAX).contains(&self.cpus) {
            return Err(format!("cpus = {}: expected 1 to {CPUS_MAX}", self.cpus));
        }
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&self.memory_mib) {
            return Err(format!("memory_mib = {}: expected {MEMORY_MIN} to {MEMORY_MAX}", self.memory_mib));
        }
        if let Some(most) = self.max_memory_mib
            && !(self.memory_mib..=MEMORY_MAX).contains(&most)
        {
            return Err(format!(
                "max_memory_mib = {most}: expected {} (memory_mib) to {MEMORY_MAX}",
                self.memory_mib
            ));
        }
        if self.timer_hz.is_some_and(|hz| !(24..=1000).contains(&hz)) {
            return Err(format!("timer_hz = {}: expected 24 to 1000", self.timer_hz.unwrap_or_default()));
        }
        if self.command_line.contains('\0') {
            return Err("command_line: it has a NUL in it, which would end it there".into());
        }
        if self.entry == Entry::Pvh && self.description == Description::DeviceTree {
            return Err(
                "entry = pvh has no place for description = device-tree; use entry = long-mode".into()
            );
        }
        if let Some(network) = &self.network {
            network.check()?;
        }
        for (at, folder) in self.folders.iter().enumerate() {
            let FolderConfig { tag, .. } = folder;
            if tag.is_empty() || tag.len() > TAG_LENGTH || tag.contains('\0') {
                return Err(format!("folders.{at}.tag = {tag:?}: expected 1 to {TAG_LENGTH} bytes"));
            }
            if self.folders.iter().take(at).any(|other| other.tag == *tag) {
                return Err(format!("folders.{at}.tag = {tag:?}: another folder has this tag"));
            }
        }
        if self.serial == Output::Terminal && self.console == Some(Output::Terminal) {
            return Err("serial and console cannot both have the terminal".into());
        }
        Ok(())
    }
}

/// Whether the host backs guest memory with transparent huge pages, of 2 MiB on x86-64: fewer page faults and a shorter walk
/// for each address, at the price of 2 MiB for the first byte that the guest touches in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HugePages {
    /// As the host does for any program (`/sys/kernel/mm/transparent_hugepage/enabled`).
    Host,
    /// Where the host has them for programs that ask.
    Always,
    /// Nowhere.
    Never,
}

/// How the guest's kernel learns which devices and CPUs there are.
///
/// What it costs, from the VM's creation to `/init`, in millions of instructions that guest and host executed together (tuned
/// 6.12 kernel, 1 CPU, 512 MiB, four devices; in the lab under icount, three runs within 0.1): command line 97.1, and 97.6
/// when entered by PVH; device tree 101.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Description {
    /// ACPI tables (hardware-reduced): what distributions' stock kernels need.
    Acpi,
    /// A flattened device tree; on x86-64 handed over by `setup_data`, for kernels with `CONFIG_OF`.
    DeviceTree,
    /// `virtio_mmio.device=` on the command line and an MP table, for kernels with
    /// `CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES`.
    CommandLine,
}

/// How the boot vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// In 64-bit mode, at the ELF file's entry (Linux's boot protocol). All descriptions can be handed over this way.
    LongMode,
    /// In 32-bit protected mode, at the entry that the kernel's Xen note names (PVH). It has no place for a device tree.
    Pvh,
}

/// A disk: a raw file or block device. No other format is understood, and none is ever guessed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskConfig {
    /// The file.
    pub path: PathBuf,
    /// Whether writes are refused; the file is then opened without write access.
    pub read_only: bool,
    /// The serial number that the guest sees, at most 20 ASCII characters.
    pub serial: String,
}

/// A virtio-vsock device, multiplexed onto unix sockets.
///
/// A connection of the guest to port *P* of the host goes to the unix socket `PATH_P`. A program on the host connects to
/// `PATH`, writes `CONNECT P\n`, reads `OK Q\n`, and is connected to port *P* of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, at least 3.
    pub cid: u32,
    /// The unix socket's path, and the beginning of the ports' paths.
    pub socket: PathBuf,
    /// An inherited socket of sequenced packets (SOCK_SEQPACKET), if there is one, over which connected sockets are handed over. A
    /// message is the guest's port, 32 bits little endian; 1 to 64 bytes that the guest reads before the socket's own; and
    /// beside them the descriptor of a connected stream socket (SCM_RIGHTS). When the guest refuses it is closed.
    #[serde(default)]
    pub carrier_fd: Option<i32>,
}

/// A virtio-net device: one Ethernet card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetConfig {
    /// Its address.
    pub mac: MacAddress,
    /// Bytes of the longest packet, from 68 on. A process at a stream's other end takes 65 520, if it is passt.
    pub mtu: u16,
    /// Where its cable goes.
    pub backend: NetBackend,
}

impl Default for NetConfig {
    fn default() -> Self {
        // Of those that anybody may give (bit 1 of the first byte), the one that spells "undct".
        Self { mac: MacAddress([0x02, b'u', b'n', b'd', b'c', b't']), mtu: 1500, backend: NetBackend::Stream }
    }
}

impl NetConfig {
    fn check(&self) -> Result<(), String> {
        /// IPv4's (RFC 791).
        const MTU_MIN: u16 = 68;
        if self.mtu < MTU_MIN {
            return Err(format!("network.mtu = {}: expected {MTU_MIN} to 65535", self.mtu));
        }
        if self.mac.0[0] & 1 != 0 || self.mac.0 == [0; 6] {
            return Err(format!("network.mac = {}: expected an address of one card", self.mac));
        }
        Ok(())
    }
}

/// Where a network card's cable goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetBackend {
    /// Nowhere yet: the control socket brings a connected stream socket.
    Stream,
    /// An inherited, connected stream socket. Each frame has its length before it, four bytes, big endian: as passt and
    /// QEMU's `-netdev stream` have it.
    StreamFd(i32),
    /// The unix socket at this path, at which such a process listens.
    StreamPath(PathBuf),
    /// Nowhere yet: the control socket brings the descriptor of a TAP device.
    Tap,
    /// An inherited descriptor of a TAP device (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`).
    TapFd(i32),
}

/// A virtio-fs device: a folder that a process beside the VMM serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FolderConfig {
    /// What the guest mounts it by, at most 36 bytes.
    pub tag: String,
    /// An inherited, connected stream socket, at whose other end a process (virtiofsd) speaks vhost-user.
    pub fd: i32,
}

/// The address of a network card, written as `02:75:6e:64:63:74`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let none = || format!("{text:?} is no address of a network card; one is 02:75:6e:64:63:74");
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part =
                parts.next().filter(|part| part.len() == 2 && !part.starts_with('+')).ok_or_else(none)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| none())?;
        }
        if parts.next().is_some() { Err(none()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

/// A virtio-balloon device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BalloonConfig {
    /// The guest reports free pages, and they go back to the host.
    pub free_page_reporting: bool,
    /// The guest may take pages back from the balloon rather than kill a process for want of memory.
    pub deflate_on_oom: bool,
}

impl Default for BalloonConfig {
    fn default() -> Self {
        Self { free_page_reporting: true, deflate_on_oom: true }
    }
}

/// Where a console's output goes, and its input comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Output {
    /// Nowhere.
    Null,
    /// To the process's standard output, and from its standard input if `Terminal`.
    Stdout,
    /// To standard output and from standard input.
    Terminal,
    /// Appended to a file.
    File(PathBuf),
}

/// What happens to a thread that makes a system call its filter does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seccomp {
    /// The process is killed (SIGSYS).
    Enforce,
    /// The kernel logs it (for finding out what a filter lacks).
    Log,
    /// There are no filters.
    Off,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cards_address_is_six_bytes() {
        let address: MacAddress = "02:75:6E:64:63:74".parse().unwrap();
        assert_eq!(address, NetConfig::default().mac);
        assert_eq!(address.to_string(), "02:75:6e:64:63:74");
        for text in [
            "",
            "02:75:6e:64:63",
            "02:75:6e:64:63:74:00",
            "2:75:6e:64:63:74",
            "02:75:6e:64:63:7g",
            "+2:75:6e:64:63:+4",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn folders_have_tags_of_their_own() {
        let check = |tags: &[&str]| {
            let folders = tags.iter().map(|tag| FolderConfig { tag: (*tag).into(), fd: 3 }).collect();
            MachineConfig { kernel: "/k".into(), folders, ..MachineConfig::default() }.check()
        };
        check(&["a", "b", &"c".repeat(36)]).unwrap();
        for tags in [&["a", ""][..], &["a", "a"], &["a", "b\0"], &["a", &"c".repeat(37)]] {
            assert!(check(tags).unwrap_err().starts_with("folders.1.tag = "), "{tags:?}");
        }
    }

    #[test]
    fn what_no_card_can_be_is_refused() {
        let check = |network: NetConfig| {
            MachineConfig { kernel: "/k".into(), network: Some(network), ..MachineConfig::default() }.check()
        };
        check(NetConfig::default()).unwrap();
        assert!(check(NetConfig { mtu: 67, ..NetConfig::default() }).unwrap_err().contains("network.mtu"));
        for mac in [[0; 6], [0xff; 6], [1, 0, 0, 0, 0, 1]] {
            let refused = check(NetConfig { mac: MacAddress(mac), ..NetConfig::default() });
            assert!(refused.unwrap_err().contains("network.mac"));
        }
    }
}
