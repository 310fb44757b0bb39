//! What an EFI program says about itself, in its section `.osrel`: lines as in `os-release`, of
//! which the version and the number of its log format matter here.

use std::io::{Read, Seek, SeekFrom};

use crate::{Outcome, Refused, Version, refused};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    pub version: Version,
    /// Of the log that the program writes.
    pub log: u32,
}

/// In bytes; ours takes 150.
const TEXT_MAX: u32 = 4096;
/// Offsets of the PE format (Microsoft's "PE Format", version 11).
const SIGNATURE_AT: u64 = 0x3c;
const FILE_HEADER: u64 = 24;
const SECTION_HEADER: u64 = 40;
/// systemd's stub has ten.
const SECTIONS_MAX: u16 = 64;
const SECTION: &[u8; 8] = b".osrel\0\0";

impl Release {
    /// The text, as `/etc/os-release` in the image, too.
    pub fn text(&self) -> String {
        let Release { version, log } = self;
        format!(
            "ID=pghoard\nNAME=\"PGHoard appliance\"\nPRETTY_NAME=\"PGHoard appliance {version}\"\n\
             VERSION_ID={version}\nPGHOARD_LOG={log}\n"
        )
    }

    pub fn parse(text: &str) -> Outcome<Release> {
        let fact = |key: &str| {
            let mut values = text.lines().filter_map(|line| line.strip_prefix(key));
            let value = values.next_back().and_then(|value| value.strip_prefix('='));
            value.ok_or_else(|| refused(format!("it says no {key} about itself")))
        };
        let log = fact("PGHOARD_LOG")?;
        Ok(Release {
            version: fact("VERSION_ID")?.parse()?,
            log: log.parse().map_err(|_| {
                refused(format!(
                    "PGHOARD_LOG '{}': expected a number",
                    log.escape_default()
                ))
            })?,
        })
    }

    /// Of an EFI program, of which no more than headers and the section are read.
    pub fn of(program: &mut (impl Read + Seek)) -> Outcome<Release> {
        let head: [u8; 64] = bytes(program, 0)?;
        if !head.starts_with(b"MZ") {
            return Err(refused("it is no EFI program"));
        }
        let signature = u64::from(u32::from_le_bytes(bytes(program, SIGNATURE_AT)?));
        if bytes(program, signature)? != *b"PE\0\0" {
            return Err(refused("it is no EFI program"));
        }
        let count = u16::from_le_bytes(bytes(program, signature + 6)?);
        let optional = u16::from_le_bytes(bytes(program, signature + 20)?);
        let table = signature + FILE_HEADER + u64::from(optional);
        for number in 0..count.min(SECTIONS_MAX) {
            let header = table + u64::from(number) * SECTION_HEADER;
            if bytes(program, header)? != *SECTION {
                continue;
            }
            let size = u32::from_le_bytes(bytes(program, header + 8)?);
            let start = u32::from_le_bytes(bytes(program, header + 20)?);
            if size > TEXT_MAX {
                return Err(refused("what it says about itself is too long"));
            }
            program
                .seek(SeekFrom::Start(u64::from(start)))
                .map_err(unread)?;
            let mut text = Vec::new();
            program
                .take(u64::from(size))
                .read_to_end(&mut text)
                .map_err(unread)?;
            if u32::try_from(text.len()) != Ok(size) {
                return Err(refused("it is cut off"));
            }
            return Release::parse(&String::from_utf8_lossy(&text));
        }
        Err(refused("it says nothing about itself (no section .osrel)"))
    }
}

fn bytes<const N: usize>(program: &mut (impl Read + Seek), at: u64) -> Outcome<[u8; N]> {
    let mut bytes = [0; N];
    program.seek(SeekFrom::Start(at)).map_err(unread)?;
    program.read_exact(&mut bytes).map_err(unread)?;
    Ok(bytes)
}

fn unread(error: std::io::Error) -> Refused {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => refused("it is no EFI program, or is cut off"),
        _ => refused(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::testing::program;

    #[test]
    fn an_efi_program_says_what_it_is() {
        let whole = program("1.2~rc1", 49, 10_000);
        let release = Release::of(&mut Cursor::new(&whole)).unwrap();
        assert_eq!(
            release,
            Release {
                version: "1.2~rc1".parse().unwrap(),
                log: 49
            }
        );
        assert_eq!(Release::parse(&release.text()).unwrap(), release);
        // However short or changed, it is a sentence or an answer, and never a panic.
        for length in 0..0x200 + release.text().len() {
            let told = Release::of(&mut Cursor::new(&whole[..length]));
            assert!(told.is_err(), "{length}");
        }
        for at in 0..0x400 {
            let mut changed = whole.clone();
            changed[at] ^= 0xff;
            let _any = Release::of(&mut Cursor::new(&changed));
        }
    }

    #[test]
    fn what_says_nothing_is_refused() {
        for (text, says) in [
            ("", "no PGHOARD_LOG"),
            ("VERSION_ID=1\n", "no PGHOARD_LOG"),
            ("PGHOARD_LOG=4\n", "no VERSION_ID"),
            (
                "PGHOARD_LOG=four\nVERSION_ID=1\n",
                "'four': expected a number",
            ),
            ("PGHOARD_LOG=4\nVERSION_ID=1+3\n", "version '1+3'"),
        ] {
            let told = Release::parse(text).unwrap_err().to_string();
            assert!(told.contains(says), "{told}");
        }
    }
}
