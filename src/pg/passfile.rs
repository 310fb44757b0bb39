//! `~/.pgpass`: where users keep passwords out of configuration files.
//!
//! Lines `host:port:database:user:password`, `*` matches anything, `\` takes the next character as
//! it is, `#` begins a comment; the first line that matches wins. As in libpq the file is ignored
//! when others may read it; the caller is told, because that is the usual reason for a refusal.
//! Authority: PostgreSQL documentation, "The Password File".

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use zeroize::Zeroizing;

/// More than anybody's password file; a bound for what we read into memory.
const SIZE_MAX_BYTES: u64 = 1 << 20;

#[derive(Debug)]
pub enum Lookup {
    Found(Password),
    Absent,
    /// The file exists and was not used; the text says why.
    Ignored(String),
}

#[derive(Clone, PartialEq, Eq)]
pub struct Password(Zeroizing<String>);

impl Password {
    pub fn new(text: impl Into<String>) -> Password {
        Password(Zeroizing::new(text.into()))
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

/// Whom the password is for. A host may go by several names: a socket in the default directory is
/// `localhost` to libpq.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub hosts: &'a [&'a str],
    pub port: u16,
    pub databases: &'a [&'a str],
    pub user: &'a str,
}

pub fn look_up(path: &Path, wanted: Wanted<'_>) -> Lookup {
    let ignored = |why: &str| Lookup::Ignored(format!("password file {}: {why}", path.display()));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Lookup::Absent,
        Err(e) => return ignored(&e.to_string()),
    };
    match file.metadata() {
        Ok(facts) if !facts.is_file() => return ignored("not a plain file"),
        Ok(facts) if facts.mode() & 0o077 != 0 => {
            return ignored("group or others may read it; expected mode 0600");
        }
        Ok(_) => {}
        Err(e) => return ignored(&e.to_string()),
    }
    let mut text = Zeroizing::new(String::new());
    match file.take(SIZE_MAX_BYTES).read_to_string(&mut text) {
        Ok(_) => text
            .lines()
            .find_map(|line| password_of(line, wanted))
            .map_or(Lookup::Absent, Lookup::Found),
        Err(e) => ignored(&e.to_string()),
    }
}

fn password_of(line: &str, wanted: Wanted<'_>) -> Option<Password> {
    if line.starts_with('#') {
        return None;
    }
    let port = wanted.port.to_string();
    let users = [wanted.user];
    let ports = [port.as_str()];
    let mut rest = line;
    for accepted in [wanted.hosts, &ports, wanted.databases, &users] {
        let (field, bare, after) = field(rest);
        let wild = bare == "*";
        if !wild && !accepted.contains(&field.as_str()) {
            return None;
        }
        rest = after?;
    }
    let (password, _, _) = field(rest);
    (!password.is_empty()).then(|| Password::new(password))
}

/// The first field unescaped and as written, and what follows its colon.
fn field(text: &str) -> (String, &str, Option<&str>) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            ':' => {
                let (bare, after) = text.split_at(at);
                return (value, bare, after.strip_prefix(':'));
            }
            '\\' => value.extend(chars.next().map(|(_, next)| next)),
            c => value.push(c),
        }
    }
    (value, text, None)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const FILE: &str = "\
# db.example.com:5432:*:joe:commented
db.example.com:5432:shop:joe:one
db.example.com:*:*:joe:two
localhost:5432:replication:joe:three
::1:5432:*:joe:unreachable
\\:\\:1:5432:*:joe:fo\\:ur\\\\
*:5432:*:\\*:star
short:5432
*:*:*:last:with:colon
empty:*:*:*:
";

    fn check(hosts: &[&str], databases: &[&str], user: &str, expected: Option<&str>) {
        let wanted = Wanted {
            hosts,
            port: 5432,
            databases,
            user,
        };
        let found = FILE.lines().find_map(|line| password_of(line, wanted));
        assert_eq!(found.as_ref().map(Password::reveal), expected, "{wanted:?}");
    }

    #[test]
    fn the_first_line_that_matches_wins() {
        check(&["db.example.com"], &["shop"], "joe", Some("one"));
        check(&["db.example.com"], &["replication"], "joe", Some("two"));
        check(
            &["/run/x", "localhost"],
            &["replication", "db"],
            "joe",
            Some("three"),
        );
        check(&["::1"], &["x"], "joe", Some("fo:ur\\"));
        check(&["h"], &["x"], "*", Some("star"));
        check(&["h"], &["x"], "ann", None);
        check(&["short"], &["x"], "ann", None);
        check(&["h"], &["x"], "last", Some("with"));
        check(&["empty"], &["x"], "ann", None);
    }

    #[test]
    fn a_file_others_may_read_is_ignored_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pgpass");
        fs::write(&path, "*:*:*:*:secret\n").unwrap();
        let wanted = Wanted {
            hosts: &["h"],
            port: 1,
            databases: &["d"],
            user: "u",
        };
        for (mode, found) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            match look_up(&path, wanted) {
                Lookup::Found(password) => {
                    assert!(found, "{mode:o}");
                    assert_eq!(format!("{password:?}"), "..");
                }
                Lookup::Ignored(why) => {
                    assert!(!found, "{mode:o}");
                    assert!(why.contains("0600") && !why.contains("secret"), "{why}");
                }
                Lookup::Absent => panic!("{mode:o}"),
            }
        }
        assert!(matches!(
            look_up(&folder.path().join("none"), wanted),
            Lookup::Absent
        ));
        assert!(matches!(look_up(folder.path(), wanted), Lookup::Ignored(_)));
    }
}
