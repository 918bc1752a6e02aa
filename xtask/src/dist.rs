//! `cargo xtask dist`: one archive, and a Debian package, that run wherever there is KVM.

mod debian;
mod documents;
mod licences;

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
/// The programs of the host.
const PROGRAM: &str = "bin/undercroft";
const VMM: &str = "lib/undercroft/undercroft-vmm";
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
    let package = debian::package(&out, &tree)?;
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
    put(&product, PROGRAM)?;
    symlink("undercroft", tree.join("bin/wsl"))?;
    put(&programs::vmm()?, VMM)?;
    for program in [PROGRAM, VMM] {
        strip(&tree.join(program))?;
    }
    put(&guest.mini_init, "lib/undercroft/undercroft-mini-init")?;
    put(&guest.init, "lib/undercroft/undercroft-init")?;
    let folder = kernel.image.parent().context("the kernel lies in a folder")?;
    for name in KERNEL {
        put(&folder.join(name), &format!("lib/undercroft/kernel/{name}"))?;
    }
    // A user's systemd looks there below /usr, /usr/local and ~/.local (systemd.unit(5)), so an archive may be unpacked into any.
    for unit in ["undercroft.service", "undercroft.socket"] {
        put(&workspace_root().join("undercroft/dist").join(unit), &format!("share/systemd/user/{unit}"))?;
    }
    let documents = tree.join("share/doc/undercroft");
    documents::put(&documents)?;
    licences::put(&documents, kernel)?;
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

/// Takes off a program what only a debugger needs, four fifths of it. Its build id stays, by which one finds the same program as
/// cargo made it; so do the names of its functions, for a backtrace.
fn strip(program: &Path) -> anyhow::Result<()> {
    call(Command::new("strip").arg("--strip-debug").arg(program))?;
    if !output("readelf", "-n", program)?.contains("Build ID:") {
        bail!("{} has no build id: its linker was told not to make one", program.display());
    }
    Ok(())
}

/// What a program of the binutils says of a file.
fn output(name: &str, option: &str, file: &Path) -> anyhow::Result<String> {
    let output = Command::new(name).env("LC_ALL", "C").arg(option).arg(file).output();
    let output = output.with_context(|| format!("{name} cannot be run (Debian package binutils)"))?;
    if !output.status.success() {
        bail!("{name} {option} {} failed ({})", file.display(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
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
