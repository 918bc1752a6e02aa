//! Datagrams at localhost: what is sent to a port on the host reaches who bound it inside, and the answers come back.

use std::{
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use undercroft::NetworkOptions;
use undercroft_harness::{
    outcome::{Failure, Outcome, until},
    turn,
    vm::{Kernel, Vm, boot, guest_test},
};
use undercroft_protocol::network::{Endpoint, Transport};

/// A server by UDP that says everything once more, in the background. Without the flags it would find no IPv4 in a machine that
/// has no card. The program is in single quotes for the shell, so it has none of its own.
fn echo(vm: &Vm, address: &str, port: u16) -> Outcome {
    let program = format!(
        r#"$s = IO::Socket::IP->new(LocalHost => "{address}", LocalPort => {port}, Proto => "udp", GetAddrInfoFlags => 0)
             or die; while (defined($p = $s->recv($b, 65535))) {{ $s->send("you said $b", 0, $p) }}"#
    );
    vm.sh("a", &format!("setsid perl -MIO::Socket::IP -e '{program}' >/dev/null 2>&1 &"))?;
    Ok(())
}

/// What is answered from `to` to who speaks from the machine that runs the VMM, if anything is.
fn said(to: SocketAddr, what: &str) -> Result<Option<String>, Failure> {
    let own: SocketAddr =
        if to.is_ipv4() { ([127, 0, 0, 1], 0).into() } else { "[::1]:0".parse().expect("an address") };
    let socket = UdpSocket::bind(own)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut bytes = vec![0; 65_535];
    let answered = socket.send(what.as_bytes()).and_then(|_| socket.recv(&mut bytes));
    Ok(answered.ok().map(|length| String::from_utf8_lossy(&bytes[..length]).into_owned()))
}

/// The first answer: as long as there is none it is said once more, because what has no room on its way is lost.
fn answer(to: SocketAddr, what: &str) -> Result<String, Failure> {
    let mut answer = None;
    until(&format!("{to} does not answer"), || {
        answer = said(to, what)?;
        Ok(answer.is_some())
    })?;
    Ok(answer.unwrap_or_default())
}

/// They find their way as connections do; and a thousand connections that nobody takes keep nobody else from his.
#[test]
fn datagrams_from_outside() -> Outcome {
    guest_test(|suite| {
        let _turn = turn::take()?;
        let published = Endpoint::udp(([127, 0, 0, 9], 8095).into());
        let network = NetworkOptions {
            localhost: true,
            ignored_ports: vec![8098],
            published: vec![published],
            ..NetworkOptions::default()
        };
        // Both ends of a thousand connections are in this process.
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(std::io::Error::from)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(std::io::Error::from)?;
        let vm = boot(suite, Kernel::Tuned).network(network).distro("a", &suite.debian).start()?;
        assert_eq!(vm.machine().warnings(), [""; 0], "the kernel says when somebody takes datagrams");
        echo(&vm, "127.0.0.1", 8095)?;
        echo(&vm, "::", 8096)?;
        echo(&vm, "0.0.0.0", 8098)?;
        let outside = |transport, port: u16| -> Vec<SocketAddr> {
            let ports = vm.machine().ports().into_iter();
            let here =
                ports.filter(|one| one.inside.transport == transport && one.inside.address.port() == port);
            here.filter_map(|one| one.outside).collect()
        };
        let both = || outside(Transport::Udp, 8095).len() == 2 && outside(Transport::Udp, 8096).len() == 2;
        until("two servers are not there", || Ok(both()))?;
        assert_eq!(outside(Transport::Udp, 8098), [], "it is to be left alone");
        let at = |ip: &str, port: u16| SocketAddr::new(ip.parse().expect("an address"), port);
        for to in [at("127.0.0.1", 8095), at("127.0.0.9", 8095), at("127.0.0.1", 8096), at("::1", 8096)] {
            assert_eq!(answer(to, "hello")?, "you said hello", "{to}");
        }
        let long = "long ".repeat(2000);
        assert_eq!(answer(at("127.0.0.1", 8095), &long)?, format!("you said {long}"));
        // More programs than there are flows, none of which listens to its answer.
        for number in 0..300 {
            UdpSocket::bind("127.0.0.1:0")?.send_to(format!("{number}").as_bytes(), ("127.0.0.1", 8095))?;
        }
        until("nobody else is answered", || {
            Ok(said(at("127.0.0.1", 8095), "x")?.as_deref() == Some("you said x"))
        })?;

        // One that listens and takes no connection.
        let program = "$s = IO::Socket::IP->new(LocalPort => 8097, Listen => 5) or die; sleep";
        vm.sh("a", &format!("setsid perl -MIO::Socket::IP -e '{program}' >/dev/null 2>&1 &"))?;
        until("nobody listens on the host", || Ok(!outside(Transport::Tcp, 8097).is_empty()))?;
        let before = vm.resident()?;
        let waiting: Vec<_> = (0..1000).map(|_| TcpStream::connect(("127.0.0.1", 8097))).collect();
        assert!(waiting.iter().all(Result::is_ok));
        // They come first, one by one; a datagram that finds no room meanwhile is lost, and said once more.
        until("connections that nobody takes keep others from theirs", || {
            Ok(said(at("127.0.0.1", 8096), "still")?.as_deref() == Some("you said still"))
        })?;
        assert_eq!(vm.read("a", "echo here")?, "here");
        let now = vm.resident()?;
        assert!(now < before + (64 << 10), "{} KiB more", now - before);
        drop(waiting);

        // Gone with the program.
        vm.sh("a", "pkill perl")?;
        until("it is still there", || {
            Ok(vm.machine().ports().is_empty() && UdpSocket::bind(("127.0.0.1", 8095)).is_ok())
        })?;
        vm.power_off()
    })
}
