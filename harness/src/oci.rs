//! An OCI image layout around one layer, as `skopeo copy` or `docker buildx` would write it (OCI Image Format Specification 1.1).

use std::{fs, io, path::Path};

use serde_json::json;
use sha2::{Digest, Sha256};

/// Writes a layout of one image, tagged `latest`, whose only layer is this tar.
pub fn layout(folder: &Path, layer: &Path) -> io::Result<()> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let blob = |bytes: &[u8]| -> io::Result<(String, usize)> {
        let name: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(blobs.join(&name), bytes)?;
        Ok((format!("sha256:{name}"), bytes.len()))
    };
    let (layer, length) = blob(&fs::read(layer)?)?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    });
    let (config, config_length) = blob(config.to_string().as_bytes())?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_length,
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": length,
        }],
    });
    let (manifest, manifest_length) = blob(manifest.to_string().as_bytes())?;
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest,
            "size": manifest_length,
            "annotations": { "org.opencontainers.image.ref.name": "latest" },
        }],
    });
    fs::write(folder.join("index.json"), index.to_string())?;
    fs::write(folder.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string())
}
