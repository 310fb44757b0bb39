//! `basebackup_mode` `basic` and `pipe`: the server's tar as it comes, as one object.
//!
//! One thread reads the tar, sums every file, compresses, encrypts and hands the bytes to the
//! store; nothing but the manifest and the sums touches the disk. The object stays invisible until
//! its taker says so: the WAL that makes it consistent has to be there before it.
//! Its plain bytes are those of `pg_basebackup --format tar`: headers and bodies as sent, behind
//! them (`pipe`) the manifest, and the two blocks of zeros that servers before 15 leave out.
//!
//! Budget: beside codec and store less than 1 MiB.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::AtomicU32;

use machine::{Class, Millis, Segment, SegmentSize};

use super::{
    Event, Facts, Manifest, Progress, Request, Running, Scratch, Taken, connect, fed, follow,
    judge, label_time, look, start,
};
use crate::codec::{Encoded, Encoder};
use crate::failure::{Failure, Outcome};
use crate::pg::files::BackupLabel;
use crate::source::header::BLOCK;
use crate::source::manifest::{Sum, Sums};
use crate::source::members::{Kind, Member, Step, Walker, padding};
use crate::source::sorter::{Spooled, incomplete, listed};
use crate::store::{Metadata, Upload, Written};

/// Whether the server's manifest, if it makes one, is the last member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    Nothing,
    Manifest,
}

/// What is known once the first member has come: all that a reader needs.
#[derive(Clone, Copy, Debug)]
pub struct Begun {
    pub start: Segment,
    pub started_at: Millis,
    pub version: u32,
    pub size: SegmentSize,
}

/// The whole object, written and invisible.
pub struct Pending<'a> {
    pub taken: Taken,
    pub encoded: Encoded,
    upload: Box<dyn Upload + 'a>,
}

impl Pending<'_> {
    /// Makes it visible.
    pub fn finish(self, late: &Metadata) -> Outcome<()> {
        let written = Written {
            size_bytes: self.encoded.bytes_out,
            sha256: self.encoded.sha256,
        };
        self.upload.finish(written, late)
    }
}

/// Takes a backup into the object `key`. Blocks until its last byte is written. What is dropped
/// before it is finished leaves nothing in the store.
pub fn take<'a>(
    request: &Request<'a>,
    key: &str,
    tail: Tail,
    describe: &dyn Fn(Begun) -> Metadata,
    report: &mut dyn FnMut(Progress),
) -> Outcome<Pending<'a>> {
    let _scratch = Scratch::make(request.scratch)?;
    let mut connection = request.wait(connect(request))??;
    let facts = request.wait(look(request, &mut connection))??;
    let mut running = start(request, &mut connection)?;
    let begin = running.backup.begin().clone();
    if let Some(space) = begin.tablespaces.first() {
        let message = format!(
            "the cluster has tablespaces ({} is one), which do not go into one object",
            space.path.display()
        );
        return Err(Failure::new(Class::Config, message).hint("set basebackup_mode to \"stream\""));
    }
    let began_at = (request.clock)();
    let mut writer = Writer {
        request,
        key,
        describe,
        facts: &facts,
        began_at,
        start: Segment::at(begin.start.timeline, begin.start.lsn, facts.size),
        walker: Walker::new(),
        sums: Some(Sums::create(request.scratch.join("sums"))?),
        current: None,
        label: Vec::new(),
        files: 0,
        object: Growing::Waiting(Vec::new()),
    };
    let (end, manifest) = receive(request, &mut running, &mut writer, report)?;
    if manifest.is_none() && begin.manifest == Manifest::Expected {
        return Err(incomplete("no manifest"));
    }
    writer.walker.finish()?;
    let label = BackupLabel::parse(&writer.label)?;
    judge(&begin, end, &label)?;
    let ended_at = (request.clock)();
    let manifest = manifest.map(Spooled::finish).transpose()?;
    if let (Some(path), Tail::Manifest) = (&manifest, tail) {
        writer.file("backup_manifest", path, ended_at)?;
    }
    let taken = Taken {
        start: begin.start,
        end,
        started_at: writer.started_at(&label),
        ended_at,
        chunks: Vec::new(),
        files: writer.files,
        tablespaces: Vec::new(),
        version: facts.version,
        system_id: facts.system_id,
        segment_size: facts.size,
        from: label.from,
    };
    let (upload, encoded) = writer.finish()?;
    Ok(Pending {
        taken,
        encoded,
        upload,
    })
}

fn receive(
    request: &Request<'_>,
    running: &mut Running<'_, '_>,
    writer: &mut Writer<'_, '_>,
    report: &mut dyn FnMut(Progress),
) -> Outcome<(super::Position, Option<Spooled>)> {
    let mut manifest = None;
    let none = AtomicU32::new(0);
    let end = follow(request, running, &none, report, &mut |event| match event {
        Event::Archive(None) => Ok(()),
        Event::Archive(Some(_)) => Err(incomplete("a tablespace it had not named")),
        Event::Data(data) => writer.data(data),
        Event::ManifestBegin => {
            let path = request.scratch.join("manifest");
            let sums = writer.sums.take();
            let sums = sums.ok_or_else(|| incomplete("two manifests"))?;
            manifest = Some(Spooled::begin(path, sums)?);
            Ok(())
        }
        Event::Manifest(data) => fed(&mut manifest, data),
        Event::End(_) => Ok(()),
    })?;
    Ok((end, manifest))
}

struct Writer<'r, 'a> {
    request: &'r Request<'a>,
    key: &'r str,
    describe: &'r dyn Fn(Begun) -> Metadata,
    facts: &'r Facts,
    /// By our clock.
    began_at: Millis,
    start: Segment,
    walker: Walker,
    sums: Option<Sums>,
    current: Option<(Member, u32)>,
    label: Vec<u8>,
    files: u64,
    object: Growing<'a>,
}

enum Growing<'a> {
    /// For backup_label, the first member, which says when the backup began.
    Waiting(Vec<u8>),
    Begun(Box<Encoder<Box<dyn Upload + 'a>>>),
}

/// The first member of every backup.
const LABEL: &[u8] = b"backup_label";

/// A few lines.
const LABEL_MAX_BYTES: u64 = 64 << 10;

/// What ends a tar.
const ZEROS: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

impl<'a> Writer<'_, 'a> {
    fn data(&mut self, mut bytes: &[u8]) -> Outcome<()> {
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
        let first = matches!(self.object, Growing::Waiting(_));
        if first && (member.path != LABEL || member.size_bytes > LABEL_MAX_BYTES) {
            return Err(incomplete("no backup_label at its beginning"));
        }
        self.write(&member.sent())?;
        self.current = Some((member, 0));
        Ok(())
    }

    fn body(&mut self, body: &[u8]) -> Outcome<()> {
        if let Some((_, crc)) = &mut self.current {
            *crc = crc32c::crc32c_append(*crc, body);
        }
        if matches!(self.object, Growing::Waiting(_)) {
            self.label.extend_from_slice(body);
        }
        self.write(body)
    }

    fn end(&mut self) -> Outcome<()> {
        let Some((member, crc)) = self.current.take() else {
            return Ok(());
        };
        self.pad(member.size_bytes)?;
        if let Some(path) = listed(None, &member.path)
            && member.kind == Kind::File
        {
            self.files += 1;
            let size_bytes = member.size_bytes;
            let sums = self.sums.as_mut();
            sums.ok_or_else(|| incomplete("files behind the manifest"))?
                .add(&Sum {
                    path,
                    size_bytes,
                    crc,
                })?;
        }
        if let Growing::Waiting(head) = &mut self.object {
            let head = std::mem::take(head);
            self.open(&head)?;
        }
        Ok(())
    }

    /// Begins the object with what has come of it.
    fn open(&mut self, head: &[u8]) -> Outcome<()> {
        let label = BackupLabel::parse(&self.label)?;
        let mut metadata = (self.describe)(Begun {
            start: self.start,
            started_at: self.started_at(&label),
            version: self.facts.version,
            size: self.facts.size,
        });
        let encoding = self.request.encoding;
        let mut add = |key: &str, value: String| metadata.insert(key.into(), value);
        add("compression-algorithm", encoding.compression.name().into());
        add("host", self.request.host.into());
        if let Some(encryption) = &encoding.encryption {
            add("encryption-key-id", encryption.key_id.clone());
        }
        let upload = self.request.store.begin(self.key, &metadata)?;
        self.object = Growing::Begun(Box::new(Encoder::new(upload, encoding)?));
        self.write(head)
    }

    fn started_at(&self, label: &BackupLabel) -> Millis {
        label_time(&label.start_time, self.facts.zone.as_deref()).unwrap_or(self.began_at)
    }

    fn write(&mut self, bytes: &[u8]) -> Outcome<()> {
        match &mut self.object {
            Growing::Waiting(head) => head.extend_from_slice(bytes),
            Growing::Begun(encoder) => {
                let written = encoder.write_all(bytes);
                written.map_err(|e| Failure::from_io(&e, self.key))?;
            }
        }
        Ok(())
    }

    fn pad(&mut self, size_bytes: u64) -> Outcome<()> {
        let zeros = usize::try_from(padding(size_bytes)).unwrap_or(0);
        self.write(ZEROS.get(..zeros).unwrap_or(&[]))
    }

    /// A file on disk as one more member.
    fn file(&mut self, name: &str, path: &Path, modified: Millis) -> Outcome<()> {
        let told = |e: io::Error| Failure::from_io(&e, path.display());
        let mut file = File::open(path).map_err(told)?;
        let size_bytes = file.metadata().map_err(told)?.len();
        let member = Member::file(name.as_bytes(), size_bytes, modified.0 / 1000);
        self.write(&member.sent())?;
        if let Growing::Begun(encoder) = &mut self.object {
            io::copy(&mut file, encoder).map_err(told)?;
        }
        self.pad(size_bytes)
    }

    fn finish(mut self) -> Outcome<(Box<dyn Upload + 'a>, Encoded)> {
        self.write(&ZEROS)?;
        match self.object {
            Growing::Waiting(_) => Err(incomplete("nothing")),
            Growing::Begun(encoder) => encoder.finish().map_err(|failure| failure.about(self.key)),
        }
    }
}
