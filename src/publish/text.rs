//! JSON, moments and sizes as people and PGHoard's readers expect them. All times are UTC.

use jiff::Timestamp;
use machine::{Class, Millis};
use serde::Serialize;
use serde_json::ser::PrettyFormatter;
use serde_json::{Serializer, Value};

use crate::failure::{Failure, Outcome};

/// As Python's `json.dump` with `indent=4, sort_keys=True` and a newline; a JSON map is sorted by
/// itself.
pub fn pretty(document: &Value) -> Outcome<String> {
    let mut text = Vec::new();
    let mut writer = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"    "));
    let internal = |why: String| Failure::new(Class::Internal, format!("writing JSON: {why}"));
    document
        .serialize(&mut writer)
        .map_err(|error| internal(error.to_string()))?;
    text.push(b'\n');
    String::from_utf8(text).map_err(|error| internal(error.to_string()))
}

/// `2026-11-22 09:28:51`
pub fn utc(at: Millis) -> String {
    format(at, "%Y-%m-%d %H:%M:%S")
}

/// `2026-11-22T09:28:51Z`, with six digits more where there is a fraction, as Python writes it.
pub fn iso(at: Millis) -> String {
    format!("{}Z", naive(at))
}

/// The same without a zone.
pub fn naive(at: Millis) -> String {
    if at.0.is_multiple_of(1_000) {
        format(at, "%Y-%m-%dT%H:%M:%S")
    } else {
        format(at, "%Y-%m-%dT%H:%M:%S%.6f")
    }
}

fn format(at: Millis, form: &str) -> String {
    let at = i64::try_from(at.0).ok();
    let at = at.and_then(|ms| Timestamp::from_millisecond(ms).ok());
    at.unwrap_or(Timestamp::MAX).strftime(form).to_string()
}

/// `512 B`, `1.5 KiB`, `2.0 GiB`
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut rest, mut below) = (bytes, 0);
    let mut unit = "";
    for name in UNITS {
        if rest < 1024 {
            break;
        }
        (rest, below, unit) = (rest / 1024, rest % 1024, name);
    }
    format!("{rest}.{} {unit}", below * 10 / 1024)
}

/// `3 s`, `5 min`, `2 h 10 min`, `4 d 3 h`
pub fn span(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_pghoards() {
        let at = Millis(1_795_339_731_251);
        assert_eq!(utc(at), "2026-11-22 09:28:51");
        assert_eq!(iso(at), "2026-11-22T09:28:51.251000Z");
        assert_eq!(naive(at), "2026-11-22T09:28:51.251000");
        assert_eq!(iso(Millis(1_795_339_731_000)), "2026-11-22T09:28:51Z");
        assert_eq!(utc(Millis(u64::MAX)), "9999-12-30 22:00:00");
    }

    #[test]
    fn sizes_and_spans_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (16 << 20, "16.0 MiB"),
            ((1 << 30) - 1, "1023.9 MiB"),
            (5 << 50, "5120.0 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (ms, text) in [
            (999, "0 s"),
            (59_000, "59 s"),
            (3_599_000, "59 min"),
            (7_800_000, "2 h 10 min"),
            (356_400_000, "4 d 3 h"),
        ] {
            assert_eq!(span(ms), text);
        }
    }
}
