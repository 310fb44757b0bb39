//! What `pg_wal` on this machine has, and what of it is not archived.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use machine::{Segment, Timeline};

use super::Standing;
use super::archive::{Archive, Held, Noted};
use crate::codec::digest::{Algorithm, Digest};
use crate::failure::{Failure, Outcome};
use crate::pg::files::{WAL_HEADER_BYTES, WalHeader};
use crate::tool::warn;

#[derive(Debug, PartialEq, Eq)]
pub struct Local {
    pub name: String,
    pub path: PathBuf,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Wal,
    History,
}

/// One reading of a segment.
const BUFFER_BYTES: usize = 256 << 10;

/// Histories, then finished segments, the newest first. Below `first` nobody needs any.
pub fn list(pg_wal: &Path, standing: &Standing, first: Option<Segment>) -> Outcome<Vec<Local>> {
    let told = |e: io::Error| Failure::io(&e, pg_wal.display());
    let (mut histories, mut segments) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(pg_wal).map_err(told)? {
        let path = entry.map_err(told)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let name = name.to_owned();
        if Timeline::from_history_name(&name).is_some() {
            let kind = Kind::History;
            histories.push(Local { name, path, kind });
        } else if let Some(segment) = Segment::from_name(&name, standing.size)
            && segment != standing.current
            && segment.number <= standing.current.number
            && first.is_none_or(|first| segment.number >= first.number)
            && written(&path, segment, standing)?
        {
            let kind = Kind::Wal;
            segments.push(Local { name, path, kind });
        }
    }
    histories.sort_by(|a, b| b.name.cmp(&a.name));
    segments.sort_by(|a, b| b.name.cmp(&a.name));
    histories.append(&mut segments);
    Ok(histories)
}

/// Whether it holds the WAL of its name: a recycled segment still holds what it was before.
fn written(path: &Path, segment: Segment, standing: &Standing) -> Outcome<bool> {
    let mut head = Vec::new();
    let opened = File::open(path).and_then(|file| {
        let bytes = u64::try_from(WAL_HEADER_BYTES).unwrap_or(u64::MAX);
        file.take(bytes).read_to_end(&mut head)
    });
    match opened {
        // PostgreSQL removed or renamed it meanwhile.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(Failure::io(&e, path.display())),
        Ok(_) => {}
    }
    let header = WalHeader::parse(&head);
    let checked =
        header.and_then(|header| header.check(segment, standing.size, Some(standing.system_id)));
    if let Err(failure) = &checked {
        let name = segment.name(standing.size);
        warn(format_args!(
            "{name} is left out, as it does not hold its WAL: {failure}"
        ));
    }
    Ok(checked.is_ok())
}

/// Which of them the daemon is to archive, in the order they came in.
pub fn unarchived<'a>(
    archive: &Archive<'_>,
    files: &'a [Local],
    checks_max: i64,
) -> Outcome<Vec<&'a Local>> {
    let mut wanted = Vec::new();
    let mut checks_left = u64::try_from(checks_max).ok();
    let mut unnoted = false;
    for file in files {
        let noted = match (archive.held(&file.name)?, file.kind) {
            (Held::No, _) => {
                wanted.push(file);
                continue;
            }
            (Held::Yes(_), Kind::History) => continue,
            (Held::Yes(noted), Kind::Wal) => noted,
        };
        match noted {
            // An archive of before there were digests: one is enough to show the way.
            None if unnoted => {}
            None => {
                unnoted = true;
                wanted.push(file);
            }
            Some(_) if checks_left == Some(0) => {}
            Some(noted) => {
                checks_left = checks_left.map(|left| left - 1);
                if differs(file, &noted)? {
                    warn(format_args!("{} is archived with other content", file.name));
                    wanted.push(file);
                }
            }
        }
    }
    Ok(wanted)
}

fn differs(file: &Local, noted: &Noted) -> Outcome<bool> {
    let algorithm: Algorithm = noted.algorithm.parse()?;
    let told = |e: io::Error| Failure::io(&e, file.path.display());
    let mut open = match File::open(&file.path) {
        Ok(open) => open,
        // Gone means that PostgreSQL needs it no more: it was archived.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(told(e)),
    };
    let mut digest = Digest::new(algorithm);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = open.read(&mut buffer).map_err(told)?;
        match buffer.get(..count) {
            Some(piece) if !piece.is_empty() => digest.update(piece),
            Some(_) | None => break,
        }
    }
    Ok(!digest.hex().eq_ignore_ascii_case(&noted.hash))
}
