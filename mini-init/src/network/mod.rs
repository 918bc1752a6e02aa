//! The VM's network: its loopback device and its card, as the host says; what names mean; and the relay between the host's
//! loopback and what is listened for here.

mod bpf;
mod connection;
mod listeners;
pub(crate) mod names;
mod nat;
mod netlink;
pub(crate) mod own;
pub(crate) mod relay;
pub(crate) mod resolver;
mod splice;

use std::{
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use undercroft_protocol::{
    command::{Done, Failure, FailureKind},
    network::Network,
};

use crate::{jobs::system, log::Warnings, modprobe};
use netlink::Netlink;

/// The loopback device's number, always.
const LOOPBACK: u32 = 1;
/// How long a card may take to appear after its driver was loaded.
const PATIENCE: Duration = Duration::from_secs(2);

/// Brings `lo` up; the kernel gives it its addresses by itself then.
pub(crate) fn loopback_up(warnings: &mut Warnings) {
    let outcome = Netlink::open().and_then(|mut netlink| netlink.set_up(LOOPBACK, None));
    warnings.take("bringing up the loopback device", outcome);
}

/// Sets the card up: driver, addresses, routes. What is set already stays.
pub(crate) fn configure(network: &Network) -> Result<Done, Failure> {
    let (name, index) = card(network.mac)?;
    // Everything is told; a router that says otherwise is not to be listened to.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0");
    let mut netlink = Netlink::open().map_err(system("talking to the kernel about the network"))?;
    netlink
        .set_up(index, Some(network.mtu.into()))
        .map_err(system(&format!("bringing {name} up with packets of {} bytes", network.mtu)))?;
    for address in &network.addresses {
        let what = format!("giving {name} the address {}/{}", address.ip, address.prefix);
        netlink.add_address(index, address.ip, address.prefix).map_err(system(&what))?;
    }
    for &gateway in &network.gateways {
        let what = format!("sending packets by {gateway}");
        netlink.set_default_route(index, gateway).map_err(system(&what))?;
    }
    Ok(Done::Nothing)
}

/// The card with this address: its name and number. Its driver is loaded if it is not there yet.
fn card(mac: [u8; 6]) -> Result<(String, u32), Failure> {
    if let Some(found) = find(Path::new("/sys/class/net"), mac) {
        return Ok(found);
    }
    modprobe::load("virtio_net").map_err(system("loading the network card's driver, virtio_net"))?;
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = find(Path::new("/sys/class/net"), mac) {
            return Ok(found);
        }
        if Instant::now() >= end {
            return Err(Failure {
                kind: FailureKind::System,
                message: format!("there is no network card with the address {}", text(mac)),
            });
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn find(devices: &Path, mac: [u8; 6]) -> Option<(String, u32)> {
    let wanted = text(mac);
    for device in fs::read_dir(devices).ok()?.flatten() {
        let read = |file: &str| -> io::Result<String> {
            Ok(fs::read_to_string(device.path().join(file))?.trim().to_owned())
        };
        if read("address").is_ok_and(|address| address == wanted) {
            let index = read("ifindex").ok()?.parse().ok()?;
            return Some((device.file_name().to_string_lossy().into_owned(), index));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_found_by_its_address() {
        let devices = tempfile::tempdir().unwrap();
        for (name, address, index) in [("lo", "00:00:00:00:00:00", 1), ("eth0", "02:75:6e:64:63:74", 7)] {
            let device = devices.path().join(name);
            fs::create_dir(&device).unwrap();
            fs::write(device.join("address"), format!("{address}\n")).unwrap();
            fs::write(device.join("ifindex"), format!("{index}\n")).unwrap();
        }
        let mac = [2, b'u', b'n', b'd', b'c', b't'];
        assert_eq!(find(devices.path(), mac), Some(("eth0".into(), 7)));
        assert_eq!(find(devices.path(), [2; 6]), None);
    }
}
