//! A machine: made from its configuration, run to its end.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::{self, CpuModel, Platform, Protocol, layout};
use crate::bus::{self, Bus};
use crate::config::{Description, MachineConfig};
use crate::confine::{self, ThreadKind};
use crate::devices::{Cmos, Console, I8042, Power, Pvpanic, Serial};
use crate::end::End;
use crate::kvm::{self, Vm};
use crate::vcpu::{self, Counters, Exits, Vcpu};
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
    vm: Vm,
    vcpus: Vec<Vcpu>,
    ending: Arc<Ending>,
    counters: Vec<Arc<Counters>>,
    serial: Arc<Serial>,
    panic_line: Arc<Mutex<Option<String>>>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("vm", &self.vm).finish_non_exhaustive()
    }
}

impl Machine {
    /// Makes a machine: memory, kernel, tables, devices, vCPUs. Every file it works with is open when this returns.
    ///
    /// # Errors
    /// The configuration, the kernel, KVM or the operating system does not allow it; nothing is left behind.
    pub fn new(config: MachineConfig) -> Result<Self, Error> {
        let kvm = kvm::open()?;
        let vm = Vm::new(&kvm, memory::map(config.memory_mib)?)?;
        let ending = Ending::new().map_err(system("make an eventfd"))?;

        let boot = |source| Error::Boot { path: config.kernel.clone(), source };
        let image = boot::load_kernel(&config.kernel, vm.memory()).map_err(boot)?;
        let initramfs = match &config.initramfs {
            Some(path) => Some(boot::load_initramfs(path, vm.memory(), image.end).map_err(boot)?),
            None => None,
        };
        let protocol = Protocol::LongMode;
        let entry = image.entry;
        let platform = Platform {
            description: config.description,
            cpus: config.cpus,
            virtio_devices: 0,
            command_line: &config.command_line,
            initramfs,
            protocol,
        };
        arch::describe(vm.memory(), &platform)?;

        let console = Console::open(&config.serial).map_err(system("open the serial console's file"))?;
        let panic_line = console.panic_line();
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
        let (ports, mmio) = (Arc::new(ports), Arc::new(Bus::default()));

        let model = CpuModel::new(&kvm, config.cpus)?;
        let mut vcpus = Vec::new();
        let mut all_counters = Vec::new();
        for index in 0..config.cpus {
            let fd = vm.vcpu(index)?;
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
        Ok(Self { vm, vcpus, ending, counters: all_counters, serial, panic_line })
    }

    /// Runs the machine to its end.
    ///
    /// # Errors
    /// A thread or a signal handler cannot be had.
    pub fn run(mut self) -> Result<End, Error> {
        vcpu::install_kick().map_err(system("install a signal handler"))?;
        let mut threads = Vec::new();
        for (index, vcpu) in self.vcpus.drain(..).enumerate() {
            let thread = confine::spawn(ThreadKind::Vcpu, &format!("vcpu {index}"), move || vcpu.run());
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    self.ending.set(End::Killed);
                    join(threads);
                    return Err(system("start a vCPU's thread")(error));
                }
            }
        }
        while !self.ending.ended() {
            std::thread::sleep(Duration::from_millis(10));
        }
        join(threads);
        let _ = self.serial.input_room();
        Ok(self.end())
    }

    fn end(&self) -> End {
        let line = self.panic_line.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (self.ending.get().unwrap_or(End::Killed), line) {
            (End::Reset | End::TripleFault | End::GuestPanic(_), Some(line)) => End::GuestPanic(line),
            (end, _) => end,
        }
    }

    /// How often the vCPUs have left the guest.
    pub fn exits(&self) -> Exits {
        self.counters.iter().map(|counters| counters.read()).fold(Exits::default(), std::ops::Add::add)
    }
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
