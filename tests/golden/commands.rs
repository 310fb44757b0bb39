//! The binary under all of its names: versions, usage, and what it does to trees PGHoard made.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use pghoard::codec;
use serde_json::json;

use super::restore::{copy_tree, digests};
use super::{keyring, metadata, path};

/// Exit code and what was said on both streams.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn call(program: impl AsRef<OsStr>, words: &[&str], input: &[u8]) -> Said {
    let mut child = Command::new(program)
        .args(words)
        .env_remove("PGHOARD_CONFIG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that wants no input may have ended by now.
    let _unread = stdin.write_all(input);
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_pghoard");

const NAMES: [&str; 7] = [
    "pghoard_archive_cleanup",
    "pghoard_archive_sync",
    "pghoard_create_keys",
    "pghoard_gnutaremu",
    "pghoard_postgres_command",
    "pghoard_postgres_command_go",
    "pghoard_restore",
];

#[test]
fn every_name_has_its_link_and_prints_the_version_alone() {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().to_str().unwrap();
    let made = call(PROGRAM, &["install-links", bin], b"");
    assert_eq!((made.code, made.err.as_str()), (Some(0), ""), "{made:?}");
    let again = call(PROGRAM, &["install-links", bin], b"");
    assert_eq!(again.out.matches(" is there\n").count(), NAMES.len());
    let version = || Said {
        code: Some(0),
        out: concat!(env!("CARGO_PKG_VERSION"), "\n").to_owned(),
        err: String::new(),
    };
    assert_eq!(call(PROGRAM, &["--version"], b""), version());
    assert_eq!(call(PROGRAM, &["status", "--version"], b""), version());
    for name in NAMES {
        let link = folder.path().join(name);
        let mut said = call(&link, &["--version"], b"");
        // Only this one says who it is.
        if let Some(rest) = said.out.strip_prefix("pghoard_postgres_command_go ") {
            said.out = rest.to_owned();
        }
        assert_eq!(said, version(), "{name}");
        let help = call(&link, &["--help"], b"");
        assert_eq!((help.code, help.err.as_str()), (Some(0), ""), "{name}");
        assert!(help.out.contains("Usage: "), "{name}");
    }
    fs::remove_file(folder.path().join(NAMES[0])).unwrap();
    fs::write(folder.path().join(NAMES[0]), "PGHoard's").unwrap();
    let refused = call(PROGRAM, &["install-links", bin], b"");
    assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""));
    assert!(refused.err.contains("--force replaces it"), "{refused:?}");
    assert_eq!(
        call(PROGRAM, &["install-links", "--force", bin], b"").code,
        Some(0)
    );
    assert_eq!(
        call(folder.path().join(NAMES[0]), &["--version"], b""),
        version()
    );
}

#[test]
fn a_wrong_command_line_gets_the_usage_on_standard_error() {
    for (words, code) in [
        (&["--unknown"][..], 2),
        (&["archive-cleanup", "--unknown"], 2),
        (&["archive-cleanup", "--dry-run=yes"], 2),
        (&["archive-cleanup", "--s"], 2),
        (&["archive-sync", "--max-hash-checks", "many"], 2),
        (&["create-keys"], 2),
        (&["gnutaremu", "-f", "-"], 2),
        (&["install-links"], 2),
        (&["restore", "get-basebackup", "--config", "/c"], 2),
        (&["restore", "list-basebackups-http"], 2),
        (
            &[
                "restore",
                "list-basebackups-http",
                "--site",
                "s",
                "--port",
                "x",
            ],
            2,
        ),
        // PGHoard says 5, which PostgreSQL takes for the end of the archive.
        (&["postgres-command", "--mode", "restore"], 255),
        (&["postgres-command", "--mode", "archive"], 2),
    ] {
        let said = call(PROGRAM, words, b"");
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(code), ""),
            "{words:?}"
        );
        assert!(said.err.contains("Usage: "), "{words:?} {said:?}");
    }
}

/// PGHoard prints some of these to standard output.
#[test]
fn differs_errors_go_to_standard_error() {
    let none = "pghoard: config file path must be given with --config or via env PGHOARD_CONFIG\n";
    let absent = "FATAL: InvalidConfigurationError: Configuration file '/nowhere/c.json' does not \
                  exist\n";
    for (words, said) in [
        (&["-D", "-s"][..], none),
        (
            &["/nowhere/c.json"],
            "pghoard: '/nowhere/c.json' doesn't exist\n",
        ),
        (&["archive-cleanup"], none),
        (&["archive-sync", "-D"], none),
        (&["archive-cleanup", "--conf", "/nowhere/c.json"], absent),
        (&["archive-sync", "--config=/nowhere/c.json"], absent),
    ] {
        let expect = Said {
            code: Some(1),
            out: String::new(),
            err: said.to_owned(),
        };
        assert_eq!(call(PROGRAM, words, b""), expect, "{words:?}");
    }
}

/// A tree of PGHoard's, copied, and a configuration for it.
fn tree(run: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    copy_tree(&path("storage").join(run), &store);
    let storage = json!({ "storage_type": "local", "directory": store });
    let config = json!({ "backup_sites": { "golden": { "object_storage": storage } } });
    let file = folder.path().join("c.json");
    fs::write(&file, config.to_string()).unwrap();
    let file = file.to_str().unwrap().to_owned();
    (folder, file)
}

#[test]
fn archive_cleanup_keeps_what_the_oldest_basebackup_needs() {
    let (folder, config) = tree("delta-zstd-enc");
    let golden = folder.path().join("store/golden");
    let cleanup = |more: &[&str]| {
        let words = ["archive-cleanup", "--config", &config];
        call(PROGRAM, &[&words[..], more].concat(), b"")
    };
    let nothing = "Total orphan WAL segments size is 0 bytes\n";
    let said = cleanup(&[]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), nothing));
    // Retention of another program took the first basebackup and left its WAL.
    let first = golden.join("basebackup/2026-11-22_09-28_0.00000000.pghoard");
    fs::remove_file(&first).unwrap();
    fs::remove_file(first.with_extension("pghoard.metadata")).unwrap();
    let told = |what: &str| {
        format!(
            "{what} orphan WAL segment golden/xlog/000000010000000000000031 (1086 bytes)\n\
             {what} orphan WAL segment golden/xlog/000000010000000000000032 (1029 bytes)\n\
             {what} orphan WAL segment golden/xlog/000000010000000000000033 (5946 bytes)\n\
             Total orphan WAL segments size is 8061 bytes\n"
        )
    };
    let left = || fs::read_dir(golden.join("xlog")).unwrap().count();
    for (words, expect, files) in [
        (
            &["--dry-run", "--site", "golden"][..],
            told("Would delete"),
            10,
        ),
        (&[], told("Deleting"), 4),
        (&[], nothing.to_owned(), 4),
    ] {
        let expect = Said {
            code: Some(0),
            out: String::new(),
            err: expect,
        };
        assert_eq!(cleanup(words), expect, "{words:?}");
        assert_eq!(left(), files, "{words:?}");
    }
    assert!(!golden.join("daemon_lease").exists());
    assert!(golden.join("xlog/000000010000000000000034").exists());
}

/// PGHoard ends with a traceback.
#[test]
fn differs_archive_cleanup_says_that_there_is_no_basebackup() {
    let (folder, config) = tree("timeline-zstd-enc");
    let words = ["archive-cleanup", "--config", &config];
    let said = call(PROGRAM, &words, b"");
    let told = "FATAL: there is no basebackup in 'golden/basebackup'; hint: nothing says which \
                WAL is needed, so none was touched\n";
    assert_eq!((said.code, said.err.as_str()), (Some(1), told));
    let history = folder.path().join("store/golden/timeline/00000002.history");
    assert!(history.exists());
}

/// As PGHoard's own restore runs it: one archive a chunk, from standard input.
#[test]
fn gnutaremu_restores_what_pghoard_packed() {
    let folder = tempfile::tempdir().unwrap();
    let (data, space) = (folder.path().join("data"), folder.path().join("space"));
    fs::create_dir(&data).unwrap();
    fs::create_dir(&space).unwrap();
    let to = format!(r"s,^tablespaces/tsone/\(.*\)$,{}/\1,", space.display());
    let golden = path("storage/local-tar-zstd-enc/golden");
    let mut chunks = 0;
    for part in ["basebackup", "basebackup_chunk/2026-11-22_09-28_0"] {
        for entry in fs::read_dir(golden.join(part)).unwrap() {
            let object = entry.unwrap().path();
            if object.extension() == Some(OsStr::new("metadata")) {
                continue;
            }
            let words = [
                "gnutaremu",
                "-xf",
                "-",
                "-C",
                data.to_str().unwrap(),
                "--exclude",
                ".pghoard_tar_metadata.json",
                "--transform",
                "s,^pgdata/,,",
                "--absolute-names",
                "--transform",
                &to,
            ];
            let said = call(PROGRAM, &words, &plain(&object));
            assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
            chunks += 1;
        }
    }
    assert_eq!(chunks, 4);
    let listed = fs::read_to_string(path("expected/local-tar-zstd-enc.sha256")).unwrap();
    let lines = listed.lines().map(|line| line.split_once("  ").unwrap());
    let expect: BTreeMap<String, String> = lines
        .map(|(digest, name)| (name.to_owned(), digest.to_owned()))
        .collect();
    let mut found = digests(&data, "");
    found.extend(digests(&space, "<tablespace tsone>/"));
    // A restore makes no use of the first, and writes the second itself.
    found.remove("tablespace_map");
    assert!(found.remove("postgresql.auto.conf").is_some());
    let differs = found
        .iter()
        .filter(|(name, digest)| expect.get(*name) != Some(*digest));
    assert_eq!(
        differs.map(|(name, _)| name).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
    assert_eq!(found.len(), expect.len());
}

fn plain(object: &Path) -> Vec<u8> {
    let stored = fs::read(object).unwrap();
    let size = stored.len().try_into().unwrap();
    let stored = std::io::Cursor::new(stored);
    let reader = codec::decoder(stored, size, &metadata(object), &keyring());
    let mut plain = Vec::new();
    reader.unwrap().read_to_end(&mut plain).unwrap();
    plain
}

/// Nothing is known of a store that is not there: an unmounted disk must not look empty.
#[test]
fn a_store_that_is_not_mounted_is_an_error() {
    let (folder, config) = tree("basic-snappy");
    fs::rename(folder.path().join("store"), folder.path().join("away")).unwrap();
    let said = call(PROGRAM, &["archive-cleanup", "--config", &config], b"");
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{said:?}");
    let listed = call(
        PROGRAM,
        &["restore", "list-basebackups", "--config", &config],
        b"",
    );
    assert_eq!(listed.code, Some(1), "{listed:?}");
}
