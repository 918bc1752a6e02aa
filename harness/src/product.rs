//! The fixture for the product: its command line, with a home, a service and a configuration of the test's own.

use std::{
    fs,
    io::Write,
    os::unix::fs::{chown, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use undercroft::service::{Client, Paths};

use crate::{
    console::{complaint, excerpt},
    lab,
    outcome::{Failure, Outcome},
    suite::Suite,
    typist::Typist,
    vm::Kernel,
};

/// Lines of a failing guest's console that are shown.
const SHOWN: usize = 25;

/// A user with a home and nothing in it. Dropped, everything that runs for him is stopped.
pub struct Product {
    folder: tempfile::TempDir,
    program: PathBuf,
    /// With the programs that undercroft looks for.
    path: std::ffi::OsString,
    log: PathBuf,
    /// Who it is; `None` is who runs the tests.
    uid: Option<u32>,
    /// It was installed: its parts are beside it.
    is_installed: bool,
}

impl Product {
    /// A user whose `.wslconfig` names this kernel, and says this besides (lines of `[wsl2]`, or sections).
    pub fn new(suite: &Suite, kernel: Kernel, configuration: &str) -> Result<Self, Failure> {
        let kernel = match kernel {
            Kernel::Stock => &suite.stock,
            Kernel::Tuned => &suite.tuned,
        };
        Self::of(suite, None, &kernel.image, configuration)
    }

    /// Somebody else by his number, for tests that root runs; he must be able to read the kernel.
    pub fn of(suite: &Suite, uid: Option<u32>, kernel: &Path, configuration: &str) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new().prefix("undercroft-product-").tempdir()?;
        for name in ["", "parts", "run", "home", "config", "config/undercroft"] {
            let path = folder.path().join(name);
            fs::create_dir_all(&path)?;
            chown(&path, uid, uid)?;
        }
        let parts = folder.path().join("parts");
        symlink(&suite.vmm, parts.join("undercroft-vmm"))?;
        symlink(&suite.guest.mini_init, parts.join("undercroft-mini-init"))?;
        symlink(&suite.guest.init, parts.join("undercroft-init"))?;
        let test = std::thread::current().name().unwrap_or("test").replace("::", ".");
        let who = uid.map(|uid| format!(".{uid}")).unwrap_or_default();
        let log = suite.logs.join(format!("{test}.product.{}{who}.log", std::process::id()));
        let mut path = suite.virtiofsd.parent().unwrap_or(Path::new("/")).as_os_str().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let product = Self { folder, program: suite.product.clone(), path, log, uid, is_installed: false };
        product.configure(&format!("[wsl2]\nkernel={}\n{configuration}", kernel.display()))?;
        Ok(product)
    }

    /// A user of what was installed at `prefix`: he has named neither kernel nor parts.
    pub fn installed(suite: &Suite, prefix: &Path, configuration: &str) -> Result<Self, Failure> {
        let mut product = Self::new(suite, Kernel::Tuned, "")?;
        product.configure(&format!("[wsl2]\n{configuration}"))?;
        (product.program, product.is_installed) = (prefix.join("bin/undercroft"), true);
        Ok(product)
    }

    /// Writes the user's `.wslconfig`.
    pub fn configure(&self, text: &str) -> Outcome {
        fs::write(self.folder.path().join("config/undercroft/.wslconfig"), text)?;
        Ok(())
    }

    /// A folder that goes with the test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The program with these words, as this user.
    pub fn command<A: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = A>) -> Command {
        self.command_of(&self.program, words)
    }

    /// The same by a link to it that is called `wsl`.
    pub fn wsl<A: AsRef<std::ffi::OsStr>>(
        &self,
        words: impl IntoIterator<Item = A>,
    ) -> Result<Command, Failure> {
        let link = self.folder.path().join("wsl");
        if !link.exists() {
            symlink(&self.program, &link)?;
        }
        Ok(self.command_of(&link, words))
    }

    fn command_of<A: AsRef<std::ffi::OsStr>>(
        &self,
        program: &Path,
        words: impl IntoIterator<Item = A>,
    ) -> Command {
        let at = |name: &str| self.folder.path().join(name);
        let mut command = match self.uid {
            None => Command::new(program),
            Some(uid) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--clear-groups"]);
                command.arg("--").arg(program);
                command
            }
        };
        command
            .args(words)
            .env("PATH", &self.path)
            .env("UNDERCROFT_PARTS", at("parts"))
            .env("UNDERCROFT_PATIENCE", if lab::inside() { "20" } else { "1" })
            .env("HOME", at("home"))
            .env("XDG_RUNTIME_DIR", at("run"))
            .env("XDG_DATA_HOME", at("data"))
            .env("XDG_STATE_HOME", at("state"))
            .env("XDG_CACHE_HOME", at("cache"))
            .env("XDG_CONFIG_HOME", at("config"))
            .stdin(Stdio::null());
        if self.is_installed {
            command.env_remove("UNDERCROFT_PARTS");
        }
        command
    }

    /// A way to this user's service, which has to run, from this process: without a program's start for each thing asked.
    pub fn client(&self) -> Client {
        let at = |name: &str| self.folder.path().join(name).join("undercroft");
        Client::of(Paths {
            runtime: at("run"),
            data: at("data"),
            state: at("state"),
            cache: at("cache"),
            configurations: vec![at("config").join(".wslconfig")],
        })
    }

    /// Runs a line of words, which are split at blanks, and collects what it says.
    pub fn try_say(&self, line: &str) -> Result<Output, Failure> {
        Ok(self.command(line.split_whitespace()).output()?)
    }

    /// The same, and it must succeed; gives its standard output without the last line's end.
    pub fn say(&self, line: &str) -> Result<String, Failure> {
        self.say_words(line.split_whitespace())
    }

    /// The same of words that may have blanks.
    pub fn say_words<A: AsRef<std::ffi::OsStr>>(
        &self,
        words: impl IntoIterator<Item = A>,
    ) -> Result<String, Failure> {
        let words: Vec<_> = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let output = self.command(&words).output()?;
        let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        if output.status.success() {
            return Ok(text);
        }
        let error = String::from_utf8_lossy(&output.stderr);
        Err(self.failure(&format!("undercroft {words:?}: {}: {text}{error}", output.status)))
    }

    /// A shell's line in a distribution, which must succeed.
    pub fn sh(&self, distribution: &str, script: &str) -> Result<String, Failure> {
        self.say_words(["run", distribution, "/bin/sh", "-c", script])
    }

    /// Gives bytes as standard input.
    pub fn feed(&self, line: &str, input: &[u8]) -> Result<Output, Failure> {
        let mut child = self.spawn(line)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input)?;
        }
        Ok(child.wait_with_output()?)
    }

    /// Starts it with pipes for all three.
    pub fn spawn(&self, line: &str) -> Result<Child, Failure> {
        let mut command = self.command(line.split_whitespace());
        Ok(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    /// Starts it on a terminal.
    pub fn at_a_terminal(&self, line: &str) -> Result<Typist, Failure> {
        Typist::start(self.command(line.split_whitespace()))
    }

    /// `status --json`.
    pub fn status(&self) -> Result<Value, Failure> {
        let text = self.say("status --json")?;
        serde_json::from_str(&text).map_err(|error| self.failure(&format!("status: {error}: {text}")))
    }

    /// A distribution's state by `list --json`.
    pub fn state(&self, name: &str) -> Result<String, Failure> {
        let text = self.say("list --json")?;
        let all: Value =
            serde_json::from_str(&text).map_err(|error| self.failure(&format!("list: {error}: {text}")))?;
        let all = all.as_array().cloned().unwrap_or_default();
        let one = all.into_iter().find(|one| one["name"] == name);
        Ok(one.and_then(|one| one["state"].as_str().map(str::to_owned)).unwrap_or_else(|| "absent".into()))
    }

    /// Waits until something holds, as long as a lab may need.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> Result<bool, Failure>) -> Outcome {
        let limit = Duration::from_secs(if lab::inside() { 180 } else { 20 });
        let start = Instant::now();
        while !holds()? {
            if start.elapsed() > limit {
                return Err(Failure::Timeout {
                    what: format!("{what} within {} s", limit.as_secs()),
                    console: excerpt(&self.keep_log(), SHOWN),
                });
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// A failure with what the guest's console and the service said last.
    pub fn failure(&self, what: &str) -> Failure {
        Failure::Machine { what: what.into(), console: excerpt(&self.keep_log(), SHOWN) }
    }

    /// What the service and the guest said, kept beyond the test.
    fn keep_log(&self) -> PathBuf {
        let mut all = Vec::new();
        for name in ["console.log.1", "console.log", "service.log"] {
            let path = self.folder.path().join("state/undercroft").join(name);
            if let Ok(text) = fs::read(&path) {
                all.extend_from_slice(format!("== {name}\n").as_bytes());
                all.extend_from_slice(&text);
            }
        }
        // It is for people, and no test's matter.
        let _ = fs::write(&self.log, all);
        self.log.clone()
    }

    /// The orderly end, and no complaint of a kernel in any log.
    pub fn finish(self) -> Outcome {
        self.say("shutdown")?;
        self.search()
    }

    /// Looks for complaints of the guest's kernel.
    pub fn search(&self) -> Outcome {
        let text = fs::read(self.keep_log()).unwrap_or_default();
        let expected = if lab::inside() { vec!["fpu__init_system_xstate".into()] } else { Vec::new() };
        match complaint(&String::from_utf8_lossy(&text), &expected) {
            None => Ok(()),
            Some(line) => Err(Failure::GuestPanic { line, console: excerpt(&self.log, SHOWN) }),
        }
    }

    /// The service's process, if it runs.
    pub fn service(&self) -> Option<i32> {
        let text = fs::read_to_string(self.folder.path().join("run/undercroft/service.lock")).ok()?;
        text.trim().parse().ok().filter(|pid| Path::new(&format!("/proc/{pid}")).exists())
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        self.keep_log();
        // Whatever state it is in: its machine goes with it.
        if let Some(pid) = self.service() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}
