//! A container engine of Debian's inside a distribution: Podman, with a network of the distribution's own, whose rules are the
//! engine's. A container's published port is one of the machine that runs the VMM.

use undercroft_harness::{
    outcome::{Outcome, skip},
    product::Product,
    registry,
    vm::{Kernel, guest_test},
};

const CONFIGURATION: &str = "memory=1GB\nprocessors=1\nswap=0\nvmIdleTimeout=20000\n\
    [general]\ninstanceIdleTimeout=20000\n[distribution \"deb\"]\nnetwork=private\n";

/// What Podman depends on, and what it would like for networks; a busybox to make an image of.
const INSTALL: &str = "set -e
cd /etc/apt
if test -e sources.list; then sed -i '/security\\|updates/d' sources.list; fi
apt-get -q -o Acquire::Languages=none update
apt-get -q -y -o Dpkg::Options::=--force-unsafe-io --no-install-recommends install podman crun netavark nftables busybox-static
podman info --format '{{.Store.GraphDriverName}} {{.Host.NetworkBackend}}'";

/// An image of one program, and a container of it.
const RUN: &str = "set -e
mkdir -p /image/bin /image/www
cp /bin/busybox /image/bin
echo from a container > /image/www/index.html
tar -C /image -c . | podman import - page
podman run -d --name page -p 8087:80 page /bin/busybox httpd -f -p 80 -h /www
podman ps --format '{{.Names}} {{.Ports}}'";

#[test]
fn a_container_publishes_a_port() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, CONFIGURATION)?;
        if let Err(reason) = registry::answers(&one)? {
            return skip(&reason);
        }
        one.say(&format!("import deb {}", suite.debian13.display()))?;
        registry::introduce(&one, "deb", "[boot]\nsystemd=true\ninitTimeout=500000\n")?;
        let said = one.sh("deb", INSTALL)?;
        assert_eq!(said.lines().last(), Some("overlay netavark"), "{said}");
        let said = one.sh("deb", RUN)?;
        assert!(said.lines().last().is_some_and(|line| line.starts_with("page ")), "{said}");
        one.until("the container's page comes", || {
            let page = registry::run(
                "curl",
                &["-sS", "--noproxy", "*", "--max-time", "60", "http://localhost:8087"],
            )?;
            Ok(page.stdout == b"from a container\n")
        })?;
        let ports = one.say("ports")?;
        assert!(ports.contains("8087"), "{ports}");
        one.finish()
    })
}
