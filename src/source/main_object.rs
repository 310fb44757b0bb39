//! The main object: the tar that makes chunks a backup.
//!
//! In PGHoard's order: the description, pg_control, backup_label, then (ours) the server's
//! backup_manifest, then the folders that hold nothing worth keeping. The description names every
//! member of every chunk, so it is put together in a scratch file and never held in memory.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use machine::{BackupName, Millis, Segment, SegmentSize};
use serde_json::{Map, Value, json};
use tar::{Builder, EntryType, Header};

use super::chunks::Chunk;
use crate::failure::{Failure, Outcome};

/// Folders of a cluster whose content is not backed up, as PGHoard's restore expects to find them.
/// What PGHoard also lists for servers before 10 (pg_xlog, pg_log) no longer exists.
pub const EMPTY_FOLDERS: [&str; 6] = [
    "pg_dynshmem",
    "pg_replslot",
    "pg_stat_tmp",
    "pg_tblspc",
    "pg_wal",
    "pg_wal/archive_status",
];

/// A tablespace under the name its members have in the chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    pub name: String,
    pub oid: u32,
    pub path: PathBuf,
}

pub struct MainObject<'a> {
    pub backup: &'a BackupName,
    pub pgdata: &'a Path,
    pub host: &'a str,
    pub size: SegmentSize,
    pub start: Segment,
    /// Unknown when a standby was backed up, as in PGHoard.
    pub end: Option<Segment>,
    pub started_at: Millis,
    pub ended_at: Millis,
    pub spaces: &'a [Space],
    pub chunks: &'a [Chunk],
    /// The file that [`Chunk::names`] points into.
    pub names: &'a Path,
    pub control: &'a [u8],
    pub label: &'a [u8],
    pub manifest: Option<&'a Path>,
}

impl MainObject<'_> {
    /// Writes the tar to `target`, synced. `scratch` is a folder for the description.
    pub fn write(&self, target: &Path, scratch: &Path) -> Outcome<()> {
        let path = scratch.join("description");
        let description = self.describe(&path);
        let description = description.map_err(|e| Failure::io(&e, path.display()))?;
        let written = self.pack(target, description);
        written.map_err(|e| Failure::io(&e, target.display()))
    }

    fn pack(&self, target: &Path, description: File) -> io::Result<()> {
        let mut tar = Builder::new(BufWriter::new(File::create(target)?));
        self.add(&mut tar, ".pghoard_tar_metadata.json", description)?;
        self.add_bytes(&mut tar, "pgdata/global/pg_control", self.control)?;
        self.add_bytes(&mut tar, "pgdata/backup_label", self.label)?;
        if let Some(manifest) = self.manifest {
            self.add(&mut tar, "pgdata/backup_manifest", File::open(manifest)?)?;
        }
        let below = EMPTY_FOLDERS.map(|name| format!("pgdata/{name}/"));
        for name in std::iter::once("pgdata/").chain(below.iter().map(String::as_str)) {
            let mut header = self.header(name, 0)?;
            header.set_entry_type(EntryType::Directory);
            header.set_mode(0o700);
            header.set_cksum();
            tar.append(&header, io::empty())?;
        }
        let file = tar.into_inner()?.into_inner().map_err(|e| e.into_error())?;
        file.sync_all()
    }

    fn add<W: Write>(&self, tar: &mut Builder<W>, name: &str, mut file: File) -> io::Result<()> {
        let size = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        tar.append(&self.header(name, size)?, BufReader::new(file))
    }

    fn add_bytes<W: Write>(
        &self,
        tar: &mut Builder<W>,
        name: &str,
        bytes: &[u8],
    ) -> io::Result<()> {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        tar.append(&self.header(name, size)?, bytes)
    }

    fn header(&self, name: &str, size: u64) -> io::Result<Header> {
        let mut header = Header::new_ustar();
        header.set_path(name)?;
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(self.ended_at.0 / 1000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        Ok(header)
    }

    /// PGHoard's `.pghoard_tar_metadata.json`, in its order of fields.
    fn describe(&self, path: &Path) -> io::Result<File> {
        let mut names = File::open(self.names)?;
        let mut out = BufWriter::new(
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(path)?,
        );
        let mut spaces = Map::new();
        for space in self.spaces {
            let path = space.path.to_string_lossy();
            spaces.insert(space.name.clone(), json!({"path": path, "oid": space.oid}));
        }
        let end = self
            .end
            .map_or(Value::Null, |end| end.name(self.size).into());
        let mut opening = "{";
        for (field, value) in [
            ("backup_end_time", iso(self.ended_at, "Z").into()),
            ("backup_end_wal_segment", end),
            ("backup_start_time", iso(self.started_at, "+00:00").into()),
            (
                "backup_start_wal_segment",
                self.start.name(self.size).into(),
            ),
            ("pgdata", self.pgdata.to_string_lossy().into()),
            ("pghoard_object", "basebackup".into()),
            ("pghoard_version", env!("CARGO_PKG_VERSION").into()),
            ("tablespaces", Value::Object(spaces)),
            ("host", self.host.into()),
        ] {
            write!(out, "{opening}\"{field}\":{value}")?;
            opening = ",";
        }
        write!(out, ",\"chunks\":[")?;
        for (at, chunk) in self.chunks.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            let (backup, number) = (self.backup, chunk.number);
            let (plain, stored) = (chunk.bytes_in, chunk.bytes_out);
            let name = Value::from(format!("{backup}/{backup}.{number:08}.pghoard"));
            write!(
                out,
                "{comma}{{\"chunk_filename\":{name},\"input_size\":{plain},"
            )?;
            write!(out, "\"result_size\":{stored},\"files\":[")?;
            names.seek(SeekFrom::Start(chunk.names.start))?;
            let length = chunk.names.end - chunk.names.start;
            io::copy(&mut Read::by_ref(&mut names).take(length), &mut out)?;
            write!(out, "]}}")?;
        }
        write!(out, "]}}")?;
        out.into_inner().map_err(|e| e.into_error())
    }
}

fn iso(at: Millis, offset: &str) -> String {
    let at = i64::try_from(at.0).ok();
    let at = at.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let at = at.unwrap_or(jiff::Timestamp::MAX);
    let fraction = if at.subsec_nanosecond() == 0 {
        ""
    } else {
        "%.6f"
    };
    format!(
        "{}{offset}",
        at.strftime(&format!("%Y-%m-%dT%H:%M:%S{fraction}"))
    )
}
