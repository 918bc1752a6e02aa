//! A machine: made from its configuration, run to its end.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::{self, CpuModel, Platform, Protocol, layout};
use crate::bus::{self, Bus};
use crate::config::{Description, Entry, MachineConfig, Output};
use crate::confine::{self, ThreadKind};
use crate::control::{self, Control, Ended, Event, Memory, Message, Started, Statistics};
use crate::devices::{Cmos, Console, I8042, PanicWatch, Power, Pvpanic, Serial};
use crate::end::End;
use crate::kvm::{self, Vm};
use crate::memory::Growth;
use crate::slots::Slots;
use crate::supervise::{self, Input};
use crate::vcpu::{self, Counters, Exits, Vcpu};
use crate::virtio::disk::writes;
use crate::virtio::mem::MemControl;
use crate::{boot, memory};

/// Why a machine could not be made or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration asks for what no machine can be.
    #[error("{0}")]
    Config(String),
    /// KVM is missing or refused something.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// No memory for the guest.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The kernel or the initramfs cannot be loaded.
    #[error("{} cannot be booted", path.display())]
    Boot {
        /// The kernel's path.
        path: PathBuf,
        /// Why.
        #[source]
        source: boot::Error,
    },
    /// The architecture's tables or registers.
    #[error(transparent)]
    Arch(#[from] arch::Error),
    /// Two devices want the same addresses: a mistake in the address map.
    #[error("the address map is wrong")]
    Bus(#[from] bus::Error),
    /// A virtio device cannot be made.
    #[error(transparent)]
    Device(Box<dyn std::error::Error + Send + Sync>),
    /// The control socket is none.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// A filter cannot be put on.
    #[error(transparent)]
    Confine(#[from] confine::Error),
    /// The operating system refused something.
    #[error("cannot {what}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what, source }
}

/// How the machine ended, as soon as somebody says so. The first to say it is right.
#[derive(Debug)]
pub struct Ending {
    ended: AtomicBool,
    end: Mutex<Option<End>>,
    event: EventFd,
}

impl Ending {
    /// Nothing has ended.
    ///
    /// # Errors
    /// No eventfd can be made.
    pub fn new() -> io::Result<Arc<Self>> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        Ok(Arc::new(Self { ended: AtomicBool::new(false), end: Mutex::new(None), event }))
    }

    /// The machine has ended so, unless it has already.
    pub fn set(&self, end: End) {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(end);
        self.ended.store(true, Ordering::Release);
        // A counter that cannot be raised is not zero, and so wakes its reader all the same.
        let _ = self.event.write(1);
    }

    /// Whether it has ended.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// How it has ended, if it has.
    pub fn get(&self) -> Option<End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Readable once it has ended.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

/// A machine that is ready to run.
pub struct Machine {
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) ending: Arc<Ending>,
    pub(crate) counters: Vec<Arc<Counters>>,
    pub(crate) serial: Arc<Serial>,
    pub(crate) slots: Slots,
    pub(crate) control: Option<Control>,
    pub(crate) signals: Option<SignalFd>,
    pub(crate) input: Option<Input>,
    watch: PanicWatch,
    started: Started,
    /// In bytes.
    boot_memory: u64,
    /// Of disks that are attached.
    pub(crate) page_cache: bool,
    seccomp: crate::config::Seccomp,
    // Last, so that guest memory is unmapped after all that works on it.
    vm: Vm,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("vm", &self.vm).finish_non_exhaustive()
    }
}

/// Nanoseconds of CLOCK_REALTIME.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

impl Machine {
    /// Makes a machine: memory, kernel, tables, devices, vCPUs. Every file it works with is open when this returns.
    ///
    /// # Errors
    /// The configuration, the kernel, KVM or the operating system does not allow it; nothing is left behind.
    // By value: the machine takes the place of its description, whose control socket it now owns.
    #[expect(clippy::needless_pass_by_value)]
    pub fn new(config: MachineConfig) -> Result<Self, Error> {
        let mut started = Started { process: now(), ..Started::default() };
        config.check().map_err(Error::Config)?;
        let control = config.control_fd.map(Control::from_fd).transpose()?;
        let kvm = kvm::open()?;
        let growth =
            memory::growth(config.memory_mib << 20, config.max_memory_mib.unwrap_or(config.memory_mib) << 20);
        // A process that serves a folder works in guest memory itself.
        let map = if config.folders.is_empty() { memory::map } else { memory::map_shared };
        let memory = map(config.memory_mib, growth)?;
        let vm = Vm::new(&kvm, memory, config.huge_pages, config.description)?;
        started.vm = now();

        let ending = Ending::new().map_err(system("make an eventfd"))?;
        let watch = PanicWatch::default();
        let (serial, ports) = ports(&config, &vm, &ending, &watch)?;
        let mut mmio = Bus::default();
        let slots = Slots::new(&config, growth, &vm, &mut mmio, &watch)?;
        let fds = (0..config.cpus).map(|index| vm.vcpu(index)).collect::<Result<Vec<_>, _>>()?;
        // Only CPUs that start later need to be told; the first knows from the clock.
        let delay = match (config.timer_hz, fds.as_slice()) {
            (Some(hz), [first, _, ..]) => arch::delay_parameter(first, hz).unwrap_or_default(),
            _ => String::new(),
        };
        let (protocol, entry) = load(&config, &vm, slots.transports.len(), &delay, growth)?;
        started.kernel = now();

        let (ports, mmio) = (Arc::new(ports), Arc::new(mmio));
        let model = CpuModel::new(&kvm, config.cpus)?;
        let mut vcpus = Vec::new();
        let mut all_counters = Vec::new();
        for (index, fd) in (0..config.cpus).zip(fds) {
            model.configure(&fd, index, vm.memory(), protocol, entry)?;
            let counters = Arc::new(Counters::default());
            all_counters.push(counters.clone());
            vcpus.push(Vcpu {
                fd,
                ports: ports.clone(),
                mmio: mmio.clone(),
                ending: ending.clone(),
                counters,
            });
        }
        let input = match config.serial {
            Output::Terminal => Some(Input::new().map_err(system("take standard input"))?),
            _ => None,
        };
        Ok(Self {
            vcpus,
            ending,
            counters: all_counters,
            serial,
            slots,
            control,
            signals: None,
            input,
            watch,
            started,
            boot_memory: config.memory_mib << 20,
            page_cache: config.page_cache,
            seccomp: config.seccomp,
            vm,
        })
    }

    /// From now on SIGINT, SIGTERM and SIGHUP end the machine and nothing else: they are blocked in this thread and in
    /// those that it starts. For programs that do nothing but run a machine.
    ///
    /// # Errors
    /// signalfd(2)'s.
    pub fn end_on_signals(&mut self) -> Result<(), Error> {
        let mask: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        let cannot = |errno: nix::Error| system("block signals")(errno.into());
        mask.thread_block().map_err(cannot)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        self.signals = Some(SignalFd::with_flags(&mask, flags).map_err(cannot)?);
        Ok(())
    }

    /// What ends the machine from another thread, by [`End::Killed`].
    pub fn ending(&self) -> Arc<Ending> {
        self.ending.clone()
    }

    /// Runs the machine to its end: [`start`](Self::start) and [`wait`](Running::wait).
    ///
    /// # Errors
    /// Those of `start`.
    pub fn run(self) -> Result<End, Error> {
        self.start()?.wait()
    }

    /// Starts the machine. The threads that run it are confined; the calling one is not, and may be before it waits
    /// (see [`confine::enter`]).
    ///
    /// # Errors
    /// A thread, a filter or a signal handler cannot be had.
    pub fn start(mut self) -> Result<Running, Error> {
        vcpu::install_kick().map_err(system("install a signal handler"))?;
        confine::start(self.seccomp)?;
        let events = self.slots.events.clone();
        // It runs until the process ends, or idle for ever in a program that goes on; it holds nothing of the machine.
        confine::spawn(ThreadKind::Devices, "devices", move || events.run())
            .map_err(system("start the devices' thread"))?;
        self.started.vcpu = now();
        let kind = if self.slots.has_folders { ThreadKind::FolderVcpu } else { ThreadKind::Vcpu };
        let mut threads = Vec::new();
        for (index, vcpu) in std::mem::take(&mut self.vcpus).into_iter().enumerate() {
            match confine::spawn(kind, &format!("vcpu {index}"), move || vcpu.run()) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    self.ending.set(End::Killed);
                    join(threads);
                    return Err(system("start a vCPU's thread")(error));
                }
            }
        }
        Ok(Running { machine: self, threads })
    }

    fn say(&mut self, event: Event) {
        if self.control.as_ref().is_some_and(|control| control.send(&Message::Event { event }).is_err()) {
            self.control = None;
        }
    }

    fn end(&self) -> End {
        match (self.ending.get().unwrap_or(End::Killed), self.watch.panic()) {
            (End::Reset | End::TripleFault | End::GuestPanic(_), Some(line)) => End::GuestPanic(line),
            (end, _) => end,
        }
    }

    /// How often the vCPUs have left the guest.
    pub fn exits(&self) -> Exits {
        self.statistics().exits
    }

    /// How the machine is.
    pub fn statistics(&self) -> Statistics {
        let vcpus: Vec<Exits> = self.counters.iter().map(|counters| counters.read()).collect();
        let plugged = self.slots.mem.as_ref().map_or(0, MemControl::plugged);
        let requested = self.slots.mem.as_ref().map_or(0, MemControl::requested);
        Statistics {
            exits: vcpus.iter().copied().fold(Exits::default(), std::ops::Add::add),
            vcpus,
            memory: Memory { boot: self.boot_memory, plugged, requested },
            disk_writes: writes(),
        }
    }

    /// Asks the guest to have so many MiB of memory.
    pub(crate) fn set_memory(&self, mib: u64) -> Result<(), String> {
        let boot = self.boot_memory >> 20;
        let more = mib.checked_sub(boot).ok_or_else(|| {
            format!("mib = {mib}: the machine has {boot} MiB from the boot on; a balloon takes of those")
        })?;
        match &self.slots.mem {
            Some(mem) => mem.request(more.saturating_mul(1 << 20)).map_err(|most| {
                format!("mib = {mib}: the machine can have {boot} to {}", boot + (most >> 20))
            }),
            None if more == 0 => Ok(()),
            None => Err("the machine's memory cannot grow; start it with max_memory_mib".into()),
        }
    }
}

/// A machine whose vCPUs run.
#[derive(Debug)]
pub struct Running {
    machine: Machine,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    /// Serves the machine (signals, control socket, typed input) to its end.
    ///
    /// # Errors
    /// None that is known; what goes wrong meanwhile is an [`End`].
    pub fn wait(self) -> Result<End, Error> {
        let Self { mut machine, threads } = self;
        machine.say(Event::Started(machine.started));
        supervise::until_end(&mut machine);
        join(threads);
        for transport in &machine.slots.transports {
            transport.reset();
        }
        let end = machine.end();
        let exits = machine.exits();
        machine.say(Event::Ended(Ended { end: end.clone(), exits }));
        Ok(end)
    }
}

/// The devices at I/O ports.
fn ports(
    config: &MachineConfig,
    vm: &Vm,
    ending: &Arc<Ending>,
    watch: &PanicWatch,
) -> Result<(Arc<Serial>, Bus), Error> {
    let console =
        Console::open(&config.serial, watch.clone()).map_err(system("open the serial console's file"))?;
    let interrupt = EventFd::new(EFD_NONBLOCK).map_err(system("make an eventfd"))?;
    vm.interrupt(&interrupt, layout::IRQ_SERIAL as u32)?;
    let serial = Arc::new(Serial::new(interrupt, console));
    let mut ports = Bus::default();
    ports.insert(layout::PORT_SERIAL, layout::PORT_SERIAL_SIZE, serial.clone())?;
    ports.insert(layout::PORT_I8042, layout::PORT_I8042_SIZE, Arc::new(I8042::new(ending.clone())))?;
    ports.insert(layout::PORT_POWER, layout::PORT_POWER_SIZE, Arc::new(Power::new(ending.clone())))?;
    let pvpanic = Arc::new(Pvpanic::new(ending.clone()));
    ports.insert(layout::PORT_PVPANIC, layout::PORT_PVPANIC_SIZE, pvpanic)?;
    if config.description != Description::Acpi {
        ports.insert(layout::PORT_CMOS, layout::PORT_CMOS_SIZE, Arc::new(Cmos::default()))?;
    }
    Ok((serial, ports))
}

/// Loads kernel and initramfs and writes the tables; says how and where the kernel is entered.
///
/// `delay` is a parameter of the command line, or nothing.
fn load(
    config: &MachineConfig,
    vm: &Vm,
    virtio_devices: usize,
    delay: &str,
    growth: Option<Growth>,
) -> Result<(Protocol, u64), Error> {
    let boot = |source| Error::Boot { path: config.kernel.clone(), source };
    let image = boot::load_kernel(&config.kernel, vm.memory()).map_err(boot)?;
    let initramfs = match &config.initramfs {
        Some(path) => Some(boot::load_initramfs(path, vm.memory(), image.end).map_err(boot)?),
        None => None,
    };
    let (protocol, entry) = match config.entry {
        Entry::LongMode => (Protocol::LongMode, image.entry),
        Entry::Pvh => (Protocol::Pvh, image.pvh_entry.ok_or_else(|| boot(boot::Error::NoPvhEntry))?),
    };
    let mut command_line = arch::command_line_prefix(config.description, virtio_devices);
    command_line += delay;
    command_line += &config.command_line;
    let platform = Platform {
        description: config.description,
        cpus: config.cpus,
        virtio_devices,
        command_line: &command_line,
        initramfs,
        protocol,
        growth: growth.map(|growth| growth.address),
    };
    arch::describe(vm.memory(), &platform)?;
    Ok((protocol, entry))
}

/// Waits for the vCPUs' threads, which end as soon as they leave the guest.
fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        while !thread.is_finished() {
            vcpu::kick(&thread);
            std::thread::sleep(Duration::from_millis(1));
        }
        // A panic of it was printed; the machine is over in any case.
        let _ = thread.join();
    }
}
