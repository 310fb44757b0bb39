//! Where each member of the server's tar belongs: into a chunk, held back for the main object, or
//! nowhere; and the sums of all files against the server's manifest.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use machine::event::WalIn;
use machine::{Class, Segment};

use super::chunks::{Chunk, Packer};
use super::main_object::{EMPTY_FOLDERS, Space};
use super::manifest::{Check, Sum, Sums};
use super::members::{Kind, Member, Step, Walker};
use crate::failure::{Failure, Outcome};

/// backup_label is a few lines, pg_control 8 KiB; what is held back can be no more.
const HELD_MAX_BYTES: u64 = 64 << 10;

/// What becomes of a member.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// Into a chunk, under this name.
    Chunk(Vec<u8>),
    Label,
    Control,
    Nothing,
}

/// Looks at every member and sends it where it belongs.
pub struct Sorter<'a> {
    packer: Packer<'a>,
    spaces: Vec<Space>,
    wal: WalIn,
    sums: Option<Sums>,
    walker: Walker,
    /// The tablespace whose archive this is; `None` for the cluster itself.
    archive: Option<Space>,
    current: Option<Current>,
    label: Vec<u8>,
    control: Vec<u8>,
    files: u64,
}

struct Current {
    member: Member,
    fate: Fate,
    crc: u32,
}

/// What is left when everything has come.
pub struct Sorted {
    pub label: Vec<u8>,
    pub control: Vec<u8>,
    pub spaces: Vec<Space>,
    pub chunks: Vec<Chunk>,
    pub names: PathBuf,
    pub files: u64,
}

impl<'a> Sorter<'a> {
    pub fn new(
        packer: Packer<'a>,
        spaces: Vec<Space>,
        wal: WalIn,
        scratch: &Path,
    ) -> Outcome<Sorter<'a>> {
        Ok(Sorter {
            packer,
            spaces,
            wal,
            sums: Some(Sums::create(scratch.join("sums"))?),
            walker: Walker::new(),
            archive: None,
            current: None,
            label: Vec::new(),
            control: Vec::new(),
            files: 0,
        })
    }

    /// The sums of all files, once all archives are over.
    pub fn sums(&mut self) -> Outcome<Sums> {
        self.walker.finish()?;
        self.sums.take().ok_or_else(|| incomplete("two manifests"))
    }

    pub fn finish(self) -> Outcome<Sorted> {
        self.walker.finish()?;
        if self.control.is_empty() {
            return Err(incomplete("no pg_control"));
        }
        let (chunks, names) = self.packer.finish()?;
        Ok(Sorted {
            label: self.label,
            control: self.control,
            spaces: self.spaces,
            chunks,
            names,
            files: self.files,
        })
    }

    pub fn archive(&mut self, oid: Option<u32>) -> Outcome<()> {
        self.walker.finish()?;
        self.walker = Walker::new();
        self.archive = match oid {
            None => None,
            Some(oid) => {
                let space = self.spaces.iter().find(|space| space.oid == oid).cloned();
                let space = space.ok_or_else(|| incomplete("a tablespace it had not named"))?;
                let name = format!("tablespaces/{}", space.name).into_bytes();
                self.packer.begin(&name, &Member::folder(&name))?;
                Some(space)
            }
        };
        Ok(())
    }

    pub fn data(&mut self, mut bytes: &[u8]) -> Outcome<()> {
        while let Some(step) = self.walker.next(&mut bytes)? {
            match step {
                Step::Begin(member) => self.begin(member)?,
                Step::Body(body) => self.body(body)?,
                Step::End => self.end()?,
            }
        }
        Ok(())
    }

    fn begin(&mut self, member: Member) -> Outcome<()> {
        let fate = fate(self.archive.as_ref(), self.wal, &member);
        match &fate {
            Fate::Chunk(name) => self.packer.begin(name, &member)?,
            Fate::Label | Fate::Control if member.size_bytes > HELD_MAX_BYTES => {
                return Err(incomplete(
                    "a backup_label or pg_control of more than 64 KiB",
                ));
            }
            Fate::Label | Fate::Control | Fate::Nothing => {}
        }
        self.current = Some(Current {
            member,
            fate,
            crc: 0,
        });
        Ok(())
    }

    fn body(&mut self, body: &[u8]) -> Outcome<()> {
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        current.crc = crc32c::crc32c_append(current.crc, body);
        match current.fate {
            Fate::Chunk(_) => self.packer.body(body),
            Fate::Label => {
                self.label.extend_from_slice(body);
                Ok(())
            }
            Fate::Control => {
                self.control.extend_from_slice(body);
                Ok(())
            }
            Fate::Nothing => Ok(()),
        }
    }

    fn end(&mut self) -> Outcome<()> {
        let Some(Current { member, fate, crc }) = self.current.take() else {
            return Ok(());
        };
        if let Fate::Chunk(_) = fate {
            self.packer.end(&member)?;
        }
        let path = listed(self.archive.as_ref(), &member.path);
        let Some(path) = path.filter(|_| member.kind == Kind::File) else {
            return Ok(());
        };
        self.files += 1;
        let size_bytes = member.size_bytes;
        let sums = self.sums.as_mut();
        sums.ok_or_else(|| incomplete("files behind the manifest"))?
            .add(&Sum {
                path,
                size_bytes,
                crc,
            })
    }
}

fn fate(archive: Option<&Space>, wal: WalIn, member: &Member) -> Fate {
    let path = member.path.as_slice();
    let below = |folder: &[u8]| {
        path.strip_prefix(folder)
            .is_some_and(|r| r.starts_with(b"/"))
    };
    if let Some(space) = archive {
        let prefix = format!("tablespaces/{}/", space.name);
        return Fate::Chunk([prefix.as_bytes(), path].concat());
    }
    let in_wal = path == b"pg_wal" || below(b"pg_wal");
    let empty = EMPTY_FOLDERS.iter().any(|name| name.as_bytes() == path);
    match path {
        _ if in_wal && wal == WalIn::Backup => Fate::Chunk([b"pgdata/", path].concat()),
        b"backup_label" => Fate::Label,
        b"global/pg_control" => Fate::Control,
        _ if empty || in_wal => Fate::Nothing,
        // The links are made anew; a tablespace made in place is files like any other.
        _ if below(b"pg_tblspc") && member.kind == Kind::Link => Fate::Nothing,
        _ => Fate::Chunk([b"pgdata/", path].concat()),
    }
}

/// A file as the manifest lists it. Segments of WAL are not listed; histories beside them are, and
/// so is what says that a segment is archived (`basebackup.c`).
pub fn listed(archive: Option<&Space>, path: &[u8]) -> Option<Vec<u8>> {
    match archive {
        Some(space) => Some([format!("pg_tblspc/{}/", space.oid).as_bytes(), path].concat()),
        None => {
            let in_wal = path.strip_prefix(b"pg_wal/");
            let name = in_wal.and_then(|name| std::str::from_utf8(name).ok());
            (!name.is_some_and(Segment::is_name)).then(|| path.to_vec())
        }
    }
}

/// The manifest on its way to disk, compared as it comes.
pub struct Spooled {
    path: PathBuf,
    file: BufWriter<File>,
    check: Check,
}

impl Spooled {
    pub fn begin(path: PathBuf, sums: Sums) -> Outcome<Spooled> {
        let file = File::create_new(&path).map_err(|e| Failure::io(&e, path.display()))?;
        Ok(Spooled {
            file: BufWriter::new(file),
            check: sums.check()?,
            path,
        })
    }

    pub fn feed(&mut self, bytes: &[u8]) -> Outcome<()> {
        let written = self.file.write_all(bytes);
        written.map_err(|e| Failure::io(&e, self.path.display()))?;
        self.check.feed(bytes)
    }

    pub fn finish(mut self) -> Outcome<PathBuf> {
        let flushed = self.file.flush();
        flushed.map_err(|e| Failure::io(&e, self.path.display()))?;
        self.check.finish()?;
        Ok(self.path)
    }
}

pub fn incomplete(what: &str) -> Failure {
    Failure::new(
        Class::Corrupt,
        format!("base backup: the server sent {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_wal_the_manifest_lists_all_but_segments() {
        let space = Space {
            name: "far".into(),
            oid: 16_384,
            path: "/far".into(),
        };
        for (space, path, listed_as) in [
            (None, "base/1/1259", Some("base/1/1259")),
            (None, "pg_wal/000000010000000000000002", None),
            (
                None,
                "pg_wal/00000002.history",
                Some("pg_wal/00000002.history"),
            ),
            (
                None,
                "pg_wal/archive_status/000000010000000000000002.done",
                Some("pg_wal/archive_status/000000010000000000000002.done"),
            ),
            (Some(&space), "PG_15/1/2", Some("pg_tblspc/16384/PG_15/1/2")),
        ] {
            let found = listed(space, path.as_bytes());
            assert_eq!(found, listed_as.map(|l| l.as_bytes().to_vec()), "{path}");
        }
    }
}
