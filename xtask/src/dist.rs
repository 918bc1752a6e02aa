//! `cargo xtask dist`: one archive, and a Debian package, that run wherever there is KVM.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, bail};
use undercroft_harness::guest;
use undercroft_kernel_config::Kernel;

use crate::{boot::programs, kernel, workspace_root};

/// What of a kernel's folder is needed to boot it, and to say what it is.
const KERNEL: [&str; 4] = ["manifest.json", "vmlinux", "modules.ext4", "config"];
/// Shells, and where their completions are looked for below `share`.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/undercroft"),
    ("zsh", "zsh/site-functions/_undercroft"),
    ("fish", "fish/vendor_completions.d/undercroft.fish"),
];

/// Make one archive and a Debian package: programs, kernel, manual pages, completions, licences.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where they are written to
    #[arg(long, value_name = "FOLDER", default_value = "target/dist")]
    out: PathBuf,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let out = workspace_root().join(arguments.out);
    let tree = tree(&out)?;
    let name = name();
    let archive = out.join(format!("{name}.tar.xz"));
    // One way to write it: the same tree gives the same bytes.
    let tar = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "-cJf"];
    eprintln!("packing {} (a minute)", archive.display());
    call(Command::new("tar").current_dir(&out).args(tar).arg(&archive).arg(&name))?;
    let package = debian(&out, &tree, VERSION)?;
    for path in [Some(archive), package].into_iter().flatten() {
        println!("{} ({} MiB)", path.display(), fs::metadata(&path)?.len().div_ceil(1 << 20));
    }
    Ok(ExitCode::SUCCESS)
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn name() -> String {
    format!("undercroft-{VERSION}-x86_64")
}

/// Makes the tree of an installation anew in this folder, and says where.
pub(crate) fn tree(out: &Path) -> anyhow::Result<PathBuf> {
    let tree = out.join(name());
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| tree.display().to_string())?;
    }
    fs::create_dir_all(&tree)?;
    let kernel = kernel::ensure_tuned()?;
    eprintln!("laying out {}", tree.display());
    lay_out(&tree, &kernel)?;
    Ok(tree)
}

/// The tree of an installation below its prefix.
fn lay_out(tree: &Path, kernel: &Kernel) -> anyhow::Result<()> {
    let put = |from: &Path, to: &str| -> anyhow::Result<()> {
        let to = tree.join(to);
        fs::create_dir_all(to.parent().unwrap_or(tree))?;
        fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        Ok(())
    };
    let product = programs::product()?;
    let guest = guest::build()?;
    put(&product, "bin/undercroft")?;
    symlink("undercroft", tree.join("bin/wsl"))?;
    put(&programs::vmm()?, "lib/undercroft/undercroft-vmm")?;
    put(&guest.mini_init, "lib/undercroft/undercroft-mini-init")?;
    put(&guest.init, "lib/undercroft/undercroft-init")?;
    let folder = kernel.image.parent().context("the kernel lies in a folder")?;
    for name in KERNEL {
        put(&folder.join(name), &format!("lib/undercroft/kernel/{name}"))?;
    }
    for unit in ["undercroft.service", "undercroft.socket"] {
        put(&workspace_root().join("undercroft/dist").join(unit), &format!("lib/systemd/user/{unit}"))?;
    }
    for text in ["README.md", "LICENSE-APACHE", "LICENSE-MIT"] {
        put(&workspace_root().join(text), &format!("share/doc/undercroft/{text}"))?;
    }
    let licence = format!(
        "lib/undercroft/kernel is Linux {}, under the GNU General Public License, version 2 (its text: COPYING in its source).\n\
         Its source: {}. Its configuration lies beside it.\n\nThe rest is under Apache-2.0 or MIT, at your choice.\n",
        kernel.release, kernel.origin
    );
    fs::write(tree.join("share/doc/undercroft/copyright"), licence)?;
    let man = tree.join("share/man/man1");
    fs::create_dir_all(&man)?;
    call(Command::new(&product).arg("man").arg(&man))?;
    for (shell, path) in COMPLETIONS {
        let path = tree.join("share").join(path);
        fs::create_dir_all(path.parent().unwrap_or(tree))?;
        let output = Command::new(&product).args(["completions", shell]).output()?;
        fs::write(&path, output.stdout).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// A package of the same tree below /usr, where dpkg-deb is there to make it.
fn debian(out: &Path, tree: &Path, version: &str) -> anyhow::Result<Option<PathBuf>> {
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        eprintln!("no .deb: dpkg-deb is not here (Debian package dpkg)");
        return Ok(None);
    }
    let root = out.join("deb");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(root.join("DEBIAN"))?;
    call(Command::new("cp").arg("-a").arg(tree).arg(root.join("usr")))?;
    // The reference system's name is not ours to take on everybody's machine.
    fs::remove_file(root.join("usr/bin/wsl"))?;
    let control = format!(
        "Package: undercroft\nVersion: {version}\nArchitecture: amd64\nSection: admin\nPriority: optional\n\
         Maintainer: the undercroft founders <undercroft@localhost>\nDepends: libc6, e2fsprogs\n\
         Recommends: passt, virtiofsd\n\
         Description: many Linux distributions on one kernel, in one lightweight virtual machine\n \
         Every distribution is a container on one kernel in one small virtual machine:\n \
         it starts at once, shares memory and page cache with the others, and keeps its files.\n"
    );
    fs::write(root.join("DEBIAN/control"), control)?;
    let package = out.join(format!("undercroft_{version}_amd64.deb"));
    call(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&root).arg(&package))?;
    fs::remove_dir_all(&root)?;
    Ok(Some(package))
}

fn call(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.stdout(std::process::Stdio::null()).status();
    let status = status.with_context(|| format!("{name} cannot be run"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}
