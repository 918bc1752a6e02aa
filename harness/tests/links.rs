//! Ways to the world beside passt's IPv4: a TAP device, and IPv6. The world is a network namespace that the test has made.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use undercroft_harness::{
    outcome::{Failure, Outcome, skip},
    product::Product,
    vm::{Kernel, guest_test},
};

const MACHINE: &str = "memory=512MB\nprocessors=1\nswap=0\nipv6=true\n";
/// The port of the host's web server, and of the distribution's.
const OUTSIDE: u16 = 8088;
const INSIDE: u16 = 8090;

/// Gives this thread, and what it starts, a network of its own; that needs root, as a lab's tests have it.
fn has_own_network() -> Result<bool, Failure> {
    if unshare(CloneFlags::CLONE_NEWNET).is_err() {
        return Ok(false);
    }
    ip("link set lo up")?;
    Ok(true)
}

fn ip(line: &str) -> Outcome {
    let output = Command::new("ip").args(line.split(' ')).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Failure::Failed(format!("ip {line}: {}", String::from_utf8_lossy(&output.stderr)))),
    }
}

/// Serves a page of this many bytes at every address of this network's, as long as the test runs.
fn serve(bytes: usize) -> Outcome {
    let listener = TcpListener::bind(("::", OUTSIDE))?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(&vec![b'x'; bytes]);
        }
    });
    Ok(())
}

fn get(address: IpAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, INSIDE), Duration::from_secs(60))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_tap_device_is_a_way_to_the_world() -> Outcome {
    guest_test(|suite| {
        if !has_own_network()? {
            return skip("a network namespace of the test's own needs root");
        }
        ip("tuntap add dev tap0 mode tap vnet_hdr")?;
        ip("address add 192.168.77.1/24 dev tap0")?;
        ip("address add fd77::1/64 dev tap0 nodad")?;
        ip("link set tap0 mtu 9000 up")?;
        serve(3_000_000)?;
        let tap = "tap=tap0 192.168.77.2/24,fd77::2/64 via 192.168.77.1,fd77::1";
        let one = Product::new(suite, Kernel::Tuned, &format!("{MACHINE}networkingMode=tap\n{tap}\n"))?;
        one.say(&format!("import a {}", suite.busybox.display()))?;
        assert_eq!(one.sh("a", "cat /sys/class/net/eth0/mtu")?, "9000");
        for address in ["192.168.77.1", "[fd77::1]"] {
            let fetch = format!("wget -q -O - http://{address}:{OUTSIDE}/ | wc -c");
            one.until("the host is not reached", || Ok(one.sh("a", &fetch)? == "3000000"))?;
        }
        // It has addresses of its own there, at which it is reached.
        one.sh("a", &format!("mkdir /www; seq 100000 > /www/page; httpd -p {INSIDE} -h /www"))?;
        for address in ["192.168.77.2", "fd77::2"] {
            let address = address.parse().expect("an address");
            one.until("it is not reached", || {
                Ok(get(address).is_ok_and(|page| page.ends_with("\n100000\n")))
            })?;
        }
        let network = &one.status()?["vm"]["network"];
        assert!(network.to_string().contains("tap"), "{network}");

        // One that is not there costs the network, and nothing else.
        one.say("shutdown")?;
        ip("link delete tap0")?;
        assert_eq!(one.sh("a", "ls /sys/class/net")?, "lo");
        let status = one.say("status")?;
        assert!(status.contains("there is no network device tap0: as root, `ip tuntap add"), "{status}");
        one.finish()
    })
}

#[test]
fn passt_speaks_ipv6_where_the_host_does() -> Outcome {
    guest_test(|suite| {
        if !has_own_network()? {
            return skip("a network namespace of the test's own needs root");
        }
        ip("link add out type dummy")?;
        ip("link set out up")?;
        ip("address add 2001:db8:7::1/64 dev out nodad")?;
        ip("route add default via 2001:db8:7::2 dev out")?;
        serve(3_000_000)?;
        let one = Product::new(suite, Kernel::Tuned, MACHINE)?;
        one.say(&format!("import a {}", suite.busybox.display()))?;
        let fetch = format!("wget -q -O - http://[2001:db8:7::1]:{OUTSIDE}/ | wc -c");
        one.until("the host is not reached", || Ok(one.sh("a", &fetch)? == "3000000"))?;
        let routes = one.sh("a", "ip -6 route show default; ip -6 address show dev eth0 scope global")?;
        assert!(routes.contains("default via fd75:") && routes.contains("inet6 fd75:"), "{routes}");
        // A network of a distribution's own has it, too, by another wire.
        let own = format!("{MACHINE}[distribution \"a\"]\nnetwork=private\n");
        one.configure(&format!("[wsl2]\nkernel={}\n{own}", suite.tuned.image.display()))?;
        one.say("terminate a")?;
        one.until("the host is not reached", || Ok(one.sh("a", &fetch)? == "3000000"))?;
        one.finish()
    })
}
