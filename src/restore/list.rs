//! The list of basebackups, byte for byte as PGHoard prints it.
//!
//! Authority: PGHoard `pghoard/restore.py`, `print_basebackup_list`. Metadata is shown as Python
//! shows a dict; stores do not keep its order, so the order PGHoard writes it in is given here.

use std::fmt::Write;

use jiff::Timestamp;

use super::Backup;
use super::choose;
use crate::store::Metadata;

/// What a row shows, from the store or from the daemon.
pub struct Row<'a> {
    pub name: &'a str,
    pub size_bytes: u64,
    pub metadata: &'a Metadata,
}

impl<'a> From<&'a Backup<'_>> for Row<'a> {
    fn from(backup: &'a Backup<'_>) -> Row<'a> {
        Row {
            name: backup.key(),
            size_bytes: backup.object.entry.size_bytes,
            metadata: backup.metadata(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    Plain,
    Verbose,
}

pub fn render<'a>(
    caption: &str,
    rows: impl IntoIterator<Item = Row<'a>>,
    detail: Detail,
) -> String {
    let mut rows: Vec<Row<'_>> = rows.into_iter().collect();
    rows.sort_by_key(|row| row.name);
    let mut text = format!("{caption} \n\n");
    line(
        &mut text,
        ["Basebackup", "Backup size", "Orig size", "Start time"],
    );
    let dashes = |count| "-".repeat(count);
    line(
        &mut text,
        [&dashes(40), &dashes(11), &dashes(11), &dashes(20)],
    );
    for row in rows {
        let number = |name: &str| row.metadata.get(name).and_then(|n| n.parse::<u64>().ok());
        let size = number("total-size-enc").unwrap_or(row.size_bytes);
        let plain = number("total-size-plain").or(number("original-file-size"));
        let plain = plain.filter(|size| *size > 0);
        let start = row
            .metadata
            .get("start-time")
            .and_then(|text| choose::time(text));
        line(
            &mut text,
            [
                row.name,
                &mebibytes(size),
                &plain.map_or("n/a".to_owned(), mebibytes),
                &start.map_or(String::new(), seconds),
            ],
        );
        if detail == Detail::Verbose {
            writeln!(text, "    metadata: {}", dict(row.metadata)).expect("a String takes all");
        }
    }
    text
}

fn line(text: &mut String, [name, size, plain, start]: [&str; 4]) {
    writeln!(text, "{name:<40}  {size:>11}  {plain:>11}  {start:<20}").expect("a String takes all");
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MB", bytes >> 20)
}

/// `2026-11-22T09:27:26Z`
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The `repr` of a dict, without the start time, which has a column.
fn dict(metadata: &Metadata) -> String {
    let order = match metadata.contains_key("format") {
        true => CHUNKED_ORDER,
        false => PLAIN_ORDER,
    };
    let rank = |name: &str| match name {
        "Content-Length" => LAST,
        name => order
            .iter()
            .position(|known| *known == name)
            .unwrap_or(OTHERS),
    };
    let mut pairs: Vec<(&String, &String)> = metadata.iter().collect();
    pairs.retain(|(name, _)| *name != "start-time");
    pairs.sort_by_key(|(name, _)| rank(name));
    let pairs = pairs
        .iter()
        .map(|(name, value)| format!("{}: {}", repr(name), repr(value)));
    format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
}

/// The `repr` of a str.
fn repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(quote);
    for char in text.chars() {
        match char {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            char if char == quote => out.extend(['\\', quote]),
            char if char.is_control() => {
                write!(out, "\\x{:02x}", u32::from(char)).expect("a String takes all");
            }
            char => out.push(char),
        }
    }
    out.push(quote);
    out
}

/// Names that PGHoard does not have come before the last, which the store adds.
const OTHERS: usize = 100;
const LAST: usize = 101;

const PLAIN_ORDER: &[&str] = &[
    "backup-decision-time",
    "backup-reason",
    "normalized-backup-time",
    "site",
    "start-wal-segment",
    "active-backup-mode",
    "basebackup-mode",
    "pg-version",
    "compression-algorithm",
    "compression-level",
    "original-file-size",
    "host",
    "encryption-key-id",
];

const CHUNKED_ORDER: &[&str] = &[
    "compression-algorithm",
    "encryption-key-id",
    "format",
    "original-file-size",
    "host",
    "backup-decision-time",
    "backup-reason",
    "normalized-backup-time",
    "site",
    "end-time",
    "end-wal-segment",
    "pg-version",
    "active-backup-mode",
    "basebackup-mode",
    "start-wal-segment",
    "total-size-plain",
    "total-size-enc",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_as_python_does() {
        for (text, expected) in [
            ("a", "'a'"),
            ("it's", "\"it's\""),
            ("'\"", "'\\'\"'"),
            ("\\\n\u{1}\u{e9}", "'\\\\\\n\\x01\u{e9}'"),
        ] {
            assert_eq!(repr(text), expected);
        }
    }
}
