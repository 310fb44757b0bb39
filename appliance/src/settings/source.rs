//! Settings from outside: a configuration drive, or what the hypervisor hands over.
//!
//! The drive is a disk or partition with a FAT or ISO 9660 file system labelled [`LABEL`] that
//! holds `pghoard.json`; other plain files on it are copied to `/data/settings/files`, where the
//! settings may name them. QEMU hands over a file by
//! `-fw_cfg name=opt/org.pghoard/pghoard.json,file=...`; any hypervisor by an SMBIOS string of
//! type 11: `pghoard.json=` and the document in base64.
//!
//! A source is taken when it says something new. What a person changes at the console afterwards
//! stays, until the source changes again.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use machine::Class;
use nix::mount::{MsFlags, mount, umount};
use pghoard::{Failure, Outcome};

use super::store::Store;
use super::{Settings, digest};
use crate::disk;

pub const LABEL: &str = "PGHOARD_CFG";
const DOCUMENT: &str = "pghoard.json";
const FIRMWARE: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/org.pghoard/pghoard.json/raw";
const SMBIOS: &str = "/sys/firmware/dmi/tables/DMI";
const MOUNTED: &str = "/run/drive";
/// No certificate and no key file is larger.
const FILE_MAX: u64 = 1 << 20;
const FILES_MAX: usize = 100;

/// A document, before anybody has looked at it.
pub struct Found {
    /// `drive`, `fw_cfg` or `smbios`.
    pub source: &'static str,
    pub bytes: Vec<u8>,
    /// Beside it on a drive.
    pub files: Vec<(String, Vec<u8>)>,
}

/// The first source there is, in order. A drive that cannot be read is a failure, not an absence.
pub fn find() -> Outcome<Option<Found>> {
    if let Some(found) = drive()? {
        return Ok(Some(found));
    }
    let plain = |source, bytes| Found {
        source,
        bytes,
        files: Vec::new(),
    };
    match fs::read(FIRMWARE) {
        Ok(bytes) => return Ok(Some(plain("fw_cfg", bytes))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(Failure::io(&e, FIRMWARE)),
    }
    let table = fs::read(SMBIOS).unwrap_or_default();
    Ok(smbios(&table)?.map(|bytes| plain("smbios", bytes)))
}

/// What the source says, if it is new; it is noted as taken only by [`note_taken`].
pub fn news(found: &Found, store: &Store) -> Option<Outcome<Settings>> {
    let known = store.taken(found.source);
    if known.as_deref() == Some(&whole_digest(found)) {
        return None;
    }
    Some(Settings::read(&found.bytes, Path::new(found.source)))
}

/// Puts the files beside it in place, where its settings name them.
pub fn put_files(found: &Found, store: &Store) -> Outcome<()> {
    for (name, bytes) in &found.files {
        store.write(&store.files().join(name), bytes)?;
    }
    Ok(())
}

/// It was taken: what it says is no news from now on.
pub fn note_taken(found: &Found, store: &Store) -> Outcome<()> {
    store.note_taken(found.source, &whole_digest(found))
}

fn whole_digest(found: &Found) -> String {
    let mut all = found.bytes.clone();
    for (name, bytes) in &found.files {
        all.extend_from_slice(name.as_bytes());
        all.extend_from_slice(bytes);
    }
    digest(&all)
}

/// The drive's document and files, if there is a drive.
pub fn drive() -> Outcome<Option<Found>> {
    Ok(with_drive(read_folder)?.flatten())
}

/// Runs something with the drive mounted, read-only.
pub fn with_drive<T>(run: impl FnOnce(&Path) -> Outcome<T>) -> Outcome<Option<T>> {
    let Some((device, kind)) = labelled() else {
        return Ok(None);
    };
    let place = mounted(&device, kind)?;
    let result = run(&place);
    if let Err(error) = umount(&place) {
        log::warn!("umount {}: {error}", place.display());
    }
    result.map(Some)
}

fn mounted(device: &Path, kind: &str) -> Outcome<PathBuf> {
    let place = PathBuf::from(MOUNTED);
    fs::create_dir_all(&place).map_err(|e| Failure::io(&e, MOUNTED))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(device), &place, Some(kind), flags, None::<&str>).map_err(|e| {
        Failure::io(
            &e.into(),
            format!("configuration drive {}", device.display()),
        )
    })?;
    Ok(place)
}

fn labelled() -> Option<(PathBuf, &'static str)> {
    disk::all().find_map(|device| {
        let node = device.node();
        let kind = kind(&File::open(&node).ok()?)?;
        Some((node, kind))
    })
}

/// The file system, if it is one of ours by its label.
fn kind(device: &File) -> Option<&'static str> {
    let at = |offset: u64| {
        let mut text = [0; 11];
        device.read_exact_at(&mut text, offset).ok()?;
        Some(text)
    };
    let ours = |offset| at(offset).is_some_and(|text| text.starts_with(LABEL.as_bytes()));
    let says =
        |offset, word: &str| at(offset).is_some_and(|text| text.starts_with(word.as_bytes()));
    // Volume label and type of the boot sector: FAT32, then FAT12 and FAT16.
    if (ours(71) && says(82, "FAT32")) || (ours(43) && says(54, "FAT")) {
        return Some("vfat");
    }
    // ISO 9660 (ECMA-119): the volume identifier of the primary descriptor in sector 16.
    (says(32_769, "CD001") && ours(32_808)).then_some("iso9660")
}

/// Nothing where there is no document: it may be a drive with an update.
fn read_folder(place: &Path) -> Outcome<Option<Found>> {
    let document = place.join(DOCUMENT);
    if !document.exists() {
        return Ok(None);
    }
    let bytes = read_small(&document)?;
    let mut files = Vec::new();
    let about = |e: io::Error| Failure::io(&e, place.display());
    for entry in fs::read_dir(place).map_err(about)? {
        let entry = entry.map_err(about)?;
        let plain = entry.metadata().map_err(about)?.is_file();
        let name = entry.file_name().into_string().unwrap_or_default();
        let large = entry.metadata().map_err(about)?.len() > FILE_MAX;
        if !plain || large || name.is_empty() || name == DOCUMENT || name.starts_with('.') {
            continue;
        }
        if files.len() == FILES_MAX {
            let message = format!("the configuration drive has more than {FILES_MAX} files");
            return Err(Failure::new(Class::Config, message));
        }
        let bytes = read_small(&entry.path())?;
        files.push((name, bytes));
    }
    files.sort();
    Ok(Some(Found {
        source: "drive",
        bytes,
        files,
    }))
}

fn read_small(path: &Path) -> Outcome<Vec<u8>> {
    let about = |e: io::Error| Failure::io(&e, format!("configuration drive: {}", path.display()));
    let file = File::open(path).map_err(about)?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(about)?;
    match u64::try_from(bytes.len()).unwrap_or(u64::MAX) > FILE_MAX {
        true => Err(Failure::new(
            Class::Config,
            format!(
                "configuration drive: {} is larger than 1 MiB",
                path.display()
            ),
        )),
        false => Ok(bytes),
    }
}

/// DMTF DSP0134, section 6.1.2: structures of a header, a formatted part and strings that end with
/// an empty one. Type 11 has nothing but strings.
fn smbios(table: &[u8]) -> Outcome<Option<Vec<u8>>> {
    const PREFIX: &[u8] = b"pghoard.json=";
    let mut rest = table;
    while let [kind, length, ..] = rest {
        let strings = rest.get(usize::from(*length).max(4)..).unwrap_or_default();
        let end = strings.windows(2).position(|two| two == [0, 0]);
        let Some(end) = end else { break };
        let mut texts = strings
            .get(..end)
            .unwrap_or_default()
            .split(|byte| *byte == 0);
        let ours = texts.find_map(|text| text.strip_prefix(PREFIX));
        if let Some(text) = ours.filter(|_| *kind == 11) {
            let bytes = STANDARD.decode(text).map_err(|e| {
                Failure::new(Class::Config, format!("SMBIOS string pghoard.json: {e}"))
            })?;
            return Ok(Some(bytes));
        }
        rest = strings.get(end + 2..).unwrap_or_default();
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hypervisors_string_is_found() {
        let structure = |kind: u8, strings: &[u8]| {
            let mut all = vec![kind, 5, 0, 0, 1];
            all.extend_from_slice(strings);
            all.extend_from_slice(&[0, 0]);
            all
        };
        let other = structure(1, b"QEMU\0pghoard.json=aGk=");
        let ours = structure(11, b"first\0pghoard.json=aGk=");
        let bad = structure(11, b"pghoard.json=!");
        for (table, expect) in [
            (vec![], None),
            (other.clone(), None),
            ([other.clone(), ours.clone()].concat(), Some(b"hi".to_vec())),
            (ours[..7].to_vec(), None),
        ] {
            assert_eq!(smbios(&table).unwrap(), expect);
        }
        assert!(smbios(&[other, bad].concat()).is_err());
    }

    #[test]
    fn a_drive_is_known_by_its_label() {
        let drive = |bytes: &[(u64, &[u8])]| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(64 << 10).unwrap();
            for (at, text) in bytes {
                file.write_all_at(text, *at).unwrap();
            }
            file
        };
        let label = LABEL.as_bytes();
        type Bytes<'a> = &'a [(u64, &'a [u8])];
        let cases: [(Bytes<'_>, _); 5] = [
            (&[(71, label), (82, b"FAT32   ")], Some("vfat")),
            (&[(43, label), (54, b"FAT16   ")], Some("vfat")),
            (&[(32_769, b"CD001"), (32_808, label)], Some("iso9660")),
            (&[(71, b"OTHER      "), (82, b"FAT32   ")], None),
            (&[], None),
        ];
        for (bytes, expect) in cases {
            assert_eq!(kind(&drive(bytes)), expect);
        }
    }

    #[test]
    fn what_lies_beside_the_document_comes_along() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        assert!(read_folder(folder.path()).unwrap().is_none());
        put(DOCUMENT, b"{}");
        put("ca.pem", b"pem");
        put(".hidden", b"");
        fs::create_dir(folder.path().join("folder")).unwrap();
        let found = read_folder(folder.path()).unwrap().unwrap();
        assert_eq!(found.bytes, b"{}");
        assert_eq!(found.files, [("ca.pem".to_owned(), b"pem".to_vec())]);

        let kept = tempfile::tempdir().unwrap();
        let store = Store::open(kept.path()).unwrap();
        assert!(news(&found, &store).unwrap().is_ok());
        put_files(&found, &store).unwrap();
        assert!(news(&found, &store).is_some());
        note_taken(&found, &store).unwrap();
        assert!(news(&found, &store).is_none());
        assert_eq!(fs::read(store.files().join("ca.pem")).unwrap(), b"pem");
    }
}
