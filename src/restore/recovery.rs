//! The settings with which PostgreSQL recovers, by its version.
//!
//! From version 12 on they are appended to `postgresql.auto.conf`, after taking out what an
//! earlier restore or the backed-up standby left there, and a signal file says which recovery it
//! is; before, they are `recovery.conf`. Authority: PostgreSQL documentation, "Archive Recovery".

use std::fs;
use std::io;
use std::path::Path;

use super::choose::{Goal, python_time};
use super::target::Places;
use super::{corrupt, refused};
use crate::durable;
use crate::failure::{Failure, Outcome};

#[derive(Clone, Debug)]
pub struct Recovery {
    /// Words of the command; `%p` and `%f` are PostgreSQL's.
    pub restore_command: Vec<String>,
    pub role: Role,
    pub goal: Goal,
    pub action: Option<Action>,
    pub timeline: String,
    pub primary_conninfo: String,
    pub end_command: Option<String>,
}

/// What the restored server is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Primary,
    Standby,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pause,
    Promote,
    Shutdown,
}

impl Action {
    pub const ALL: [Action; 3] = [Action::Pause, Action::Promote, Action::Shutdown];

    pub fn name(self) -> &'static str {
        match self {
            Action::Pause => "pause",
            Action::Promote => "promote",
            Action::Shutdown => "shutdown",
        }
    }
}

/// Major version times 100, so that 9.6 is 906 and 15 is 1500.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32);

impl Version {
    pub const V10: Version = Version(1000);
    const V9_5: Version = Version(905);
    pub const V12: Version = Version(1200);
    const V16: Version = Version(1600);

    pub fn read(pgdata: &Path) -> Outcome<Version> {
        let path = pgdata.join("PG_VERSION");
        let text = fs::read_to_string(&path).map_err(|e| Failure::io(&e, path.display()))?;
        Version::parse(text.trim())
            .ok_or_else(|| corrupt(format!("{}: expected a version", path.display())))
    }

    pub fn parse(text: &str) -> Option<Version> {
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
        Some(Version(major.checked_mul(100)?.checked_add(minor)?))
    }
}

pub fn write(places: &Places, recovery: &Recovery) -> Outcome<()> {
    let version = Version::read(&places.pgdata)?;
    let path = places.pgdata.join(AUTO_CONF);
    let before = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(Failure::io(&e, path.display())),
    };
    let files = recovery.files(version, &before)?;
    if version >= Version::V12 {
        for signal in SIGNALS {
            durable::remove(&places.pgdata.join(signal))?;
        }
    }
    files
        .iter()
        .try_for_each(|(name, text)| put(places, name, text))
}

pub const AUTO_CONF: &str = "postgresql.auto.conf";
/// Files that say which recovery it is; one of the backup itself means nothing.
pub const SIGNALS: [&str; 2] = ["recovery.signal", "standby.signal"];

fn put(places: &Places, name: &str, text: &[u8]) -> Outcome<()> {
    let path = places.pgdata.join(name);
    durable::write_private(&path, text)?;
    match places.owner {
        Some(owner) => owner.give(&path),
        None => Ok(()),
    }
}

/// The lines of `postgresql.auto.conf` that have nothing to do with recovery. Bytes: PostgreSQL
/// takes any encoding.
fn without_recovery(text: &[u8]) -> Vec<u8> {
    let kept = text.split_inclusive(|byte| *byte == b'\n').filter(|line| {
        let line = line.trim_ascii();
        let name = line.split(|byte| b"= \t".contains(byte)).next();
        let name = name.unwrap_or_default().to_ascii_lowercase();
        let ours = OURS.iter().any(|ours| name == ours.as_bytes());
        !(ours || name.starts_with(b"recovery_target") || line == HEADER.as_bytes())
    });
    let mut kept = kept.collect::<Vec<_>>().concat();
    if kept.last().is_some_and(|last| *last != b'\n') {
        kept.push(b'\n');
    }
    kept
}

/// `archive_cleanup_command` of the old standby would delete what others still need;
/// `recovery_min_apply_delay` of a delayed one would hold up any recovery from an archive.
const OURS: &[&str] = &[
    "restore_command",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "archive_cleanup_command",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
];

const HEADER: &str = "# pghoard created recovery.conf";

impl Recovery {
    /// The files that a server of this version recovers by, where `before` is its
    /// `postgresql.auto.conf`.
    pub fn files(&self, version: Version, before: &[u8]) -> Outcome<Vec<(&'static str, Vec<u8>)>> {
        let text = self.render(version)?.into_bytes();
        if version < Version::V12 {
            return Ok(vec![("recovery.conf", text)]);
        }
        let [recovery, standby] = SIGNALS;
        let signal = match self.is_standby() {
            true => standby,
            false => recovery,
        };
        let auto = [without_recovery(before), text].concat();
        Ok(vec![(AUTO_CONF, auto), (signal, Vec::new())])
    }

    /// A target ends recovery, unless the server is told to follow a primary.
    fn is_standby(&self) -> bool {
        let aims = self.goal != Goal::End && self.primary_conninfo.is_empty();
        self.role == Role::Standby && !aims
    }

    fn render(&self, version: Version) -> Outcome<String> {
        let mut lines = vec![HEADER.to_owned()];
        let mut set = |name: &str, value: &str| lines.push(format!("{name} = '{}'", quoted(value)));
        set("recovery_target_timeline", &self.timeline);
        set("restore_command", &command(&self.restore_command));
        if version < Version::V12 {
            set("trigger_file", "trigger_file");
        } else if version < Version::V16 {
            set("promote_trigger_file", "trigger_file");
        }
        if version < Version::V12 && self.role == Role::Standby {
            set("standby_mode", "on");
        }
        if !self.primary_conninfo.is_empty() {
            set("primary_conninfo", &self.primary_conninfo);
        }
        if let Some(command) = &self.end_command {
            set("recovery_end_command", command);
        }
        match self.action {
            Some(action) if version >= Version::V9_5 => {
                set("recovery_target_action", action.name());
            }
            Some(Action::Pause) => set("pause_at_recovery_target", "true"),
            Some(Action::Promote) | None => {}
            Some(Action::Shutdown) => {
                return Err(refused(
                    "recovery_target_action shutdown needs PostgreSQL 9.5",
                ));
            }
        }
        match &self.goal {
            Goal::End => {}
            Goal::Immediate => set("recovery_target", "immediate"),
            Goal::Name(name) => set("recovery_target_name", name),
            Goal::Time(time) => set("recovery_target_time", &python_time(*time)),
            Goal::Xid(xid) => set("recovery_target_xid", xid),
            Goal::Lsn(lsn) => set("recovery_target_lsn", &lsn.to_string()),
        }
        Ok(lines.join("\n") + "\n")
    }
}

/// Inside single quotes of a configuration file.
fn quoted(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "''")
}

/// Words for the shell, with `%` kept from PostgreSQL but for its own two.
fn command(words: &[String]) -> String {
    let words = words.iter().map(|word| match word.as_str() {
        "%p" | "%f" => word.clone(),
        word => shell(word).replace('%', "%%"),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// A word for the shell, as it is.
pub fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=%@,+".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::choose;
    use super::*;

    fn recovery() -> Recovery {
        let words = ["pghoard_postgres_command", "--site", "it's 5%", "%p", "%f"];
        Recovery {
            restore_command: words.map(str::to_owned).to_vec(),
            role: Role::Standby,
            goal: Goal::End,
            action: None,
            timeline: "latest".to_owned(),
            primary_conninfo: String::new(),
            end_command: None,
        }
    }

    fn written(version: &str, auto: &str, recovery: &Recovery) -> (Vec<String>, String) {
        let folder = tempfile::tempdir().unwrap();
        let pgdata = folder.path().to_owned();
        fs::write(pgdata.join("PG_VERSION"), format!("{version}\n")).unwrap();
        fs::write(pgdata.join("postgresql.auto.conf"), auto).unwrap();
        fs::write(pgdata.join("standby.signal"), "").unwrap();
        let places = Places {
            pgdata: pgdata.clone(),
            tablespaces: BTreeMap::new(),
            owner: None,
        };
        write(&places, recovery).unwrap();
        let names = fs::read_dir(&pgdata).unwrap();
        let names = names.map(|item| item.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|n| n != "PG_VERSION").collect();
        names.sort();
        let conf = ["recovery.conf", "postgresql.auto.conf"].map(|name| pgdata.join(name));
        let conf = conf.iter().find(|path| path.exists()).unwrap();
        (names, fs::read_to_string(conf).unwrap())
    }

    #[test]
    fn settings_are_appended_and_old_ones_taken_out() {
        let auto = "# Do not edit\nwork_mem = '1MB'\nrestore_command = 'old'\n\
                    recovery_target_xid = '7'\nprimary_conninfo='x'\n\
                    recovery_min_apply_delay = '1d'\n";
        let (names, text) = written("15", auto, &recovery());
        assert_eq!(names, ["postgresql.auto.conf", "standby.signal"]);
        assert_eq!(
            text,
            "# Do not edit\nwork_mem = '1MB'\n# pghoard created recovery.conf\n\
             recovery_target_timeline = 'latest'\n\
             restore_command = 'pghoard_postgres_command --site ''it''\\\\''''s 5%%'' %p %f'\n\
             promote_trigger_file = 'trigger_file'\n"
        );
    }

    #[test]
    fn bytes_of_another_encoding_stay_as_they_are() {
        let before = b"a.b = 'M\xfcller'\r\n  Restore_Command='\xfc'\nx = 1";
        let version = Version::parse("15").unwrap();
        let files = recovery().files(version, before).unwrap();
        let rest = files[0].1.strip_prefix(b"a.b = 'M\xfcller'\r\nx = 1\n");
        let rest = rest.unwrap_or_else(|| panic!("{}", files[0].1.escape_ascii()));
        assert!(rest.starts_with(HEADER.as_bytes()));
    }

    #[test]
    fn the_signal_file_follows_role_and_goal() {
        let conn = "host=p";
        for (role, goal, conninfo, signal) in [
            (Role::Primary, Goal::End, "", "recovery.signal"),
            (Role::Standby, Goal::End, "", "standby.signal"),
            (Role::Standby, Goal::Immediate, "", "recovery.signal"),
            (Role::Standby, Goal::Immediate, conn, "standby.signal"),
            (Role::Primary, Goal::Immediate, conn, "recovery.signal"),
        ] {
            let primary_conninfo = conninfo.to_owned();
            let recovery = Recovery {
                role,
                goal,
                primary_conninfo,
                ..recovery()
            };
            let (names, _) = written("18", "", &recovery);
            assert_eq!(names, ["postgresql.auto.conf", signal]);
        }
    }

    #[test]
    fn each_goal_has_its_setting() {
        let time = choose::time("2026-11-22T11:17:15.5+02:00").unwrap();
        for (goal, expected) in [
            (Goal::Immediate, "recovery_target = 'immediate'\n"),
            (
                Goal::Name("a'b".to_owned()),
                "recovery_target_name = 'a''b'\n",
            ),
            (
                Goal::Time(time),
                "recovery_target_time = '2026-11-22 09:17:15.500000+00:00'\n",
            ),
            (Goal::Xid("77".to_owned()), "recovery_target_xid = '77'\n"),
            (
                Goal::Lsn("0/3000060".parse().unwrap()),
                "recovery_target_lsn = '0/3000060'\n",
            ),
        ] {
            let recovery = Recovery {
                goal,
                action: Some(Action::Promote),
                ..recovery()
            };
            let (_, text) = written("16", "", &recovery);
            assert!(text.ends_with(&format!("recovery_target_action = 'promote'\n{expected}")));
            assert!(!text.contains("trigger_file"));
        }
    }

    #[test]
    fn old_versions_get_recovery_conf() {
        let (names, text) = written("9.6", "", &recovery());
        assert_eq!(
            names,
            ["postgresql.auto.conf", "recovery.conf", "standby.signal"]
        );
        assert!(text.contains("\ntrigger_file = 'trigger_file'\nstandby_mode = 'on'\n"));
        assert_eq!(Version::parse("9.6"), Some(Version(906)));
        assert!(Version::parse("10").unwrap() >= Version::V10);
        assert_eq!(Version::parse("x"), None);
    }
}
