//! `pghoard install-links`: PGHoard's names for this program, as symbolic links.
//!
//! A link that leads to this program already stays. Anything else under such a name is not ours:
//! nothing is made then, unless `--force` replaces it; a directory is never replaced.
//!
//! | code | when |
//! |---|---|
//! | 0 | every name is there |
//! | 1 | not so, and why |
//! | 2 | wrong command line |

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use clap::Parser;
use machine::Class;

use crate::failure::{Failure, Outcome};

/// PGHoard's commands; `pghoard` itself is the program.
pub const NAMES: [&str; 7] = [
    "pghoard_archive_cleanup",
    "pghoard_archive_sync",
    "pghoard_create_keys",
    "pghoard_gnutaremu",
    "pghoard_postgres_command",
    "pghoard_postgres_command_go",
    "pghoard_restore",
];

pub mod unit;

#[derive(Parser)]
#[command(name = "pghoard install-links", version, infer_long_args = true)]
/// Make the links by which PGHoard's commands are called
struct Flags {
    /// Replace what is not ours
    #[arg(long)]
    force: bool,
    /// Where to, as /usr/bin
    directory: PathBuf,
}

/// The command; the first argument is its name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let flags: Flags = match super::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    let program = env::current_exe().and_then(fs::canonicalize);
    let program = program.map_err(|e| Failure::io(&e, "the path of this program"));
    let made = program.and_then(|program| install(&program, &flags));
    match made.and_then(|text| super::print(&text)) {
        Ok(()) => 0,
        Err(failure) => {
            super::warn(format_args!("pghoard install-links: {failure}"));
            1
        }
    }
}

/// What is under a name.
enum Found {
    Ours,
    Nothing,
    Other,
}

fn install(program: &Path, flags: &Flags) -> Outcome<String> {
    let directory = &flags.directory;
    let told = |e: io::Error| Failure::io(&e, directory.display());
    let directory = fs::canonicalize(directory).map_err(told)?;
    let mut missing = Vec::new();
    let mut text = String::new();
    for name in NAMES {
        let path = directory.join(name);
        match found(&path, program)? {
            Found::Ours => text.push_str(&format!("{} is there\n", path.display())),
            Found::Other if !flags.force => {
                let message = format!("'{}' is not a link to this program", path.display());
                return Err(Failure::new(Class::Conflict, message)
                    .hint("nothing was made; --force replaces it"));
            }
            Found::Nothing | Found::Other => missing.push(path),
        }
    }
    // Beside the program the link is short, and survives a move of the directory.
    let to = match (program.parent() == Some(&directory), program.file_name()) {
        (true, Some(name)) => Path::new(name),
        _ => program,
    };
    for path in missing {
        link(to, &path)?;
        text.push_str(&format!("{} -> {}\n", path.display(), to.display()));
    }
    Ok(text)
}

fn found(path: &Path, program: &Path) -> Outcome<Found> {
    let told = |e: io::Error| Failure::io(&e, path.display());
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(e) => return Err(told(e)),
    };
    if found.is_dir() {
        let message = format!("'{}' is a directory", path.display());
        return Err(Failure::new(Class::Conflict, message).hint("nothing was made; move it away"));
    }
    let leads = fs::canonicalize(path).is_ok_and(|to| to == program);
    Ok(match found.is_symlink() && leads {
        true => Found::Ours,
        false => Found::Other,
    })
}

/// Takes the name's place in one step: a command is never missing meanwhile.
fn link(to: &Path, path: &Path) -> Outcome<()> {
    let told = |e: io::Error| Failure::io(&e, path.display());
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    symlink(to, &fresh).map_err(told)?;
    fs::rename(&fresh, path).map_err(|e| {
        let _left = fs::remove_file(&fresh);
        told(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn call(program: &Path, directory: &Path, force: bool) -> Outcome<String> {
        let directory = directory.to_owned();
        install(program, &Flags { force, directory })
    }

    #[test]
    fn every_name_leads_to_the_program_and_a_second_time_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let (program, elsewhere) = (root.join("pghoard"), root.join("elsewhere"));
        fs::write(&program, "x").unwrap();
        fs::create_dir(&elsewhere).unwrap();
        for (directory, to) in [(&root, Path::new("pghoard")), (&elsewhere, &program)] {
            let made = call(&program, directory, false).unwrap();
            assert_eq!(made.matches(" -> ").count(), NAMES.len());
            for name in NAMES {
                assert_eq!(fs::read_link(directory.join(name)).unwrap(), to);
                assert_eq!(fs::read(directory.join(name)).unwrap(), b"x");
            }
            let again = call(&program, directory, false).unwrap();
            assert_eq!(again.matches(" is there\n").count(), NAMES.len(), "{again}");
        }
        assert_eq!(names(&elsewhere), NAMES);
    }

    #[test]
    fn what_is_not_ours_stays_unless_forced() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let (program, bin) = (root.join("pghoard"), root.join("bin"));
        fs::write(&program, "x").unwrap();
        fs::create_dir(&bin).unwrap();
        let place = bin.join("pghoard_restore");
        let make: [&dyn Fn(); 3] = [
            &|| fs::write(&place, "PGHoard's").unwrap(),
            &|| symlink("/usr/bin/other", &place).unwrap(),
            &|| symlink(&bin, &place).unwrap(),
        ];
        for make in make {
            make();
            let failure = call(&program, &bin, false).unwrap_err();
            assert!(failure.message.contains("pghoard_restore"), "{failure}");
            assert_eq!(names(&bin), ["pghoard_restore"]);
            call(&program, &bin, true).unwrap();
            assert_eq!(names(&bin), NAMES);
            assert_eq!(fs::read_link(&place).unwrap(), program);
            for name in NAMES {
                fs::remove_file(bin.join(name)).unwrap();
            }
        }
        fs::create_dir(&place).unwrap();
        for force in [false, true] {
            assert!(call(&program, &bin, force).is_err());
            assert_eq!(names(&bin), ["pghoard_restore"]);
        }
        assert!(call(&program, &root.join("nowhere"), true).is_err());
    }
}
