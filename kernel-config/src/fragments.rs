//! The fragments, as they lie in `fragments/`: one feature a file.
//!
//! A comment stands above each run of options and is the reason for them; the comment at the head of a file says what
//! the feature is. `# is not set` asks for an option to be off that something else would turn on.

/// One file.
#[derive(Debug, Clone, Copy)]
pub struct Fragment {
    /// Its file name.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! fragments {
    ($folder:literal: $($name:literal)*) => {
        &[$(Fragment {
            name: concat!($name, ".config"),
            text: include_str!(concat!("../", $folder, "/", $name, ".config")),
        }),*]
    };
}

/// All of them, in the order of their names.
pub const ALL: &[Fragment] = fragments!["fragments":
    "10-arch"
    "12-boot"
    "14-kernel-proper"
    "16-kvm-guest"
    "18-mitigations"
    "20-hardening"
    "22-security"
    "24-memory"
    "26-virtio"
    "28-scsi"
    "30-consoles"
    "32-clock"
    "34-block"
    "36-filesystems"
    "38-ext4"
    "40-overlayfs"
    "42-fuse"
    "44-xfs"
    "46-btrfs"
    "48-erofs"
    "50-squashfs"
    "52-foreign-filesystems"
    "54-programs"
    "56-io-uring"
    "58-namespaces"
    "60-cgroups"
    "62-accounting"
    "64-bpf"
    "66-tracing"
    "68-modules"
    "70-network"
    "72-links"
    "74-bridge"
    "75-vxlan"
    "76-wireguard"
    "77-ipsec"
    "78-traffic-control"
    "80-netfilter"
    "82-nftables"
    "84-iptables"
    "86-ipset"
    "88-ipvs"
    "90-crypto"
    "92-vhost"
];

/// Those that cost too much to be in every kernel; added by name.
pub const OPTIONAL: &[Fragment] = fragments!["optional": "btf"];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn the_lists_are_the_folders() {
        for (folder, list) in [("fragments", ALL), ("optional", OPTIONAL)] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
            let files: BTreeSet<String> = fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            let listed: BTreeSet<String> = list.iter().map(|f| f.name.to_owned()).collect();
            assert_eq!(files, listed);
        }
    }
}
