//! The command language: what may be said, with its help, and from a line to a command.

use clap::{CommandFactory, Parser, Subcommand};
use machine::Class;
use pghoard::failure::nearest;
use pghoard::{Failure, Outcome};

/// A line that a person typed.
#[derive(Debug, Parser)]
#[command(
    no_binary_name = true,
    disable_help_subcommand = true,
    infer_long_args = true
)]
pub struct Line {
    #[command(subcommand)]
    pub word: Word,
}

#[derive(Debug, Subcommand)]
pub enum Word {
    /// Show or acknowledge what is wrong: alerts [acknowledge NAME]
    #[command(disable_help_flag = true)]
    Alerts(Rest),
    /// Take a basebackup: backup now [SITE]
    Backup {
        #[command(subcommand)]
        word: Backup,
    },
    /// Show and change the settings
    Config {
        #[command(subcommand)]
        word: Config,
    },
    /// Start, stop or restart the daemon
    Daemon {
        #[command(subcommand)]
        word: Daemon,
    },
    /// Show the room on disk, or remove what was put there
    Disk {
        #[command(subcommand)]
        word: Option<Disk>,
    },
    /// Show the last events of the log
    Events(Events),
    /// Show which basebackups are being handed out
    HandOuts,
    /// Show all commands, or one of them: help [COMMAND]
    Help { word: Vec<String> },
    /// Keep a basebackup whatever retention says
    #[command(disable_help_flag = true)]
    Hold(Rest),
    /// Show which basebackups are held
    #[command(disable_help_flag = true)]
    Holds(Rest),
    /// Show what a restore would miss, or take note of it
    #[command(disable_help_flag = true)]
    Holes(Rest),
    /// Show, make, import and export encryption keys
    Keys {
        #[command(subcommand)]
        word: Option<Keys>,
    },
    /// Show the basebackups in the store
    #[command(disable_help_flag = true)]
    ListBasebackups(Rest),
    /// Show the last lines of the logs
    Log(Log),
    /// Leave; the line shows the status page again
    Logout,
    /// Show links, addresses and names, or ask for addresses anew
    Network {
        #[command(subcommand)]
        word: Option<Network>,
    },
    /// Stop everything in order and switch off
    Poweroff,
    /// Stop everything in order and start again
    Reboot,
    /// Let a held basebackup go when its time comes
    #[command(disable_help_flag = true)]
    Release(Rest),
    /// Restore a site; without a destination it asks
    Restore(Box<Restore>),
    /// Ask the first questions again
    Setup,
    /// Show each site in full
    #[command(disable_help_flag = true)]
    Sites(Rest),
    /// Show the status page
    Status,
    /// Pack logs, status and settings without secrets into one file
    SupportBundle,
    /// Show the clock, or set it by the time servers
    Time {
        #[command(subcommand)]
        word: Option<Time>,
    },
    /// Show the versions, try a new one, or go back
    Update {
        #[command(subcommand)]
        word: Option<Update>,
    },
    /// Read stored objects and say whether a restore can use them
    #[command(disable_help_flag = true)]
    Verify(Rest),
}

/// For one of PGHoard's tools, which knows its flags itself.
#[derive(Debug, clap::Args)]
pub struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Backup {
    /// Take one now
    Now {
        /// The site; may be left out where there is only one
        site: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Replace the settings by a document that is pasted
    Edit,
    /// Show the settings there were
    History,
    /// Take the settings from a drive labelled PGHOARD_CFG
    Import,
    /// Set the password of this console
    Password,
    /// Go back to settings of the history
    RollBack {
        /// As 'config history' shows it
        name: String,
    },
    /// Set one value: config set backup_sites.main.basebackup_count 7
    #[command(
        after_help = "What is no JSON is taken as a text. A path may begin with a slash \
                            and\nthen has slashes for dots. Numbers choose from a list."
    )]
    Set {
        /// As 'config show' nests it, with dots
        path: String,
        /// JSON, to the end of the line
        json: String,
    },
    /// Show the settings without their secrets
    Show {
        /// Only what is there
        path: Option<String>,
    },
    /// Take one value away: its default holds
    Unset {
        /// As 'config show' nests it, with dots
        path: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Daemon {
    /// Stop and start it
    Restart,
    /// Stop it until 'daemon start' or a boot
    Stop,
    /// Start it
    Start,
}

#[derive(Debug, Subcommand)]
pub enum Disk {
    /// Mend a data partition that a boot found broken
    Repair,
    /// Remove something below restore, support or updates for good
    Remove {
        /// As 'disk' shows it: restore/NAME
        name: String,
    },
}

#[derive(Debug, clap::Args)]
pub struct Events {
    /// How many
    #[arg(short, value_name = "N", default_value_t = 20)]
    pub number: usize,
    /// Only this site
    #[arg(long)]
    pub site: Option<String>,
    /// Only these kinds, with commas between them
    #[arg(long)]
    pub kind: Option<String>,
    /// Check the chain of digests instead
    #[arg(long)]
    pub verify: bool,
    /// Show new ones as they happen, until Ctrl-C
    #[arg(long, conflicts_with = "verify")]
    pub follow: bool,
}

#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Make a pair for a site; new backups are encrypted with it
    Create(Key),
    /// Show a public key
    Export(Key),
    /// Take a key that was kept elsewhere; it is pasted
    Import(Key),
    /// Show a private key, to be kept elsewhere
    Recovery(Key),
}

#[derive(Debug, clap::Args)]
pub struct Key {
    /// The site; may be left out where there is only one
    #[arg(long)]
    pub site: Option<String>,
    /// Its name; the current one, for a new one the date
    #[arg(long)]
    pub key_id: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Log {
    /// How many lines
    #[arg(short, value_name = "N", default_value_t = 40)]
    pub number: usize,
}

#[derive(Debug, Subcommand)]
pub enum Network {
    /// Ask for addresses anew
    Renew,
}

#[derive(Debug, Subcommand)]
pub enum Time {
    /// Ask the time servers now
    Sync,
}

#[derive(Debug, Subcommand)]
pub enum Update {
    /// Boot the version before this one next
    Back,
    /// Show the versions in the slots
    Status,
    /// Write a bundle into the other slot, to be tried
    Try {
        /// As 'update' shows it, or 'drive' for the labelled drive
        name: String,
    },
}

#[derive(Clone, Debug, Default, clap::Args)]
pub struct Restore {
    /// The site; may be left out where there is only one
    #[arg(long)]
    pub site: Option<String>,
    /// Name of a basebackup, or latest
    #[arg(long, value_name = "NAME")]
    pub backup: Option<String>,
    /// Recover to a time, UTC unless it says otherwise
    #[arg(long, value_name = "TIME", group = "target")]
    pub target_time: Option<String>,
    /// Recover to a position in the WAL
    #[arg(long, value_name = "LSN", group = "target")]
    pub target_lsn: Option<String>,
    /// Recover to a named restore point
    #[arg(long, value_name = "NAME", group = "target")]
    pub target_name: Option<String>,
    /// Recover to a transaction
    #[arg(long, value_name = "XID", group = "target")]
    pub target_xid: Option<String>,
    /// Recover only until the basebackup is consistent
    #[arg(long, group = "target")]
    pub immediate: bool,
    /// Timeline to follow: latest, current or a number
    #[arg(long)]
    pub timeline: Option<String>,
    /// Become a standby, not a primary, at the end
    #[arg(long)]
    pub standby: bool,
    /// Into a new directory below restore on disk
    #[arg(long, value_name = "NAME", conflicts_with = "serve")]
    pub to: Option<String>,
    /// Hand it out, for curl and tar to fetch
    #[arg(long)]
    pub serve: bool,
    /// Of the daemon for that host: http://HOST:PORT
    #[arg(long, requires = "serve")]
    pub url: Option<String>,
    /// How long the token of --serve holds
    #[arg(long, value_name = "N", requires = "serve")]
    pub minutes: Option<u32>,
}

/// From a line to a command; nothing for one without words. The failure's text is to be shown as
/// it is where it has the usage in it.
pub fn parse(line: &str) -> Outcome<Option<Word>> {
    let words = split(line)?;
    let Some(first) = words.first() else {
        return Ok(None);
    };
    let tree = Line::command();
    if tree.find_subcommand(first).is_none() && !first.starts_with('-') {
        let known = tree.get_subcommands().map(clap::Command::get_name);
        let message = format!("unknown command '{first}'");
        return Err(match nearest(first, known) {
            Some(known) => refused(message).hint(format!("did you mean {known}?")),
            None => refused(message).hint("'help' lists all"),
        });
    }
    match Line::try_parse_from(words) {
        Ok(line) => Ok(Some(line.word)),
        Err(told) => Err(refused(told.render().to_string().trim_end().to_owned())),
    }
}

fn refused(message: impl Into<String>) -> Failure {
    Failure::new(Class::Config, message)
}

/// Quotes hold words together; the value of `config set` is all that follows its path.
fn split(line: &str) -> Outcome<Vec<String>> {
    let mut rest = line.trim();
    let mut words = Vec::new();
    for _ in 0..3 {
        let (word, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    if words.starts_with(&["config".to_owned(), "set".to_owned()]) {
        words.push(rest.to_owned());
        words.retain(|word| !word.is_empty());
        // What begins with a hyphen is a negative number, not a flag.
        words.insert(2, "--".to_owned());
        return Ok(words);
    }
    shell_words::split(line).map_err(|_| refused("a quote is not closed"))
}

/// All commands, a line each.
pub fn all() -> String {
    let mut text = String::new();
    for command in Line::command().get_subcommands() {
        let about = command.get_about().map(ToString::to_string);
        let (name, about) = (command.get_name(), about.unwrap_or_default());
        text.push_str(&format!("  {name:<16} {about}\n"));
    }
    text.push_str("\n'help COMMAND' or 'COMMAND --help' tells more. Ctrl-C breaks off.\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_commands() {
        for (line, expect) in [
            ("status", "Status"),
            ("  sites --json ", r#"Sites(Rest { words: ["--json"] })"#),
            ("backup now", "Backup { word: Now { site: None } }"),
            (
                "backup now main",
                r#"Backup { word: Now { site: Some("main") } }"#,
            ),
            ("daemon restart", "Daemon { word: Restart }"),
            (
                "hold --backup b --reason 'before the move'",
                r#"Hold(Rest { words: ["--backup", "b", "--reason", "before the move"] })"#,
            ),
            (
                r#"config set a.b [{"x": "y z"}, -1]"#,
                r#"Config { word: Set { path: "a.b", json: "[{\"x\": \"y z\"}, -1]" } }"#,
            ),
            (
                "config set a -1",
                r#"Config { word: Set { path: "a", json: "-1" } }"#,
            ),
            (
                "config set a it's",
                r#"Config { word: Set { path: "a", json: "it's" } }"#,
            ),
            ("config show", "Config { word: Show { path: None } }"),
            ("keys", "Keys { word: None }"),
            (
                "keys export --site a",
                r#"Keys { word: Some(Export(Key { site: Some("a"), key_id: None })) }"#,
            ),
            ("verify --help", r#"Verify(Rest { words: ["--help"] })"#),
            ("log -n 5", "Log(Log { number: 5 })"),
            (
                "update try drive",
                r#"Update { word: Some(Try { name: "drive" }) }"#,
            ),
        ] {
            let word = parse(line).unwrap().unwrap();
            assert_eq!(format!("{word:?}"), expect, "{line}");
        }
        assert!(parse("").unwrap().is_none() && parse("  \t").unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_meant_says_what_can() {
        for (line, expect) in [
            (
                "staus",
                "unknown command 'staus'; hint: did you mean status?",
            ),
            ("xyzzy", "unknown command 'xyzzy'; hint: 'help' lists all"),
            ("backup", "Usage: backup <COMMAND>"),
            ("restore --to a --serve", "cannot be used with '--serve'"),
            (
                "restore --target-time a --target-lsn b",
                "cannot be used with",
            ),
            ("restore --url x", "--serve"),
            ("restore --backupp x", "Usage: restore"),
            ("events -n many", "invalid value 'many' for '-n <N>'"),
            ("config set", "Usage: config set"),
            ("config set a", "Usage: config set <PATH> <JSON>"),
            ("status now", "unexpected argument 'now'"),
            ("hold 'x", "a quote is not closed"),
        ] {
            let failure = parse(line).unwrap_err().to_string();
            assert!(failure.contains(expect), "{line}: {failure}");
            assert!(!failure.contains("Usage:  "), "{line}: {failure}");
        }
    }

    #[test]
    fn every_command_has_help_that_fits_the_line() {
        let narrow = |text: &str, of: &str| {
            for line in text.lines() {
                assert!(line.len() <= 80 && line.is_ascii(), "{of}: {line}");
            }
        };
        narrow(&all(), "help");
        for command in Line::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            let name = command.get_name();
            let mut names = vec![name.to_owned()];
            let inner = command.get_subcommands();
            names.extend(inner.map(|inner| format!("{name} {}", inner.get_name())));
            for name in names {
                // PGHoard's tools have their own.
                let Err(help) = parse(&format!("{name} --help")) else {
                    continue;
                };
                narrow(&help.to_string(), &name);
                assert!(help.message.contains("Usage:"), "{name}: {help}");
            }
        }
    }
}
