//! Scenes 6 and 7 of the article (`notes/scenes.md`), through the product's command line: a web server comes from the package
//! registry, systemd starts it, the machine that runs the VMM gets its page, and nothing listens there once it is left alone.
//!
//! The registry is the one that this machine's apt has its packages from, by the proxies that it is told to use.

use std::fs;

use undercroft_harness::{
    outcome::{Failure, Outcome, skip},
    product::Product,
    registry,
    vm::{Kernel, guest_test},
};

const CONFIGURATION: &str =
    "memory=1GB\nprocessors=1\nswap=0\nvmIdleTimeout=20000\n[general]\ninstanceIdleTimeout=20000\n";

/// The archive of security updates only, a hundredth of all lists, if there is one, since a lab reads them slowly; no
/// translations, and what a package depends on but nothing that it would like.
const INSTALL: &str = "set -e
cd /etc/apt
if grep -q security sources.list; then sed -i '/security/!d' sources.list; fi
apt-get -q -o Acquire::Languages=none update
apt-get -q -y -o Dpkg::Options::=--force-unsafe-io --no-install-recommends install nginx
echo '<p>a page of our own' > /var/www/html/index.html
systemctl is-active nginx";

/// What a person types; its status and what it prints.
fn curl(product: &Product) -> Result<(Option<i32>, String), Failure> {
    curl_from(product, "http://localhost")
}

fn curl_from(product: &Product, url: &str) -> Result<(Option<i32>, String), Failure> {
    let page = product.folder().join("page");
    let _ = fs::remove_file(&page);
    let to = page.display().to_string();
    let status =
        registry::run("curl", &["-sS", "--noproxy", "*", "--max-time", "60", "-o", &to, url])?.status;
    Ok((status.code(), fs::read_to_string(page).unwrap_or_default()))
}

/// curl's status for a connection that is refused.
const REFUSED: Option<i32> = Some(7);

#[test]
fn a_web_server_from_the_registry() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, CONFIGURATION)?;
        if let Err(reason) = registry::answers(&one)? {
            return skip(&reason);
        }
        assert_eq!(curl(&one)?.0, REFUSED, "something else listens on port 80 of this machine");
        one.say(&format!("import deb {}", suite.debian.display()))?;
        registry::introduce(&one, "deb", "[boot]\nsystemd=true\ninitTimeout=500000\n")?;

        // Scene 6.
        let said = one.sh("deb", INSTALL)?;
        assert_eq!(said.lines().last(), Some("active"), "{said}");
        let inside = one.sh("deb", "cat /var/www/html/index.html")?;
        one.until("the page comes", || Ok(curl(&one)? == (Some(0), format!("{inside}\n"))))?;
        let ports = one.say("ports")?;
        assert!(ports.contains("nginx") && ports.contains("deb"), "{ports}");

        // Published for as long as a session lasts.
        let (there, page) = ("http://127.0.0.9", (Some(0), format!("{inside}\n")));
        let mut session = one.spawn("run --publish 127.0.0.9:80 deb cat")?;
        one.until("it is not published", || Ok(curl_from(&one, there)? == page))?;
        drop(session.stdin.take());
        assert!(session.wait()?.success());
        one.until("it is published for ever", || Ok(curl_from(&one, there)?.0 == REFUSED))?;

        // Scene 7.
        one.until("it stops, although systemd runs a server", || Ok(one.state("deb")? != "running"))?;
        one.until("nothing listens", || Ok(curl(&one)?.0 == REFUSED))?;
        assert_eq!(
            one.sh("deb", "systemctl is-system-running --wait; cat /var/www/html/index.html")?,
            format!("running\n{inside}")
        );
        one.until("it is back", || Ok(curl(&one)? == (Some(0), format!("{inside}\n"))))?;
        one.finish()
    })
}
