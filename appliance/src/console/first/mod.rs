//! The questions of a machine without settings. Each answer is judged when it is given; nothing is
//! changed before all are there and the person says so, and it can be broken off at any of them.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, lchown};
use std::path::Path;

use machine::Class;
use pghoard::codec::keys::generate;
use pghoard::publish::text::pretty;
use pghoard::tool::config::without_secrets;
use pghoard::tool::screen::View;
use pghoard::{Failure, Outcome};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::line::{Heard, complain, say};
use super::{Session, child, command, login};
use crate::settings::check_host;

mod store;

pub fn ask(session: &mut Session) -> Outcome<()> {
    say(
        "\nThis asks for what the appliance needs to know. Enter takes what is in brackets,\n\
         Ctrl-C breaks off; 'setup' asks again.\n\n",
    );
    let mut answers = Answers::default();
    loop {
        let found = everything(session, &mut answers)?;
        say(&format!(
            "\n{}\n",
            pretty(&without_secrets(&found.settings))?
        ));
        if session.terminal.yes("Put these settings in force?") {
            make_folders(session, &found.settings);
            match session.apply(&found.settings, "setup", &format!("site {}", found.site)) {
                Ok(()) => {
                    if let Some((id, private)) = &found.key {
                        command::keys::show_recovery(&found.site, id, private);
                    }
                    return Ok(());
                }
                Err(failure) => complain(&failure),
            }
        }
        if !session.terminal.yes("Ask again, from the beginning?") {
            return Err(broken());
        }
    }
}

fn broken() -> Failure {
    Failure::new(Class::Interrupted, "broken off; nothing was changed")
        .hint("'setup' asks again, 'config import' takes settings from a drive")
}

struct Found {
    settings: Value,
    site: String,
    /// The name of a key that was made, and its private half.
    key: Option<(String, Zeroizing<String>)>,
}

/// Those of the round before are the defaults of the next.
#[derive(Default)]
pub struct Answers(BTreeMap<String, String>);

type Judge<'a> = &'a dyn Fn(&str) -> Result<(), String>;

impl Answers {
    /// One line that `judge` takes.
    pub fn text(
        &mut self,
        session: &mut Session,
        (name, question, default): (&str, &str, &str),
        judge: Judge<'_>,
    ) -> Outcome<String> {
        let default = self.0.get(name).map_or(default, String::as_str).to_owned();
        let shown = match default.is_empty() {
            true => format!("{question}: "),
            false => format!("{question} [{default}]: "),
        };
        loop {
            let Heard::Line(line) = session.terminal.line(&shown) else {
                return Err(broken());
            };
            let text = match line.trim() {
                "" => default.as_str(),
                text => text,
            };
            match judge(text) {
                Ok(()) => {
                    self.0.insert(name.to_owned(), text.to_owned());
                    return Ok(text.to_owned());
                }
                Err(why) => say(&format!("{why}\n")),
            }
        }
    }
}

/// Asked for in every round: it is kept nowhere.
pub fn secret(session: &mut Session, question: &str) -> Outcome<Zeroizing<String>> {
    session
        .terminal
        .secret(&format!("{question}: "))
        .ok_or_else(broken)
}

fn everything(session: &mut Session, answers: &mut Answers) -> Outcome<Found> {
    let question = ("hostname", "Hostname", "pghoard");
    let hostname = answers.text(session, question, &hostname)?;
    let network = network(session, answers)?;
    let question = (
        "time",
        "Time server, or empty for those that DHCP names",
        "",
    );
    let time = answers.text(session, question, &|text| words(text, 0))?;
    let question = ("site", "Name of the site, one a database cluster", "main");
    let site = answers.text(session, question, &site_name)?;
    let node = node(session, answers)?;
    let store = store::ask_for(session, answers)?;
    let (keys, key) = encryption(session, answers)?;
    let http = http(session)?;
    let password = password(session)?;

    let mut appliance = Map::new();
    appliance.insert("hostname".to_owned(), json!(hostname));
    if let Some(network) = network {
        appliance.insert("network".to_owned(), network);
    }
    if !time.is_empty() {
        appliance.insert("time".to_owned(), json!({ "servers": [time] }));
    }
    if let Some(password) = password {
        appliance.insert("console_password".to_owned(), json!(password));
    }
    let mut own = keys;
    own.insert("nodes".to_owned(), json!([node]));
    own.insert("object_storage".to_owned(), store);
    let mut settings = http;
    settings.insert("appliance".to_owned(), Value::Object(appliance));
    settings.insert("backup_sites".to_owned(), json!({ site.as_str(): own }));
    Ok(Found {
        settings: Value::Object(settings),
        site,
        key,
    })
}

fn hostname(text: &str) -> Result<(), String> {
    check_host(text).map_err(|_| "expected letters, digits, hyphens and dots".to_owned())
}

fn site_name(text: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match !text.is_empty() && text.chars().all(plain) {
        true => Ok(()),
        false => Err("expected letters, digits, '-' and '_'".to_owned()),
    }
}

/// At least so many, without blanks.
fn words(text: &str, least: usize) -> Result<(), String> {
    match text.len() >= least && !text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        true => Ok(()),
        false => Err("expected one word".to_owned()),
    }
}

fn one_of(text: &str, all: &[&str]) -> Result<(), String> {
    match all.contains(&text) {
        true => Ok(()),
        false => Err(format!("expected {}", all.join(", "))),
    }
}

/// None is DHCP and router advertisements on every interface.
fn network(session: &mut Session, answers: &mut Answers) -> Outcome<Option<Value>> {
    let question = ("network", "Network, dhcp or static", "dhcp");
    let kind = answers.text(session, question, &|text| one_of(text, &["dhcp", "static"]))?;
    if kind == "dhcp" {
        return Ok(None);
    }
    let status = session.control.status().unwrap_or_default();
    let links: Vec<String> = View(&status)
        .list("network")
        .iter()
        .map(|link| View(link).text("name"))
        .collect();
    let first = links.first().map_or("eth0", String::as_str);
    let link = format!("Interface ({})", links.join(", "));
    let link = answers.text(session, ("interface", &link, first), &|text| words(text, 1))?;
    let question = ("address", "Address with its prefix, as 10.0.0.5/24", "");
    let address = answers.text(session, question, &address)?;
    let question = ("gateway", "Gateway, or empty for none", "");
    let gateway = answers.text(session, question, &|text| addresses(text, 1))?;
    let question = (
        "dns",
        "Name servers, with commas between them, or empty",
        "",
    );
    let dns = answers.text(session, question, &|text| addresses(text, usize::MAX))?;
    Ok(Some(json!({
        "interfaces": { link: { "addresses": [address], "gateways": list(&gateway) } },
        "dns": list(&dns),
    })))
}

fn list(text: &str) -> Vec<&str> {
    let parts = text.split(',').map(str::trim);
    parts.filter(|part| !part.is_empty()).collect()
}

fn address(text: &str) -> Result<(), String> {
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        let address: IpAddr = address.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        (1..=most).contains(&prefix).then_some(())
    });
    parsed.ok_or_else(|| format!("'{text}': expected an address and a prefix, as 10.0.0.5/24"))
}

fn addresses(text: &str, most: usize) -> Result<(), String> {
    let list = list(text);
    match list.len() <= most && list.iter().all(|one| one.parse::<IpAddr>().is_ok()) {
        true => Ok(()),
        false => Err(format!("'{text}': expected an address, as 10.0.0.1")),
    }
}

fn node(session: &mut Session, answers: &mut Answers) -> Outcome<Value> {
    let question = ("host", "Host of the PostgreSQL server", "");
    let host = answers.text(session, question, &|text| words(text, 1))?;
    let port = answers.text(session, ("port", "Its port", "5432"), &port)?;
    let question = ("user", "User with the right to replicate", "pghoard");
    let user = answers.text(session, question, &|text| words(text, 1))?;
    let password = secret(session, "Password of that user, or empty for none")?;
    const MODES: &[&str] = &["disable", "prefer", "require", "verify-ca", "verify-full"];
    let question = format!("TLS: {}", MODES.join(", "));
    let question = ("sslmode", question.as_str(), "prefer");
    let sslmode = answers.text(session, question, &|text| one_of(text, MODES))?;
    let slot = answers.text(session, ("slot", "Replication slot", "pghoard"), &slot)?;
    let mut node = json!({
        "host": host, "port": port.parse::<u16>().unwrap_or_default(), "user": user,
        "sslmode": sslmode, "slot": slot,
    });
    if let (Value::Object(node), false) = (&mut node, password.is_empty()) {
        node.insert("password".to_owned(), json!(*password));
    }
    Ok(node)
}

pub fn port(text: &str) -> Result<(), String> {
    match text.parse::<u16>() {
        Ok(1..) => Ok(()),
        Ok(0) | Err(_) => Err(format!("'{text}': expected a port number")),
    }
}

fn slot(text: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    match (1..=63).contains(&text.len()) && text.chars().all(plain) {
        true => Ok(()),
        false => Err("expected lower-case letters, digits and '_'".to_owned()),
    }
}

type Encryption = (Map<String, Value>, Option<(String, Zeroizing<String>)>);

fn encryption(session: &mut Session, answers: &mut Answers) -> Outcome<Encryption> {
    const KINDS: &[&str] = &["create", "import", "none"];
    let question = "Encryption key: create one, import one that was kept, or none";
    let question = ("encryption", question, "create");
    let kind = answers.text(session, question, &|text| one_of(text, KINDS))?;
    let mut own = Map::new();
    if kind == "none" {
        say("Backups are written in the clear.\n");
        return Ok((own, None));
    }
    let today = command::keys::today();
    let question = ("key_id", "Name of the key", today.as_str());
    let id = answers.text(session, question, &|text| words(text, 1))?;
    let (pair, made) = match kind.as_str() {
        "import" => loop {
            match command::keys::pasted_pair(session, &id) {
                Ok(pair) => break (pair, None),
                Err(failure) if failure.class == Class::Interrupted => return Err(broken()),
                Err(failure) => complain(&failure),
            }
        },
        _ => {
            say("making a key; this takes a while\n");
            let (private, public) = generate(command::keys::BITS)?;
            let pair = json!({ "private": private.as_str(), "public": public });
            (pair, Some((id.clone(), private)))
        }
    };
    own.insert("encryption_key_id".to_owned(), json!(id));
    own.insert("encryption_keys".to_owned(), json!({ id: pair }));
    Ok((own, made))
}

fn http(session: &mut Session) -> Outcome<Map<String, Value>> {
    let question = "Password for the HTTP API, whose user is pghoard, or empty for no other host";
    let password = secret(session, question)?;
    let mut settings = Map::new();
    if !password.is_empty() {
        settings.insert("http_address".to_owned(), json!("0.0.0.0"));
        settings.insert("webserver_username".to_owned(), json!("pghoard"));
        settings.insert("webserver_password".to_owned(), json!(*password));
    }
    Ok(settings)
}

fn password(session: &mut Session) -> Outcome<Option<String>> {
    loop {
        let new = secret(session, "Password of this console, or empty for none")?;
        if new.is_empty() {
            say("Whoever reaches this line may do everything.\n");
            return Ok(None);
        }
        if let Err(why) = login::acceptable(&new) {
            say(&format!("{why}\n"));
            continue;
        }
        if *secret(session, "Once more")? == *new {
            return login::hashed(&new).map(Some);
        }
        say("the two differ\n");
    }
}

/// A store of files has to be there, and the daemon's.
fn make_folders(session: &Session, settings: &Value) {
    let sites = settings.get("backup_sites").and_then(Value::as_object);
    for (_, site) in sites.into_iter().flatten() {
        let folder = site
            .pointer("/object_storage/directory")
            .and_then(Value::as_str);
        let Some(folder) = folder
            .map(Path::new)
            .filter(|f| f.starts_with(&session.places.data))
        else {
            continue;
        };
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(folder);
        let made = made.and_then(|()| match child::owner(&session.places) {
            Some((uid, gid)) => lchown(folder, Some(uid), Some(gid)),
            None => Ok(()),
        });
        if let Err(error) = made {
            complain(&Failure::io(&error, folder.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged() {
        let judges: [(&str, Judge<'_>, &[&str], &[&str]); 7] = [
            (
                "hostname",
                &hostname,
                &["a", "backup-1.example"],
                &["", "-a", "a.", "a b", "a_b", "a..b", "a.-b"],
            ),
            (
                "site",
                &site_name,
                &["main", "a_b-1"],
                &["", "a b", "a/b", "a.b"],
            ),
            (
                "address",
                &address,
                &["10.0.0.5/24", "fd00::5/64"],
                &[
                    "10.0.0.5",
                    "10.0.0.5/33",
                    "10.0.0/8",
                    "10.0.0.5/0",
                    "fd00::5/129",
                    "",
                ],
            ),
            (
                "gateway",
                &|t| addresses(t, 1),
                &["", "10.0.0.1", "fd00::1"],
                &["x", "1.1.1.1,1.1.1.2"],
            ),
            (
                "dns",
                &|t| addresses(t, 9),
                &["", "10.0.0.1, fd00::1"],
                &["10.0.0.1 x"],
            ),
            ("port", &port, &["1", "65535"], &["0", "65536", "x", ""]),
            ("slot", &slot, &["pghoard", "a_1"], &["", "A", "a-b"]),
        ];
        for (name, judge, good, bad) in judges {
            for text in good {
                assert_eq!(judge(text), Ok(()), "{name} {text}");
            }
            for text in bad {
                assert!(judge(text).is_err(), "{name} {text}");
            }
        }
    }
}
