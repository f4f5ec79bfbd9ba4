//! Creates an image with one layer, as an archive in the OCI image layout, without a registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::netns::succeed;

/// The name by which runtimes find the image.
pub const NAME: &str = "localhost/busybox:test";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The programs of the image's root file system, all of them busybox.
pub const PROGRAMS: [&str; 7] = ["sh", "sleep", "ping", "ip", "nc", "nslookup", "true"];

/// Packs `rootfs` into an image archive below `folder` and returns its path. The image's command is
/// `sleep`.
///
/// # Panics
/// Panics if a file cannot be written, or `tar` or `sha256sum` fails.
pub fn write(rootfs: &Path, folder: &Path) -> PathBuf {
    let blobs = folder.join("image/blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let layer = blobs.join("layer");
    succeed(Command::new("tar").arg("-C").arg(rootfs).arg("-cf").arg(&layer).arg("."));
    let layer = describe(&layer, "application/vnd.oci.image.layer.v1.tar");
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = add(&blobs, &config, "application/vnd.oci.image.config.v1+json");
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
    let mut manifest = add(&blobs, &manifest, MANIFEST);
    manifest["annotations"] = json!({"io.containerd.image.name": NAME});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(folder.join("image/index.json"), index.to_string()).unwrap();
    fs::write(folder.join("image/oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string()).unwrap();
    let archive = folder.join("image.tar");
    succeed(Command::new("tar").arg("-C").arg(folder.join("image")).arg("-cf").arg(&archive).arg("."));
    archive
}

fn add(blobs: &Path, document: &Value, media_type: &str) -> Value {
    let file = blobs.join("document");
    fs::write(&file, document.to_string()).unwrap();
    describe(&file, media_type)
}

/// Renames a blob to its digest. Returns its descriptor.
fn describe(blob: &Path, media_type: &str) -> Value {
    let size = fs::metadata(blob).unwrap().len();
    let printed = succeed(Command::new("sha256sum").arg(blob));
    let digest = printed.split_whitespace().next().unwrap();
    fs::rename(blob, blob.with_file_name(digest)).unwrap();
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size})
}
