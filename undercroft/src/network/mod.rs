//! The VM's network, as the host sees it.
//!
//! [`NetworkMode`] says how the VM reaches the world. `passt` is the process that makes it so, `addresses` what both sides are
//! called, `resolver` the host's name servers. [`ports`] is the other direction: what is listened for in the VM, on the
//! host's own loopback.

mod addresses;
mod flows;
mod helper;
mod known;
mod lookup;
mod names;
mod passt;
mod pause;
mod peer;
pub mod ports;
mod relay;
mod resolver;
mod tap;
mod wanted;

use std::{
    fmt,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use undercroft_protocol::{
    command::{Command, Done},
    network::{Address, Endpoint, Network as Card, Wire},
};
use undercroft_vmm::config::{MacAddress, NetBackend, NetConfig};

use crate::{
    board::Board,
    error::Result,
    guest::{Guest, Pending, wrong},
    vmm::{Control, Vmm},
};
pub use tap::TapError;

use addresses::Addresses;
use names::{NameKeeper, Servers};
use passt::{Passt, State};
use ports::{Port, Ports, Publication};
pub(crate) use relay::Carrier;
use resolver::RESOLV_CONF;

/// The name by which distributions call the host.
pub const HOST_NAME: &str = "host.internal";
/// passt's largest MTU: the longest frame that it takes is 65 535 bytes, and IPv4 counts in words.
const MTU: u16 = 65_520;

/// What is wanted of the network.
#[derive(Debug, Clone, Default)]
pub struct NetworkOptions {
    /// How the VM reaches the world.
    pub mode: NetworkMode,
    /// Whether what distributions listen for on loopback or everywhere is there on the host's loopback, too. It needs no
    /// network card.
    pub localhost: bool,
    /// Ports that are left alone in this.
    pub ignored_ports: Vec<u16>,
    /// Where else on the host a port is reached, by everybody, as long as it is listened for inside. Without
    /// [`localhost`](Self::localhost) nothing is.
    pub published: Vec<Endpoint>,
    /// How names are looked up, where there is a way to the world.
    pub names: NameOptions,
    /// The card's address; one that is made up otherwise.
    pub mac: Option<MacAddress>,
}

/// How distributions look names up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameOptions {
    /// Whom they ask.
    pub servers: NameServers,
    /// The host's resolv.conf.
    pub resolv_conf: PathBuf,
}

/// Whom distributions ask for names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameServers {
    /// An address of the VM's, from where the host itself is asked over vsock: it asks its own.
    Host,
    /// The host's name servers, but for those on its loopback: these by an address that passt forwards.
    Forwarded,
    /// The host's name servers, as they are called there.
    Named,
}

impl Default for NameOptions {
    fn default() -> Self {
        Self { servers: NameServers::Host, resolv_conf: RESOLV_CONF.into() }
    }
}

/// How the VM reaches the world.
#[derive(Debug, Clone, Default)]
pub enum NetworkMode {
    /// Not at all: distributions reach each other only.
    #[default]
    None,
    /// By passt: connections are the host's user's own.
    Nat(NatOptions),
    /// By a TAP device that somebody has set up.
    Tap(TapOptions),
}

/// [`NetworkMode::Nat`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatOptions {
    /// Whether distributions reach what listens on the host's loopback, as [`HOST_NAME`]. Services there often trust
    /// whoever can connect.
    pub host_loopback: bool,
    /// Whether there is IPv6, where the host has it.
    pub ipv6: bool,
    /// Bytes of the longest packet.
    pub mtu: u16,
    /// The passt program; the one in PATH otherwise.
    pub program: Option<PathBuf>,
}

impl Default for NatOptions {
    fn default() -> Self {
        Self { host_loopback: false, ipv6: true, mtu: MTU, program: None }
    }
}

/// [`NetworkMode::Tap`].
#[derive(Debug, Clone)]
pub struct TapOptions {
    /// The device's descriptor, made with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
    pub device: Arc<OwnedFd>,
    /// Bytes of the longest packet.
    pub mtu: u16,
    /// The VM's addresses, and the bits of each that its network shares.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Where everything else is reached, at most one of each family.
    pub gateways: Vec<IpAddr>,
}

/// How it is with the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkStatus {
    /// `none`, `nat` or `tap`.
    pub mode: &'static str,
    /// The VM's addresses.
    pub addresses: Vec<IpAddr>,
    /// Why there is no way to the world, if there is none that should be.
    pub trouble: Option<String>,
}

/// The network of a machine that is to be started.
pub(crate) struct Plan {
    options: NetworkOptions,
    addresses: Addresses,
    /// The program, where one is needed and found.
    program: Option<PathBuf>,
    trouble: Option<String>,
}

impl Plan {
    /// Looks at the host. What is missing is no reason for there to be no VM.
    pub(crate) fn new(options: NetworkOptions) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let wants_ipv6 = matches!(&options.mode, NetworkMode::Nat(nat) if nat.ipv6);
        let routes = read("/proc/net/ipv6_route");
        let ipv6 = addresses::ipv6_device(&routes).filter(|_| wants_ipv6).map(str::to_owned);
        let addresses = Addresses::choose(&addresses::hosts(&read("/proc/net/fib_trie")), ipv6);
        let mut plan = Self { options, addresses, program: None, trouble: None };
        if let NetworkMode::Nat(nat) = &plan.options.mode {
            plan.program = nat.program.clone().or_else(passt::find);
            if plan.program.is_none() {
                plan.trouble = Some(format!(
                    "{0} is not installed: the VM has no network; install the package {0} (apt install {0}) and \
                     start the VM again, or set networkingMode = none",
                    passt::PROGRAM
                ));
            }
        }
        plan
    }

    /// The card that the VMM is to have.
    pub(crate) fn card(&self) -> Option<NetConfig> {
        let (mtu, backend) = match &self.options.mode {
            NetworkMode::Nat(nat) if self.program.is_some() => (nat.mtu, NetBackend::Stream),
            NetworkMode::Tap(tap) => (tap.mtu, NetBackend::Tap),
            _ => return None,
        };
        Some(NetConfig { mtu, backend, mac: self.mac() })
    }

    fn mac(&self) -> MacAddress {
        self.options.mac.unwrap_or(NetConfig::default().mac)
    }

    /// Starts what there is on the host's side, for a VMM that was just started. `folder` is for logs.
    pub(crate) fn start(self, vmm: &Vmm, folder: &Path, board: &Arc<Board>) -> Result<Network> {
        if let Some(trouble) = &self.trouble {
            board.warn(trouble.clone());
        }
        let passt = match (&self.options.mode, &self.program) {
            (NetworkMode::Nat(nat), Some(program)) => {
                let (log, control, told) = (folder.join("passt.log"), vmm.control().clone(), board.clone());
                let warn = move |text| told.warn(text);
                Some(Passt::start(program.clone(), &self.addresses, nat, log, control, warn)?)
            }
            _ => None,
        };
        Ok(Network { plan: self, passt, card: Mutex::default(), names: None, ports: None })
    }
}

/// The network of a running machine.
pub(crate) struct Network {
    plan: Plan,
    passt: Option<Passt>,
    /// The request to set the card up, until it was answered.
    card: Mutex<Option<Pending>>,
    names: Option<NameKeeper>,
    ports: Option<Ports>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("passt", &self.passt).finish_non_exhaustive()
    }
}

impl Network {
    /// Tells the guest, which has its modules now. That the card is set up is not waited for.
    pub(crate) fn introduce(
        &mut self,
        guest: &Arc<Guest>,
        control: &Control,
        carrier: Carrier,
    ) -> Result<()> {
        let nat = matches!(self.plan.options.mode, NetworkMode::Nat(_)) && self.passt.is_some();
        let (mtu, addresses, gateways) = match &self.plan.options.mode {
            NetworkMode::Nat(nat) if self.passt.is_some() => {
                (nat.mtu, self.plan.addresses.all(), self.plan.addresses.gateways())
            }
            NetworkMode::Tap(tap) => {
                control.link(tap.device.as_fd(), guest.limit(10))?;
                let address = |&(ip, prefix)| Address { ip, prefix };
                (tap.mtu, tap.addresses.iter().map(address).collect(), tap.gateways.clone())
            }
            _ => (0, Vec::new(), Vec::new()),
        };
        if !addresses.is_empty() {
            let MacAddress(mac) = self.plan.mac();
            let card = Card { mac, mtu, addresses, gateways };
            *self.card.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(guest.send(Command::Network(card))?);
            let forwarder = nat.then(|| self.plan.addresses.resolver().into());
            let servers = Servers::start(guest, &self.plan.options.names, forwarder);
            let host = match &self.plan.options.mode {
                NetworkMode::Nat(nat) if nat.host_loopback => Some(self.plan.addresses.gateway().into()),
                _ => None,
            };
            self.names = Some(NameKeeper::start(guest, servers, self.plan.addresses.ipv6.is_some(), host)?);
        }
        if self.plan.options.localhost {
            let options = &self.plan.options;
            let (ignored, published) = (options.ignored_ports.clone(), options.published.clone());
            self.ports = Some(Ports::start(guest, carrier, ignored, published)?);
        }
        Ok(())
    }

    /// Waits until the card is set up, or says as a warning that it is not. What waited once waits no more.
    pub(crate) fn settle(&self, board: &Board, limit: Duration) {
        const WHAT: &str = "set the network up";
        let Some(pending) = self.card.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let outcome = match pending.wait(WHAT, Some(limit)) {
            Ok(Done::Nothing) => return,
            Ok(other) => wrong(WHAT, &other),
            // Whoever waits for the machine is told.
            Err(crate::Error::Ended(_)) => return,
            Err(error) => error,
        };
        board.warn(format!("the VM has no network: {outcome}"));
    }

    /// The wire of the distribution with this number, if it is to have a network of its own.
    pub(crate) fn wire(&self, number: u32) -> Wire {
        Wire { mtu: MTU, ends: self.plan.addresses.wire(number) }
    }

    /// A distribution of this name is about to start: those that start from now on find it.
    pub(crate) fn note_name(&self, name: &str, wire: Option<&Wire>) -> Result<()> {
        let own = wire.and_then(|wire| wire.ends.first()).map(|ends| ends.distribution);
        self.names.as_ref().map_or(Ok(()), |names| names.add(name, own))
    }

    pub(crate) fn status(&self) -> NetworkStatus {
        let (mode, addresses) = match &self.plan.options.mode {
            NetworkMode::None => ("none", Vec::new()),
            NetworkMode::Nat(_) => ("nat", self.plan.addresses.all().iter().map(|a| a.ip).collect()),
            NetworkMode::Tap(tap) => ("tap", tap.addresses.iter().map(|a| a.0).collect()),
        };
        let down = match self.passt.as_ref().map(Passt::state) {
            Some(State::Down(how)) => Some(how),
            _ => None,
        };
        NetworkStatus { mode, addresses, trouble: self.plan.trouble.clone().or(down) }
    }

    /// Has everybody reach a port of this distribution's on the host.
    pub(crate) fn publish(&self, at: Endpoint, distribution: u32) -> Result<Publication> {
        self.ports.as_ref().ok_or(crate::Error::NoRelay { at })?.publish(at, distribution)
    }

    pub(crate) fn ports(&self) -> Vec<Port> {
        self.ports.as_ref().map(Ports::list).unwrap_or_default()
    }

    pub(crate) fn passt_pid(&self) -> Option<u32> {
        self.passt.as_ref().and_then(Passt::pid)
    }
}
