//! What keys mean, from the one table of them: README's, for a terminal of 80 columns.

use machine::Class;
use serde_json::Value;

use crate::config::keys::{self, Key, Level, Use};
use crate::failure::{Failure, Outcome};
use crate::tool::screen::wrap;

/// Names that are longer have a line of their own.
const NAME_COLUMNS: usize = 24;

pub fn all() -> String {
    let mut out = String::new();
    let mut level = None;
    for key in keys::all() {
        if level != Some(key.level) {
            level = Some(key.level);
            title(&mut out, key.level);
        }
        row(&mut out, &key);
    }
    out
}

/// One key wherever it exists, what a section holds, and the values in force.
pub fn one(wanted: &str, document: Option<&Value>) -> Outcome<String> {
    let mut out = String::new();
    for key in find(wanted)? {
        title(&mut out, key.level);
        row(&mut out, &key);
        for (path, value) in document.map(|d| values(d, &key)).unwrap_or_default() {
            out += &wrap("  ", &format!("in force: {path} = {value}"));
        }
        for level in keys::all().map(|key| key.level) {
            // A section's keys are told once, where its own key is.
            let inside = !out.contains(&heading(level)) && is_section(level, &key);
            if inside {
                title(&mut out, level);
                keys::of(level).for_each(|key| row(&mut out, &key));
            }
        }
    }
    Ok(out)
}

fn heading(level: Level) -> String {
    format!("{}\n\n", level.name())
}

fn title(out: &mut String, level: Level) {
    if !out.is_empty() {
        out.push('\n');
    }
    *out += &heading(level);
}

fn row(out: &mut String, key: &Key) {
    let meaning = match key.used {
        Use::Read => format!("{} [{}]", key.meaning, key.default),
        Use::Later => format!("not yet: {} [{}]", key.meaning, key.default),
        Use::Accepted => format!("accepted, without effect: {}", key.meaning),
    };
    let name = key.name;
    let head = match name.len() > NAME_COLUMNS {
        true => {
            *out += &format!("  {name}\n");
            ""
        }
        false => name,
    };
    *out += &wrap(&format!("  {head:<NAME_COLUMNS$}  "), &meaning);
}

/// Names from the top to the objects of a level; those in capitals are the user's own.
pub(super) fn way(level: Level) -> Vec<&'static str> {
    let name = level.name().split(' ').next().unwrap_or_default();
    name.split('.').filter(|part| *part != "global").collect()
}

pub(super) fn is_own(part: &str) -> bool {
    part.bytes().all(|b| b.is_ascii_uppercase())
}

pub(super) fn is_section(level: Level, key: &Key) -> bool {
    let mut inner = way(level);
    while inner.last().is_some_and(|part| is_own(part)) {
        inner.pop();
    }
    let mut own = way(key.level);
    own.push(key.name);
    inner == own
}

type Test<'a> = &'a dyn Fn(&Key) -> bool;

fn find(wanted: &str) -> Outcome<Vec<Key>> {
    let (path, name) = wanted.rsplit_once('.').unwrap_or(("", wanted));
    let path: Vec<&str> = path.split('.').filter(|part| !part.is_empty()).collect();
    // What the user named himself may be anything, so names of ours come first.
    let there = |key: &Key, own: bool| {
        let way = way(key.level);
        let fits = |(known, given): (&&str, &&str)| known == given || (own && is_own(known));
        way.len() >= path.len() && way.iter().rev().zip(path.iter().rev()).all(fits)
    };
    let is_it = |key: &Key| key.name == name;
    let begins = |key: &Key| key.name.starts_with(name);
    let keys = |by: Test<'_>, own| -> Vec<Key> {
        keys::all()
            .filter(|key| by(key) && there(key, own))
            .collect()
    };
    let tries: [(Test<'_>, bool); 4] = [
        (&is_it, false),
        (&is_it, true),
        (&begins, false),
        (&begins, true),
    ];
    let found = tries.into_iter().map(|(by, own)| keys(by, own));
    let found = found
        .into_iter()
        .find(|found| !found.is_empty())
        .unwrap_or_default();
    let mut names: Vec<&str> = found.iter().map(|key| key.name).collect();
    names.sort_unstable();
    names.dedup();
    let refused = |message: String| Failure::new(Class::Config, message);
    match names.len() {
        1 => return Ok(found),
        2.. => {
            let names = names.join(", ");
            return Err(refused(format!("'{wanted}' begins several keys: {names}")));
        }
        0 => {}
    }
    Err(refused(format!("no key is called '{wanted}'"))
        .hint("--explain without a name tells of every key")
        .meant(name, keys::all().map(|key| key.name)))
}

/// Where the document has this key, and what for.
fn values(document: &Value, key: &Key) -> Vec<(String, Value)> {
    let mut places = vec![(String::new(), document)];
    for part in way(key.level) {
        let inner = places.into_iter().flat_map(|(path, value)| {
            let map = value.as_object().into_iter().flatten();
            let fits = map.filter(move |(name, _)| is_own(part) || name.as_str() == part);
            fits.map(move |(name, value)| (format!("{path}{name}."), value))
        });
        places = inner.collect();
    }
    let found = places.into_iter().filter_map(|(path, value)| {
        let value = value.get(key.name)?;
        Some((format!("{path}{}", key.name), value.clone()))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(wanted: &str) -> Vec<String> {
        let found = find(wanted).unwrap();
        let told = found.iter().map(|key| {
            let way = way(key.level).join(".");
            format!("{way}/{}", key.name)
        });
        told.collect()
    }

    #[test]
    fn a_key_is_found_by_its_name_its_beginning_and_its_path() {
        for (wanted, expect) in [
            ("http_port", &["/http_port"][..]),
            ("http_po", &["/http_port"]),
            ("compression.algorithm", &["compression/algorithm"]),
            ("backup_sites.main.nodes", &["backup_sites.SITE/nodes"]),
            ("backup_sites.SITE.nodes", &["backup_sites.SITE/nodes"]),
            ("main.nodes", &["backup_sites.SITE/nodes"]),
            (
                "pg_basebackup_path",
                &[
                    "/pg_basebackup_path",
                    "backup_sites.SITE/pg_basebackup_path",
                ],
            ),
            ("statsd.p", &["statsd/port"]),
            (
                "encryption_keys.2026.public",
                &["backup_sites.SITE.encryption_keys.ID/public"],
            ),
            (
                "object_storage.directory",
                &["backup_sites.SITE.object_storage/directory"],
            ),
        ] {
            assert_eq!(names(wanted), expect, "{wanted}");
        }
        for (wanted, told) in [
            (
                "http_prot",
                "no key is called 'http_prot'; hint: did you mean http_port?",
            ),
            (
                "http_p.x",
                "no key is called 'http_p.x'; hint: --explain without a name tells of every key",
            ),
            (
                "graceful",
                "'graceful' begins several keys: graceful_shutdown_compression_timeout, \
                graceful_shutdown_upload_timeout",
            ),
        ] {
            assert_eq!(find(wanted).unwrap_err().to_string(), told);
        }
    }

    #[test]
    fn everything_is_told_in_80_columns() {
        let text = all();
        for key in keys::all() {
            assert!(text.contains(&format!("\n  {}", key.name)), "{}", key.name);
        }
        let wide: Vec<&str> = text.lines().filter(|line| line.len() > 80).collect();
        assert!(wide.is_empty(), "{wide:?}");
        assert!(text.starts_with("global\n\n  backup_location           folder of the spool"));
    }

    #[test]
    fn a_key_is_told_with_its_values_and_a_section_with_its_keys() {
        let document = json!({ "backup_sites": { "a": { "ack": "stored" }, "b": { "ack": "x" } } });
        assert_eq!(
            one("ack", Some(&document)).unwrap(),
            "\
backup_sites.SITE

  ack                       what PostgreSQL is told is safe: stored or spooled
                            [stored]
  in force: backup_sites.a.ack = \"stored\"
  in force: backup_sites.b.ack = \"x\"
"
        );
        let text = one("transfer", None).unwrap();
        assert!(text.contains("\ntransfer\n\n  thread_count "), "{text}");
        assert!(!one("thread_count", None).unwrap().contains("backup_sites"));
    }
}
