//! Sealing never replaces, a rewritten history is set aside, and a full disk loses nothing.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;

use super::*;

const NAME: &str = "000000010000000000000001";

#[test]
fn sealing_is_exclusive_and_keeps_every_content() {
    let bed = Bed::make();
    for (content, expect, then) in [
        ("first", Sealed::New, &[(NAME, "first")][..]),
        ("first", Sealed::Duplicate, &[(NAME, "first")]),
        (
            "other",
            conflict(1),
            &[
                (NAME, "first"),
                ("000000010000000000000001.conflict-1", "other"),
            ],
        ),
        (
            "longer than the first",
            conflict(2),
            &[
                (NAME, "first"),
                ("000000010000000000000001.conflict-1", "other"),
                (
                    "000000010000000000000001.conflict-2",
                    "longer than the first",
                ),
            ],
        ),
    ] {
        assert_eq!(bed.spool.place(NAME, content.as_bytes()).unwrap(), expect);
        assert_eq!(bed.files(), owned(then));
    }
}

#[test]
fn an_interrupted_stream_is_gone_over_in_place() {
    let bed = Bed::make();
    let working = format!("{NAME}.partial");
    let mut first = bed.spool.partial(NAME).unwrap();
    first.write(0, b"abcdef").unwrap();
    drop(first);
    // Bytes that were never synced may have come back as zeros.
    fs::write(bed.path(&working), b"abc\0\0f").unwrap();
    let mut second = bed.spool.partial(NAME).unwrap();
    second.write(0, b"abc").unwrap();
    assert_eq!(bed.files(), owned(&[(&working, "abc\0\0f")]));
    second.write(3, b"defghi").unwrap();
    second.sync().unwrap();
    assert_eq!(bed.files(), owned(&[(&working, "abcdefghi")]));
    assert_eq!(second.seal().unwrap(), Sealed::New);
    assert_eq!(bed.files(), owned(&[(NAME, "abcdefghi")]));
}

#[test]
fn s16_a_rewritten_history_is_set_aside() {
    let bed = Bed::make();
    let working = format!("{NAME}.partial");
    let aside = format!("{NAME}.conflict-1");
    let mut first = bed.spool.partial(NAME).unwrap();
    first.write(0, b"abcdefgh").unwrap();
    drop(first);
    let mut second = bed.spool.partial(NAME).unwrap();
    second.write(0, b"ab").unwrap();
    second.write(2, b"XY").unwrap();
    // Nothing of the other history stays behind the new end.
    assert_eq!(
        bed.files(),
        owned(&[(&aside, "abcdefgh"), (&working, "abXY")])
    );
    second.write(4, b"Z").unwrap();
    second.seal().unwrap();
    assert_eq!(bed.files(), owned(&[(NAME, "abXYZ"), (&aside, "abcdefgh")]));
}

#[test]
fn a_full_disk_is_said_and_the_stream_goes_on_where_it_was() {
    let bed = Bed::make();
    bed.room.store(4, Ordering::SeqCst);
    let mut partial = bed.spool.partial(NAME).unwrap();
    partial.write(0, b"abcd").unwrap();
    let failure = partial.write(4, b"efgh").unwrap_err();
    assert_eq!(failure.class, Class::DiskFull);
    let expected = format!("spool file '{NAME}.partial': no storage space");
    assert!(failure.to_string().starts_with(&expected), "{failure}");
    assert!(
        failure
            .to_string()
            .ends_with("; hint: make room on that disk")
    );
    drop(partial);
    assert_eq!(bed.files(), owned(&[(&format!("{NAME}.partial"), "abcd")]));
    bed.room.store(u64::MAX, Ordering::SeqCst);
    let mut again = bed.spool.partial(NAME).unwrap();
    again.write(0, b"abcdefgh").unwrap();
    assert_eq!(again.seal().unwrap(), Sealed::New);
    assert_eq!(bed.files(), owned(&[(NAME, "abcdefgh")]));
}

/// Two nodes' probes bring the same history, and one of them fails half way.
#[test]
fn placings_of_one_name_do_not_share_a_working_file() {
    let bed = Bed::make();
    let name = "00000002.history";
    for number in 0..3 {
        fs::write(bed.path(&format!("{name}.{number}.placing")), b"stale").unwrap();
    }
    bed.spool.sweep().unwrap();
    fs::write(bed.path(&format!("{name}.partial")), b"another's").unwrap();
    bed.room.store(4, Ordering::SeqCst);
    let failure = bed.spool.place(name, b"history").unwrap_err();
    assert_eq!(failure.class, Class::DiskFull);
    bed.room.store(u64::MAX, Ordering::SeqCst);
    assert_eq!(bed.spool.place(name, b"history").unwrap(), Sealed::New);
    assert_eq!(
        bed.files(),
        owned(&[(name, "history"), (&format!("{name}.partial"), "another's")])
    );
}

#[test]
fn removing_and_opening_what_is_not_there() {
    let bed = Bed::make();
    bed.spool.remove(NAME).unwrap();
    let file = File::History(machine::Timeline(2));
    let failure = bed
        .spool
        .open(&file, SegmentSize::DEFAULT, 1)
        .map(|_| ())
        .unwrap_err();
    assert_eq!(failure.class, Class::NotFound);
    assert!(
        failure
            .message
            .starts_with("spool file '00000002.history': ")
    );
}

fn conflict(number: u32) -> Sealed {
    Sealed::Conflict {
        kept_as: format!("{NAME}.conflict-{number}"),
    }
}

fn owned(files: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut files: Vec<_> = files
        .iter()
        .map(|(name, content)| ((*name).to_owned(), (*content).to_owned()))
        .collect();
    files.sort();
    files
}

struct Bed {
    folder: TempDir,
    room: Arc<AtomicU64>,
    spool: Spool,
}

impl Bed {
    fn make() -> Bed {
        let folder = tempfile::tempdir().unwrap();
        let room = Arc::new(AtomicU64::new(u64::MAX));
        let disk = Small {
            inner: RealDisk::new(folder.path()).unwrap(),
            room: Arc::clone(&room),
        };
        Bed {
            spool: Spool::new(Arc::new(disk)),
            folder,
            room,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn files(&self) -> Vec<(String, String)> {
        let names = self
            .spool
            .scan()
            .unwrap()
            .into_iter()
            .map(|found| found.name);
        let mut files: Vec<_> = names
            .map(|name| {
                let content = fs::read_to_string(self.path(&name)).unwrap();
                (name, content)
            })
            .collect();
        files.sort();
        files
    }
}

/// A disk with room for so many more bytes.
struct Small {
    inner: RealDisk,
    room: Arc<AtomicU64>,
}

impl Disk for Small {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let (file, room) = (self.inner.open(name)?, Arc::clone(&self.room));
        Ok(Box::new(SmallFile { file, room }))
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.inner.read(name)
    }

    fn list(&self) -> io::Result<Vec<Found>> {
        self.inner.list()
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename_new(from, to)
    }

    fn rename_over(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename_over(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
}

struct SmallFile {
    file: Box<dyn DiskFile>,
    room: Arc<AtomicU64>,
}

impl Readable for SmallFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buffer)
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
}

impl DiskFile for SmallFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let length = u64::try_from(bytes.len()).unwrap();
        let spend = |room: u64| room.checked_sub(length);
        let spent = self
            .room
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend);
        spent.map_err(|_| io::Error::from(io::ErrorKind::StorageFull))?;
        self.file.write_at(offset, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }
}
