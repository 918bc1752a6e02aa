//! A registry on loopback: names, tokens, platforms, layers.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};

use super::{
    images::{Images, Made, gzip, listing, tar_of},
    server::{Answer, Request, Server},
    *,
};

fn layers(machine: &str) -> Vec<Vec<u8>> {
    vec![
        tar_of(&[Made::Folder("etc"), Made::File("etc/machine", machine), Made::File("etc/old", "x")]),
        tar_of(&[Made::File("etc/.wh.old", ""), Made::File("etc/new", "y")]),
    ]
}

/// Images for two kinds of machine, with an attestation beside them; and the index.
fn images() -> (Images, Value) {
    let mut images = Images::default();
    let arm = images.image(&layers("arm64"), "arm64", |_, layer| gzip(layer));
    let amd = images.image(&layers("amd64"), "amd64", |_, layer| gzip(layer));
    let mut attestation = images.document("", &json!({"config": amd, "layers": []}));
    attestation["platform"] = json!({"architecture": "unknown", "os": "unknown"});
    let index = images.document("", &json!({"schemaVersion": 2, "manifests": [attestation, arm, amd]}));
    (images, index)
}

/// Answers as a registry does that has `me/test:1`.
fn answer(request: &Request, images: &Images, index: &Value) -> Answer {
    let blob = |digest: &str| match digest.parse().ok().and_then(|digest| images.blobs.get(&digest)) {
        Some(bytes) => Answer::file(request, bytes, "\"blob\""),
        None => Answer::status(404),
    };
    let digest =
        |value: &Value| value["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    match request.target.strip_prefix("/v2/me/test/").and_then(|rest| rest.split_once('/')) {
        Some(("manifests", "1")) => {
            let digest = digest(index);
            blob(&digest).with("docker-content-digest", format!("sha256:{digest}"))
        }
        Some((_, name)) => name.strip_prefix("sha256:").map_or(Answer::status(404), blob),
        None => Answer::status(404),
    }
}

#[test]
fn an_image_is_pulled_for_this_kind_of_machine() {
    let fixture = Fixture::new();
    let (images, index) = images();
    let server = Server::start(move |request| answer(request, &images, &index));
    let name = format!("docker://{}/me/test:1", server.host());
    let obtained = fixture.obtain(&name).unwrap();
    insta::assert_snapshot!(listing(&content(&obtained)), @r#"
    etc /
    etc/machine "amd64"
    etc/new "y"
    "#);
    assert_eq!(obtained.name.as_deref(), Some("test-1"));
    assert_eq!(obtained.image.as_ref().unwrap().user, "7:7");
    // Index, manifest, configuration, two layers; layers go when they are merged.
    assert_eq!(server.requests().len(), 5);
    assert_eq!(fixture.cached("files").len(), 1);
    assert!(fixture.cached("partial").is_empty());
    // Again: the layers are not asked for.
    let again = fixture.obtain(&name).unwrap();
    assert_eq!(content(&again), content(&obtained));
    assert_eq!(server.requests().len(), 8);

    let arm = Order { architecture: Architecture::Arm64, ..fixture.order() };
    let obtained = fixture.obtain_with(&name, &arm).unwrap();
    assert!(listing(&content(&obtained)).contains("etc/machine \"arm64\""));
}

#[test]
fn an_image_can_be_asked_for_by_its_digest() {
    let fixture = Fixture::new();
    let (images, index) = images();
    let digest = index["digest"].as_str().unwrap().to_owned();
    let server = Server::start(move |request| answer(request, &images, &index));
    let obtained = fixture.obtain(&format!("docker://{}/me/test@{digest}", server.host())).unwrap();
    assert_eq!(obtained.name.as_deref(), Some("test"));
}

#[test]
fn a_pull_that_was_cut_goes_on_in_the_middle_of_a_layer() {
    let fixture = Fixture::new();
    let mut images = Images::default();
    let noise: String =
        (0..400_000u32).map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 27) as u8)).collect();
    let index = images.image(
        &[tar_of(&[Made::File("a", "1")]), tar_of(&[Made::File("b", &noise)])],
        "amd64",
        |_, layer| layer.to_vec(),
    );
    let cut = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        let answer = answer(request, &images, &index);
        let large = answer.body.len() > 100_000 && cut.fetch_add(1, Ordering::SeqCst) == 0;
        if large { answer.cut(70_000) } else { answer }
    });
    let name = format!("docker://{}/me/test:1", server.host());
    let result = fixture.obtain(&name);
    assert!(matches!(result, Err(crate::Error::Source(SourceError::Cut { have: 70_000, .. }))), "{result:?}");
    let (mut first, mut last) = (None, (0, None));
    let source = Source::parse(&name, fixture.path()).unwrap();
    let obtained = source
        .obtain(&fixture.order(), &Cancel::new(), &mut |progress| {
            if progress.phase == Phase::Downloading {
                first.get_or_insert(progress.done);
                last = (progress.done, progress.total);
            }
        })
        .unwrap();
    assert!(listing(&content(&obtained)).contains("b \""));
    // Of all layers: the first is there whole.
    assert!(first.unwrap() > 70_000, "{first:?}");
    assert_eq!(Some(last.0), last.1);
    let layers: Vec<_> = server.requests().iter().filter_map(Request::range).collect();
    assert_eq!(layers, [70_000]);
}

/// A registry that wants a token, and forgets it after so many requests.
fn with_tokens(lasting: usize, password: Option<&'static str>) -> (Server, Arc<Mutex<Vec<String>>>) {
    let (images, index) = images();
    let address = Arc::new(Mutex::new(String::new()));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (own, tokens, used) = (address.clone(), asked.clone(), AtomicUsize::new(0));
    let server = Server::start(move |request| {
        if request.target.starts_with("/token") {
            let mut tokens = tokens.lock().unwrap();
            tokens.push(request.target.clone());
            used.store(0, Ordering::SeqCst);
            return match password {
                Some(password) if request.header("authorization") != Some(password) => Answer::status(401),
                _ => Answer::ok(format!("{{\"token\": \"t{}\", \"expires_in\": 1}}", tokens.len())),
            };
        }
        let token = format!("Bearer t{}", tokens.lock().unwrap().len());
        if request.header("authorization") == Some(&token) && used.fetch_add(1, Ordering::SeqCst) < lasting {
            return answer(request, &images, &index);
        }
        let realm = format!("http://{}/token", own.lock().unwrap());
        let challenge =
            format!("Bearer realm=\"{realm}\",service=\"a registry\",scope=\"repository:me/test:pull\"");
        Answer::status(401).with("www-authenticate", challenge)
    });
    *address.lock().unwrap() = server.host();
    (server, asked)
}

#[test]
fn a_token_is_asked_for_and_asked_for_anew() {
    let (server, asked) = with_tokens(4, None);
    let fixture = Fixture::new();
    fixture.obtain(&format!("docker://{}/me/test:1", server.host())).unwrap();
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked, ["/token?service=a%20registry&scope=repository:me/test:pull"; 2]);
}

#[test]
fn a_password_of_the_hosts_files_is_told() {
    let (server, _) = with_tokens(100, Some("Basic bWU6c2VjcmV0"));
    let fixture = Fixture::new();
    let name = format!("docker://{}/me/test:1", server.host());
    let without = fixture.message(fixture.obtain(&name));
    insta::assert_snapshot!(without, @"HOST gives no token (401) for no password: `docker login HOST` puts the right one into ~/.docker/config.json, where it is found");
    let file = fixture.path().join("config.json");
    fs::write(&file, json!({"auths": {server.host(): {"auth": "bWU6c2VjcmV0"}}}).to_string()).unwrap();
    let order = Order { passwords: vec![file], ..fixture.order() };
    fixture.obtain_with(&name, &order).unwrap();
}

#[test]
fn a_password_does_not_follow_a_redirect() {
    let (images, index) = images();
    let stores = images.clone();
    let elsewhere = Server::start(move |request| {
        let digest = request.target.trim_start_matches("/store/");
        Answer::ok(stores.blobs[&digest.parse().unwrap()].clone())
    });
    let host = elsewhere.host();
    let server = Server::start(move |request| match request.header("authorization") {
        Some("Basic bWU6c2VjcmV0") => match request.target.split_once("/blobs/sha256:") {
            Some((_, digest)) => {
                Answer::status(307).with("location", format!("http://{host}/store/{digest}"))
            }
            None => answer(request, &images, &index),
        },
        _ => Answer::status(401).with("www-authenticate", "Basic realm=\"x\""),
    });
    let fixture = Fixture::new();
    let file = fixture.path().join("config.json");
    fs::write(&file, json!({"auths": {server.host(): {"auth": "bWU6c2VjcmV0"}}}).to_string()).unwrap();
    let order = Order { passwords: vec![file], ..fixture.order() };
    fixture.obtain_with(&format!("docker://{}/me/test:1", server.host()), &order).unwrap();
    assert_eq!(elsewhere.requests().len(), 3);
    assert!(elsewhere.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[test]
fn registries_that_refuse_or_lie_are_told() {
    let told = |what: &str, name: &str, change: fn(&Request, Answer) -> Answer| {
        let (images, index) = images();
        let server = Server::start(move |request| change(request, answer(request, &images, &index)));
        let fixture = Fixture::new();
        let message = fixture.message(fixture.obtain(&format!("docker://{}/me/{name}", server.host())));
        assert!(fixture.cached("files").is_empty(), "{what}");
        let word = |word: &str| {
            if word.trim_end_matches(['.', ',']).len() == 64 { "DIGEST".into() } else { word.to_owned() }
        };
        format!("{what}: {}", message.split(' ').map(word).collect::<Vec<_>>().join(" "))
    };
    let is_blob = |request: &Request| request.target.contains("/blobs/");
    assert!(is_blob(&Request { target: "/v2/x/blobs/y".into(), headers: Vec::new() }));
    let messages = [
        told("no such tag", "test:2", |_, answer| answer),
        told("not for everybody", "test:1", |_, _| Answer::status(403)),
        told("an odd challenge", "test:1", |_, _| Answer::status(401).with("www-authenticate", "Negotiate")),
        told("a token in the clear", "test:1", |_, _| {
            Answer::status(401).with("www-authenticate", "Bearer realm=\"ftp://x\"")
        }),
        told("too often", "test:1", |_, _| Answer::status(429)),
        told("its own trouble", "test:1", |_, _| Answer::status(503)),
        told("another manifest", "test:1", |request, answer| {
            if request.target.ends_with("/1") { Answer { body: b"{}".to_vec(), ..answer } } else { answer }
        }),
        told("a huge manifest", "test:1", |_, answer| Answer { body: vec![b' '; 5 << 20], ..answer }),
        told("a long layer", "test:1", |request, answer| {
            let layer = answer.body.starts_with(&[0x1f, 0x8b]) && request.target.contains("/blobs/");
            if layer { Answer { body: [&answer.body[..], b"x"].concat(), ..answer } } else { answer }
        }),
        told("an endless layer", "test:1", |_, answer| {
            let layer = answer.body.starts_with(&[0x1f, 0x8b]);
            if layer { Answer { claim: Some(0), endless: true, ..answer } } else { answer }
        }),
        told("another layer", "test:1", |_, mut answer| {
            if answer.body.starts_with(&[0x1f, 0x8b]) {
                answer.body[9] ^= 1;
            }
            answer
        }),
        told("a page", "test:1", |_, _| Answer::ok("<html>")),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}
