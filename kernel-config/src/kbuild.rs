//! Calling the kernel's makefiles: always with the same surroundings, so that the same input gives the same bytes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Error,
    merge::{Config, Merged, known_options},
    program,
};

/// What a build calls, and the Debian package that has it.
const TOOLS: &[(&str, &str)] = &[
    ("make", "make"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("xz", "xz-utils"),
];

/// Headers that the kernel's own tools (objtool) are compiled with.
const HEADERS: &[(&str, &str)] = &[("/usr/include/gelf.h", "libelf-dev")];

/// The first tool or header that is not there.
pub(crate) fn check_tools() -> Result<(), Error> {
    for (program, package) in TOOLS {
        if find(program).is_none() {
            return Err(Error::NoProgram { program: (*program).into(), package });
        }
    }
    for (header, package) in HEADERS {
        if !Path::new(header).exists() {
            return Err(Error::NoProgram { program: (*header).into(), package });
        }
    }
    Ok(())
}

/// A program in `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// The compiler's and linker's versions: what else than source and configuration decides the bytes.
pub(crate) fn toolchain() -> Result<String, Error> {
    let first_line = |program: &str, package| {
        let said = program::run(program::command(program).arg("--version"), package)?;
        Ok::<_, Error>(String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned())
    };
    Ok(format!("{}\n{}\n", first_line("gcc", "gcc")?, first_line("ld", "binutils")?))
}

/// `make` in `build`, a folder directly below `source`.
pub(crate) fn make(source: &Path, build: &Path) -> Command {
    let mut make = program::command("make");
    let compiler = if find("ccache").is_some() { "ccache gcc" } else { "gcc" };
    make.arg("-C").arg(source).arg(format!("O={}", build.display()));
    make.args(["ARCH=x86_64", &format!("CC={compiler}"), &format!("HOSTCC={compiler}")]);
    make.env("KBUILD_BUILD_TIMESTAMP", "Wed Jan  1 00:00:00 UTC 2025")
        .env("KBUILD_BUILD_USER", "undercroft")
        .env("KBUILD_BUILD_HOST", "undercroft")
        .env("KBUILD_BUILD_VERSION", "1")
        // Set and empty: no "+" for a cache that happens to lie in somebody's git repository.
        .env("LOCALVERSION", "");
    // Of a caller that is itself run by make, or of cargo: none of it is meant for this one.
    for name in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS", "KBUILD_OUTPUT", "CFLAGS", "LDFLAGS", "KCFLAGS", "CC"] {
        make.env_remove(name);
    }
    make
}

/// Lets Kconfig complete the options, everything else off, in `build`; checks that each one survived. Options that this
/// source does not have are given back, and are an error only if `strict`.
pub(crate) fn configure(
    source: &Path,
    build: &Path,
    merged: &Merged,
    strict: bool,
) -> Result<(Config, Vec<crate::merge::Lost>), Error> {
    check_tools()?;
    fs::create_dir_all(build).map_err(Error::io("create", build))?;
    let wanted = build.join("wanted.config");
    fs::write(&wanted, merged.text()).map_err(Error::io("write", &wanted))?;
    let mut allnoconfig = make(source, build);
    allnoconfig.arg("-s").arg(format!("KCONFIG_ALLCONFIG={}", wanted.display())).arg("allnoconfig");
    program::run(&mut allnoconfig, "make gcc flex bison")?;
    let path = build.join(".config");
    let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let config = Config::parse(&text);
    let lost = merged.lost(&config, &known_options(source)?);
    if lost.iter().any(|l| strict || !l.unknown) {
        return Err(Error::Lost { lost });
    }
    Ok((config, lost))
}
