//! The package registry that this machine's apt has its packages from, for tests that need it inside, too.

use std::{
    fs,
    process::{Command, Output},
};

use crate::{
    outcome::{Failure, Outcome},
    product::Product,
};

/// Runs a program of a Debian.
pub fn run(program: &str, arguments: &[&str]) -> Result<Output, Failure> {
    Command::new(program).args(arguments).output().map_err(|error| {
        Failure::Harness(format!(
            "{program}: {error}; this test wants the programs of a Debian's apt and curl"
        ))
    })
}

/// Whether a registry's file is to be had from this machine, as its apt would get it; why not, otherwise.
pub fn answers(product: &Product) -> Result<Result<(), String>, Failure> {
    let targets = run("apt-get", &["indextargets", "--format", "$(REPO_URI)dists/$(RELEASE)/InRelease"])?;
    let targets = String::from_utf8_lossy(&targets.stdout).into_owned();
    let Some(first) = targets.lines().next() else {
        return Ok(Err("this machine's apt has no registry".into()));
    };
    let file = product.folder().join("InRelease").display().to_string();
    let options =
        ["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=20"];
    let fetched = run("/usr/lib/apt/apt-helper", &[&options[..], &["download-file", first, &file]].concat())?;
    Ok(if fetched.status.success() { Ok(()) } else { Err("the package registry does not answer".into()) })
}

/// This machine's own way to the registry, for a distribution's apt.
fn proxies() -> Result<String, Failure> {
    let all = run("apt-config", &["dump"])?;
    let all = String::from_utf8_lossy(&all.stdout).into_owned();
    Ok(all.lines().filter(|line| line.contains("::Proxy ")).map(|line| format!("{line}\n")).collect())
}

/// Gives a distribution that way, and this /etc/wsl.conf; it is stopped then.
pub fn introduce(product: &Product, name: &str, wsl_conf: &str) -> Outcome {
    let script = format!("printf '{wsl_conf}' > /etc/wsl.conf; cat > /etc/apt/apt.conf.d/90proxies");
    let file = product.folder().join("proxies");
    fs::write(&file, proxies()?)?;
    let mut child = product.command(["run", name, "/bin/sh", "-c", &script]);
    let status = child.stdin(fs::File::open(file)?).status()?;
    if !status.success() {
        return Err(product.failure(&format!("{name} cannot be prepared: {status}")));
    }
    product.say(&format!("terminate {name}"))?;
    Ok(())
}
