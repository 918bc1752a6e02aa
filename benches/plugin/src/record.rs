//! What is done when an instruction is translated, and when one of the notable ones executes.
//!
//! All of it happens on the thread of the one vCPU; the atomics are for the compiler, not for a second thread.

use std::fs::File;
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::count::{self, Class};
use crate::event::{self, Event};
use crate::profile::{self, Stretch};
use crate::qemu::Instruction;
use crate::repeat;

/// An instruction that is more than counted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum What {
    /// A marker; its number is the tag.
    Marker,
    /// VMRUN.
    Vmrun,
    /// The instruction behind a VMRUN.
    Resume,
    /// A user instruction; its number is 1 for L1, 2 for L2.
    User,
    /// A repeated string instruction; its number is its [`repeat_key`].
    Repeat,
}

/// KVM has one VMRUN for ordinary guests and one for encrypted ones.
const VMRUN_SITES: usize = 8;

/// Whether the processor runs L2.
static IN_L2: AtomicBool = AtomicBool::new(false);
/// The addresses behind each VMRUN that was translated; 0 where there is none yet.
static RESUME: [AtomicU64; VMRUN_SITES] = [const { AtomicU64::new(0) }; VMRUN_SITES];
/// Whether the first VMRUN and the first L2 user instruction since [`event::BEGIN`] are still to come.
static AWAIT_VMRUN: AtomicBool = AtomicBool::new(true);
static AWAIT_L2_USER: AtomicBool = AtomicBool::new(true);
static AWAIT_L1_USER: AtomicBool = AtomicBool::new(true);
/// The [`repeat_key`] of the string instruction executed last, and how many instructions had been executed then.
static LAST_REPEAT: AtomicU64 = AtomicU64::new(0);
static LAST_REPEAT_AT: AtomicU64 = AtomicU64::new(0);
static OUTPUT: Mutex<Option<File>> = Mutex::new(None);

/// Takes one argument of the plugin: `out=FILE` or `profile=FILE`.
pub(crate) fn configure(argument: &str) -> Result<(), String> {
    match argument.split_once('=') {
        Some(("out", path)) => {
            let file = File::create(path).map_err(|error| format!("cannot create {path:?}: {error}"))?;
            *OUTPUT.lock().map_err(|_| "the output's lock is poisoned")? = Some(file);
        }
        Some(("profile", path)) => profile::write_to(path),
        _ => return Err(format!("unknown argument {argument:?}: expected out=FILE or profile=FILE")),
    }
    Ok(())
}

/// An instruction is about to execute for the first time (or again after its translation was thrown away).
pub(crate) fn translated(instruction: &mut Instruction<'_>) {
    let address = instruction.address();
    let resume = RESUME.iter().any(|site| site.load(Relaxed) == address);
    let class = count::classify(IN_L2.load(Relaxed) && !resume, address);
    // What was executed before is what an event reports, so the calls are registered before the count.
    if resume {
        instruction.call(What::Resume, 0);
    }
    if instruction.bytes() == event::VMRUN && matches!(class, Class::L1Kernel) {
        remember(address + event::VMRUN.len() as u64);
        instruction.call(What::Vmrun, 0);
    }
    if let Some(tag) = event::marker_tag(instruction.bytes()) {
        instruction.call(What::Marker, tag.into());
    }
    match class {
        Class::L1User if AWAIT_L1_USER.load(Relaxed) => instruction.call(What::User, 1),
        Class::L2User => instruction.call(What::User, 2),
        _ => {}
    }
    if repeat::is_repeated_string(instruction.bytes()) {
        instruction.call(What::Repeat, repeat_key(address, class));
    }
    instruction.count_in(count::executed(class));
    let level = match class {
        Class::L1Kernel => 1,
        Class::L2Kernel | Class::L2Low => 2,
        _ => return,
    };
    if let Some(word) = profile::word(level, address) {
        instruction.count_in(word);
    }
}

fn remember(resume: u64) {
    for site in &RESUME {
        let known = site.load(Relaxed);
        if known == resume {
            return;
        }
        if known == 0 {
            site.store(resume, Relaxed);
            return;
        }
    }
    eprintln!(
        "undercroft-ruler: more than {VMRUN_SITES} VMRUN instructions; those beyond are not understood"
    );
}

/// A notable instruction is about to execute.
pub(crate) fn executed(what: What, data: u64) {
    match what {
        What::Marker => {
            let tag = data as u16;
            report(Event::Marker(tag));
            match tag {
                event::BEGIN => {
                    count::begin();
                    profile::begin();
                    AWAIT_VMRUN.store(true, Relaxed);
                    AWAIT_L2_USER.store(true, Relaxed);
                }
                event::SPAN_BEGIN => profile::begin(),
                event::SPAN_END => keep(Stretch::Span),
                _ => {}
            }
        }
        What::Vmrun => {
            if AWAIT_VMRUN.swap(false, Relaxed) {
                report(Event::Vmrun);
                keep(Stretch::ToEntry);
            }
            count::entered();
            IN_L2.store(true, Relaxed);
        }
        What::Resume => IN_L2.store(false, Relaxed),
        What::User => {
            let (awaited, event) = match data {
                1 => (&AWAIT_L1_USER, Event::L1User),
                _ => (&AWAIT_L2_USER, Event::L2User),
            };
            if awaited.load(Relaxed) {
                awaited.store(false, Relaxed);
                report(event);
                if event == Event::L2User {
                    keep(Stretch::ToGuestUser);
                }
            }
        }
        What::Repeat => iterated(data),
    }
}

/// An instruction's address and class in one word. Addresses are 48 bits with a sign: the upper bits can go.
fn repeat_key(address: u64, class: Class) -> u64 {
    address << 3 | class as u64
}

/// A repeated string instruction that executes directly behind itself is in a further iteration.
fn iterated(key: u64) {
    let total = count::total();
    let before = LAST_REPEAT_AT.swap(total, Relaxed);
    if LAST_REPEAT.swap(key, Relaxed) == key
        && total == before + 1
        && let Some(class) = Class::from_bits(key & 7)
    {
        count::iterated(class);
    }
}

/// Writes the profile of what has ended, if there is to be one.
fn keep(stretch: Stretch) {
    if let Err(error) = profile::write(stretch) {
        eprintln!("undercroft-ruler: cannot write the profile: {error}");
    }
}

fn report(event: Event) {
    let line = event::line(event, count::now());
    if let Ok(mut output) = OUTPUT.lock()
        && let Some(file) = output.as_mut()
        && let Err(error) = file.write_all(line.as_bytes())
    {
        eprintln!("undercroft-ruler: cannot write a line of the output: {error}");
    }
}

/// The machine was switched off.
pub(crate) fn ended() {
    report(Event::End);
}
