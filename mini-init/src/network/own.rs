//! Networks of distributions' own: a wire to the VM, laid when one is launched; and how the VM gets in there later.
//!
//! A cgroup of a distribution that has one says so in an attribute that nobody in a user namespace can set: it is there as
//! long as the distribution is, and holds the number of its init, whose network it is. (A descriptor of the namespace would
//! keep it when the distribution is gone.)

use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    os::fd::AsFd,
    path::Path,
};

use nix::sched::{CloneFlags, setns};
use rustix::fs::{XattrFlags, fsetxattr, getxattr};
use undercroft_protocol::{command::Failure, network::Wire};

use super::{LOOPBACK, listeners, nat, netlink::Netlink};
use crate::{early::DISTRIBUTIONS, jobs::system, launch::cgroup_path, modprobe};

/// The attribute.
const ATTRIBUTE: &str = "trusted.undercroft.network";
/// The wire's end in the distribution.
const CARD: &str = "eth0";
/// Drivers: the wire's, and what translates addresses. What is built in is not loaded.
const DRIVERS: [&str; 3] = ["veth", "nft_chain_nat", "nft_masq"];
/// Switches that let packets through from one link to another.
const FORWARDING: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];

/// Lays the wire of the distribution whose first process is `init`; the calling process is in its network from then on.
pub(crate) fn lay(id: u32, wire: &Wire, cgroup: impl AsFd, init: u32) -> Result<(), Failure> {
    for driver in DRIVERS {
        modprobe::load(driver).map_err(system(&format!("loading {driver}, for a network of its own")))?;
    }
    for switch in FORWARDING {
        // Without IPv6 there is only one.
        match fs::write(Path::new("/proc/sys").join(switch), "1") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(system(&format!("setting {switch}"))(error));
            }
            _ => {}
        }
    }
    nat::masquerade().map_err(system("translating the addresses of distributions"))?;
    let number = init.to_string();
    fsetxattr(cgroup, ATTRIBUTE, number.as_bytes(), XattrFlags::empty())
        .map_err(system("noting whose network it is"))?;

    let here = format!("{}{id}", nat::PREFIX);
    let netlink = || Netlink::open().map_err(system("talking to the kernel about the network"));
    let mut kernel = netlink()?;
    kernel
        .add_pair(wire.mtu.into(), &here, CARD, init)
        .map_err(system("making a wire between two networks"))?;
    set_up(&mut kernel, &here, wire.ends.iter().map(|ends| (ends.vm, ends.prefix)))?;
    enter(init).map_err(system("entering the distribution's network"))?;
    let mut kernel = netlink()?;
    kernel.set_up(LOOPBACK, None).map_err(system("bringing up the loopback device"))?;
    set_up(&mut kernel, CARD, wire.ends.iter().map(|ends| (ends.distribution, ends.prefix)))?;
    let card = kernel.index(CARD).map_err(system(CARD))?;
    for ends in &wire.ends {
        let what = format!("sending packets by {}", ends.vm);
        kernel.set_default_route(card, ends.vm).map_err(system(&what))?;
    }
    Ok(())
}

fn set_up(
    kernel: &mut Netlink,
    name: &str,
    addresses: impl Iterator<Item = (IpAddr, u8)>,
) -> Result<(), Failure> {
    let link = kernel.index(name).map_err(system(name))?;
    kernel.set_up(link, None).map_err(system(&format!("bringing {name} up")))?;
    for (ip, prefix) in addresses {
        let what = format!("giving {name} the address {ip}/{prefix}");
        kernel.add_address(link, ip, prefix).map_err(system(&what))?;
    }
    Ok(())
}

fn enter(process: u32) -> io::Result<()> {
    let network = File::open(format!("/proc/{process}/ns/net"))?;
    Ok(setns(network, CloneFlags::CLONE_NEWNET)?)
}

/// The distributions that run with a network of their own, and a process of each that is in it.
pub(super) fn running() -> Vec<(u32, u32)> {
    let entries = fs::read_dir(DISTRIBUTIONS).into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(|id| Some((id, init(id)?))).collect()
}

/// The init of a distribution that has a network of its own, if it runs.
fn init(id: u32) -> Option<u32> {
    let mut value = [0; 16];
    let length = getxattr(cgroup_path(id), ATTRIBUTE, &mut value).ok()?;
    let process: u32 = str::from_utf8(value.get(..length)?).ok()?.parse().ok()?;
    // Another process may have its number by now.
    let cgroup = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    (listeners::distribution(&cgroup) == Some(id)).then_some(process)
}

/// Makes something, a socket most likely, in the network of this distribution; in the one that this thread is in, if none is
/// named.
pub(super) fn within<T>(network: Option<u32>, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Some(id) = network else { return make() };
    let init = init(id).ok_or(io::ErrorKind::NotFound)?;
    let here = File::open("/proc/thread-self/ns/net")?;
    enter(init)?;
    let made = make();
    if let Err(error) = setns(here, CloneFlags::CLONE_NEWNET) {
        // Everything that is made from now on would be the distribution's.
        let text = format!("the relay cannot leave a distribution's network: {error}");
        crate::log::line(crate::log::Level::Error, &text);
        std::process::abort();
    }
    made
}
