//! On plain folders: what the loader would start, after whatever happens.

use std::fs;
use std::path::PathBuf;

use bundle::key::{PublicKey, SecretKey};
use bundle::release::Release;
use bundle::testing::program;
use bundle::writer;
use bundle::{PIECE, Version};
use pghoard::Outcome;

use super::change::{confirm, give_up, install, slot_back, way_back};
use super::esp::Esp;
use super::slots::{State, Tries, name, parse, told};

/// A partition, its files by name with the version and the log format of each.
struct Disk {
    folder: tempfile::TempDir,
    key: SecretKey,
}

/// More than one piece.
const BYTES: usize = PIECE + 1_000;

impl Disk {
    fn with(files: &[(&str, &str, u32)]) -> Disk {
        let disk = Disk {
            folder: tempfile::tempdir().unwrap(),
            key: SecretKey::generate().unwrap().0,
        };
        fs::create_dir_all(disk.programs()).unwrap();
        for (file, version, log) in files {
            fs::write(disk.programs().join(file), program(version, *log, BYTES)).unwrap();
        }
        disk
    }

    /// Of files told by version and counter.
    fn of(short: &str) -> Disk {
        let disk = Disk::with(&[]);
        disk.fill(short);
        disk
    }

    /// With these, and nothing of what was there.
    fn fill(&self, short: &str) {
        fs::remove_dir_all(self.programs()).unwrap();
        fs::create_dir(self.programs()).unwrap();
        for (name, short) in names(short).iter().zip(short.split(' ')) {
            let version = short.split('+').next().unwrap();
            fs::write(self.programs().join(name), program(version, 7, BYTES)).unwrap();
        }
    }

    fn programs(&self) -> PathBuf {
        self.folder.path().join("EFI/Linux")
    }

    fn esp(&self) -> Esp {
        Esp::at(self.folder.path())
    }

    fn keys(&self) -> Vec<PublicKey> {
        vec![self.key.public().unwrap()]
    }

    fn bundle(&self, version: &str, log: u32) -> PathBuf {
        let path = self.folder.path().join(format!("bundle-{version}"));
        let compatible = bundle::compatible(std::env::consts::ARCH);
        let bundle = writer::write(compatible, &program(version, log, BYTES)).unwrap();
        fs::write(&path, writer::sign(&bundle, &self.key).unwrap()).unwrap();
        path
    }

    fn install(&self, version: &str, log: u32, running: &Release) -> Outcome<Version> {
        let path = self.bundle(version, log);
        install(&self.esp(), &path, &self.keys(), running)
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.programs()).unwrap();
        let mut files: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        files
    }

    /// Versions in the loader's order; each is whole.
    fn order(&self) -> Vec<String> {
        let (slots, _) = self.esp().list().unwrap();
        let order = slots.iter().map(|slot| {
            let Release { version, log } = &slot.release;
            let bytes = fs::read(self.programs().join(&slot.file)).unwrap();
            let whole = bytes == program(&version.to_string(), *log, BYTES);
            assert!(whole, "'{}' would be started and is not whole", slot.file);
            version.to_string()
        });
        order.collect()
    }

    /// As the loader does it: takes the first, and counts.
    fn start(&self) -> Release {
        let (slots, _) = self.esp().list().unwrap();
        let first = &slots[0];
        if let Tries::Counted { left, done } = first.tries {
            let left = left.saturating_sub(1);
            let counted = Tries::Counted {
                left,
                done: done + 1,
            };
            let to = name(&first.release.version, counted);
            self.esp().rename(&first.file, &to).unwrap();
        }
        first.release.clone()
    }
}

fn running(version: &str, log: u32) -> Release {
    let version = version.parse().unwrap();
    Release { version, log }
}

#[test]
fn a_file_is_a_version_and_its_tries() {
    for (file, version, tries) in [
        ("pghoard-1.2.efi", "1.2", Tries::Confirmed),
        (
            "pghoard-1.2+3.efi",
            "1.2",
            Tries::Counted { left: 3, done: 0 },
        ),
        (
            "pghoard-1~rc1+0-3.efi",
            "1~rc1",
            Tries::Counted { left: 0, done: 3 },
        ),
    ] {
        assert_eq!(parse(file), Some((version.parse().unwrap(), tries)));
        assert_eq!(name(&version.parse().unwrap(), tries), file);
    }
    for file in [
        "linux.efi",
        "pghoard-1",
        "pghoard-x.efi",
        "pghoard-1+x.efi",
        "pghoard-1+3-.efi",
    ] {
        assert_eq!(parse(file), None, "{file}");
    }
}

#[test]
fn the_loader_takes_the_newest_that_has_tries_left() {
    for (files, order) in [
        ("1 2", "2 1"),
        ("9 10", "10 9"),
        ("1 2+3", "2 1"),
        ("1 2+0-3", "1 2"),
        ("1+0-3 2+0-3", "2 1"),
        ("1+2-1 2+0", "1 2"),
        ("1+0 2+0 3~rc1+1-2", "3~rc1 2 1"),
    ] {
        assert_eq!(Disk::of(files).order().join(" "), order, "{files}");
    }
}

#[test]
fn an_update_is_tried_then_kept() {
    let disk = Disk::with(&[("pghoard-1.efi", "1", 7), ("other.efi", "9", 7)]);
    let two = disk.install("2", 8, &running("1", 7)).unwrap();
    assert_eq!(two, "2".parse().unwrap());
    assert_eq!(
        disk.files(),
        ["other.efi", "pghoard-1.efi", "pghoard-2+3.efi"]
    );
    let started = disk.start();
    assert_eq!(started, running("2", 8));
    let (slots, _) = disk.esp().list().unwrap();
    let states = |running: &Release| -> Vec<(State, bool)> {
        let told = told(&slots, running);
        told.iter().map(|told| (told.state, told.booted)).collect()
    };
    assert_eq!(
        states(&started),
        [(State::Trying, true), (State::Confirmed, false)]
    );
    assert_eq!(
        serde_json::to_string(&told(&slots, &started)[0]).unwrap(),
        r#"{"version":"2","state":"trying","booted":true,"log":8}"#
    );
    let early = disk.install("3", 8, &started).unwrap_err().to_string();
    assert!(early.contains("version 2 is still being tried"), "{early}");
    for _ in 0..2 {
        confirm(&disk.esp(), &started).unwrap();
        assert_eq!(
            disk.files(),
            ["other.efi", "pghoard-1.efi", "pghoard-2.efi"]
        );
    }
    disk.install("3", 8, &started).unwrap();
    assert_eq!(
        disk.files(),
        ["other.efi", "pghoard-2.efi", "pghoard-3+3.efi"]
    );
}

#[test]
fn a_program_that_fails_gives_way_to_the_one_before_s_75() {
    let disk = Disk::with(&[("pghoard-1.efi", "1", 7)]);
    disk.install("2", 7, &running("1", 7)).unwrap();
    // It panics each time.
    let starts: Vec<String> = (0..5).map(|_| disk.start().version.to_string()).collect();
    assert_eq!(starts, ["2", "2", "2", "1", "1"]);
    // The same one again, after a repair, say.
    disk.install("2", 7, &running("1", 7)).unwrap();
    assert_eq!(disk.files(), ["pghoard-1.efi", "pghoard-2+3.efi"]);
    // It runs, but its daemon does not.
    let two = disk.start();
    let (slots, _) = disk.esp().list().unwrap();
    assert_eq!(way_back(&slots, &two), Some("1".parse().unwrap()));
    for _ in 0..2 {
        give_up(&disk.esp(), &two).unwrap();
        assert_eq!(disk.files(), ["pghoard-1.efi", "pghoard-2+0-1.efi"]);
    }
    assert_eq!(disk.start(), running("1", 7));
    disk.install("3", 7, &running("1", 7)).unwrap();
    assert_eq!(disk.files(), ["pghoard-1.efi", "pghoard-3+3.efi"]);
}

#[test]
fn a_person_may_go_back_and_the_other_one_is_tried_s_75() {
    let disk = Disk::with(&[("pghoard-1+0-3.efi", "1", 7), ("pghoard-2.efi", "2", 7)]);
    let two = disk.start();
    assert_eq!(slot_back(&disk.esp(), &two).unwrap(), "1".parse().unwrap());
    assert_eq!(disk.files(), ["pghoard-1+3.efi", "pghoard-2+0.efi"]);
    assert_eq!(slot_back(&disk.esp(), &two).unwrap(), "1".parse().unwrap());
    let one = disk.start();
    assert_eq!(one, running("1", 7));
    let (slots, _) = disk.esp().list().unwrap();
    assert_eq!(way_back(&slots, &one), Some("2".parse().unwrap()));
    // It fails, and the second comes again, though it is spent: from it there is no way back.
    let starts: Vec<String> = (0..4).map(|_| disk.start().version.to_string()).collect();
    assert_eq!(starts, ["1", "1", "2", "2"]);
    let (slots, _) = disk.esp().list().unwrap();
    assert_eq!(way_back(&slots, &two), None);
    confirm(&disk.esp(), &two).unwrap();
    assert_eq!(disk.files(), ["pghoard-1+0-3.efi", "pghoard-2.efi"]);
}

#[test]
fn what_would_lose_something_is_refused_and_changes_nothing_s_75() {
    let disk = Disk::with(&[("pghoard-1.efi", "1", 7), ("pghoard-2.efi", "2", 9)]);
    let two = running("2", 9);
    let before = disk.files();
    let told = |outcome: Outcome<Version>| outcome.unwrap_err().to_string();
    for (outcome, says) in [
        (
            slot_back(&disk.esp(), &two),
            "version 1 writes logs of format 7, the log here has 9",
        ),
        (disk.install("2", 9, &two), "version 2 runs already"),
        (
            disk.install("2~rc1", 9, &two),
            "version 2~rc1 is older than 2, which runs",
        ),
        (
            disk.install("3", 8, &two),
            "version 3 writes logs of format 8, the log here has 9",
        ),
        (
            disk.install("6", 9, &running("5", 9)),
            "version 5, which runs, is not on this disk",
        ),
        (
            slot_back(&disk.esp(), &running("5", 9)),
            "version 5, which runs, is not on this disk",
        ),
    ] {
        let told = told(outcome);
        assert!(told.contains(says), "'{says}' is not in '{told}'");
        assert_eq!(disk.files(), before);
    }
    let alone = Disk::with(&[("pghoard-2.efi", "2", 9)]);
    let none = told(slot_back(&alone.esp(), &two));
    assert!(none.contains("no other version"), "{none}");
}

#[test]
fn a_bad_bundle_costs_nothing() {
    let disk = Disk::with(&[("pghoard-1.efi", "1", 7), ("pghoard-2.efi", "2", 7)]);
    let two = running("2", 7);
    let path = disk.bundle("3", 7);
    let good = fs::read(&path).unwrap();
    let mut changed = good.clone();
    let middle = good.len() / 2;
    changed[middle] ^= 1;
    for (bundle, says) in [
        (changed.as_slice(), "program"),
        (&good[..middle], "bundle-3: the bundle is cut off"),
        (b"MZ", "bundle-3: is no update bundle"),
    ] {
        fs::write(&path, bundle).unwrap();
        let told = install(&disk.esp(), &path, &disk.keys(), &two)
            .unwrap_err()
            .to_string();
        assert!(told.contains(says), "'{says}' is not in '{told}'");
        assert_eq!(disk.files(), ["pghoard-1.efi", "pghoard-2.efi"]);
    }
    fs::write(&path, &good).unwrap();
    let other = Disk::with(&[]);
    let told = install(&disk.esp(), &path, &other.keys(), &two)
        .unwrap_err()
        .to_string();
    assert!(told.contains("not signed by a key"), "{told}");
    assert_eq!(disk.files(), ["pghoard-1.efi", "pghoard-2.efi"]);
}

#[test]
fn keys_are_those_of_the_image_and_of_the_settings() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("update.pub");
    let keys = |set: Option<&str>| super::keys(&image, set).map(|keys| keys.len());
    let key = || {
        SecretKey::generate()
            .unwrap()
            .0
            .public()
            .unwrap()
            .to_string()
    };
    assert_eq!(keys(None).unwrap(), 0);
    assert_eq!(keys(Some(&key())).unwrap(), 1);
    fs::write(&image, key() + "\n").unwrap();
    assert_eq!(keys(Some(&key())).unwrap(), 2);
    let told = keys(Some("abc")).unwrap_err().to_string();
    assert!(told.contains("expected 32 bytes in base64"), "{told}");
}

type Change = fn(&Disk, &Esp, &Release) -> Outcome<()>;

/// The power goes at every change of the disk, in the middle of it.
#[test]
fn a_cut_at_any_point_leaves_a_slot_that_starts_s_75() {
    let install_three: Change = |disk, esp, running| {
        let path = disk.folder.path().join("bundle-3");
        install(esp, &path, &disk.keys(), running).map(drop)
    };
    let back: Change = |_, esp, running| slot_back(esp, running).map(drop);
    let confirm: Change = |_, esp, running| confirm(esp, running);
    let give_up: Change = |_, esp, running| give_up(esp, running);
    let disk = Disk::of("1");
    disk.bundle("3", 7);
    for (change, files, next, end) in [
        (install_three, "1 2", "2 or 3", "2 3+3"),
        (install_three, "0.9 1 2", "2 or 3", "2 3+3"),
        (install_three, "3+0-3 2", "2 or 3", "2 3+3"),
        (confirm, "1 2+2-1", "2", "1 2"),
        (give_up, "1 2+2-1", "2 or 1", "1 2+0-1"),
        (back, "1 2", "2 or 1", "1+3 2+0"),
        (back, "1+0-3 2", "2 or 1", "1+3 2+0"),
    ] {
        for steps in 0.. {
            disk.fill(files);
            if cut(&disk, change, steps, next) {
                assert!(steps > 0, "something is changed");
                assert_eq!(disk.files(), names(end));
                break;
            }
            // Nothing is in the way of doing it again, unless it was done.
            let _done = change(&disk, &disk.esp(), &running("2", 7));
            assert_eq!(disk.files(), names(end), "{files}, cut at {steps}");
        }
    }
}

/// Whether the change got to its end before the power went, after so many steps.
fn cut(disk: &Disk, change: Change, steps: u32, next: &str) -> bool {
    let esp = disk.esp();
    esp.left.set(Some(steps));
    let outcome = change(disk, &esp, &running("2", 7));
    let order = disk.order();
    let may: Vec<&str> = next.split(" or ").collect();
    assert!(
        may.contains(&order[0].as_str()),
        "cut at {steps}: {order:?}"
    );
    assert!(order.contains(&"2".to_owned()), "cut at {steps}: {order:?}");
    outcome.is_ok()
}

fn names(short: &str) -> Vec<String> {
    let names = short.split(' ').map(|short| format!("pghoard-{short}.efi"));
    names.collect()
}
