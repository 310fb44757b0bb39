//! Archives that a test makes, hostile ones among them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::*;

/// What is put into an archive: its kind, name, and content or the target of a link.
type Member<'a> = (EntryType, &'a str, &'a str);

const FILE: EntryType = EntryType::Regular;
const FOLDER: EntryType = EntryType::Directory;
const LINK: EntryType = EntryType::Symlink;
const MODE: u32 = 0o4750;
const MODIFIED: u64 = 1_500_000_000;

/// The crate refuses hostile names when writing, so the header is filled by hand.
fn archive(members: &[Member<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, content) in members {
        let (link, content) = match *kind {
            LINK | EntryType::Link => (*content, ""),
            _ => ("", *content),
        };
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(content.len().try_into().unwrap());
        header.set_mode(MODE);
        header.set_mtime(MODIFIED);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn flags(into: &Path, words: &[&str]) -> Flags {
    let start = ["x", "-xf", "-", "-C", into.to_str().unwrap()];
    Flags::try_parse_from(start.iter().chain(words)).unwrap()
}

fn unpack(into: &Path, words: &[&str], members: &[Member<'_>]) -> Outcome<()> {
    from(&archive(members)[..], &flags(into, words))
}

/// Everything below a folder, links not followed, with what is in it.
fn tree(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_symlink() {
            found.push(format!(
                "{name} -> {}",
                fs::read_link(&path).unwrap().display()
            ));
        } else if path.is_dir() {
            found.push(format!("{name}/"));
            found.extend(tree(&path).iter().map(|below| format!("{name}/{below}")));
        } else {
            found.push(format!("{name}={}", fs::read_to_string(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn members_come_with_their_modes_and_times() {
    let folder = tempfile::tempdir().unwrap();
    let members = [
        (FOLDER, "a/", ""),
        (FILE, "a/b", "one"),
        (FILE, "c/d/e", "two"),
        (LINK, "a/l", "../c"),
        (FILE, "./f", "three"),
        (FILE, "a/b", "again"),
    ];
    unpack(folder.path(), &[], &members).unwrap();
    let expect = [
        "a/",
        "a/b=again",
        "a/l -> ../c",
        "c/",
        "c/d/",
        "c/d/e=two",
        "f=three",
    ];
    assert_eq!(tree(folder.path()), expect);
    for name in ["a", "a/b", "f"] {
        let found = fs::metadata(folder.path().join(name)).unwrap();
        assert_eq!(
            found.permissions().mode() & 0o7777,
            0o750,
            "{name}: no set-id bits"
        );
        assert_eq!(found.mtime(), 1_500_000_000, "{name}");
    }
}

#[test]
fn names_are_left_out_and_changed_as_pghoard_asks() {
    let folder = tempfile::tempdir().unwrap();
    let members = [
        (FILE, ".pghoard_tar_metadata.json", "x"),
        (FILE, "pgdata/base/1", "one"),
        (FILE, "pgdata/tmp1/2", "x"),
        (FILE, "tablespaces/ts/P/1", "two"),
        (FOLDER, "pgdata/", ""),
    ];
    let space = folder.path().join("space");
    let to = format!(r"s,^tablespaces/ts/\(.*\)$,{}/\1,", space.display());
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    let words = [
        "--exclude",
        ".pghoard_tar_metadata.json",
        "--exclude=tmp*",
        "--transform",
        "s,^pgdata/,,",
        "--absolute-names",
        "--transform",
        &to,
    ];
    unpack(&data, &words, &members).unwrap();
    let expect = [
        "data/",
        "data/base/",
        "data/base/1=one",
        "space/",
        "space/P/",
        "space/P/1=two",
    ];
    assert_eq!(tree(folder.path()), expect);
}

#[test]
fn of_one_search_the_last_replacement_counts() {
    let folder = tempfile::tempdir().unwrap();
    let words = [
        "--transform",
        "s,a,b,",
        "--transform",
        "s,x,y,",
        "--transform",
        "s,a,x,",
    ];
    unpack(folder.path(), &words, &[(FILE, "a", "1")]).unwrap();
    assert_eq!(tree(folder.path()), ["y=1"]);
}

/// PGHoard skips the first kinds without a word, and follows the others.
#[test]
fn differs_nothing_is_written_outside() {
    let link = (LINK, "l", "../out");
    let keep = &["--keep-directory-symlink"][..];
    for (words, members) in [
        (&[][..], &[(FILE, "../out/x", "evil")][..]),
        (&[], &[(FILE, "a/../../out/x", "evil")]),
        (&[], &[(FOLDER, "..", "")]),
        (&["-P"], &[(FILE, "../out/x", "evil")]),
        (&["--transform", "s,^a,..,"], &[(FILE, "a/out/x", "evil")]),
        (&[], &[(EntryType::Link, "h", "../out/there")]),
        (&[], &[(EntryType::Fifo, "f", "")]),
        (keep, &[link, (FILE, "l/x", "evil")]),
        (keep, &[link, (FILE, "l/y/x", "evil")]),
        (keep, &[link, (FOLDER, "l", "")]),
        (
            keep,
            &[(LINK, "d/m", "../../out"), (FILE, "d2/m/x", "evil")],
        ),
        (&[], &[(FILE, "d/x", "one"), (LINK, "d", "../out")]),
    ] {
        let root = tempfile::tempdir().unwrap();
        let (into, out) = (root.path().join("in"), root.path().join("out"));
        for folder in [&into, &out, &into.join("d")] {
            fs::create_dir(folder).unwrap();
        }
        symlink("d", into.join("d2")).unwrap();
        fs::write(out.join("there"), "kept").unwrap();
        let failure = unpack(&into, words, members).unwrap_err();
        assert!(failure.message.starts_with("member '"), "{failure}");
        assert_eq!(tree(&out), ["there=kept"], "{words:?} {members:?}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }
}

#[test]
fn links_on_the_way_give_way_or_are_followed() {
    for (words, expect) in [
        (&[][..], &["in/", "in/l/", "in/l/x=1", "out/"][..]),
        (
            &["--keep-directory-symlink"],
            &["in/", "in/l -> ../out", "out/", "out/x=1"],
        ),
    ] {
        for members in [
            &[(FILE, "l/x", "1")][..],
            &[(FOLDER, "l", ""), (FILE, "l/x", "1")],
        ] {
            let root = tempfile::tempdir().unwrap();
            let into = root.path().join("in");
            fs::create_dir(&into).unwrap();
            fs::create_dir(root.path().join("out")).unwrap();
            symlink("../out", into.join("l")).unwrap();
            unpack(&into, words, members).unwrap();
            assert_eq!(tree(root.path()), expect, "{words:?}");
        }
    }
    // A file takes the place of a link; it is not written through it, nor are modes.
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("secret"), "kept").unwrap();
    let members = [
        (FILE, "in/l", "1"),
        (LINK, "in/l", "../secret"),
        (FILE, "in/m", "2"),
    ];
    unpack(root.path(), &[], &members).unwrap();
    let found = fs::metadata(root.path().join("secret")).unwrap();
    assert_ne!(found.mtime(), 1_500_000_000);
    unpack(root.path(), &[], &[(FILE, "in/l", "3")]).unwrap();
    let expect = ["in/", "in/l=3", "in/m=2", "secret=kept"];
    assert_eq!(tree(root.path()), expect);
}

#[test]
fn a_leading_slash_goes_unless_it_is_wanted() {
    let root = tempfile::tempdir().unwrap();
    let (into, out) = (root.path().join("in"), root.path().join("out"));
    fs::create_dir(&into).unwrap();
    fs::create_dir(&out).unwrap();
    let absolute = out.join("x").display().to_string();
    unpack(&into, &[], &[(FILE, &absolute, "1")]).unwrap();
    assert_eq!(tree(&out), Vec::<String>::new());
    assert_eq!(fs::read_to_string(into.join(&absolute[1..])).unwrap(), "1");
    unpack(&into, &["-P"], &[(FILE, &absolute, "2")]).unwrap();
    assert_eq!(tree(&out), ["x=2"]);
}

#[test]
fn a_cut_archive_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let whole = archive(&[(FILE, "a", &"x".repeat(2_000))]);
    for length in [100, 700, 1_500] {
        let cut = from(&whole[..length], &flags(folder.path(), &[]));
        assert!(cut.is_err(), "{length}");
    }
}

#[test]
fn the_command_line_is_pghoards() {
    let folder = tempfile::tempdir().unwrap();
    let (file, into) = (folder.path().join("a.tar"), folder.path().join("in"));
    fs::create_dir(&into).unwrap();
    fs::write(&file, archive(&[(FILE, "a", "1")])).unwrap();
    let (file, into) = (file.to_str().unwrap(), into.to_str().unwrap());
    for (words, code) in [
        (&["-x", "-f", file, "-C", into][..], 0),
        (&["-xf", file, "-C", into], 0),
        (
            &[
                "--extract",
                "--file",
                file,
                "--directory",
                into,
                "--absolute",
            ],
            0,
        ),
        (&["--ext", "--file", file, "--dir", into], 0),
        (&["-xPf", file, "-C", into, "--keep-dir"], 0),
        (&["-xf", "/nowhere/a.tar"], 1),
        (&["-xf", into], 1),
        (&["-f", file], 2),
        (&["-x"], 2),
        (&["-xf", file, "--transform", "s,a,b"], 2),
        (&["--help"], 0),
        (&["--version"], 0),
    ] {
        let args = ["pghoard_gnutaremu"].iter().chain(words);
        assert_eq!(run(args.map(OsString::from)), code, "{words:?}");
    }
}
