//! Images made of a few files, as registries, layouts and archives have them.

use std::{
    collections::BTreeMap,
    fs,
    io::{Cursor, Read, Write},
    path::Path,
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use crate::digest::Digest;

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Sha256::new_with_prefix(bytes))
}

/// One entry of a layer: `name` and what it is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Made<'a> {
    File(&'a str, &'a str),
    Folder(&'a str),
    Symlink(&'a str, &'a str),
    Hard(&'a str, &'a str),
    /// A file with an extended attribute.
    Attribute(&'a str, &'a str, &'a str),
}

/// A layer's tar.
pub(crate) fn tar_of(entries: &[Made<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let (name, kind, content, target) = match *entry {
            Made::File(name, content) | Made::Attribute(name, content, _) => {
                (name, EntryType::Regular, content, None)
            }
            Made::Folder(name) => (name, EntryType::Directory, "", None),
            Made::Symlink(name, target) => (name, EntryType::Symlink, "", Some(target)),
            Made::Hard(name, target) => (name, EntryType::Link, "", Some(target)),
        };
        if let Made::Attribute(_, _, value) = entry {
            builder.append_pax_extensions([("SCHILY.xattr.user.test", value.as_bytes())]).unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(if kind == EntryType::Directory { 0o700 } else { 0o640 });
        header.set_uid(7);
        header.set_mtime(1_000_000_000);
        match target {
            Some(target) => builder.append_link(&mut header, name, target).unwrap(),
            None => builder.append_data(&mut header, name, content.as_bytes()).unwrap(),
        }
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What a tar holds, a line an entry: name, kind, content or target.
pub(crate) fn listing(tar: &[u8]) -> String {
    let mut archive = tar::Archive::new(Cursor::new(tar));
    let mut lines = String::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let attributes: Vec<_> = entry
            .pax_extensions()
            .unwrap()
            .into_iter()
            .flatten()
            .map(|one| one.unwrap())
            .filter(|one| one.key().unwrap() != "path")
            .map(|one| format!(" [{}={}]", one.key().unwrap(), one.value().unwrap()))
            .collect();
        let target = entry.link_name().unwrap().map(|target| target.display().to_string());
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        let said = match entry.header().entry_type() {
            EntryType::Regular => format!("{content:?}"),
            EntryType::Directory => "/".into(),
            EntryType::Symlink => format!("-> {}", target.unwrap()),
            EntryType::Link => format!("= {}", target.unwrap()),
            other => format!("{other:?}"),
        };
        lines += &format!("{name} {said}{}\n", attributes.concat());
    }
    lines
}

/// Documents and blobs of images, by their digests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Images {
    pub(crate) blobs: BTreeMap<Digest, Vec<u8>>,
}

impl Images {
    /// Adds a blob, and gives its descriptor.
    pub(crate) fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = sha256(&bytes);
        let size = bytes.len();
        self.blobs.insert(digest, bytes);
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size})
    }

    pub(crate) fn document(&mut self, media_type: &str, document: &Value) -> Value {
        self.blob(media_type, document.to_string().into_bytes())
    }

    pub(crate) fn config(layers: &[Vec<u8>], architecture: &str) -> Value {
        let ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
        json!({
            "architecture": architecture, "os": "linux",
            "config": {"Env": ["PATH=/bin", "LANG=C"], "User": "7:7", "WorkingDir": "/srv",
                       "Entrypoint": null, "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": ids},
        })
    }

    /// Adds an image of plain tars, each stored as `pack` says; gives the manifest's descriptor with its platform.
    pub(crate) fn image(
        &mut self,
        layers: &[Vec<u8>],
        architecture: &str,
        pack: impl Fn(usize, &[u8]) -> Vec<u8>,
    ) -> Value {
        let config = Self::config(layers, architecture);
        let config = self.document("application/vnd.oci.image.config.v1+json", &config);
        let layers: Vec<_> = layers
            .iter()
            .enumerate()
            .map(|(n, layer)| self.blob("application/vnd.oci.image.layer.v1.tar+gzip", pack(n, layer)))
            .collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let mut descriptor = self.document("application/vnd.oci.image.manifest.v1+json", &manifest);
        descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
        descriptor
    }

    /// Writes a layout into a folder.
    pub(crate) fn layout(&self, folder: &Path, entries: &[Value]) {
        fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
        let index = json!({"schemaVersion": 2, "manifests": entries});
        fs::write(folder.join("index.json"), index.to_string()).unwrap();
        for (digest, bytes) in &self.blobs {
            fs::write(folder.join(format!("blobs/sha256/{digest}")), bytes).unwrap();
        }
    }
}

/// Gives an entry of a layout's index a name.
pub(crate) fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    descriptor
}

/// A tar of files by their names, in this order.
pub(crate) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}
