//! L1: the machine made in software in which the measured programs run.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use undercroft_ruler_runner::{ANSWER, Answer, PLAN, Plan, Run, SAID, Said, Until};

use crate::{
    Error,
    archive::Archive,
    counts::{self, Part, Span},
};

/// QEMU's program: Debian's has TCG plugins of API version 1.
const QEMU: &str = "qemu-system-x86_64";

/// Time by instructions (1 ns each) from a fixed date and seed; idle time is skipped. Without the `rep movsb` that
/// `erms` makes the C library use: TCG would count each byte of it.
const DETERMINISTIC: &[&str] = &[
    "-accel",
    "tcg,thread=single",
    "-icount",
    "shift=0,sleep=off",
    "-rtc",
    "base=2025-01-01T00:00:00,clock=vm",
    "-seed",
    "1",
    "-smp",
    "1",
    "-cpu",
    "max,-erms",
];

/// The least machine that Debian's kernel and KVM run in: microvm has neither PIT nor HPET, and hangs.
const BOARD: &[&str] = &[
    "-M",
    "q35,vmport=off,smbus=off,sata=off,usb=off",
    "-bios",
    "/usr/share/qemu/qboot.rom",
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-no-reboot",
];

/// L1's kernel parameters. The clock's: a calibration of the LAPIC would burn six billion instructions. The first and
/// the last: L1's code lies where the plugin can tell it, and its boot is shorter.
///
/// init_on_alloc: upstream's default, and what the numbers that others were measured with on this ruler had. Debian's kernel
/// has it on, and Linux before 6.13 then clears each huge page twice: a fifth of what a boot costs the host, whoever boots.
/// `cargo run -p undercroft-benches --example share -- VMLINUX init_on_alloc=1` shows it.
const COMMAND_LINE: &str = "nokaslr console=ttyS0 panic=-1 mitigations=off init_on_alloc=0 loglevel=2 nolapic_timer nohpet \
    tsc=reliable tsc_early_khz=1000000 cryptomgr.notests initcall_blacklist=jent_mod_init,load_system_certificate_list,\
    bpf_tcp_ca_kfunc_init,bpf_dummy_struct_ops_init,trace_eval_init,init_kprobe_trace";

/// What KVM must allow the emulated clock: a guest whose frequency could not be set has no deadline timer.
const KVM_PARAMETERS: &str = "tsc_tolerance_ppm=50000";

/// How often a machine that stands still is switched on in all.
const TRIES: u32 = 3;

/// L1's seconds for a program that only its clock tells of.
const CLOCKED_SECONDS: u64 = 1800;

/// How much of the console is shown when something went wrong, in lines.
const CONSOLE_TAIL: usize = 40;

/// The ruler's machine, ready to be switched on any number of times.
#[derive(Debug, Clone)]
pub struct Machine {
    /// L1's kernel: a vmlinux.
    pub kernel: PathBuf,
    /// KVM's modules for it, in the order to load them in.
    pub modules: Vec<PathBuf>,
    /// The plugin.
    pub plugin: PathBuf,
    /// L1's PID 1.
    pub runner: PathBuf,
    /// L1's memory in MiB.
    pub memory_mib: u32,
    /// L1's further kernel parameters.
    pub parameters: String,
    /// Where the plugin writes profiles, if it is to: this, and names beside it (`plugin/src/profile.rs`).
    pub profile: Option<PathBuf>,
    /// Host time without a word on its console after which L1 is taken to stand still.
    pub patience: Duration,
}

/// One repetition of a run that went as expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repetition {
    /// The run's name.
    pub name: String,
    /// Counted from 0.
    pub repetition: u32,
    /// Resident memory beyond the guest's in KiB, where it was looked at.
    pub resident_kib: Option<u64>,
    /// What was counted.
    pub span: Span,
    /// What the program told of itself, in order.
    pub said: Vec<Said>,
    /// What went wrong, where that was let pass.
    pub error: Option<String>,
}

/// A part of a program's run, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named<'a> {
    /// What the program called it.
    pub name: &'a str,
    /// What was counted.
    pub part: Part,
    /// Moments in it, in nanoseconds of the machine's clock from its begin.
    pub moments: &'a [(String, u64)],
}

impl Repetition {
    /// The parts of its run that the program marked and named.
    pub fn parts(&self) -> impl Iterator<Item = Named<'_>> {
        let names = self.said.iter().filter_map(|said| match said {
            Said::Span { name, moments } => Some((name, moments)),
            Said::Value { .. } => None,
        });
        names.zip(&self.span.parts).map(|((name, moments), part)| Named { name, part: *part, moments })
    }
}

impl Machine {
    /// Switches the machine on, with these files in it, and has it do these runs. `work` is a directory for its files;
    /// `console.log` and `counts` are left there.
    pub fn measure(&self, archive: Archive, runs: Vec<Run>, work: &Path) -> Result<Vec<Repetition>, Error> {
        let (repetitions, console) = self.attempt(archive, runs, work)?;
        match repetitions.iter().find_map(|r| Some((r, r.error.as_ref()?))) {
            None => Ok(repetitions),
            Some((Repetition { name, repetition, .. }, error)) => Err(Error::Machine {
                problem: format!("{name}, repetition {repetition}: {error}"),
                console: tail(&console),
            }),
        }
    }

    /// The same, but a run that goes wrong is an answer too. Gives the console as well.
    pub fn attempt(
        &self,
        archive: Archive,
        runs: Vec<Run>,
        work: &Path,
    ) -> Result<(Vec<Repetition>, String), Error> {
        let counted = work.join("counts");
        let plugin = format!("file={},out={}", self.plugin.display(), counted.display());
        let profile =
            self.profile.as_ref().map_or_else(String::new, |path| format!(",profile={}", path.display()));
        let (plan, console) = self.play(archive, runs, Some(&(plugin + &profile)), work)?;
        let counted = fs::read_to_string(&counted).map_err(Error::io("read", counted))?;
        Ok((join(&plan, &console, counts::spans(&counted)?)?, console))
    }

    /// Has the machine run one program to its end without counting who executes what, several times as fast: only its
    /// clock tells. Gives the console.
    pub fn clocked(
        &self,
        archive: Archive,
        name: &str,
        program: Vec<String>,
        work: &Path,
    ) -> Result<String, Error> {
        let run = Run {
            name: name.into(),
            program,
            repetitions: 1,
            until: Until::Exit,
            limit_seconds: CLOCKED_SECONDS,
            log: None,
        };
        let (plan, console) = self.play(archive, vec![run], None, work)?;
        match join(&plan, &console, vec![Span::default()])?.into_iter().find_map(|r| r.error) {
            None => Ok(console),
            Some(problem) => Err(Error::Machine { problem, console: tail(&console) }),
        }
    }

    fn play(
        &self,
        mut archive: Archive,
        runs: Vec<Run>,
        plugin: Option<&str>,
        work: &Path,
    ) -> Result<(Plan, String), Error> {
        archive.copy(&self.runner, "/init");
        let mut modules = Vec::new();
        for (number, path) in self.modules.iter().enumerate() {
            let inside = PathBuf::from(format!("/modules/{number:02}.ko"));
            let kvm = path.file_stem().is_some_and(|name| name == "kvm");
            archive.copy(path, &inside);
            modules.push((inside, if kvm { KVM_PARAMETERS } else { "" }.to_owned()));
        }
        let plan = Plan { modules, runs };
        archive.bytes(serde_json::to_vec(&plan).expect("a plan is paths, strings and numbers"), PLAN);
        let initramfs = work.join("initramfs");
        archive.write(&initramfs)?;
        let console = self.patiently(&initramfs, plugin, work)?;
        fs::remove_file(&initramfs).map_err(Error::io("remove", &initramfs))?;
        Ok((plan, console))
    }

    /// Switches a machine that stands still on again, with a little more memory, so that it does not do the same again.
    ///
    /// QEMU 7.2 delivers an interrupt that `VMRUN` injects twice, now and then (docs/decisions.md, "An interrupt that comes
    /// twice"): mostly nothing comes of it, but a guest that holds a lock waits for itself.
    fn patiently(&self, initramfs: &Path, plugin: Option<&str>, work: &Path) -> Result<String, Error> {
        let mut tries = 0;
        loop {
            let machine = Self { memory_mib: self.memory_mib + 16 * tries, ..self.clone() };
            tries += 1;
            match machine.switch_on(initramfs, plugin, work) {
                Err(Error::Still { .. }) if tries < TRIES => {
                    eprintln!(
                        "  once more from its start: the machine said nothing for {} s",
                        self.patience.as_secs()
                    );
                }
                ended => return ended,
            }
        }
    }

    /// Runs QEMU to its end; gives the console back.
    fn switch_on(&self, initramfs: &Path, plugin: Option<&str>, work: &Path) -> Result<String, Error> {
        let log = work.join("console.log");
        let failed = |source| Error::Program {
            program: QEMU.into(),
            help: "it comes with qemu-system-x86, and qboot.rom with qemu-system-data".into(),
            source,
        };
        let mut arguments: Vec<std::ffi::OsString> =
            DETERMINISTIC.iter().chain(BOARD).map(std::ffi::OsString::from).collect();
        let mut option = |name: &str, value: String| arguments.extend([name.into(), value.into()]);
        option("-m", self.memory_mib.to_string());
        option("-kernel", self.kernel.display().to_string());
        option("-initrd", initramfs.display().to_string());
        option("-append", format!("{COMMAND_LINE} {}", self.parameters));
        option("-serial", format!("file:{}", log.display()));
        if let Some(plugin) = plugin {
            option("-plugin", plugin.into());
        }
        let handle =
            duct::cmd(QEMU, arguments).stdin_null().stdout_null().stderr_capture().start().map_err(failed)?;
        let (mut length, mut since) = (0, Instant::now());
        while handle.wait_timeout(Duration::from_secs(1)).map_err(failed)?.is_none() {
            let now = fs::metadata(&log).map_or(0, |console| console.len());
            if now != length {
                (length, since) = (now, Instant::now());
            } else if since.elapsed() > self.patience {
                handle.kill().map_err(failed)?;
                let console = tail(&console(&log)?);
                return Err(Error::Still { seconds: self.patience.as_secs(), console });
            }
        }
        console(&log)
    }
}

fn console(log: &Path) -> Result<String, Error> {
    let bytes = fs::read(log).map_err(Error::io("read", log))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Brings together what the runner answered and what the plugin counted.
fn join(plan: &Plan, console: &str, spans: Vec<Span>) -> Result<Vec<Repetition>, Error> {
    let failed = |problem: String| Error::Machine { problem, console: tail(console) };
    let mut answers = answers(console).into_iter();
    let mut spans = spans.into_iter();
    let mut repetitions = Vec::new();
    for run in &plan.runs {
        for repetition in 0..run.repetitions {
            let name = &run.name;
            let (answer, said) = answers
                .next()
                .filter(|(answer, _)| answer.name == *name && answer.repetition == repetition)
                .ok_or_else(|| failed(format!("no answer from {name}, repetition {repetition}")))?;
            let span = spans
                .next()
                .ok_or_else(|| failed(format!("no marker from {name}, repetition {repetition}")))?;
            repetitions.push(Repetition {
                name: name.clone(),
                repetition,
                resident_kib: answer.resident_kib,
                span,
                said,
                error: answer.error,
            });
        }
    }
    Ok(repetitions)
}

/// The runner's answers, each with what its program said before.
fn answers(console: &str) -> Vec<(Answer, Vec<Said>)> {
    let (mut answers, mut said) = (Vec::new(), Vec::new());
    for line in console.lines().map(str::trim_end) {
        if let Some(json) = line.strip_prefix(SAID) {
            said.extend(serde_json::from_str::<Said>(json).ok());
        } else if let Some(answer) =
            line.strip_prefix(ANSWER).and_then(|json| serde_json::from_str(json).ok())
        {
            answers.push((answer, std::mem::take(&mut said)));
        }
    }
    answers
}

/// The console's last lines.
pub(crate) fn tail(console: &str) -> String {
    let lines: Vec<&str> = console.lines().collect();
    lines[lines.len().saturating_sub(CONSOLE_TAIL)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let run = Run {
            name: "a".into(),
            program: vec!["/p".into()],
            repetitions: 1,
            until: Until::Exit,
            limit_seconds: 1,
            log: None,
        };
        Plan { modules: Vec::new(), runs: vec![run] }
    }

    #[test]
    fn an_answer_and_a_span_make_a_repetition() {
        let console =
            "[ 0.1] x\nruler: {\"name\":\"a\",\"repetition\":0,\"resident_kib\":7,\"error\":null}\r\n";
        let repetitions = join(&plan(), console, vec![Span::default()]).unwrap();
        assert_eq!(repetitions[0].resident_kib, Some(7));
        assert!(join(&plan(), console, Vec::new()).is_err());
    }

    #[test]
    fn an_error_is_an_answer_too() {
        let console = "ruler: {\"name\":\"a\",\"repetition\":0,\"resident_kib\":null,\"error\":\"no KVM\"}\n";
        let repetitions = join(&plan(), console, vec![Span::default()]).unwrap();
        assert_eq!(repetitions[0].error.as_deref(), Some("no KVM"));
        assert!(join(&plan(), "", Vec::new()).is_err());
    }

    #[test]
    fn what_a_program_says_goes_with_its_answer() {
        let console = "ruler-said: {\"value\":{\"name\":\"v\",\"value\":3,\"unit\":\"KiB\"}}\r\n\
                       ruler-said: {\"span\":{\"name\":\"s\",\"moments\":[[\"m\",5]]}}\n\
                       ruler: {\"name\":\"a\",\"repetition\":0,\"resident_kib\":7,\"error\":null}\n";
        let span = Span { parts: vec![Part::default()], ..Span::default() };
        let repetitions = join(&plan(), console, vec![span]).unwrap();
        assert_eq!(repetitions[0].said.len(), 2);
        let parts: Vec<_> = repetitions[0].parts().map(|part| (part.name, part.moments[0].1)).collect();
        assert_eq!(parts, [("s", 5)]);
    }
}
