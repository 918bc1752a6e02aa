//! Images in files: what layers merge into, and files that lie.

use std::fs;

use serde_json::{Value, json};

use super::{
    images::{Images, Made, archive, gzip, listing, named, sha256, tar_of},
    *,
};

/// What layers merge into.
fn merged(layers: &[Vec<u8>]) -> (String, Vec<String>) {
    let fixture = Fixture::new();
    let mut images = Images::default();
    let image = images.image(layers, "amd64", |n, layer| match n % 3 {
        0 => gzip(layer),
        1 => zstd::encode_all(layer, 1).unwrap(),
        _ => layer.to_vec(),
    });
    images.layout(&fixture.path().join("layout"), &[image]);
    let obtained = fixture.obtain("./layout").unwrap();
    (listing(&content(&obtained)), obtained.warnings)
}

#[test]
fn whiteouts_take_away_what_lies_below() {
    let (listing, warnings) = merged(&[
        tar_of(&[
            Made::Folder("etc"),
            Made::File("etc/gone", "a"),
            Made::File("etc/kept", "b"),
            Made::Folder("var"),
            Made::File("var/old", "c"),
            Made::Folder("var/deep"),
            Made::File("var/deep/old", "d"),
            Made::Folder("opt"),
            Made::File("opt/x", "e"),
            Made::File("again", "f"),
        ]),
        tar_of(&[
            Made::File("etc/.wh.gone", ""),
            // Before and behind the mark: both are of this layer, and stay.
            Made::File("var/before", "g"),
            Made::File("var/.wh..wh..opq", ""),
            Made::File("var/deep/behind", "h"),
            Made::File(".wh.opt", ""),
            Made::File(".wh.again", ""),
            Made::File(".wh..wh.plnk/1", "aufs"),
            Made::File(".wh..wh.aufs", "aufs"),
        ]),
        tar_of(&[Made::File("again", "i"), Made::File(".wh.never-there", "")]),
    ]);
    assert_eq!(warnings, Vec::<String>::new());
    insta::assert_snapshot!(listing, @r#"
    again "i"
    etc /
    etc/kept "b"
    var /
    var/before "g"
    var/deep/ /
    var/deep/behind "h"
    "#);
}

#[test]
fn kinds_replace_each_other() {
    let (listing, warnings) = merged(&[
        tar_of(&[
            Made::Folder("a"),
            Made::File("a/x", "1"),
            Made::File("b", "2"),
            Made::Folder("c"),
            Made::File("c/y", "3"),
            Made::File("d", "4"),
            Made::Symlink("e", "a"),
        ]),
        tar_of(&[
            Made::File("a", "now a file"),
            Made::Folder("b"),
            Made::File("b/z", "5"),
            Made::Symlink("c", "b"),
            // No entry for the folder itself.
            Made::File("d/w", "6"),
            Made::Folder("e"),
        ]),
        // Through a link of the layer below.
        tar_of(&[Made::File("c/through", "7"), Made::File("c/.wh.z", "")]),
    ]);
    assert_eq!(warnings, Vec::<String>::new());
    insta::assert_snapshot!(listing, @r#"
    a "now a file"
    b /
    b/through "7"
    c -> b
    d/ /
    d/w "6"
    e /
    "#);
}

#[test]
fn hard_links_stay_one_file_across_layers() {
    let long = format!("{}/name", "long".repeat(30));
    let (listing, warnings) = merged(&[
        tar_of(&[
            Made::Attribute("m", "content", "value"),
            Made::Hard("z", "m"),
            Made::File("changed", "old"),
            Made::Hard("unchanged", "changed"),
        ]),
        tar_of(&[
            Made::Hard("a", "z"),
            Made::Hard(&long, "m"),
            Made::File(".wh.m", ""),
            Made::File("changed", "new"),
            Made::Hard("lost", "nowhere"),
        ]),
    ]);
    assert_eq!(warnings, ["lost: nowhere, which it is another name of, is not there; left out"]);
    // The first name has the content and the attribute, though another had it in the layer.
    insta::assert_snapshot!(listing.replace(&"long".repeat(30), "LONG"), @r#"
    a "content" [SCHILY.xattr.user.test=value]
    changed "new"
    LONG/ /
    LONG/name = a
    unchanged "old"
    z = a
    "#);
}

#[test]
fn names_that_lead_out_are_left_out_and_loops_end() {
    let mut evil = tar_of(&[Made::File("XX/evil", "1"), Made::File("abs", "2")]);
    // The library writes no such names.
    let at = evil.windows(7).position(|window| window == b"XX/evil").unwrap();
    evil[at..at + 2].copy_from_slice(b"..");
    fix_checksum(&mut evil[at..at + 512]);
    let (listing, warnings) = merged(&[
        tar_of(&[Made::Symlink("l", "m"), Made::Symlink("m", "l"), Made::Symlink("up", "../../../etc")]),
        evil,
        tar_of(&[Made::File("l/x", "3"), Made::File("up/passwd", "4")]),
    ]);
    insta::assert_snapshot!(listing, @r#"
    abs "2"
    etc/ /
    etc/passwd "4"
    l -> m
    m -> l
    up -> ../../../etc
    "#);
    assert_eq!(
        warnings,
        [
            "../evil: its name leads out of the image; left out",
            "l/x: its name leads too deep, or through links that go in circles; left out",
        ]
    );
}

#[test]
fn depth_has_an_end() {
    let deep = |depth: usize| format!("{}file", "d/".repeat(depth));
    let (listing, warnings) = merged(&[
        tar_of(&[Made::File(&deep(512), "1"), Made::File(&deep(513), "2")]),
        tar_of(&[Made::File(&format!("{}.wh.d", "d/".repeat(510)), ""), Made::Symlink("l", "d/d")]),
        tar_of(&[Made::File(&format!("l/{}x", "e/".repeat(511)), "3")]),
    ]);
    assert_eq!(listing.lines().count(), 510 + 1, "what the whiteout leaves, and the link");
    assert_eq!(warnings.len(), 2, "{warnings:?}");
}

fn fix_checksum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[test]
fn a_layer_is_copied_byte_for_byte() {
    let layer = tar_of(&[
        Made::Attribute("attribute", "with", "value"),
        Made::Folder("folder"),
        Made::File(&"long/".repeat(60), ""),
    ]);
    let fixture = Fixture::new();
    let mut images = Images::default();
    let image = images.image(std::slice::from_ref(&layer), "amd64", |_, layer| layer.to_vec());
    images.layout(&fixture.path().join("layout"), &[image]);
    let merged = content(&fixture.obtain("oci:layout").unwrap());
    // Each entry's blocks are there as they were, whatever stands between them.
    let first = &layer[..3 * 512];
    assert!(merged.windows(first.len()).any(|window| window == first));
}

#[test]
fn global_headers_reach_their_own_layer_only() {
    let global = |value: &str| {
        let record = format!("{} SCHILY.xattr.user.g={value}\n", value.len() + 24);
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::XGlobalHeader);
        header.set_size(record.len() as u64);
        header.set_path("g").unwrap();
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(record.as_bytes());
        bytes.resize(1024, 0);
        bytes
    };
    let (listing, _) = merged(&[
        [global("one"), tar_of(&[Made::File("a", "1"), Made::File("c", "3")])].concat(),
        tar_of(&[Made::File("b", "2")]),
    ]);
    insta::assert_snapshot!(listing, @r#"
    a "1" [SCHILY.xattr.user.g=one]
    b "2"
    c "3" [SCHILY.xattr.user.g=one]
    "#);
}

fn one_layer() -> Vec<Vec<u8>> {
    vec![tar_of(&[Made::Folder("etc"), Made::File("etc/os-release", "ID=test\n")])]
}

#[test]
fn the_same_image_is_the_same_file_wherever_it_comes_from() {
    let fixture = Fixture::new();
    let (mut packed, mut plain) = (Images::default(), Images::default());
    let descriptor = packed.image(&one_layer(), "amd64", |_, layer| gzip(layer));
    packed.layout(&fixture.path().join("folder"), &[named(descriptor, "12")]);
    let descriptor = plain.image(&one_layer(), "amd64", |_, layer| layer.to_vec());
    plain.layout(&fixture.path().join("other"), std::slice::from_ref(&descriptor));
    // A tar of a layout, compressed, and an archive of `docker save` in the old form with a layer by a link.
    let index = json!({"schemaVersion": 2, "manifests": [descriptor]}).to_string();
    let blobs: Vec<_> =
        plain.blobs.iter().map(|(digest, bytes)| (format!("blobs/sha256/{digest}"), bytes)).collect();
    let mut files: Vec<(&str, &[u8])> = blobs.iter().map(|(name, bytes)| (&**name, &***bytes)).collect();
    files.push(("index.json", index.as_bytes()));
    files.push(("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#));
    fs::write(fixture.path().join("layout.tar.gz"), gzip(&archive(&files))).unwrap();
    fs::write(fixture.path().join("saved.tar"), saved(&["debian:12"])).unwrap();

    let first = fixture.obtain("oci:folder").unwrap();
    assert_eq!(first.name.as_deref(), Some("12"));
    let expected = content(&first);
    for text in ["./other", "oci:folder:12", "layout.tar.gz", "oci:layout.tar.gz", "saved.tar"] {
        let obtained = fixture.obtain(text).unwrap();
        assert!(content(&obtained) == expected, "{text}");
        let image = obtained.image.unwrap();
        assert_eq!((&*image.user, &*image.working_dir, image.entrypoint.len()), ("7:7", "/srv", 0));
        assert_eq!(image.env, ["PATH=/bin", "LANG=C"]);
    }
    assert_eq!(
        fixture.obtain("docker-archive:saved.tar:debian:12").unwrap().name.as_deref(),
        Some("debian-12")
    );
    assert!(fixture.cached("scratch").is_empty());
    // Merged before: who has it need not merge it again.
    let digest = sha256(&expected);
    let have = |held: &Digest| *held == digest;
    let held = fixture.obtain_with("saved.tar", &Order { have: &have, ..fixture.order() }).unwrap();
    assert!(matches!(held.content, Content::Held(held) if held == digest));
}

/// An archive of `docker save` in the form that it had before Docker 25.
fn saved(tags: &[&str]) -> Vec<u8> {
    let layer = &one_layer()[0];
    let config = Images::config(&one_layer(), "amd64").to_string();
    let config_name = format!("{}.json", sha256(config.as_bytes()));
    let folder = "0".repeat(64);
    let manifest =
        json!([{"Config": config_name, "RepoTags": tags, "Layers": [format!("{folder}/layer.tar")]}])
            .to_string();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, format!("{folder}/layer.tar"), "../stored/layer.tar").unwrap();
    for (name, bytes) in [
        ("stored/layer.tar", &layer[..]),
        (&config_name, config.as_bytes()),
        ("manifest.json", manifest.as_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_root_file_system_is_not_taken_for_an_image() {
    let fixture = Fixture::new();
    let tar = archive(&[("bin/sh", b"#!"), ("index.json", b"{}"), ("manifest.json", b"[]")]);
    fs::write(fixture.path().join("rootfs.tar.gz"), gzip(&tar)).unwrap();
    let obtained = fixture.obtain("rootfs.tar.gz").unwrap();
    assert!(content(&obtained) == gzip(&tar));
    assert!(obtained.image.is_none());
    assert_eq!(obtained.name.as_deref(), Some("rootfs"));
    obtained.discard();
    assert!(fixture.path().join("rootfs.tar.gz").exists(), "it is not ours to remove");
}

/// A layout whose documents say something wrong: what is told.
fn lying(change: impl FnOnce(&Fixture, &mut Images, Value) -> Vec<Value>) -> String {
    let fixture = Fixture::new();
    let mut images = Images::default();
    let image = images.image(&one_layer(), "amd64", |_, layer| gzip(layer));
    let entries = change(&fixture, &mut images, image);
    images.layout(&fixture.path().join("layout"), &entries);
    let message = fixture.message(fixture.obtain("oci:layout"));
    assert!(fixture.cached("files").is_empty() && fixture.cached("scratch").is_empty());
    // Digests follow from what the test made.
    message.split(' ').map(|word| if word.len() > 60 { "DIGEST" } else { word }).collect::<Vec<_>>().join(" ")
}

fn manifest(layers: &[Vec<u8>], images: &mut Images, change: impl FnOnce(&mut Value)) -> Vec<Value> {
    let config = images.document("", &Images::config(layers, "amd64"));
    let layers: Vec<_> = layers.iter().map(|layer| images.blob("", gzip(layer))).collect();
    let mut document = json!({"schemaVersion": 2, "config": config, "layers": layers});
    change(&mut document);
    vec![images.document("", &document)]
}

#[test]
fn layouts_that_lie_are_told() {
    let mut told = Vec::new();
    let mut add = |what: &str, message: String| told.push(format!("{what}: {message}"));
    add(
        "a size",
        lying(|_, images, _| {
            manifest(&one_layer(), images, |document| document["layers"][0]["size"] = json!(u64::MAX))
        }),
    );
    add(
        "a digest's kind",
        lying(|_, images, _| {
            manifest(&one_layer(), images, |document| document["layers"][0]["digest"] = json!("md5:0"))
        }),
    );
    add(
        "a missing blob",
        lying(|_, images, _| {
            let entries = manifest(&one_layer(), images, |_| ());
            images.blobs.retain(|_, bytes| !bytes.starts_with(&[0x1f, 0x8b]));
            entries
        }),
    );
    add(
        "a changed layer",
        lying(|_, images, image| {
            for bytes in images.blobs.values_mut().filter(|bytes| bytes.starts_with(&[0x1f, 0x8b])) {
                // The operating system's number, which decompression does not look at.
                bytes[9] ^= 1;
            }
            vec![image]
        }),
    );
    add(
        "a changed document",
        lying(|_, images, image| {
            let config =
                images.blobs.values_mut().find(|bytes| bytes.starts_with(b"{\"architecture")).unwrap();
            config[3] ^= 1;
            vec![image]
        }),
    );
    add(
        "another content",
        lying(|_, images, _| {
            let config = images.document("", &Images::config(&[tar_of(&[])], "amd64"));
            let layer = images.blob("", gzip(&one_layer()[0]));
            vec![images.document("", &json!({"config": config, "layers": [layer]}))]
        }),
    );
    add(
        "fewer layers",
        lying(|_, images, _| manifest(&one_layer(), images, |document| document["layers"] = json!([]))),
    );
    add("no tar", lying(|_, images, _| manifest(&[vec![7; 1024]], images, |_| ())));
    add(
        "a tar that was cut",
        lying(|_, images, _| manifest(&[one_layer()[0][..1100].to_vec()], images, |_| ())),
    );
    add(
        "broken gzip",
        lying(|_, images, _| {
            let config = images.document("", &Images::config(&one_layer(), "amd64"));
            let mut layer = gzip(&one_layer()[0]);
            layer.truncate(layer.len() / 2);
            let layer = images.blob("", layer);
            vec![images.document("", &json!({"config": config, "layers": [layer]}))]
        }),
    );
    add("no JSON", lying(|_, images, _| vec![images.blob("", b"[[[[".to_vec())]));
    add(
        "deep JSON",
        lying(|_, images, _| {
            let deep = format!("{{\"x\":{}", "[".repeat(100_000));
            vec![images.blob("", deep.into_bytes())]
        }),
    );
    add("neither", lying(|_, images, _| vec![images.blob("", b"{}".to_vec())]));
    add("huge JSON", lying(|_, images, _| vec![images.blob("", vec![b' '; 5 << 20])]));
    add(
        "indexes in indexes",
        lying(|_, images, mut image| {
            for _ in 0..5 {
                image = images.document("", &json!({"manifests": [image]}));
            }
            vec![image]
        }),
    );
    add(
        "an index that names itself",
        lying(|_, images, _| {
            // Nobody can know a digest beforehand: the name is there, and what it names is something else.
            let itself = json!({"digest": format!("sha256:{}", "0".repeat(64)), "size": 1});
            vec![images.document("", &json!({"manifests": [itself]}))]
        }),
    );
    add(
        "another machine",
        lying(|_, images, _| vec![images.image(&one_layer(), "arm64", |_, l| l.to_vec())]),
    );
    add("nothing", lying(|_, _, _| Vec::new()));
    add(
        "several",
        lying(|_, images, image| {
            let other = images.image(&[tar_of(&[])], "amd64", |_, layer| layer.to_vec());
            vec![named(image, "12"), named(other, "13")]
        }),
    );
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn a_layout_of_another_version_is_not_read() {
    let fixture = Fixture::new();
    let layout = fixture.path().join("layout");
    Images::default().layout(&layout, &[]);
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "2.0.0"}"#).unwrap();
    insta::assert_snapshot!(fixture.message(fixture.obtain("oci:layout")), @"FOLDER/layout cannot be used: its oci-layout is of no version that is known here: expected imageLayoutVersion 1.0.0");
    // A pipe is no file, and nobody waits for its other end.
    fs::remove_file(layout.join("oci-layout")).unwrap();
    nix::unistd::mkfifo(&layout.join("oci-layout"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(fixture.obtain("oci:layout").is_err());
}

#[test]
fn archives_that_lie_are_told() {
    let told = |name: &str, bytes: Vec<u8>| {
        let fixture = Fixture::new();
        fs::write(fixture.path().join("image.tar"), bytes).unwrap();
        format!("{name}: {}", fixture.message(fixture.obtain("docker-archive:image.tar")))
    };
    let several = json!([
        {"Config": "a", "RepoTags": ["debian:12"], "Layers": []}, {"Config": "b", "RepoTags": ["debian:13"], "Layers": []}
    ]);
    let missing = json!([{"Config": "../../etc/passwd", "Layers": []}]);
    let config = Images::config(&one_layer(), "amd64").to_string();
    let no_layer = json!([{"Config": "c.json", "RepoTags": null, "Layers": ["/etc/passwd"]}]);
    let wrong_name = format!("{}.json", "0".repeat(64));
    let wrong = json!([{"Config": wrong_name, "Layers": []}]);
    let file = |value: &Value| archive(&[("manifest.json", value.to_string().as_bytes())]);
    let messages = [
        told("no tar", b"hello".repeat(300)),
        told("no image", archive(&[("etc/passwd", b"")])),
        told("no JSON", archive(&[("manifest.json", b"{")])),
        told("several", file(&several)),
        told("no configuration", file(&missing)),
        told(
            "no layer",
            archive(&[("c.json", config.as_bytes()), ("manifest.json", no_layer.to_string().as_bytes())]),
        ),
        told(
            "a configuration of another name",
            archive(&[(&wrong_name, config.as_bytes()), ("manifest.json", wrong.to_string().as_bytes())]),
        ),
        told("cut off", file(&several)[..700].to_vec()),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}
