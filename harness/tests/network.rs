//! The network: the world from inside, and what is listened for inside from outside.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use rstest::rstest;
use undercroft::{NameOptions, NatOptions, NetworkMode, NetworkOptions};
use undercroft_harness::{
    outcome::{Failure, Outcome, patience, skip, until},
    turn,
    vm::{Kernel, Vm, Wanted, boot, guest_test},
};
use undercroft_protocol::network::Endpoint;

/// A web server of the test's own, on its own machine's loopback: one answer to everything.
struct Web {
    port: u16,
}

impl Web {
    fn start(body: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of the loopback device");
        let port = listener.local_addr().expect("an address").port();
        // It ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(mut stream), body) = (stream, body.clone()) else { continue };
                thread::spawn(move || {
                    let _ = stream.read(&mut [0; 4096]);
                    let head = format!(
                        "HTTP/1.0 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
                });
            }
        });
        Self { port }
    }
}

fn nat() -> NetworkOptions {
    let nat = NatOptions { host_loopback: true, ..NatOptions::default() };
    NetworkOptions { mode: NetworkMode::Nat(nat), ..NetworkOptions::default() }
}

fn fetch(vm: &Vm, port: u16) -> Result<String, Failure> {
    vm.read("a", &format!("wget -q -O - http://host.internal:{port}/ | md5sum"))
}

#[rstest]
fn the_world_from_inside(#[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel) -> Outcome {
    guest_test(|suite| {
        let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
        let web = Web::start(body);
        let vm = boot(suite, kernel).network(nat()).distro("a", &suite.busybox).start()?;
        assert_eq!(vm.machine().warnings(), [""; 0]);
        let status = vm.machine().network();
        assert_eq!((status.mode, status.trouble), ("nat", None));
        let link = vm.read("a", "cat /sys/class/net/eth0/mtu /sys/class/net/eth0/carrier | tr '\\n' ' '")?;
        assert_eq!(link.trim(), "65520 1");
        assert!(vm.read("a", "cat /etc/resolv.conf")?.contains("nameserver"));
        assert!(vm.read("a", "cat /etc/hosts")?.contains("host.internal"));
        let whole = fetch(&vm, web.port)?;
        assert_eq!(fetch(&vm, web.port)?, whole);

        // Killed under load: what was under way is lost, and the next goes through.
        let first = vm.machine().passt_pid();
        let load = format!("while :; do wget -q -T 5 -O /dev/null http://host.internal:{}/; done", web.port);
        vm.sh("a", &format!("setsid sh -c '{load}' >/dev/null 2>&1 &"))?;
        kill(first)?;
        until("passt was not started again", || {
            Ok(vm.machine().passt_pid().is_some_and(|pid| Some(pid) != first))
        })?;
        until("nothing goes through the new one", || Ok(fetch(&vm, web.port).is_ok_and(|sum| sum == whole)))?;
        assert_eq!(vm.machine().network().trouble, None);
        let told = vm.machine().warnings();
        assert!(told.len() == 1 && told[0].contains("passt ended (signal: 9"), "{told:?}");
        vm.power_off()
    })
}

fn kill(pid: Option<u32>) -> Outcome {
    let pid =
        pid.and_then(|pid| i32::try_from(pid).ok()).ok_or(Failure::Failed("there is no passt".into()))?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
        .map_err(|error| Failure::Failed(format!("kill: {error}")))
}

/// A VM without passt is a VM.
#[test]
fn a_host_without_passt() -> Outcome {
    guest_test(|suite| {
        let nat = NatOptions { program: Some("/nonexistent/passt".into()), ..NatOptions::default() };
        let network = NetworkOptions { mode: NetworkMode::Nat(nat), ..NetworkOptions::default() };
        let vm = boot(suite, Kernel::Tuned).network(network).distro("a", &suite.busybox).start()?;
        assert_eq!(vm.read("a", "echo works")?.trim(), "works");
        let trouble = vm.machine().network().trouble.unwrap_or_default();
        assert!(trouble.contains("/nonexistent/passt cannot be executed"), "{trouble}");
        vm.power_off()
    })
}

/// What a web client gets from 127.0.0.1 at this port, on the machine that runs the VMM.
fn get(port: u16) -> std::io::Result<String> {
    get_from(([127, 0, 0, 1], port).into())
}

fn get_from(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(patience()))?;
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Scene 7: a listener inside is one outside, as long as it is there; and what hostile clients do stays theirs.
#[rstest]
fn the_world_from_outside(#[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel) -> Outcome {
    guest_test(|suite| {
        let _turn = turn::take()?;
        let network =
            NetworkOptions { localhost: true, ignored_ports: vec![8099], ..NetworkOptions::default() };
        let vm = boot(suite, kernel).network(network).distro("a", &suite.busybox).start()?;
        assert_eq!(vm.machine().warnings(), [""; 0], "the kernel says when somebody listens");
        assert!(get(8091).is_err());
        let id = vm.distribution("a")?.id();
        let page: String = (0..20_000).map(|n| format!("{n}\n")).collect();
        vm.feed(
            "a",
            &undercroft::Program::new(["sh", "-c", "mkdir -p /www && cat > /www/page"]),
            page.clone(),
        )?;
        vm.sh("a", "httpd -p 127.0.0.1:8091 -h /www; httpd -p 8099 -h /www")?;
        let outside = |inside: u16| {
            let ports = vm.machine().ports();
            ports.into_iter().find(|port| port.inside.address.port() == inside && port.outside.is_some())
        };
        until("nobody listens on the host", || Ok(outside(8091).is_some()))?;
        let port = outside(8091).expect("it was there");
        assert_eq!(port.outside, Some(([127, 0, 0, 1], 8091).into()));
        // A program that goes on in the background is known a little later than its port.
        until("nobody knows whose port it is", || {
            Ok(outside(8091)
                .is_some_and(|port| (port.distribution, port.program.as_str()) == (Some(id), "httpd")))
        })?;
        assert!(outside(8099).is_none(), "it is to be left alone");
        assert!(get(8091)?.ends_with(&page));

        // Clients that say nothing, and clients that read nothing.
        let silent: Vec<_> = (0..100).map(|_| TcpStream::connect(("127.0.0.1", 8091))).collect();
        let mut deaf: Vec<TcpStream> =
            (0..10).map(|_| TcpStream::connect(("127.0.0.1", 8091))).collect::<Result<_, _>>()?;
        for stream in &mut deaf {
            stream.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
        }
        assert!(get(8091)?.ends_with(&page));
        drop((silent, deaf));

        // One that is taken: there is another, and that is said.
        let taken = TcpListener::bind("127.0.0.1:8092")?;
        vm.sh("a", "httpd -p 8092 -h /www")?;
        until("no other port was taken", || Ok(outside(8092).is_some()))?;
        let other = outside(8092).expect("it was there");
        assert!(other.trouble.is_some_and(|trouble| trouble.contains("has that port already")));
        assert!(get(other.outside.expect("a port").port())?.ends_with(&page));
        let told = vm.machine().warnings();
        assert!(told.len() == 1 && told[0].contains("listens on"), "{told:?}");
        drop(taken);

        // Gone with the program, and with the distribution.
        vm.sh("a", "kill $(pidof httpd)")?;
        until("it is still listened for", || Ok(vm.machine().ports().is_empty() && get(8091).is_err()))?;
        vm.sh("a", "httpd -p 8093 -h /www")?;
        until("nobody listens on the host", || Ok(get(8093).is_ok()))?;
        let mut vm = vm;
        vm.terminate("a")?;
        until("it outlives its distribution", || Ok(get(8093).is_err()))?;
        vm.power_off()
    })
}

/// Distributions with networks of their own: the same port twice, interfaces and rules that are theirs, the way out and the
/// way in.
#[rstest]
fn networks_of_their_own(#[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel) -> Outcome {
    guest_test(|suite| {
        let _turn = turn::take()?;
        let web = Web::start(b"the world".to_vec());
        let network = NetworkOptions { localhost: true, ..nat() };
        let own = |name| Wanted::new(name, &suite.busybox).private();
        let boot = boot(suite, kernel).network(network).wants(own("b")).wants(own("c"));
        let mut vm = boot.distro("a", &suite.busybox).start()?;
        assert_eq!(vm.machine().warnings(), [""; 0]);
        assert_eq!(vm.read("b", "echo $(ls /sys/class/net)")?, "eth0 lo");
        let wires = vm.read("a", "ls /sys/class/net | grep -c ^dist")?;
        assert_eq!(wires, "2", "their other ends are the VM's");
        // Each may do in its own network what none may in the VM's.
        let switch = "echo 1 >/proc/sys/net/ipv4/ip_forward";
        assert!(vm.read("a", switch).is_err());
        vm.read("b", switch)?;

        for name in ["b", "c"] {
            let page = format!("mkdir -p /www && echo page of {name} >/www/page && httpd -p 8085 -h /www");
            vm.read(name, &page)?;
        }
        vm.sh("a", "mkdir -p /www && echo of a >/www/page && httpd -p 127.0.0.1:8086 -h /www")?;
        let outside = |vm: &Vm, name: &str| -> Result<Option<(u16, Option<String>)>, Failure> {
            let id = vm.distribution(name)?.id();
            let ports = vm.machine().ports().into_iter();
            let mut own = ports.filter(|port| port.distribution == Some(id));
            Ok(own.find_map(|port| Some((port.outside?.port(), port.trouble))))
        };
        until("not all three are there", || {
            Ok(["a", "b", "c"].into_iter().all(|name| outside(&vm, name).is_ok_and(|port| port.is_some())))
        })?;
        let (b, c) = (outside(&vm, "b")?.expect("a port"), outside(&vm, "c")?.expect("a port"));
        let troubles: Vec<String> = [&b, &c].into_iter().filter_map(|port| port.1.clone()).collect();
        assert!(b.0 == 8085 || c.0 == 8085, "{b:?} {c:?}");
        assert!(troubles.len() == 1 && troubles[0].contains("another distribution"), "{troubles:?}");
        assert!(get(b.0)?.ends_with("page of b\n") && get(c.0)?.ends_with("page of c\n"));

        // Published: the port of the one that was meant, as long as somebody wants it.
        let publish = |name: &str, at: [u8; 4]| -> Result<_, Failure> {
            let address: SocketAddr = (at, 8085).into();
            let published = vm
                .machine()
                .publish(vm.distribution(name)?, Endpoint::tcp(address))
                .map_err(|error| Failure::Failed(error.to_string()))?;
            until("what is published does not come", || {
                Ok(get_from(address).is_ok_and(|page| page.ends_with(&format!("page of {name}\n"))))
            })?;
            Ok((published, address))
        };
        // Everywhere, in the place of what is there on loopback, and that again.
        let first = if b.0 == 8085 { "b" } else { "c" };
        drop(publish(first, [0; 4])?);
        until("it does not come back to its own port", || {
            Ok(outside(&vm, first)?.is_some_and(|port| port == (8085, None)) && get(8085).is_ok())
        })?;
        let (of_b, at_b) = publish("b", [127, 0, 0, 8])?;
        let (_of_c, at_c) = publish("c", [127, 0, 0, 9])?;
        drop(of_b);
        until("it is published for ever", || Ok(get_from(at_b).is_err()))?;
        assert!(get_from(at_c).is_ok());
        let nowhere = Endpoint::tcp(([192, 0, 2, 1], 8085).into());
        assert!(vm.machine().publish(vm.distribution("b")?, nowhere).is_err());

        // By name (who was there first is known), from where the network is shared and from one to another; not by the other's loopback.
        assert_eq!(vm.read("a", "wget -q -O - http://b:8085/page")?, "page of b");
        assert_eq!(vm.read("c", "wget -q -O - http://b:8085/page")?, "page of b");
        assert_eq!(vm.read("a", "wget -q -O - http://127.0.0.1:8086/page")?, "of a");
        assert!(vm.read("b", "wget -q -O - http://127.0.0.1:8086/page").is_err());
        assert_eq!(vm.read("b", &format!("wget -q -O - http://host.internal:{}/", web.port))?, "the world");

        // Gone with the distribution: port and wire.
        vm.terminate("b")?;
        until("its port outlives it", || Ok(get(b.0).is_err()))?;
        until("its wire outlives it", || Ok(vm.read("a", "ls /sys/class/net | grep -c ^dist")? == "1"))?;
        assert!(get(c.0)?.ends_with("page of c\n"));
        vm.power_off()
    })
}

/// A name server on the machine that runs the VMM: every name means this address.
fn name_server(ip: Ipv4Addr, means: [u8; 4]) -> std::io::Result<()> {
    let datagrams = UdpSocket::bind((ip, 53))?;
    let listener = TcpListener::bind((ip, 53))?;
    let answer = move |question: &[u8]| -> Vec<u8> {
        // Up to the end of the one name in it, its type and class (RFC 1035, 4.1).
        let name = question[12..].iter().position(|&byte| byte == 0).unwrap_or(0) + 13;
        let is_a = question.get(name + 1) == Some(&1);
        let mut answer = question[..(name + 4).min(question.len())].to_vec();
        answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, is_a.into(), 0, 0, 0, 0]);
        if is_a {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
            answer.extend(means);
        }
        answer
    };
    thread::spawn(move || {
        let mut bytes = [0; 1500];
        while let Ok((length, from)) = datagrams.recv_from(&mut bytes) {
            let _ = datagrams.send_to(&answer(&bytes[..length]), from);
        }
    });
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut length = [0; 2];
            let _ = stream.read_exact(&mut length).and_then(|()| {
                let mut question = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut question)?;
                let answer = answer(&question);
                stream.write_all(&[&(answer.len() as u16).to_be_bytes()[..], &answer].concat())
            });
        }
    });
    Ok(())
}

/// Names are what the host's own resolver says, whatever becomes of that.
#[test]
fn names_are_the_hosts() -> Outcome {
    guest_test(|suite| {
        let _turn = turn::take()?;
        let (one, two) = (Ipv4Addr::new(127, 0, 0, 5), Ipv4Addr::new(127, 0, 0, 6));
        if let Err(error) = name_server(one, [192, 0, 2, 1]).and_then(|()| name_server(two, [192, 0, 2, 2])) {
            return skip(&format!("a name server of the test's own needs port 53 ({error})"));
        }
        let folder = tempfile::tempdir()?;
        let resolv_conf = folder.path().join("resolv.conf");
        fs::write(&resolv_conf, format!("nameserver {one}\n"))?;
        let mut network = nat();
        network.names = NameOptions { resolv_conf: resolv_conf.clone(), ..NameOptions::default() };
        let private = Wanted::new("b", &suite.debian).private();
        let boot = boot(suite, Kernel::Tuned).network(network);
        let vm = boot.distro("a", &suite.debian).wants(private).start()?;
        assert_eq!(vm.machine().warnings(), [""; 0]);
        let lookup = |name: &str| -> Result<String, Failure> {
            vm.read("a", &format!("getent ahostsv4 {name} | awk 'NR == 1 {{print $1}}'"))
        };
        assert_eq!(lookup("a.example")?, "192.0.2.1");
        let own = vm.read("b", "hostname -I | cut -d ' ' -f 1")?;
        assert_eq!(vm.read("a", "grep -c '\tb$' /etc/hosts; true")?, "0", "it came later");
        assert_eq!(lookup("b")?, own, "and is known all the same");
        assert_ne!(lookup("host.internal")?, "192.0.2.1", "it stands in /etc/hosts");
        assert_eq!(vm.read("b", "getent ahostsv4 a.example | awk 'NR == 1 {print $1}'")?, "192.0.2.1");

        // The host's resolver changes, as with a VPN; a long answer's way.
        fs::write(&resolv_conf, format!("nameserver {two}\nsearch corp.example\noptions use-vc\n"))?;
        assert_eq!(lookup("a.example")?, "192.0.2.2");
        until("the search domain is not known", || {
            Ok(vm.read("a", "cat /etc/resolv.conf")?.contains("search corp.example"))
        })?;
        assert_eq!(lookup("a.example")?, "192.0.2.2", "by TCP");
        // It dies, is not even named, and comes back.
        fs::write(&resolv_conf, "nameserver 127.0.0.7\n")?;
        assert_eq!(lookup("a.example")?, "");
        fs::remove_file(&resolv_conf)?;
        assert_eq!(lookup("a.example")?, "");
        fs::write(&resolv_conf, format!("nameserver 127.0.0.7\nnameserver {one}\n"))?;
        assert_eq!(lookup("a.example")?, "192.0.2.1");
        vm.power_off()
    })
}
