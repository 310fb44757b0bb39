//! Backups that PGHoard made come back file by file, and lists look as PGHoard prints them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use machine::SegmentSize;
use pghoard::Outcome;
use pghoard::codec::digest::Algorithm;
use pghoard::codec::keys::Keyring;
use pghoard::config::{self, Config};
use pghoard::restore::choose::{self, Goal};
use pghoard::restore::list::{self, Detail, Row};
use pghoard::restore::recovery::{Recovery, Role};
use pghoard::restore::target::{Existing, Request};
use pghoard::restore::wal::{self, Delivery, Places, Shelf};
use pghoard::restore::{Backup, Notes, Order, Source};
use pghoard::store::choose::{Missing, store};
use pghoard::store::{Entry, Store};
use serde_json::{Value, json};

use super::path;

struct Run {
    config: Config,
    store: Box<dyn Store>,
    keys: Keyring,
}

impl Run {
    fn open(directory: &Path) -> Run {
        let keys: Value = serde_json::from_slice(&fs::read(path("keys.json")).unwrap()).unwrap();
        let storage = json!({"storage_type": "local", "directory": directory});
        let mut sites = keys;
        sites["backup_sites"]["golden"]["object_storage"] = storage;
        let (config, warnings) = config::parse(&sites).unwrap();
        assert_eq!(warnings, []);
        let site = &config.sites["golden"];
        Run {
            store: store(site.storage().unwrap(), Missing::Refuse).unwrap(),
            keys: site.keyring().unwrap(),
            config,
        }
    }

    fn backups(&self) -> Vec<Backup<'_>> {
        choose::backups(&self.config.sites["golden"], self.store.as_ref())
            .unwrap()
            .backups
    }

    fn restore(&self, wanted: &str, order: &Order) -> Outcome<Notes> {
        let backups = self.backups();
        let size = SegmentSize::DEFAULT;
        let backup = choose::choose(&backups, wanted, &Goal::End, size)?;
        let source = Source {
            store: self.store.as_ref(),
            keys: &self.keys,
        };
        pghoard::restore::run(backup, &source, order)
    }
}

fn order(target: &Path, existing: Existing, spaces: &[String]) -> Order {
    Order {
        target: Request {
            target_dir: target.to_owned(),
            existing,
            tablespace_dirs: spaces.to_vec(),
            tablespace_base_dir: None,
        },
        recovery: Recovery {
            restore_command: vec!["true".to_owned()],
            role: Role::Primary,
            goal: Goal::End,
            action: None,
            timeline: "latest".to_owned(),
            primary_conninfo: String::new(),
            end_command: None,
        },
        preserve: None,
        threads: 2,
        status_file: None,
    }
}

#[test]
fn s53_every_run_comes_back_file_by_file() {
    for (run, backup) in [
        ("basic-snappy", None),
        ("pipe-zstd-enc", None),
        ("local-tar-zstd-enc", None),
        ("local-tar-delta-stats-lzma", None),
        ("delta-zstd-enc", Some("2026-11-22_09-28_0")),
        ("delta-zstd-enc", Some("2026-11-22_09-29_0")),
    ] {
        check_run(run, backup);
    }
}

fn check_run(run: &str, backup: Option<&str>) {
    let folder = tempfile::tempdir().unwrap();
    let (target, space) = (folder.path().join("data"), folder.path().join("space"));
    fs::create_dir(&space).unwrap();
    let spaces = match run.starts_with("local-tar") {
        true => vec![format!("tsone={}", space.display())],
        false => vec![],
    };
    let wanted = backup.map_or("latest".to_owned(), |name| {
        format!("golden/basebackup/{name}.00000000.pghoard")
    });
    let store = path("storage").join(run);
    let order = order(&target, Existing::Refuse, &spaces);
    let notes = Run::open(&store).restore(&wanted, &order).unwrap();
    assert_eq!(notes.strays, []);

    let expected = match backup {
        Some(name) => format!("expected/{run}-{name}.sha256"),
        None => format!("expected/{run}.sha256"),
    };
    let expected: BTreeMap<String, String> = fs::read_to_string(path(&expected))
        .unwrap()
        .lines()
        .map(|line| line.split_once("  ").unwrap())
        .map(|(digest, name)| (name.to_owned(), digest.to_owned()))
        .collect();
    let mut found = digests(&target, "");
    found.extend(digests(&space, "<tablespace tsone>/"));
    assert_eq!(
        found.remove("recovery.signal"),
        Some(Algorithm::Sha256.hex(b""))
    );
    assert!(found.remove("postgresql.auto.conf").is_some());
    assert_eq!(found, expected, "{run}");
    if !spaces.is_empty() {
        let link = fs::read_link(target.join("pg_tblspc/16795")).unwrap();
        assert_eq!(link, space);
    }
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&target), mode(&target.join("base"))),
        (0o700, 0o700),
        "{run}"
    );
    assert_eq!(mode(&target.join("global/pg_control")), 0o600, "{run}");
    assert!(target.join("pg_wal/archive_status").is_dir());
    assert!(!target.join("pg_xlog").exists());
}

#[test]
fn s49_a_failed_restore_leaves_nothing_that_starts() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("store");
    let all = path("storage/delta-zstd-enc");
    copy_tree(&all, &copy);
    let blobs = copy.join("golden/basebackup_delta");
    let blob = blobs.join("041a2225ba75780c8cfda82d479665bc637653f3e343449e68b753c3759be6cc");
    let whole = fs::read(&blob).unwrap();
    let mut bad = whole.clone();
    bad[9000] ^= 1;
    let target = folder.path().join("data");
    let restore = || {
        let order = order(&target, Existing::Overwrite, &[]);
        Run::open(&copy).restore("latest", &order)
    };
    for damaged in [Some(&bad[..]), Some(&whole[..whole.len() - 1]), None] {
        match damaged {
            Some(bytes) => fs::write(&blob, bytes).unwrap(),
            None => fs::remove_file(&blob).unwrap(),
        }
        let failure = restore().unwrap_err();
        assert!(
            failure.message.contains("basebackup_delta/041a2225"),
            "{failure}"
        );
        assert!(target.join("PG_VERSION").exists());
        assert!(!target.join("global/pg_control").exists());
    }
    fs::write(&blob, &whole).unwrap();
    restore().unwrap();
    assert!(target.join("global/pg_control").exists());
}

#[test]
fn every_segment_and_history_file_is_delivered_whole() {
    let mut delivered = 0;
    for run in fs::read_dir(path("storage")).unwrap() {
        let run = run.unwrap().path();
        let opened = Run::open(&run);
        for folder in ["golden/xlog", "golden/timeline"] {
            let mut names = Vec::new();
            let mut visit = |entry: Entry| {
                names.push(entry.key.rsplit('/').next().unwrap().to_owned());
                Ok(())
            };
            opened.store.list(folder, &mut visit).unwrap();
            delivered += names.len();
            names.iter().for_each(|name| check_delivery(&opened, name));
        }
    }
    assert_eq!(delivered, 14);
}

fn check_delivery(run: &Run, name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("RECOVERYXLOG");
    let source = Source {
        store: run.store.as_ref(),
        keys: &run.keys,
    };
    let shelf = Shelf {
        prefix: "golden".to_owned(),
        source,
    };
    let places = Places {
        stores: vec![shelf],
        spools: Vec::new(),
        cluster: None,
    };
    assert_eq!(
        wal::fetch(&places, name, &output),
        Ok(Delivery::Full),
        "{name}"
    );
    let size = fs::metadata(&output).unwrap().len();
    assert_eq!(size == 16 << 20, !name.ends_with(".history"), "{name}");
}

#[test]
fn lists_are_pghoards_byte_for_byte() {
    for run in ["basic-snappy", "delta-zstd-enc", "local-tar-zstd-enc"] {
        let opened = Run::open(&path("storage").join(run));
        let backups = opened.backups();
        for (detail, sample) in [(Detail::Plain, "list"), (Detail::Verbose, "list-verbose")] {
            let rows = backups.iter().map(Row::from);
            let text = list::render("Available 'golden' basebackups:", rows, detail);
            let expected = path("samples").join(format!("{sample}-{run}.txt"));
            assert_eq!(text, fs::read_to_string(expected).unwrap());
        }
    }
}

pub fn digests(root: &Path, prefix: &str) -> BTreeMap<String, String> {
    files(root)
        .into_iter()
        .map(|file| {
            let name = file.strip_prefix(root).unwrap().display();
            let digest = Algorithm::Sha256.hex(&fs::read(&file).unwrap());
            (format!("{prefix}{name}"), digest)
        })
        .collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let items = fs::read_dir(folder).unwrap().map(|item| item.unwrap());
    items
        .flat_map(|item| match item.file_type().unwrap() {
            kind if kind.is_dir() => files(&item.path()),
            kind if kind.is_file() => vec![item.path()],
            _ => vec![],
        })
        .collect()
}

pub fn copy_tree(from: &Path, to: &Path) {
    for file in files(from) {
        let copy = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(&file, &copy).unwrap();
    }
}
