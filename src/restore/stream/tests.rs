//! A basebackup as a tar: what is in it, in which order, and what a broken one lacks.

use serde_json::json;
use tar::Builder;

use super::*;
use crate::codec::keys::Keyring;
use crate::config::{self, Config};
use crate::restore::choose::{self, Goal};
use crate::restore::recovery::Role;
use crate::store::local::Local;
use crate::store::{Body, Metadata, Put, Store};

const FAR: &str =
    "a-name-of-more-than-a-hundred-characters-as-no-file-of-a-cluster-has-but-a-person-may";

struct World {
    _folder: tempfile::TempDir,
    store: Local,
    keys: Keyring,
    config: Config,
}

fn pack(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = Header::new_gnu();
        header.set_size(content.len().try_into().unwrap());
        header.set_mode(0o640);
        header.set_mtime(7);
        let folder = name.ends_with('/');
        header.set_entry_type(match folder {
            true => EntryType::Directory,
            false => EntryType::Regular,
        });
        tar.append_data(&mut header, name, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

/// As PostgreSQL writes it, of one file.
fn manifest(path: &str, content: &[u8]) -> String {
    let (size, sum) = (content.len(), crc32c::crc32c(content).to_le_bytes());
    let start = format!(
        "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{{ \"Path\": \"{path}\", \
         \"Size\": {size}, \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }}\n],\n",
        hex::encode(sum)
    );
    let own = crate::codec::digest::Algorithm::Sha256.hex(start.as_bytes());
    format!("{start}\"Manifest-Checksum\": \"{own}\"}}\n")
}

impl World {
    /// A backup whose manifest promises `promised` of a file, and whose metadata says `version`.
    fn new(promised: &[u8], version: &str) -> World {
        let folder = tempfile::tempdir().unwrap();
        let store = Local::create(&folder.path().join("store")).unwrap();
        let far = format!("pgdata/{FAR}/{FAR}");
        let chunk = pack(&[
            ("pgdata/pg_log/", b""),
            ("pgdata/PG_VERSION", b"15\n"),
            ("pgdata/base/1/1249", b"123456789"),
            (
                "pgdata/postgresql.auto.conf",
                b"work_mem = '1MB'\nrestore_command = 'old'\n",
            ),
            ("pgdata/standby.signal", b""),
            ("tablespaces/ts/PG_15/5/1", b"far"),
            (&far, b"long"),
        ]);
        let description = json!({
            "tablespaces": { "ts": { "path": "/old", "oid": 16_384 } },
            "chunks": [{
                "chunk_filename": "b/b.00000001.pghoard",
                "result_size": chunk.len(),
                "input_size": chunk.len(),
            }],
        });
        let main = pack(&[
            (layout::DESCRIPTION, description.to_string().as_bytes()),
            ("pgdata/global/pg_control", b"control"),
            (
                "pgdata/backup_manifest",
                manifest("base/1/1249", promised).as_bytes(),
            ),
        ]);
        let put = |key: &str, body: &[u8], metadata: Metadata| {
            store
                .put(key, Body::Bytes(body), &metadata, Put::Create)
                .unwrap();
        };
        put(
            "s/basebackup_chunk/b/b.00000001.pghoard",
            &chunk,
            Metadata::new(),
        );
        let pairs = [("format", "pghoard-bb-v2"), ("pg-version", version)];
        let metadata = pairs.map(|(k, v)| (k.to_owned(), v.to_owned()));
        put("s/basebackup/b.00000000.pghoard", &main, metadata.into());
        World {
            _folder: folder,
            store,
            keys: Keyring::default(),
            config: config::parse(&json!({"backup_sites": {"s": {}}}))
                .unwrap()
                .0,
        }
    }

    /// The stream, and how it ended.
    fn stream(&self, spaces: &[(&str, &str)]) -> (Vec<u8>, Outcome<()>) {
        let wish = Wish {
            recovery: Recovery {
                restore_command: ["sh", "script", "%f", "%p"].map(str::to_owned).to_vec(),
                role: Role::Primary,
                goal: Goal::Immediate,
                action: None,
                timeline: "latest".to_owned(),
                primary_conninfo: String::new(),
                end_command: None,
            },
            tablespaces: spaces
                .iter()
                .map(|(k, v)| ((*k).into(), v.into()))
                .collect(),
            script: Script {
                name: "script",
                content: "#!/bin/sh\n".to_owned(),
            },
        };
        let backups = choose::backups(&self.config.sites["s"], &self.store)
            .unwrap()
            .backups;
        let source = Source {
            store: &self.store,
            keys: &self.keys,
        };
        let mut out = Vec::new();
        let done = plan(&backups[0], source, wish).and_then(|plan| plan.write(&mut out));
        (out, done)
    }
}

/// Name, mode, content or where a link leads.
fn members(tar: &[u8]) -> Vec<(String, u32, String)> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            let mut entry = entry.unwrap();
            let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let mode = entry.header().mode().unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            if let Some(link) = entry.link_name().unwrap() {
                content = link.display().to_string();
            }
            (name, mode, content)
        })
        .collect()
}

#[test]
fn everything_is_in_it_and_pg_control_comes_last() {
    let world = World::new(b"123456789", "150004");
    let (tar, done) = world.stream(&[("ts", "/mnt/new")]);
    done.unwrap();
    assert_eq!(tar.len() % 512, 0);
    assert!(tar.ends_with(&[0; 1024]));
    let members = members(&tar);
    let find = |name: &str| {
        let mut found = members.iter().filter(|(known, ..)| known == name);
        let first = found.next();
        assert!(found.next().is_none(), "{name} is there twice");
        first.map(|(_, mode, content)| (*mode, content.as_str()))
    };
    assert_eq!(members[0], ("./".to_owned(), 0o700, String::new()));
    assert_eq!(members.last().unwrap().0, CONTROL);
    let far = format!("{FAR}/{FAR}");
    for (name, expected) in [
        (CONTROL, Some((0o600, "control"))),
        ("PG_VERSION", Some((0o640, "15\n"))),
        ("base/1/1249", Some((0o640, "123456789"))),
        ("/mnt/new/PG_15/5/1", Some((0o640, "far"))),
        ("/mnt/new/", Some((0o700, ""))),
        ("/mnt/", None),
        ("pg_tblspc/16384", Some((0o777, "/mnt/new"))),
        (&far, Some((0o640, "long"))),
        ("script", Some((0o700, "#!/bin/sh\n"))),
        ("recovery.signal", Some((0o600, ""))),
        ("standby.signal", None),
        ("pg_log/", None),
        ("pg_wal/archive_status/", Some((0o700, ""))),
        (layout::DESCRIPTION, None),
    ] {
        assert_eq!(find(name), expected, "{name}");
    }
    let (_, auto) = find(AUTO_CONF).unwrap();
    assert!(auto.starts_with("work_mem = '1MB'\n"), "{auto}");
    assert!(
        auto.contains("restore_command = 'sh script %f %p'\n"),
        "{auto}"
    );
    assert!(!auto.contains("old"), "{auto}");
}

#[test]
fn s18_what_is_damaged_ends_without_pg_control() {
    let damaged = World::new(b"12345678_", "150004");
    let lost = World::new(b"123456789", "150004");
    lost.store
        .delete("s/basebackup_chunk/b/b.00000001.pghoard")
        .unwrap();
    for (world, says) in [
        (&damaged, "base/1/1249 has another checksum"),
        (&lost, "b.00000001.pghoard not found"),
    ] {
        let (tar, done) = world.stream(&[("ts", "/mnt/new")]);
        let failure = done.unwrap_err();
        assert!(failure.message.contains(says), "{failure}");
        assert!(!tar.is_empty() && !tar.ends_with(&[0; 1024]));
        let mut archive = tar::Archive::new(tar.as_slice());
        let names = archive.entries().unwrap().map_while(Result::ok);
        let names: Vec<_> = names.map(|e| e.path_bytes().into_owned()).collect();
        assert!(names.iter().all(|name| name != CONTROL.as_bytes()));
    }
}

#[test]
fn s50_a_tablespace_without_a_place_is_refused_before_the_first_byte() {
    let world = World::new(b"123456789", "150004");
    for (spaces, says) in [
        (&[][..], "tablespace 'ts' (it was at /old) has no place"),
        (
            &[("ts", "relative")],
            "tablespace 'ts': expected an absolute directory",
        ),
        (
            &[("ts", "/")],
            "tablespace 'ts': expected an absolute directory",
        ),
        (
            &[("ts", "/a/../b")],
            "tablespace 'ts': expected an absolute directory",
        ),
        (
            &[("ts", "/a"), ("other", "/b")],
            "the backup has no tablespace 'other'",
        ),
    ] {
        let (tar, done) = world.stream(spaces);
        let failure = done.unwrap_err();
        assert_eq!(
            (failure.class, failure.message.as_str()),
            (Class::Config, says)
        );
        assert!(tar.is_empty());
    }
    let old = World::new(b"123456789", "110012");
    let (tar, done) = old.stream(&[("ts", "/mnt/new")]);
    assert!(tar.is_empty() && done.unwrap_err().message.contains("before 12"));
}
