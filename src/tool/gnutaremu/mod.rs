//! `pghoard_gnutaremu`: the part of GNU tar that PGHoard's restores ran, for scripts that call it.
//! Our own restore needs no tar.
//!
//! Options are PGHoard's: extraction only, exclusion by any component of a name, GNU's way of
//! escaping in `--transform`. Different on purpose: what would be written outside of its place is
//! refused, never skipped or followed. Without `-P` a name stays below the directory; `..` is
//! refused always; no member is written through a symbolic link that the archive made; an existing
//! file is replaced, not written into; `--keep-directory-symlink` follows links that were there
//! before; names given with `-P` replace none on their way. Owners are never set, nor are set-id
//! bits.
//!
//! | code | when |
//! |---|---|
//! | 0 | extracted |
//! | 1 | not extracted, or not all: standard error says why |
//! | 2 | wrong command line |

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use clap::Parser;
use tar::Archive;

use crate::failure::{Failure, Outcome};
use extract::Extraction;
use pattern::{Glob, Transform};

mod extract;
mod pattern;

#[derive(Parser)]
#[command(name = "pghoard_gnutaremu", version, infer_long_args = true)]
/// Extract a tar archive
struct Flags {
    /// Extract; nothing else is known
    #[arg(short = 'x', long, required = true)]
    extract: bool,
    /// The archive, - for standard input
    #[arg(short, long)]
    file: PathBuf,
    /// Where to
    #[arg(short = 'C', long, value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// Keep a leading / of names
    #[arg(short = 'P', long)]
    absolute_names: bool,
    /// Follow symbolic links to directories that are there already
    #[arg(long)]
    keep_directory_symlink: bool,
    /// Leave out what has a component like this; may be repeated
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<Glob>,
    /// Change names, as s,search,replace,; may be repeated
    #[arg(long, value_name = "EXPRESSION")]
    transform: Vec<Transform>,
}

/// The command; the first argument is its name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let flags: Flags = match super::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    match extract(&flags) {
        Ok(()) => 0,
        Err(failure) => {
            super::warn(format_args!("pghoard_gnutaremu: {failure}"));
            1
        }
    }
}

fn extract(flags: &Flags) -> Outcome<()> {
    if flags.file.as_os_str() == "-" {
        return from(io::stdin().lock(), flags);
    }
    let file = File::open(&flags.file);
    from(
        file.map_err(|e| Failure::io(&e, flags.file.display()))?,
        flags,
    )
}

fn from(source: impl Read, flags: &Flags) -> Outcome<()> {
    let told = |e: io::Error| Failure::from_io(&e, "archive");
    let mut archive = Archive::new(source);
    let mut extraction = Extraction::new(flags);
    for member in archive.entries().map_err(told)? {
        extraction.member(member.map_err(told)?)?;
    }
    extraction.finish()?;
    // Whoever writes into our pipe shall not be cut off.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(told)?;
    Ok(())
}

#[cfg(test)]
mod tests;
