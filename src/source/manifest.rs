//! The server's backup_manifest against what we received.
//!
//! The server writes the manifest in the order in which it sends the files, one line a file. So
//! the files' sums go into a scratch list as they pass, and at the end both lists are read side by
//! side: whatever the number of files, a few lines are in memory.
//! Authority: PostgreSQL `src/backend/backup/backup_manifest.c`.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::PathBuf;

use machine::Class;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::failure::{Failure, Outcome};

/// Lines are paths and a few fields; a hex-encoded path of PostgreSQL's largest is 2 KiB.
const LINE_MAX_BYTES: usize = 64 << 10;

/// What passed by: path as the manifest writes it, size, CRC-32C.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    pub path: Vec<u8>,
    pub size_bytes: u64,
    pub crc: u32,
}

/// The sums in the order of the stream, on disk.
pub struct Sums {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Sums {
    pub fn create(path: PathBuf) -> Outcome<Sums> {
        let file = File::create_new(&path).map_err(|e| Failure::io(&e, path.display()))?;
        Ok(Sums {
            path,
            file: BufWriter::new(file),
        })
    }

    pub fn add(&mut self, sum: &Sum) -> Outcome<()> {
        let length = u32::try_from(sum.path.len()).unwrap_or(u32::MAX);
        let mut write = |bytes: &[u8]| self.file.write_all(bytes);
        write(&length.to_le_bytes())
            .and_then(|()| write(&sum.path))
            .and_then(|()| write(&sum.size_bytes.to_le_bytes()))
            .and_then(|()| write(&sum.crc.to_le_bytes()))
            .map_err(|e| Failure::io(&e, self.path.display()))
    }

    /// Ends the list and begins to compare.
    pub fn check(mut self) -> Outcome<Check> {
        let failed = |e: std::io::Error| Failure::io(&e, self.path.display());
        self.file.flush().map_err(failed)?;
        let file = File::open(&self.path).map_err(failed)?;
        Ok(Check {
            sums: BufReader::new(file),
            path: self.path,
            line: Vec::new(),
            digest: Sha256::new(),
            section: Section::Head,
        })
    }
}

/// Compares while the manifest arrives.
pub struct Check {
    sums: BufReader<File>,
    path: PathBuf,
    line: Vec<u8>,
    digest: Sha256,
    section: Section,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Head,
    Files,
    Ranges,
    Over,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Line {
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: String,
    checksum: String,
}

impl Check {
    pub fn feed(&mut self, mut bytes: &[u8]) -> Outcome<()> {
        while let Some(at) = bytes.iter().position(|b| *b == b'\n') {
            let (now, rest) = bytes.split_at(at + 1);
            self.line.extend_from_slice(now);
            bytes = rest;
            let line = std::mem::take(&mut self.line);
            self.whole(&line)?;
            self.line = line;
            self.line.clear();
        }
        self.line.extend_from_slice(bytes);
        match self.line.len() > LINE_MAX_BYTES {
            true => Err(malformed("a line of more than 64 KiB")),
            false => Ok(()),
        }
    }

    /// The manifest is at its end: so must be our list.
    pub fn finish(mut self) -> Outcome<()> {
        if self.section != Section::Over || !self.line.is_empty() {
            return Err(malformed("it has no end"));
        }
        match self.next()? {
            None => Ok(()),
            Some(sum) => Err(differs(&sum.path, "is not in the manifest")),
        }
    }

    fn whole(&mut self, line: &[u8]) -> Outcome<()> {
        let text = line.trim_ascii();
        if let Some(rest) = text.strip_prefix(b"\"Manifest-Checksum\":") {
            return self.sealed(rest);
        }
        self.digest.update(line);
        match (self.section, text) {
            (Section::Head, b"\"Files\": [") => self.section = Section::Files,
            (Section::Head, _) => {}
            (Section::Files, b"],") => self.section = Section::Ranges,
            (Section::Files, text) => return self.entry(text.strip_suffix(b",").unwrap_or(text)),
            (Section::Ranges, _) => {}
            (Section::Over, _) => return Err(malformed("lines behind its end")),
        }
        Ok(())
    }

    fn entry(&mut self, text: &[u8]) -> Outcome<()> {
        let line: Line = serde_json::from_slice(text).map_err(|e| malformed(&e.to_string()))?;
        let path = match (line.path, line.encoded_path) {
            (Some(path), _) => path.into_bytes(),
            (None, Some(hex)) => hex::decode(hex).map_err(|e| malformed(&e.to_string()))?,
            (None, None) => return Err(malformed("a file without a path")),
        };
        if line.algorithm != "CRC32C" {
            return Err(malformed("another checksum than CRC32C"));
        }
        // The server prints the bytes of the sum as they lie in its memory.
        let crc = hex::decode(&line.checksum)
            .ok()
            .and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?)))
            .ok_or_else(|| malformed("a checksum that is none"))?;
        let listed = Sum {
            path,
            size_bytes: line.size,
            crc,
        };
        match self.next()? {
            Some(received) if received == listed => Ok(()),
            Some(received) if received.path == listed.path => Err(differs(
                &listed.path,
                &format!(
                    "came as {} bytes with CRC {:08x}, the manifest says {} bytes with {:08x}",
                    received.size_bytes, received.crc, listed.size_bytes, listed.crc
                ),
            )),
            Some(received) => {
                let other = String::from_utf8_lossy(&received.path).into_owned();
                Err(differs(
                    &listed.path,
                    &format!("was not received, '{other}' was"),
                ))
            }
            None => Err(differs(&listed.path, "was not received")),
        }
    }

    /// The last line but for the brace: `"<64 hex digits>"}`.
    fn sealed(&mut self, rest: &[u8]) -> Outcome<()> {
        let digest = std::mem::take(&mut self.digest).finalize();
        let expected = format!("\"{}\"}}", hex::encode(digest));
        if self.section != Section::Ranges || rest.trim_ascii() != expected.as_bytes() {
            return Err(malformed("its own checksum does not fit"));
        }
        self.section = Section::Over;
        Ok(())
    }

    /// The next of our own sums.
    fn next(&mut self) -> Outcome<Option<Sum>> {
        let path = &self.path;
        let failed = |e: std::io::Error| Failure::io(&e, path.display());
        let mut length = [0; 4];
        match self.sums.read(&mut length).map_err(failed)? {
            0 => return Ok(None),
            read => {
                let rest = length.get_mut(read..).unwrap_or(&mut []);
                self.sums.read_exact(rest).map_err(failed)?;
            }
        }
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(0);
        let mut path = vec![0; length];
        let (mut size, mut crc) = ([0; 8], [0; 4]);
        self.sums
            .read_exact(&mut path)
            .and_then(|()| self.sums.read_exact(&mut size))
            .and_then(|()| self.sums.read_exact(&mut crc))
            .map_err(failed)?;
        Ok(Some(Sum {
            path,
            size_bytes: u64::from_le_bytes(size),
            crc: u32::from_le_bytes(crc),
        }))
    }
}

fn malformed(what: &str) -> Failure {
    Failure::new(Class::Corrupt, format!("backup_manifest: {what}"))
}

fn differs(path: &[u8], what: &str) -> Failure {
    let path = String::from_utf8_lossy(path);
    Failure::new(Class::Corrupt, format!("backup_manifest: '{path}' {what}"))
        .hint("the server or the way from it damaged the file; take another backup")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(path: &[u8], size_bytes: u64, crc: u32) -> Sum {
        Sum {
            path: path.to_vec(),
            size_bytes,
            crc,
        }
    }

    fn received() -> Vec<Sum> {
        vec![
            sum(b"pg_tblspc/16384/PG_15/5/1", 8192, 0x1234_5678),
            sum(b"backup_label", 225, 1),
            sum(b"a \"quoted\" name", 0, 0),
            sum(b"\xff", 3, 2),
        ]
    }

    /// As the server writes it.
    fn manifest(files: &[Sum]) -> String {
        let line = |sum: &Sum| {
            let path = match std::str::from_utf8(&sum.path) {
                Ok(path) => format!("\"Path\": {}", serde_json::Value::from(path)),
                Err(_) => format!("\"Encoded-Path\": \"{}\"", hex::encode(&sum.path)),
            };
            let crc = hex::encode(sum.crc.to_le_bytes());
            format!(
                "{{ {path}, \"Size\": {}, \"Last-Modified\": \"2026-11-22 09:27:26 GMT\", \
                 \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{crc}\" }}",
                sum.size_bytes
            )
        };
        let lines: Vec<_> = files.iter().map(line).collect();
        let head = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7,\n\
             \"Files\": [\n{}\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": 1, \
             \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }}\n],\n",
            lines.join(",\n")
        );
        let digest = hex::encode(Sha256::digest(&head));
        format!("{head}\"Manifest-Checksum\": \"{digest}\"}}\n")
    }

    fn check(received: &[Sum], manifest: &str, piece: usize) -> Outcome<()> {
        let folder = tempfile::tempdir().unwrap();
        let mut sums = Sums::create(folder.path().join("sums"))?;
        for sum in received {
            sums.add(sum)?;
        }
        let mut check = sums.check()?;
        for part in manifest.as_bytes().chunks(piece) {
            check.feed(part)?;
        }
        check.finish()
    }

    #[test]
    fn what_came_is_what_is_listed() {
        let files = received();
        for piece in [1, 10, 1000, 1 << 20] {
            check(&files, &manifest(&files), piece).unwrap();
        }
    }

    #[test]
    fn s35_any_difference_fails_and_names_the_file() {
        let listed = received();
        let change = |at: usize, change: &dyn Fn(&mut Sum)| {
            let mut files = listed.clone();
            change(&mut files[at]);
            files
        };
        for (files, named) in [
            (change(0, &|s| s.crc ^= 1), "pg_tblspc/16384/PG_15/5/1"),
            (
                change(0, &|s| s.size_bytes += 1),
                "pg_tblspc/16384/PG_15/5/1",
            ),
            (change(1, &|s| s.path = b"other".to_vec()), "backup_label"),
            (listed[..3].to_vec(), "was not received"),
            (
                [listed.clone(), vec![sum(b"extra", 1, 1)]].concat(),
                "extra",
            ),
            (listed[1..].to_vec(), "pg_tblspc/16384/PG_15/5/1"),
        ] {
            let failure = check(&files, &manifest(&listed), 100).unwrap_err();
            assert_eq!(failure.class, Class::Corrupt);
            assert!(failure.message.contains(named), "{failure}");
        }
    }

    #[test]
    fn s35_a_damaged_manifest_is_refused() {
        let files = received();
        let good = manifest(&files);
        let bad = [
            good.replace("Version\": 2", "Version\": 1"),
            good.replace("0/2000100", "0/2000101"),
            good.replace("CRC32C", "SHA256"),
            good.replace("\"Size\": 225", "\"Size\": x"),
            good.trim_end().to_owned(),
            good[..good.len() / 2].to_owned(),
            String::new(),
            format!("{good}{good}"),
        ];
        for text in bad {
            let failure = check(&files, &text, 64).unwrap_err();
            assert_eq!(failure.class, Class::Corrupt, "{failure}");
        }
    }
}
