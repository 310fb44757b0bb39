//! A configuration drive, as a person or a hypervisor makes one.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use serde_json::Value;

const BYTES: u64 = 48 << 20;

/// A FAT file system labelled for the appliance, with these files.
pub fn make(path: &Path, settings: &Value, files: &[(&str, &[u8])]) {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .unwrap();
    file.set_len(BYTES).unwrap();
    let options = FormatVolumeOptions::new().volume_label(*b"PGHOARD_CFG");
    fatfs::format_volume(&file, options).unwrap();
    let system = FileSystem::new(&file, FsOptions::new()).unwrap();
    let text = serde_json::to_vec_pretty(settings).unwrap();
    let document = [("pghoard.json", text.as_slice())];
    for (name, bytes) in document.iter().chain(files) {
        let mut file = system.root_dir().create_file(name).unwrap();
        file.write_all(bytes).unwrap();
    }
}
