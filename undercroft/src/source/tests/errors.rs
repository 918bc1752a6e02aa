//! What people read when it does not work.

use super::{
    server::{Answer, Server},
    *,
};

#[test]
fn messages_say_what_to_do() {
    let fixture = Fixture::new();
    let mut told = Vec::new();
    let mut add = |what: &str, text: &str| {
        told.push(format!("{what}: {}", fixture.message(fixture.obtain(text))));
    };
    let server = Server::start(|request| match &*request.target {
        "/cut" => Answer::ok(vec![7; 30_000]).cut(20_000),
        "/short" => Answer { claim: Some(3_000_000), ..Answer::ok("x") },
        "/vast" => Answer { claim: Some(1 << 39), ..Answer::ok("x") },
        "/absurd" => Answer { claim: Some(u64::MAX), ..Answer::ok("x") },
        status => Answer::status(status[1..].parse().unwrap()),
    });
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/x", listener.local_addr().unwrap())
    };
    add("nothing", "");
    add("no kind of address", "ftp://host/x");
    add("no host", "http:///x");
    add("nobody", &nobody);
    add("a cut", &server.url("/cut"));
    add("a short one", &server.url("/short"));
    add("an absurd length", &server.url("/absurd"));
    for status in ["/401", "/404", "/429", "/500", "/304"] {
        add(&status[1..], &server.url(status));
    }
    add("no list", "Debian");
    add("no file", "./missing.tar");
    add("no layout", ".");
    let disk_full = match fixture.obtain(&server.url("/vast")) {
        Err(crate::Error::Source(SourceError::DiskFull { what, needed, .. })) => {
            SourceError::DiskFull { what, path: "/cache".into(), needed, free: 5 << 20 }
        }
        other => panic!("{other:?}"),
    };
    told.push(format!("a full disk: {}", fixture.message::<()>(Err(disk_full.into()))));
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn a_wrong_digest_says_both() {
    let fixture = Fixture::new();
    let server = Server::start(|_| Answer::ok("abc"));
    fixture.list(&server.url("/test.wsl"), &"0".repeat(64));
    insta::assert_snapshot!(fixture.message(fixture.obtain("test")), @"Test one is not what was promised: expected SHA-256 0000000000000000000000000000000000000000000000000000000000000000, found ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad. It was removed: try again; if that does not help, the server has another file than the list says, or somebody on the way changed it");
    fs::write(fixture.path().join("x.tar"), "abc").unwrap();
    fixture.list(&format!("file://{}/x.tar", fixture.path().display()), &"0".repeat(64));
    insta::assert_snapshot!(fixture.message(fixture.obtain("test")), @"FOLDER/x.tar is not what was promised: expected SHA-256 0000000000000000000000000000000000000000000000000000000000000000, found ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad. It is damaged, or was changed");
}
