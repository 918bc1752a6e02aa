//! The virtio devices of a machine: made from its configuration, each put at its address and on its interrupt line.

use std::sync::Arc;

use crate::arch::layout;
use crate::bus::Bus;
use crate::config::{MachineConfig, Output};
use crate::devices::{PanicWatch, output};
use crate::kvm::Vm;
use crate::machine::{Error, system};
use crate::memory::Growth;
use crate::virtio::balloon::{Balloon, BalloonControl};
use crate::virtio::block::Block;
use crate::virtio::console::Console;
use crate::virtio::disk::Disk;
use crate::virtio::fs::{Fs, FsError};
use crate::virtio::mem::{Mem, MemControl};
use crate::virtio::net::{Net, NetControl};
use crate::virtio::rng::Rng;
use crate::virtio::scsi::{Scsi, ScsiControl};
use crate::virtio::vsock::Vsock;
use crate::virtio::{EventLoop, Interrupt, MmioTransport, VirtioDevice, mmio};

/// What the machine keeps of its virtio devices.
pub(crate) struct Slots {
    pub(crate) transports: Vec<Arc<MmioTransport>>,
    pub(crate) balloon: Option<BalloonControl>,
    pub(crate) mem: Option<MemControl>,
    pub(crate) net: Option<NetControl>,
    pub(crate) scsi: Option<ScsiControl>,
    /// Whether activating a device takes a conversation with a process beside the VMM.
    pub(crate) has_folders: bool,
    /// What those devices that need no thread of their own work on.
    pub(crate) events: EventLoop,
}

impl Slots {
    /// Makes the devices that `config` asks for, and one for memory if there is room to grow, and puts them on `bus`. All
    /// their files are open afterwards.
    pub(crate) fn new(
        config: &MachineConfig,
        growth: Option<Growth>,
        vm: &Vm,
        bus: &mut Bus,
        watch: &PanicWatch,
    ) -> Result<Self, Error> {
        let events = EventLoop::new().map_err(system("make the devices' event loop"))?;
        let mut slots = Self {
            transports: Vec::new(),
            balloon: None,
            mem: None,
            net: None,
            scsi: None,
            has_folders: !config.folders.is_empty(),
            events: events.clone(),
        };
        // Disks come first, so that their names do not depend on what else there is.
        for (index, disk) in config.disks.iter().enumerate() {
            let disk = Disk::open(disk).map_err(|error| Error::Device(Box::new(error)))?;
            let disk = if config.page_cache { disk } else { disk.past_page_cache() };
            slots.add(Box::new(Block::new(disk, format!("disk {index}"))), vm, bus)?;
        }
        if config.scsi {
            let (scsi, control) = Scsi::new();
            slots.scsi = Some(control);
            slots.add(Box::new(scsi), vm, bus)?;
        }
        if let Some(config) = &config.vsock {
            let vsock = Vsock::new(config, events.clone()).map_err(|error| Error::Device(Box::new(error)))?;
            slots.add(Box::new(vsock), vm, bus)?;
        }
        if let Some(config) = &config.network {
            let (net, control) =
                Net::new(config, events.clone()).map_err(|error| Error::Device(Box::new(error)))?;
            slots.net = Some(control);
            slots.add(Box::new(net), vm, bus)?;
        }
        for folder in &config.folders {
            match Fs::new(folder, vm.memory(), events.clone()) {
                Ok(fs) => slots.add(Box::new(fs), vm, bus)?,
                // The machine is worth having without: whoever started the server knows more of it.
                Err(error @ FsError::Backend { .. }) => {
                    let cause = std::error::Error::source(&error);
                    eprintln!(
                        "undercroft-vmm: {error}: {}",
                        cause.map(ToString::to_string).unwrap_or_default()
                    );
                }
                Err(error) => return Err(Error::Device(Box::new(error))),
            }
        }
        if config.rng {
            slots.add(Box::new(Rng::new(events.clone())), vm, bus)?;
        }
        if let Some(config) = config.balloon {
            let (balloon, control) = Balloon::new(config, events.clone());
            slots.balloon = Some(control);
            slots.add(Box::new(balloon), vm, bus)?;
        }
        if let Some(Growth { address, bytes, limit }) = growth {
            let (mem, control) = Mem::new(address, bytes, limit, events.clone());
            slots.mem = Some(control);
            slots.add(Box::new(mem), vm, bus)?;
        }
        if let Some(console) = &config.console {
            let cannot = system("open the console's file");
            let out = output(console).map_err(cannot)?;
            let input = match console {
                Output::Terminal => {
                    let stdin = std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned();
                    Some(stdin.map_err(system("duplicate standard input"))?)
                }
                _ => None,
            };
            let watch = watch.clone();
            let tap = Box::new(move |bytes: &[u8]| watch.look(bytes));
            slots.add(Box::new(Console::new(input, out, Some(tap), events)), vm, bus)?;
        }
        Ok(slots)
    }

    /// Puts a device into the next place: registers on the bus, queue notifications and interrupt straight to KVM.
    fn add(&mut self, device: Box<dyn VirtioDevice>, vm: &Vm, bus: &mut Bus) -> Result<(), Error> {
        let index = self.transports.len();
        let base = layout::virtio_address(index);
        let interrupt = Interrupt::new().map_err(system("make an eventfd"))?;
        vm.interrupt(interrupt.event(), layout::virtio_irq(index))?;
        let transport = MmioTransport::new(device, vm.memory().clone(), interrupt)
            .map_err(|error| Error::Device(Box::new(error)))?;
        for (queue, doorbell) in transport.doorbells().iter().enumerate() {
            vm.doorbell(doorbell, base + mmio::QUEUE_NOTIFY, queue as u32)?;
        }
        let transport = Arc::new(transport);
        bus.insert(base, layout::VIRTIO_MMIO_SIZE, transport.clone())?;
        self.transports.push(transport);
        Ok(())
    }
}
