//! Drivers that are needed before the modules disk can be read: they came in the initramfs.

use std::{fs, fs::File, path::PathBuf};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
};

use crate::log::Warnings;

/// Loads `/modules/NN-name.ko` in the order of the names, which is the order of their dependencies.
pub(crate) fn load_initramfs(warnings: &mut Warnings) {
    let Ok(entries) = fs::read_dir("/modules") else { return };
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        warnings.take(&format!("loading the module {}", path.display()), load(&path, ""));
    }
}

/// Loads one module; that it is there already is no error.
pub(crate) fn load(path: &std::path::Path, parameters: &str) -> std::io::Result<()> {
    let file = File::open(path)?;
    let parameters = std::ffi::CString::new(parameters)?;
    let compressed = path.extension().is_some_and(|e| e == "xz" || e == "zst" || e == "gz");
    // MODULE_INIT_COMPRESSED_FILE, linux/module.h, which nix does not name: the kernel unpacks it, if it was built to.
    let flags = ModuleInitFlags::from_bits_retain(if compressed { 4 } else { 0 });
    match finit_module(&file, &parameters, flags) {
        Err(Errno::EEXIST) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The running kernel's release, `uname -r`.
pub(crate) fn release() -> String {
    nix::sys::utsname::uname().map_or_else(|_| String::new(), |u| u.release().to_string_lossy().into_owned())
}
