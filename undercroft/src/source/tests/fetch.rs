//! Downloads that are cut, refused, redirected, endless or wrong.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::{
    images::{Images, archive, sha256},
    server::{Answer, Request, Server},
    *,
};

/// A root file system of some 700 KB: several reads, and no part of it like another.
fn rootfs() -> Vec<u8> {
    let noise: Vec<u8> = (0..700_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    archive(&[("etc/os-release", b"ID=test\n"), ("bin/sh", &noise)])
}

type Turn = Box<dyn Fn(&Request) -> Answer + Send + Sync>;

/// Answers the first requests by a row, and all later ones like the last of it.
fn in_turn(answers: Vec<Turn>) -> Server {
    let next = AtomicUsize::new(0);
    Server::start(move |request| {
        let turn = next.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1);
        answers[turn](request)
    })
}

#[test]
fn a_file_of_a_list_is_downloaded_once_checked_and_not_again_when_it_is_held() {
    let fixture = Fixture::new();
    let server = Server::start(|request| Answer::file(request, &rootfs(), "\"1\""));
    let digest = sha256(&rootfs());
    fixture.list(&server.url("/test.wsl"), &format!("0x{}", digest.to_string().to_uppercase()));
    let obtained = fixture.obtain("test").unwrap();
    assert!(content(&obtained) == rootfs());
    assert_eq!(obtained.name.as_deref(), Some("Test-1"));
    // Not imported yet, and asked for again: it is there.
    let again = fixture.obtain("Test-1").unwrap();
    assert!(content(&again) == rootfs());
    assert_eq!(server.requests().len(), 1);
    // Another uses it still, so that the first to be ready does not take it away.
    obtained.discard();
    assert_eq!(fixture.cached("files"), [format!("{digest}-test.wsl")]);
    again.discard();
    assert!(fixture.cached("files").is_empty());
    let have = |held: &Digest| *held == digest;
    let held = fixture.obtain_with("test", &Order { have: &have, ..fixture.order() }).unwrap();
    assert!(matches!(held.content, Content::Held(held) if held == digest));
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_cut_download_goes_on_from_there() {
    for tag in ["\"strong\"", "W/\"weak\""] {
        let fixture = Fixture::new();
        let server = in_turn(vec![
            Box::new(move |request| Answer::file(request, &rootfs(), tag).cut(300_000)),
            Box::new(move |request| Answer::file(request, &rootfs(), tag)),
        ]);
        fixture.list(&server.url("/test.wsl"), &sha256(&rootfs()).to_string());
        let cut = fixture.obtain("test");
        assert!(matches!(cut, Err(crate::Error::Source(SourceError::Cut { have: 300_000, .. }))), "{cut:?}");
        let mut first = None;
        let source = Source::parse("test", fixture.path()).unwrap();
        let obtained = source
            .obtain(&fixture.order(), &Cancel::new(), &mut |progress| {
                if progress.phase == Phase::Downloading {
                    first.get_or_insert(progress.done);
                }
            })
            .unwrap();
        assert!(content(&obtained) == rootfs());
        assert_eq!(first, Some(300_000), "what was there counts");
        let requests = server.requests();
        assert_eq!(requests[1].range(), Some(300_000));
        // A weak validator says nothing of bytes; the digest does.
        assert_eq!(requests[1].header("if-range"), (!tag.starts_with('W')).then_some(tag));
        assert!(fixture.cached("partial").is_empty());
    }
}

#[test]
fn a_cut_download_that_grew_goes_on_at_once() {
    let fixture = Fixture::new();
    let server = in_turn(vec![
        Box::new(|request| Answer::file(request, &rootfs(), "\"1\"").cut(100_000)),
        Box::new(|request| Answer::file(request, &rootfs(), "\"1\"").cut(100_000)),
        Box::new(|request| Answer::file(request, &rootfs(), "\"1\"")),
    ]);
    let mut order = fixture.order();
    order.network.retries = 3;
    let obtained = fixture.obtain_with(&server.url("/test.tar"), &order).unwrap();
    assert!(content(&obtained) == rootfs());
    let ranges: Vec<_> = server.requests().iter().map(Request::range).collect();
    assert_eq!(ranges, [None, Some(100_000), Some(200_000)]);
}

#[test]
fn an_address_without_a_digest_goes_on_only_if_the_server_vouches_for_it() {
    let resumed = |tag: &'static str, later: &'static str| {
        let fixture = Fixture::new();
        let server = in_turn(vec![
            Box::new(move |request| Answer::file(request, &rootfs(), tag).cut(300_000)),
            Box::new(move |request| Answer::file(request, &rootfs(), later)),
        ]);
        fixture.obtain(&server.url("/test.tar")).unwrap_err();
        let obtained = fixture.obtain(&server.url("/test.tar")).unwrap();
        assert!(content(&obtained) == rootfs());
        assert_eq!(obtained.name.as_deref(), Some("test"));
        server.requests()[1].range()
    };
    assert_eq!(resumed("\"1\"", "\"1\""), Some(300_000));
    // Another file by now: the server sends the whole, and it starts anew.
    assert_eq!(resumed("\"1\"", "\"2\""), Some(300_000));
    assert_eq!(resumed("W/\"1\"", "W/\"1\""), None, "a weak validator does not vouch");
}

#[test]
fn a_server_that_cannot_do_parts_starts_anew() {
    let fixture = Fixture::new();
    let server =
        in_turn(vec![Box::new(|_| Answer::ok(rootfs()).cut(300_000)), Box::new(|_| Answer::ok(rootfs()))]);
    fixture.list(&server.url("/test.wsl"), &sha256(&rootfs()).to_string());
    fixture.obtain("test").unwrap_err();
    assert!(content(&fixture.obtain("test").unwrap()) == rootfs());
    assert_eq!(server.requests()[1].range(), Some(300_000));
}

#[test]
fn a_part_that_was_not_asked_for_starts_anew() {
    let fixture = Fixture::new();
    let server = in_turn(vec![
        Box::new(|_| Answer::ok(rootfs()).cut(300_000)),
        Box::new(|_| Answer { status: 206, ..Answer::ok(&b"x"[..]) }.with("content-range", "bytes 7-7/9")),
        Box::new(|_| Answer::ok(rootfs())),
    ]);
    fixture.list(&server.url("/test.wsl"), &sha256(&rootfs()).to_string());
    fixture.obtain("test").unwrap_err();
    assert!(content(&fixture.obtain("test").unwrap()) == rootfs());
}

#[test]
fn what_has_another_digest_is_removed() {
    let fixture = Fixture::new();
    let server = Server::start(|request| Answer::file(request, b"something else", "\"1\""));
    fixture.list(&server.url("/test.wsl"), &sha256(&rootfs()).to_string());
    let wrong = fixture.obtain("test");
    assert!(matches!(wrong, Err(crate::Error::Source(SourceError::WrongDigest { removed: true, .. }))));
    assert!(fixture.cached("partial").is_empty() && fixture.cached("files").is_empty());
}

#[test]
fn parts_that_do_not_fit_together_are_thrown_away_and_the_whole_is_asked_for() {
    let fixture = Fixture::new();
    // A part of an older file, from a server that vouches for nothing.
    let server = in_turn(vec![
        Box::new(|_| Answer::ok(vec![7; 700_000]).cut(300_000)),
        Box::new(|request| {
            let Answer { status, headers, body, .. } = Answer::file(request, &rootfs(), "\"1\"");
            let headers = headers.into_iter().filter(|(name, _)| name != "etag").collect();
            Answer { status, headers, body, ..Answer::default() }
        }),
    ]);
    fixture.list(&server.url("/test.wsl"), &sha256(&rootfs()).to_string());
    fixture.obtain("test").unwrap_err();
    assert!(content(&fixture.obtain("test").unwrap()) == rootfs());
    let ranges: Vec<_> = server.requests().iter().map(Request::range).collect();
    assert_eq!(ranges, [None, Some(300_000), None]);
}

#[test]
fn a_server_that_falls_silent_is_a_cut() {
    let fixture = Fixture::new();
    let server = Server::start(|_| Answer { silent: true, ..Answer::ok(rootfs()).cut(300_000) });
    let mut order = fixture.order();
    order.network.silence = Duration::from_secs(2);
    let result = fixture.obtain_with(&server.url("/test.tar"), &order);
    assert!(matches!(result, Err(crate::Error::Source(SourceError::Cut { .. }))), "{result:?}");
}

#[test]
fn a_file_of_the_cache_that_was_changed_is_downloaded_again() {
    let fixture = Fixture::new();
    let server = Server::start(|request| Answer::file(request, &rootfs(), "\"1\""));
    fixture.list(&server.url("/test.wsl"), &sha256(&rootfs()).to_string());
    let path = match fixture.obtain("test").unwrap().content {
        Content::File(file) => file.path().to_owned(),
        Content::Held(_) => panic!(),
    };
    fs::write(&path, "changed").unwrap();
    assert!(content(&fixture.obtain("test").unwrap()) == rootfs());
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_merged_image_of_the_cache_that_was_changed_is_made_again() {
    let fixture = Fixture::new();
    let mut images = Images::default();
    let image = images.image(&[archive(&[("a", b"1")])], "amd64", |_, layer| layer.to_vec());
    images.layout(&fixture.path().join("layout"), &[image]);
    let whole = content(&fixture.obtain("oci:layout").unwrap());
    let path = fixture.cache.directory().join("files").join(&fixture.cached("files")[0]);
    // With the note of what it should be, and without.
    for note in [true, false] {
        fs::write(&path, vec![7; whole.len()]).unwrap();
        if !note {
            fixture.cached("images").iter().for_each(|name| {
                fs::remove_file(fixture.cache.directory().join("images").join(name)).unwrap();
            });
        }
        assert!(content(&fixture.obtain("oci:layout").unwrap()) == whole);
    }
}

#[test]
fn redirects_are_followed_to_an_end() {
    let fixture = Fixture::new();
    let server = Server::start(|request| match &*request.target {
        "/a" => Answer::status(302).with("location", "/b/../c?d=1"),
        "/loop" => Answer::status(302).with("location", "/loop"),
        _ => Answer::file(request, &rootfs(), "\"1\""),
    });
    assert!(content(&fixture.obtain(&server.url("/a")).unwrap()) == rootfs());
    let endless = fixture.obtain(&server.url("/loop"));
    assert!(matches!(endless, Err(crate::Error::Source(SourceError::Unreachable { .. }))), "{endless:?}");
}

#[test]
fn a_body_ends_where_it_was_said_to() {
    let fixture = Fixture::new();
    let server = Server::start(|_| Answer {
        claim: Some(rootfs().len() as u64),
        endless: true,
        ..Answer::ok(rootfs())
    });
    assert!(content(&fixture.obtain(&server.url("/test.tar")).unwrap()) == rootfs());
}

#[test]
fn a_list_without_end_is_not_read_to_its_end() {
    let fixture = Fixture::new();
    let server = Server::start(|_| Answer { claim: Some(0), endless: true, ..Answer::ok("{") });
    let order = Order { lists: Lists::new(Some(server.url("/list.json")), Vec::new()), ..fixture.order() };
    let result = fixture.obtain_with("test", &order);
    assert!(matches!(result, Err(crate::Error::Source(SourceError::TooLarge { .. }))), "{result:?}");
}

#[test]
fn a_wait_for_a_silent_server_can_be_cancelled() {
    let fixture = Fixture::new();
    let server = Server::start(|_| Answer { silent: true, ..Answer::ok(rootfs()).cut(300_000) });
    let mut order = fixture.order();
    order.network.silence = Duration::from_secs(3600);
    let cancel = Cancel::new();
    let source = Source::parse(&server.url("/test.tar"), fixture.path()).unwrap();
    let stop = cancel.clone();
    let told = Arc::new(AtomicUsize::new(0));
    let seen = told.clone();
    let stopper = thread::spawn(move || {
        while seen.load(Ordering::SeqCst) == 0 {
            thread::sleep(Duration::from_millis(5));
        }
        stop.cancel();
    });
    let result = source.obtain(&order, &cancel, &mut |progress| {
        if progress.phase == Phase::Downloading {
            told.fetch_add(1, Ordering::SeqCst);
        }
    });
    stopper.join().unwrap();
    assert!(matches!(result, Err(crate::Error::Source(SourceError::Cancelled))), "{result:?}");
    assert_eq!(fixture.cached("partial").len(), 2, "a file and its note");
}

#[test]
fn two_who_want_the_same_file_download_it_once() {
    let fixture = Fixture::new();
    let server = Server::start(|request| Answer::file(request, &rootfs(), "\"1\""));
    fixture.list(&server.url("/test.wsl"), &sha256(&rootfs()).to_string());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(content(&fixture.obtain("test").unwrap()) == rootfs()));
        }
    });
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_proxy_is_asked_for_others_and_not_for_this_machine() {
    let fixture = Fixture::new();
    let proxy = Server::start(|_| Answer::ok(rootfs()));
    let near = Server::start(|_| Answer::ok(rootfs()));
    let mut order = fixture.order();
    order.network.proxy = Some(proxy.url(""));
    assert!(content(&fixture.obtain_with("http://far.example/test.tar", &order).unwrap()) == rootfs());
    assert!(content(&fixture.obtain_with(&near.url("/test.tar"), &order).unwrap()) == rootfs());
    assert_eq!(near.requests().len(), 1);
    let asked: Vec<_> = proxy.requests().into_iter().map(|request| request.target).collect();
    assert_eq!(asked, ["far.example:80"]);
}

#[test]
fn a_cache_is_tidied_of_what_nobody_uses() {
    let fixture = Fixture::new();
    let server = Server::start(|request| Answer::file(request, &rootfs(), "\"1\""));
    let used = fixture.obtain(&server.url("/used.tar")).unwrap();
    drop(fixture.obtain(&server.url("/left.tar")).unwrap());
    // The same bytes under two names: one is in use.
    assert_eq!(fixture.cached("files").len(), 2);
    assert_eq!(fixture.cache.tidy(Duration::from_secs(3600)).unwrap(), 0);
    assert!(fixture.cache.tidy(Duration::ZERO).unwrap() > 0);
    assert_eq!(fixture.cached("files").len(), 1);
    assert!(content(&used) == rootfs());
}
