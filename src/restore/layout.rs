//! From a backup's main object to everything that has to be fetched.
//!
//! Formats, by the metadata key `format` (PGHoard `pghoard/common.py`, `BaseBackupFormat`):
//! - none: the object is the tar of `pg_basebackup`, names relative to PGDATA;
//! - `pghoard-bb-v1`: one tar with `pgdata/` and `tablespaces/NAME/`, tablespaces in metadata;
//! - `pghoard-bb-v2`: a small main tar with `.pghoard_tar_metadata.json`, and numbered chunks;
//! - `pghoard-delta-v1`, `-v2`: the same with bundles, content-addressed files and tiny files kept
//!   in the manifest.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use machine::Class;
use serde::Deserialize;

use super::{Backup, Source, corrupt};
use crate::failure::{Failure, Outcome};
use crate::store::{Metadata, Object};

/// What a backup consists of.
#[derive(Debug)]
pub struct Layout {
    pub tablespaces: Vec<Tablespace>,
    pub jobs: Vec<Job>,
    /// The main object of formats that have one, plain.
    pub main: Option<Vec<u8>>,
    pub tiny: Vec<Tiny>,
    /// Folders of a delta backup, relative to PGDATA.
    pub folders: Vec<String>,
    /// Relative paths of the files that a delta backup must hold. Their sizes are no promise: see
    /// [`without_size`].
    pub promised: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    pub name: String,
    pub oid: u32,
    /// On the machine the backup was taken on.
    pub path: PathBuf,
}

/// One object to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub key: String,
    pub content: Content,
    /// As announced; for the order of work and the progress. 0 where nothing is.
    pub stored_bytes: u64,
    /// As announced.
    pub plain_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Archive(Naming),
    /// One file, relative to PGDATA, whose content has this BLAKE2s digest. Decoded by metadata
    /// [`without_size`].
    File {
        path: String,
        digest: String,
    },
}

/// What the names of an archive's members are relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// PGDATA.
    Bare,
    /// `pgdata/...` and `tablespaces/NAME/...`.
    Prefixed,
}

/// A file whose content is in the manifest itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiny {
    pub path: String,
    pub content: Vec<u8>,
}

/// The member of the main tar that describes the rest.
pub const DESCRIPTION: &str = ".pghoard_tar_metadata.json";

pub fn read(backup: &Backup<'_>, source: &Source<'_>) -> Outcome<Layout> {
    let (main, prefix) = (&backup.object, &backup.site.prefix);
    match form(main)? {
        Form::Single(naming, tablespaces) => Ok(single(main, naming, tablespaces)),
        Form::Described(form) => described(&form, main, source.read(backup.key())?, prefix),
    }
}

/// What the metadata of a main object says of its format.
pub enum Form {
    /// The object is all there is.
    Single(Naming, Vec<Tablespace>),
    /// It describes the others.
    Described(Described),
}

pub struct Described {
    folder: &'static str,
    naming: Naming,
}

pub fn form(main: &Object) -> Outcome<Form> {
    let described = |folder, naming| Form::Described(Described { folder, naming });
    let format = main.metadata.get("format").map(String::as_str);
    match format {
        None => Ok(Form::Single(Naming::Bare, Vec::new())),
        Some("pghoard-bb-v1") => {
            let tablespaces = v1_tablespaces(&main.metadata)?;
            Ok(Form::Single(Naming::Prefixed, tablespaces))
        }
        Some("pghoard-bb-v2") => Ok(described("basebackup_chunk", Naming::Prefixed)),
        Some("pghoard-delta-v1" | "pghoard-delta-v2") => {
            Ok(described("basebackup_delta_chunk", Naming::Bare))
        }
        Some(other) => Err(Failure::new(
            Class::Unsupported,
            format!("{}: unknown basebackup format '{other}'", main.entry.key),
        )),
    }
}

fn single(main: &Object, naming: Naming, tablespaces: Vec<Tablespace>) -> Layout {
    Layout {
        tablespaces,
        jobs: vec![Job {
            key: main.entry.key.clone(),
            content: Content::Archive(naming),
            stored_bytes: main.entry.size_bytes,
            plain_bytes: None,
        }],
        main: None,
        tiny: Vec::new(),
        folders: Vec::new(),
        promised: Vec::new(),
    }
}

/// `tablespace-name-OID` and `tablespace-path-OID`.
fn v1_tablespaces(metadata: &Metadata) -> Outcome<Vec<Tablespace>> {
    let names = metadata.iter().filter_map(|(key, name)| {
        let oid = key.strip_prefix("tablespace-name-")?;
        Some((oid, name))
    });
    names
        .map(|(digits, name)| {
            let path = metadata.get(&format!("tablespace-path-{digits}"));
            let oid = digits.parse().ok();
            let (Some(path), Some(oid)) = (path, oid) else {
                return Err(corrupt(format!(
                    "tablespace '{name}' has no path or no number"
                )));
            };
            Ok(Tablespace {
                name: name.clone(),
                oid,
                path: PathBuf::from(path),
            })
        })
        .collect()
}

/// The parts of `.pghoard_tar_metadata.json` that a restore needs.
#[derive(Deserialize)]
struct Description {
    #[serde(default)]
    tablespaces: BTreeMap<String, Place>,
    #[serde(default)]
    chunks: Vec<Chunk>,
    manifest: Option<Delta>,
}

#[derive(Deserialize)]
struct Place {
    path: PathBuf,
    oid: u32,
}

#[derive(Deserialize)]
struct Chunk {
    chunk_filename: String,
    result_size: u64,
    input_size: Option<u64>,
}

#[derive(Deserialize)]
struct Delta {
    snapshot_result: SnapshotResult,
}

#[derive(Deserialize)]
struct SnapshotResult {
    state: SnapshotState,
}

#[derive(Deserialize)]
struct SnapshotState {
    files: Vec<SnapshotFile>,
    #[serde(default)]
    empty_dirs: Vec<String>,
}

#[derive(Deserialize)]
struct SnapshotFile {
    relative_path: String,
    file_size: u64,
    #[serde(default)]
    stored_file_size: u64,
    #[serde(default)]
    hexdigest: String,
    content_b64: Option<String>,
    #[serde(default)]
    should_be_bundled: bool,
    #[serde(default)]
    missing_ok: bool,
}

/// `main` is the plain content of the object.
pub fn described(
    form: &Described,
    object: &Object,
    main: Vec<u8>,
    prefix: &str,
) -> Outcome<Layout> {
    let (folder, naming, key) = (form.folder, form.naming, &object.entry.key);
    let text = member(&main, DESCRIPTION)
        .map_err(|e| Failure::from_io(&e, key))?
        .ok_or_else(|| corrupt(format!("{key}: it has no {DESCRIPTION}")))?;
    let description: Description =
        serde_json::from_slice(&text).map_err(|e| corrupt(format!("{key}: {DESCRIPTION}: {e}")))?;
    let jobs = description.chunks.into_iter().map(|chunk| Job {
        key: format!("{prefix}/{folder}/{}", chunk.chunk_filename),
        content: Content::Archive(naming),
        stored_bytes: chunk.result_size,
        plain_bytes: chunk.input_size,
    });
    let tablespaces = description.tablespaces.into_iter();
    let mut layout = Layout {
        jobs: jobs.collect(),
        tablespaces: tablespaces
            .map(|(name, Place { path, oid })| Tablespace { name, oid, path })
            .collect(),
        main: Some(main),
        tiny: Vec::new(),
        folders: Vec::new(),
        promised: Vec::new(),
    };
    if let Some(delta) = description.manifest {
        add_delta(&mut layout, delta.snapshot_result.state, prefix)
            .map_err(|failure| super::at(key, failure))?;
    }
    Ok(layout)
}

fn add_delta(layout: &mut Layout, state: SnapshotState, prefix: &str) -> Outcome<()> {
    layout.folders = state.empty_dirs;
    for file in state.files {
        let path = file.relative_path;
        if !file.missing_ok || file.content_b64.is_some() || !file.hexdigest.is_empty() {
            layout.promised.push(path.clone());
        }
        match file.content_b64 {
            Some(text) => {
                let content = STANDARD.decode(text);
                let content = content.map_err(|e| corrupt(format!("{path}: {e}")))?;
                layout.tiny.push(Tiny { path, content });
            }
            None if file.should_be_bundled || file.hexdigest.is_empty() => {}
            None => layout.jobs.push(Job {
                key: format!("{prefix}/{DELTA_FILES}{}", file.hexdigest),
                content: Content::File {
                    path,
                    digest: file.hexdigest,
                },
                stored_bytes: file.stored_file_size,
                plain_bytes: Some(file.file_size),
            }),
        }
    }
    Ok(())
}

/// Of the files of delta backups, each named by the BLAKE2s of its content.
pub const DELTA_FILES: &str = "basebackup_delta/";

/// The metadata by which a file of a delta backup is decoded. PGHoard notes the size that the file
/// had when it was listed (rohmu `delta/common.py`, `SizeLimitedFile`); the server may have cut it
/// before it was read. The digest is of what was read.
pub fn without_size(metadata: &Metadata) -> Metadata {
    let mut metadata = metadata.clone();
    metadata.remove("original-file-size");
    metadata
}

/// The content of one member of a tar in memory.
pub fn member(tar: &[u8], name: &str) -> std::io::Result<Option<Vec<u8>>> {
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if &*entry.path_bytes() == name.as_bytes() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            return Ok(Some(content));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::codec::digest::Algorithm;
    use crate::codec::keys::Keyring;
    use crate::config;
    use crate::restore::choose::{self, Goal};
    use crate::restore::recovery::{Recovery, Role};
    use crate::restore::target::{Existing, Request};
    use crate::restore::{Order, run, stream};
    use crate::store::local::Local;
    use crate::store::{Body, Put, Store};

    fn pack(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len().try_into().unwrap());
            header.set_mode(0o600);
            tar.append_data(&mut header, name, *content).unwrap();
        }
        tar.into_inner().unwrap()
    }

    /// As PGHoard takes it while the server cuts the relation `cut` and its log grows: the object
    /// of the relation is named by `digest` and holds `content`.
    fn shelve(store: &Local, digest: &str, content: &[u8]) {
        let put = |key: &str, body: &[u8], pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
            let metadata: Metadata = pairs.collect();
            let body = Body::Bytes(body);
            store.put(key, body, &metadata, Put::Create).unwrap();
        };
        let bundle = pack(&[("PG_VERSION", b"15\n"), ("log", b"grown"), (CONTROL, b"c")]);
        let file = |path: &str, size: u64| json!({ "relative_path": path, "file_size": size });
        let mut cut = file("base/1/1249", 8192);
        cut["hexdigest"] = json!(digest);
        let mut tiny = file("tiny", 9);
        tiny["content_b64"] = json!(STANDARD.encode("less"));
        let mut files = vec![cut, tiny];
        for (path, size) in [("PG_VERSION", 3), ("log", 2), (CONTROL, 1)] {
            let mut file = file(path, size);
            file["should_be_bundled"] = json!(true);
            files.push(file);
        }
        let description = json!({
            "chunks": [{ "chunk_filename": "b/1", "result_size": bundle.len() }],
            "manifest": { "snapshot_result": { "state": { "files": files } } },
        });
        let main = pack(&[(DESCRIPTION, description.to_string().as_bytes())]);
        put("s/basebackup_delta_chunk/b/1", &bundle, &[]);
        let key = format!("s/{DELTA_FILES}{digest}");
        put(&key, content, &[("original-file-size", "8192")]);
        put("s/basebackup/b", &main, &[("format", "pghoard-delta-v2")]);
    }

    const CONTROL: &str = "global/pg_control";

    #[test]
    fn s18_a_file_that_was_cut_while_a_delta_backup_was_taken_comes_back_as_it_was_read() {
        let recovery = Recovery {
            restore_command: vec!["true".to_owned()],
            role: Role::Primary,
            goal: Goal::End,
            action: None,
            timeline: "latest".to_owned(),
            primary_conninfo: String::new(),
            end_command: None,
        };
        let sites = json!({"backup_sites": {"s": {}}});
        let (config, _) = config::parse(&sites).unwrap();
        let digest = Algorithm::Blake2s.hex(b"what is left of it");
        for (content, says) in [
            ("what is left of it", None),
            ("what is left of I_", Some("another digest than its name")),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let store = Local::create(&folder.path().join("store")).unwrap();
            shelve(&store, &digest, content.as_bytes());
            let (store, keys) = (&store, &Keyring::default());
            let backups = choose::backups(&config.sites["s"], store).unwrap().backups;
            let target = folder.path().join("data");
            let order = Order {
                target: Request {
                    target_dir: target.clone(),
                    existing: Existing::Refuse,
                    tablespace_dirs: Vec::new(),
                    tablespace_base_dir: None,
                },
                recovery: recovery.clone(),
                preserve: None,
                threads: 1,
                status_file: None,
            };
            let told = run(&backups[0], &Source { store, keys }, &order).err();
            let told = told.map(|failure| failure.to_string());
            let fits = |says: &str| told.as_ref().is_some_and(|told| told.contains(says));
            assert!(says.map_or(told.is_none(), fits), "{told:?}");
            let read = |name: &str| std::fs::read_to_string(target.join(name)).unwrap();
            assert_eq!(read("base/1/1249"), content);
            assert_eq!(read("tiny"), "less");

            let wish = stream::Wish {
                recovery: recovery.clone(),
                tablespaces: BTreeMap::new(),
                script: stream::Script {
                    name: "script",
                    content: String::new(),
                },
            };
            let plan = stream::plan(&backups[0], Source { store, keys }, wish).unwrap();
            let failure = plan.write(&mut Vec::new()).unwrap_err().to_string();
            let expected = "base/1/1249 has 18 of 8192 bytes; hint: PGHoard saw it change \
                            meanwhile: restore with pghoard_restore";
            assert!(failure.ends_with(expected), "{failure}");
        }
    }
}
