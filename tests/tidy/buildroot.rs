//! The external Buildroot tree: its form, the symbols it uses, and, where `BUILDROOT` names a
//! checkout, whether that one accepts it.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use sha2::{Digest, Sha256};

use crate::{Text, none, read, texts, top};

#[path = "../support/skip.rs"]
mod skip;

const DEFCONFIGS: [&str; 2] = ["pghoard_x86_64_defconfig", "pghoard_aarch64_defconfig"];
const PACKAGES: [&str; 2] = ["pghoard", "pghoard-efi"];

/// How Buildroot names this tree in its variables.
const NAME: &str = "PGHOARD_APPLIANCE";

/// Which option of the kernel builds in what the image wants as a module.
const OPTIONS: &[(&str, &str)] = &[
    ("virtio_pci", "VIRTIO_PCI"),
    ("virtio_blk", "VIRTIO_BLK"),
    ("virtio_scsi", "SCSI_VIRTIO"),
    ("sd_mod", "BLK_DEV_SD"),
    ("sr_mod", "BLK_DEV_SR"),
    ("virtio_net", "VIRTIO_NET"),
    ("virtio_console", "VIRTIO_CONSOLE"),
    ("virtio_rng", "HW_RANDOM_VIRTIO"),
    ("vfat", "VFAT_FS"),
    ("nls_cp437", "NLS_CODEPAGE_437"),
    ("nls_ascii", "NLS_ASCII"),
    ("isofs", "ISO9660_FS"),
    ("efivarfs", "EFIVAR_FS"),
    ("button", "ACPI_BUTTON"),
    ("evdev", "INPUT_EVDEV"),
    ("softdog", "SOFT_WATCHDOG"),
];

fn tree() -> PathBuf {
    top().join("buildroot")
}

/// The files that Buildroot reads.
fn files() -> Vec<Text> {
    let read_by_buildroot = |text: &Text| {
        let inside = text.path.starts_with("buildroot/");
        inside && ![".md", ".txt"].iter().any(|end| text.path.ends_with(end))
    };
    texts().into_iter().filter(read_by_buildroot).collect()
}

#[test]
fn the_tree_has_the_form_that_buildroot_asks_for() {
    let desc = read("buildroot/external.desc").content;
    assert!(desc.starts_with(&format!("name: {NAME}\ndesc: ")), "{desc}");
    let mk = read("buildroot/external.mk").content;
    assert!(
        mk.contains(&format!("$(BR2_EXTERNAL_{NAME}_PATH)/package/*/*.mk")),
        "{mk}"
    );
    let menu = read("buildroot/Config.in").content;
    for package in PACKAGES {
        let place = format!("/package/{package}/Config.in\"\n");
        assert!(menu.contains(&place), "Config.in does not name {package}");
        let symbol = format!(
            "config BR2_PACKAGE_{}\n",
            package.to_uppercase().replace('-', "_")
        );
        let config = read(&format!("buildroot/package/{package}/Config.in")).content;
        assert!(config.starts_with(&symbol), "{package}/Config.in");
        let mk = read(&format!("buildroot/package/{package}/{package}.mk")).content;
        let head = format!("{0}\n#\n# {package}\n#\n{0}\n", "#".repeat(80));
        assert!(mk.starts_with(&head), "{package}.mk");
        assert!(
            mk.contains("\n$(eval $("),
            "{package}.mk defines no package"
        );
    }
    let mut found = Vec::new();
    for text in files() {
        for (number, line) in text.lines() {
            let Some((_, rest)) = line.split_once(&format!("(BR2_EXTERNAL_{NAME}_PATH)/")) else {
                continue;
            };
            let path = rest.split(['"', ')', ' ']).next().unwrap();
            if !path.contains('*') && path != ".." && !tree().join(path).exists() {
                found.push(format!("{}:{number}: {path} is not there", text.path));
            }
        }
        if text.is_script() {
            let mode = fs::metadata(top().join(&text.path))
                .unwrap()
                .permissions()
                .mode();
            assert!(mode & 0o111 == 0o111, "{}: cannot be run", text.path);
        }
    }
    none(found);
}

#[test]
fn version_and_digest_are_those_of_this_repository() {
    let version = env!("CARGO_PKG_VERSION");
    let mk = read("buildroot/package/pghoard/pghoard.mk").content;
    assert!(
        mk.contains(&format!("\nPGHOARD_VERSION = {version}\n")),
        "pghoard.mk"
    );
    let digest = hex::encode(Sha256::digest(fs::read(top().join("LICENSE")).unwrap()));
    let hash = read("buildroot/package/pghoard/pghoard.hash").content;
    assert!(
        hash.ends_with(&format!("\nsha256  {digest}  LICENSE\n")),
        "{hash}"
    );
}

/// Symbols of Buildroot in the order of their names, with the file that defines each.
fn listed() -> Vec<(String, String)> {
    let list = read("buildroot/symbols.txt").content;
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    let pair = |line: &str| {
        let (symbol, place) = line.split_once(' ').unwrap_or_else(|| panic!("{line}"));
        (symbol.to_owned(), place.trim().to_owned())
    };
    lines.map(pair).collect()
}

#[test]
fn every_symbol_that_is_used_is_listed_and_the_other_way_round() {
    let mut used = BTreeSet::new();
    for text in files() {
        let words = text
            .content
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let symbols = words.filter(|word| word.starts_with("BR2_") && !word.contains("PGHOARD"));
        used.extend(symbols.map(str::to_owned));
    }
    let listed: Vec<String> = listed().into_iter().map(|(symbol, _)| symbol).collect();
    assert_eq!(listed, used.into_iter().collect::<Vec<_>>());
}

#[test]
fn the_kernel_has_what_the_image_wants() {
    let is_list = |text: &&Text| text.path.ends_with("/modules.rs");
    let texts = texts();
    let list = texts
        .iter()
        .find(is_list)
        .expect("the image's list of modules");
    let after = list
        .content
        .split("const REQUIRED: [&str; ")
        .nth(1)
        .expect("REQUIRED");
    let inside = after.split("];").next().unwrap();
    let wanted: Vec<&str> = inside.split('"').skip(1).step_by(2).collect();
    let known: Vec<&str> = OPTIONS.iter().map(|(module, _)| *module).collect();
    assert_eq!(wanted, known);
    let config = read("buildroot/board/pghoard/linux.config").content;
    for (module, option) in OPTIONS {
        let line = format!("\nCONFIG_{option}=y\n");
        assert!(config.contains(&line), "{module}: linux.config lacks{line}");
    }
}

#[test]
fn a_checkout_of_buildroot_accepts_the_tree() {
    let Some(checkout) = env::var_os("BUILDROOT").map(PathBuf::from) else {
        return skip::left_out(
            "buildroot",
            "BUILDROOT names no checkout to try the tree with",
        );
    };
    none(undefined(&checkout));
    for name in DEFCONFIGS {
        let out = tempfile::tempdir().unwrap();
        let run = |goals: &[&str]| make(&checkout, out.path(), goals);
        run(&[name]);
        let config = fs::read_to_string(out.path().join(".config")).unwrap();
        let ours = read(&format!("buildroot/configs/{name}"));
        none(
            ours.lines()
                .filter_map(|(_, line)| lost(line, &config))
                .collect(),
        );

        let saved = out.path().join("saved");
        let saved = format!("BR2_DEFCONFIG={}", saved.display());
        run(&[&saved, "savedefconfig"]);
        run(&[&saved, "defconfig"]);
        let again = fs::read_to_string(out.path().join(".config")).unwrap();
        assert_eq!(
            settings(&config),
            settings(&again),
            "{name}: saved and loaded"
        );

        let info: serde_json::Value = serde_json::from_str(&run(&["-s", "show-info"])).unwrap();
        for package in [
            "pghoard",
            "host-pghoard",
            "pghoard-efi",
            "linux",
            "e2fsprogs",
        ] {
            assert!(
                info.get(package).is_some(),
                "{name}: {package} is not in show-info"
            );
        }
    }
}

/// Listed symbols that no file of the checkout defines.
fn undefined(checkout: &Path) -> Vec<String> {
    let out = Command::new("grep")
        .args([
            "-rhoE",
            "--include=Config.*in*",
            "^(menu)?config BR2_[A-Za-z0-9_]+",
        ])
        .arg(checkout)
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let defined: BTreeSet<&str> = text.lines().filter_map(|l| l.split(' ').nth(1)).collect();
    let missing = listed()
        .into_iter()
        .filter(|(symbol, _)| !defined.contains(symbol.as_str()));
    missing
        .map(|(symbol, _)| format!("{symbol}: Buildroot does not know it"))
        .collect()
}

fn make(checkout: &Path, out: &Path, goals: &[&str]) -> String {
    let told = Command::new("make")
        .arg("-C")
        .arg(checkout)
        .arg(format!("O={}", out.display()))
        .arg(format!("BR2_EXTERNAL={}", tree().display()))
        .args(goals)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "make {goals:?}: {said}");
    String::from_utf8(told.stdout).unwrap()
}

/// A line of ours that the configuration made of it does not hold.
fn lost(line: &str, config: &str) -> Option<String> {
    let unset = line
        .strip_prefix("# ")
        .and_then(|rest| rest.strip_suffix(" is not set"));
    let holds = match unset {
        // One that cannot be set at all is not set either.
        Some(symbol) => !config.lines().any(|has| has == format!("{symbol}=y")),
        None => config.lines().any(|has| has == line),
    };
    (!holds).then(|| format!("{line}: does not hold after defconfig"))
}

fn settings(config: &str) -> Vec<&str> {
    let comment = |line: &&str| !line.starts_with('#') || line.ends_with(" is not set");
    // Where the file itself was told to lie is no setting.
    let place = |line: &&str| !line.starts_with("BR2_DEFCONFIG=");
    config.lines().filter(comment).filter(place).collect()
}

/// The judge of the test above, for those who have no checkout.
#[test]
fn a_line_is_lost_when_it_does_not_hold() {
    let config = "BR2_A=y\n# BR2_B is not set\nBR2_C=\"x\"\nBR2_D=y\n";
    let rows = [
        ("BR2_A=y", false),
        ("BR2_B=y", true),
        ("BR2_C=\"x\"", false),
        ("BR2_C=\"y\"", true),
        ("# BR2_B is not set", false),
        ("# BR2_D is not set", true),
        ("# BR2_E is not set", false),
    ];
    for (line, expected) in rows {
        assert_eq!(lost(line, config).is_some(), expected, "{line}");
    }
}
