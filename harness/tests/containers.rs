//! A container engine of Debian's inside a distribution: Podman, with a network of the distribution's own, whose rules are the
//! engine's. A container's published port is one of the machine that runs the VMM.
//!
//! Its apt has installed it before, at the host's speed (`xtask/src/boot/debian.rs`): in a lab that takes five minutes, and
//! that apt works inside is `apt.rs`'s to show.

use undercroft_harness::{
    outcome::Outcome,
    product::Product,
    registry,
    vm::{Kernel, guest_test},
};

const CONFIGURATION: &str = "memory=1GB\nprocessors=1\nswap=0\nvmIdleTimeout=20000\n\
    [general]\ninstanceIdleTimeout=20000\n[distribution \"deb\"]\nnetwork=private\n";

/// An image of one program, and a container of it.
const RUN: &str = "set -e
podman info --format '{{.Store.GraphDriverName}} {{.Host.NetworkBackend}}'
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
        one.say(&format!("import deb {}", suite.engine.display()))?;
        one.sh("deb", "printf '[boot]\\nsystemd=true\\ninitTimeout=500000\\n' > /etc/wsl.conf")?;
        one.say("terminate deb")?;
        let said = one.sh("deb", RUN)?;
        assert_eq!(said.lines().next(), Some("overlay netavark"), "{said}");
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
