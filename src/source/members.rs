//! A tar stream as it comes, cut into members without holding any of them.
//!
//! Only the headers (`header.rs`) are looked at; bodies pass through as slices of the caller's
//! buffer.
//! Understood: ustar with prefix, pax `x` and `g` headers (path and size), GNU long names, sizes in
//! base 256. Refused: sparse files, hard links, devices; no PostgreSQL server sends them.
//! Authority: POSIX pax, PostgreSQL `src/port/tar.c`.

use machine::Class;

use super::header::{self, BLOCK, CHECKSUM, Header, MAGIC, NAME, NAME_BYTES, PREFIX, SIZE};
use crate::failure::{Failure, Outcome};

/// What a pax header or a long name may take: PostgreSQL sends neither, a path is 4 KiB at most.
const EXTENSION_MAX_BYTES: u64 = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
    Link,
}

/// One member as its header, or headers, describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Without a slash at its end.
    pub path: Vec<u8>,
    pub kind: Kind,
    pub size_bytes: u64,
    header: Box<Header>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    Begin(Member),
    Body(&'a [u8]),
    End,
}

#[derive(Debug)]
pub struct Walker {
    state: State,
    head: Vec<u8>,
    /// Collected from extension headers, for the next member.
    path: Option<Vec<u8>>,
    size_bytes: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between members, collecting a header.
    Head,
    /// In the body of an extension header of this type.
    Extension {
        kind: u8,
        rest: u64,
        padding: u64,
    },
    Body {
        rest: u64,
        padding: u64,
    },
    Padding {
        rest: u64,
    },
    /// After the first block of zeros.
    Over,
}

impl Walker {
    pub fn new() -> Walker {
        Walker {
            state: State::Head,
            head: Vec::with_capacity(BLOCK),
            path: None,
            size_bytes: None,
        }
    }

    /// The next step the bytes allow, taking what it used off their front; `None` when they are
    /// used up.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Outcome<Option<Step<'a>>> {
        loop {
            match self.state {
                State::Body { rest: 0, padding } => {
                    self.state = State::Padding { rest: padding };
                    return Ok(Some(Step::End));
                }
                State::Padding { rest: 0 } => self.state = State::Head,
                State::Extension {
                    kind,
                    rest: 0,
                    padding,
                } => {
                    self.extended(kind)?;
                    self.state = State::Padding { rest: padding };
                }
                _ if bytes.is_empty() => return Ok(None),
                State::Body { rest, padding } => {
                    let body = take(bytes, rest);
                    let rest = rest - length(body);
                    self.state = State::Body { rest, padding };
                    return Ok(Some(Step::Body(body)));
                }
                State::Padding { rest } => {
                    let skipped = length(take(bytes, rest));
                    self.state = State::Padding {
                        rest: rest - skipped,
                    };
                }
                State::Extension {
                    kind,
                    rest,
                    padding,
                } => {
                    let body = take(bytes, rest);
                    self.head.extend_from_slice(body);
                    let rest = rest - length(body);
                    self.state = State::Extension {
                        kind,
                        rest,
                        padding,
                    };
                }
                State::Head => {
                    let missing = length_of(BLOCK) - length(&self.head);
                    self.head.extend_from_slice(take(bytes, missing));
                    if self.head.len() == BLOCK
                        && let Some(member) = self.header()?
                    {
                        return Ok(Some(Step::Begin(member)));
                    }
                }
                State::Over => {
                    if bytes.iter().any(|b| *b != 0) {
                        return Err(corrupt("bytes behind its end"));
                    }
                    *bytes = &[];
                }
            }
        }
    }

    /// Whether the stream may end here.
    pub fn finish(&self) -> Outcome<()> {
        let between = matches!(self.state, State::Head | State::Padding { rest: 0 });
        match self.state {
            State::Over => Ok(()),
            _ if between && self.head.is_empty() && self.path.is_none() => Ok(()),
            _ => Err(corrupt("it ends in the middle of a member")),
        }
    }

    fn header(&mut self) -> Outcome<Option<Member>> {
        let block = <[u8; BLOCK]>::try_from(self.head.as_slice());
        let header = Header(block.map_err(|_| corrupt("half a header"))?);
        self.head.clear();
        if header.0.iter().all(|b| *b == 0) {
            self.state = State::Over;
            return Ok(None);
        }
        if header.number(CHECKSUM) != Some(header.checksum()) {
            return Err(corrupt("a header whose checksum is wrong"));
        }
        let own = header.number(SIZE).ok_or_else(|| corrupt("no size"))?;
        let size_bytes = self.size_bytes.filter(|_| !header.extends()).unwrap_or(own);
        let padding = padding(size_bytes);
        if header.extends() {
            if size_bytes > EXTENSION_MAX_BYTES {
                return Err(corrupt("an extension header of more than 64 KiB"));
            }
            let (kind, rest) = (header.kind(), size_bytes);
            self.state = State::Extension {
                kind,
                rest,
                padding,
            };
            return Ok(None);
        }
        let mut path = self.path.take().unwrap_or_else(|| header.path());
        self.size_bytes = None;
        let slash = path.ends_with(b"/");
        while path.ends_with(b"/") {
            path.pop();
        }
        let kind = match header.kind() {
            b'5' => Kind::Folder,
            0 | b'0' | b'7' if slash => Kind::Folder,
            0 | b'0' | b'7' => Kind::File,
            b'2' => Kind::Link,
            other => {
                let message = format!(
                    "tar stream: '{}' is of type {:?}, expected a file, folder or link",
                    String::from_utf8_lossy(&path),
                    char::from(other)
                );
                return Err(Failure::new(Class::Unsupported, message));
            }
        };
        if !harmless(&path) {
            let path = String::from_utf8_lossy(&path);
            return Err(corrupt(&format!("the name '{path}' leaves its folder")));
        }
        let rest = if kind == Kind::File { size_bytes } else { 0 };
        let padding = if kind == Kind::File { padding } else { 0 };
        self.state = State::Body { rest, padding };
        Ok(Some(Member {
            path,
            kind,
            size_bytes: rest,
            header: Box::new(header),
        }))
    }

    /// An extension header is complete in `head`.
    fn extended(&mut self, kind: u8) -> Outcome<()> {
        let body = std::mem::take(&mut self.head);
        match kind {
            b'L' => self.path = body.split(|b| *b == 0).next().map(<[u8]>::to_vec),
            b'x' => {
                let mut rest = body.as_slice();
                while !rest.is_empty() {
                    let (key, value) = record(&mut rest).ok_or_else(|| corrupt("a pax record"))?;
                    match key {
                        b"path" => self.path = Some(value.to_vec()),
                        b"size" => {
                            let size = std::str::from_utf8(value).ok();
                            let size = size.and_then(|s| s.parse().ok());
                            self.size_bytes = Some(size.ok_or_else(|| corrupt("a pax size"))?);
                        }
                        key if key.starts_with(b"GNU.sparse") => {
                            let message = "tar stream: a sparse file, expected plain ones";
                            return Err(Failure::new(Class::Unsupported, message));
                        }
                        _ => {}
                    }
                }
            }
            // A long link target, or a header for the whole archive: nothing we use.
            _ => {}
        }
        Ok(())
    }
}

/// `27 path=...\n`: length, blank, key, equals sign, value, newline.
fn record<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let blank = rest.iter().position(|b| *b == b' ')?;
    let size: usize = std::str::from_utf8(rest.get(..blank)?).ok()?.parse().ok()?;
    let (record, after) = rest.split_at_checked(size)?;
    *rest = after;
    let pair = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|b| *b == b'=')?;
    Some((pair.get(..equals)?, pair.get(equals + 1..)?))
}

/// Relative, and below the folder it is unpacked in.
fn harmless(path: &[u8]) -> bool {
    !path.is_empty()
        && path
            .split(|b| *b == b'/')
            .all(|part| !matches!(part, b"" | b".."))
}

fn take<'a>(bytes: &mut &'a [u8], most: u64) -> &'a [u8] {
    let most = usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len());
    let (taken, rest) = bytes.split_at(most);
    *bytes = rest;
    taken
}

fn length(bytes: &[u8]) -> u64 {
    length_of(bytes.len())
}

fn length_of(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Zeros behind a body, up to a whole block.
pub fn padding(size_bytes: u64) -> u64 {
    size_bytes.wrapping_neg() % length_of(BLOCK)
}

fn corrupt(what: &str) -> Failure {
    Failure::new(Class::Corrupt, format!("tar stream: {what}"))
}

impl Member {
    /// A folder nobody sent.
    pub fn folder(path: &[u8]) -> Member {
        Member {
            path: path.to_vec(),
            kind: Kind::Folder,
            size_bytes: 0,
            header: Box::new(Header::folder()),
        }
    }

    /// A file that the server did not send as a member.
    pub fn file(path: &[u8], size_bytes: u64, modified_s: u64) -> Member {
        let mut header = Header::file(size_bytes, modified_s);
        header.set(NAME, path);
        header.seal();
        Member {
            path: path.to_vec(),
            kind: Kind::File,
            size_bytes,
            header: Box::new(header),
        }
    }

    /// The header as it came, or what is as good where extensions described the member.
    pub fn sent(&self) -> Vec<u8> {
        let own = self.header.path();
        let plain = own.strip_suffix(b"/").unwrap_or(&own) == self.path;
        let sized = self.kind != Kind::File || self.header.number(SIZE) == Some(self.size_bytes);
        match plain && sized {
            true => self.header.0.to_vec(),
            false => self.blocks(&self.path),
        }
    }

    /// The header block or blocks that name this member `path`; everything else is as it came.
    pub fn blocks(&self, path: &[u8]) -> Vec<u8> {
        let mut name = path.to_vec();
        if self.kind == Kind::Folder {
            name.push(b'/');
        }
        let mut header = Header::clone(&self.header);
        header.set(MAGIC, b"ustar\x0000");
        header.set(PREFIX, b"");
        let mut blocks = Vec::with_capacity(BLOCK);
        match header::split(&name) {
            Some((prefix, short)) => {
                header.set(PREFIX, prefix);
                header.set(NAME, short);
            }
            None => {
                blocks = header::long_name(&name);
                header.set(NAME, name.get(..NAME_BYTES).unwrap_or(&name));
            }
        }
        // A size from a pax record that the field of this header cannot hold has no other place.
        if self.size_bytes >= 1 << 33 {
            let [high, rest @ ..] = self.size_bytes.to_be_bytes();
            let mut field = [0x80, 0, 0, 0, high, 0, 0, 0, 0, 0, 0, 0];
            for (place, byte) in field.iter_mut().skip(5).zip(rest) {
                *place = byte;
            }
            header.set(SIZE, &field);
        } else if self.kind == Kind::File {
            header.set(SIZE, format!("{:011o}", self.size_bytes).as_bytes());
        }
        header.seal();
        blocks.extend_from_slice(&header.0);
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, content; a folder has no content.
    type Made = (String, Option<Vec<u8>>);

    fn members() -> Vec<Made> {
        let long = format!("{}/{}", "d".repeat(90), "f".repeat(60));
        let longer = "n".repeat(300);
        vec![
            ("base".to_owned(), None),
            ("base/1".to_owned(), Some(vec![7; 8192])),
            ("empty".to_owned(), Some(Vec::new())),
            (long, Some(vec![1; 511])),
            (longer, Some(vec![2; 513])),
            ("base/2".to_owned(), Some(vec![3; 512])),
        ]
    }

    /// As the tar crate writes it: GNU names, zeros at the end.
    fn archive(members: &[Made]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o600);
            let (kind, bytes) = match content {
                Some(bytes) => (tar::EntryType::Regular, bytes.as_slice()),
                None => (tar::EntryType::Directory, &[][..]),
            };
            header.set_entry_type(kind);
            header.set_size(u64::try_from(bytes.len()).unwrap());
            tar.append_data(&mut header, name, bytes).unwrap();
        }
        tar.into_inner().unwrap()
    }

    /// Cuts the archive into pieces, and writes what comes out under other names.
    fn walk(bytes: &[u8], piece: usize, prefix: &str) -> (Vec<Made>, Vec<u8>) {
        let (mut walker, mut found, mut out) = (Walker::new(), Vec::new(), Vec::new());
        for mut part in bytes.chunks(piece) {
            while let Some(step) = walker.next(&mut part).unwrap() {
                match step {
                    Step::Begin(member) => {
                        let name = [prefix.as_bytes(), &member.path].concat();
                        out.extend(member.blocks(&name));
                        let content = (member.kind == Kind::File).then(Vec::new);
                        found.push((String::from_utf8(member.path).unwrap(), content));
                    }
                    Step::Body(body) => {
                        out.extend_from_slice(body);
                        found.last_mut().unwrap().1.as_mut().unwrap().extend(body);
                    }
                    Step::End => out.resize(out.len().next_multiple_of(BLOCK), 0),
                }
            }
        }
        walker.finish().unwrap();
        out.extend([0; 2 * BLOCK]);
        (found, out)
    }

    #[test]
    fn members_survive_any_cut_and_a_new_name() {
        let made = members();
        let bytes = archive(&made);
        for piece in [1, 7, 511, 512, 513, 4096, usize::MAX] {
            let piece = piece.min(bytes.len());
            let (found, renamed) = walk(&bytes, piece, "pgdata/");
            assert_eq!(found, made, "pieces of {piece}");
            let mut read = tar::Archive::new(renamed.as_slice());
            let names: Vec<_> = read
                .entries()
                .unwrap()
                .map(|e| e.unwrap().path().unwrap().display().to_string())
                .collect();
            let expected: Vec<_> = made
                .iter()
                .map(|(name, content)| match content {
                    Some(_) => format!("pgdata/{name}"),
                    None => format!("pgdata/{name}/"),
                })
                .collect();
            assert_eq!(names, expected);
        }
    }

    #[test]
    fn sizes_beyond_eight_gibibytes_are_read_and_written() {
        let size = (1 << 33) + 5;
        let mut header = tar::Header::new_gnu();
        header.set_path("big").unwrap();
        header.set_size(size);
        header.set_cksum();
        let mut walker = Walker::new();
        let mut bytes = &header.as_bytes()[..];
        let Some(Step::Begin(member)) = walker.next(&mut bytes).unwrap() else {
            panic!("no member");
        };
        assert_eq!(member.size_bytes, size);
        let block = member.blocks(b"pgdata/big");
        let written = tar::Header::from_byte_slice(&block);
        assert_eq!(written.size().unwrap(), size);
        assert!(walker.finish().is_err());
    }

    #[test]
    fn pax_headers_give_path_and_size() {
        let mut bytes = Vec::new();
        let records = b"13 path=long\n9 size=3\n20 GNU.nothing=here\n";
        for (name, kind, body) in [("x", b'x', &records[..]), ("short", b'0', b"abc")] {
            let mut header = tar::Header::new_ustar();
            header.set_path(name).unwrap();
            header.set_entry_type(tar::EntryType::new(kind));
            let size = if kind == b'x' { body.len() } else { 0 };
            header.set_size(u64::try_from(size).unwrap());
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(body);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        let (found, _) = walk(&bytes, 100, "");
        assert_eq!(found, [("long".to_owned(), Some(b"abc".to_vec()))]);
    }

    #[test]
    fn s35_a_damaged_stream_is_refused() {
        let good = archive(&[("file".to_owned(), Some(vec![1; 600]))]);
        let whole = |bytes: &[u8]| {
            let (mut walker, mut rest) = (Walker::new(), bytes);
            while walker.next(&mut rest)?.is_some() {}
            walker.finish()
        };
        assert!(whole(&good).is_ok());
        let mut flipped = good.clone();
        flipped[3] ^= 1;
        let hard_link = |good: &[u8]| {
            let mut header = tar::Header::from_byte_slice(&good[..BLOCK]).clone();
            header.set_entry_type(tar::EntryType::Link);
            header.set_cksum();
            [header.as_bytes(), &good[BLOCK..]].concat()
        };
        let outside = |name: &[u8]| {
            let mut header = tar::Header::from_byte_slice(&good[..BLOCK]).clone();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name);
            header.set_cksum();
            [header.as_bytes(), &good[BLOCK..]].concat()
        };
        let trailing = [&good[..], b"x"].concat();
        for (what, bytes) in [
            ("a flipped bit", &flipped[..]),
            ("a cut in a header", &good[..300]),
            ("a cut in a body", &good[..1100]),
            ("a hard link", &hard_link(&good)),
            ("a way out", &outside(b"../x")),
            ("an absolute name", &outside(b"/xyz")),
            ("bytes behind the end", &trailing),
        ] {
            assert!(whole(bytes).is_err(), "{what}");
        }
    }
}
