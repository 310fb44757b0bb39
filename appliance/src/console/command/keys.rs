//! `keys`: RSA pairs of a site. The private half is the recovery key: kept elsewhere, it reads the
//! backups when this machine is gone.

use machine::Class;
use pghoard::codec::keys::{Keyring, generate, public_of};
use pghoard::publish::text::utc;
use pghoard::{Failure, Outcome, clock};
use serde_json::{Map, Value, json};

use super::Session;
use crate::console::line::say;
use crate::console::word::{Key, Keys};

pub const BITS: usize = 3_072;

pub fn run(session: &mut Session, word: Option<Keys>) -> Outcome<()> {
    match word {
        None => list(session),
        Some(Keys::Create(key)) => create(session, &key),
        Some(Keys::Export(key)) => export(session, &key),
        Some(Keys::Import(key)) => import(session, &key),
        Some(Keys::Recovery(key)) => recovery(session, &key),
    }
}

/// `2026-11-22`
pub fn today() -> String {
    utc(clock::now()).chars().take(10).collect()
}

fn list(session: &Session) -> Outcome<()> {
    let settings = session.settings()?;
    let sites = settings.get("backup_sites").and_then(Value::as_object);
    for (name, site) in sites.into_iter().flatten() {
        let current = site.get("encryption_key_id").and_then(Value::as_str);
        if current.is_none() {
            say(&format!(
                "{name}: NOT ENCRYPTED; 'keys create --site {name}' makes a key\n"
            ));
        }
        let keys = site.get("encryption_keys").and_then(Value::as_object);
        for (id, pair) in keys.into_iter().flatten() {
            let writes = match current == Some(id) {
                true => ", encrypts new backups",
                false => "",
            };
            let reads = match pair.get("private").and_then(Value::as_str) {
                Some(_) => "",
                None => ", NO PRIVATE KEY HERE: nothing of it can be restored or verified",
            };
            say(&format!("{name}: {id}{writes}{reads}\n"));
        }
    }
    Ok(())
}

fn create(session: &mut Session, key: &Key) -> Outcome<()> {
    let site = session.site(key.site.as_deref())?;
    let id = key.key_id.clone().unwrap_or_else(today);
    let mut settings = session.settings()?;
    // Refused before a key is made for nothing.
    room(&mut settings, &site, &id)?;
    say("making a key; this takes a while\n");
    let (private, public) = generate(BITS)?;
    put(
        &mut settings,
        &site,
        &id,
        json!({ "private": private.as_str(), "public": public }),
    )?;
    session.apply(&settings, "keys create", &format!("site {site}, key {id}"))?;
    show_recovery(&site, &id, &private);
    Ok(())
}

fn import(session: &mut Session, key: &Key) -> Outcome<()> {
    let site = session.site(key.site.as_deref())?;
    let id = key.key_id.clone().ok_or_else(|| {
        refused("--key-id is needed: the name the key has in the backups it reads")
    })?;
    let mut settings = session.settings()?;
    let known = pair(&settings, &site, &id).is_ok();
    let pasted = pasted_pair(session, &id)?;
    let half = pasted.get("private").is_none();
    if known {
        complete(&mut settings, &site, &id, &pasted)?;
    } else {
        room(&mut settings, &site, &id)?;
        put(&mut settings, &site, &id, pasted)?;
    }
    session.apply(&settings, "keys import", &format!("site {site}, key {id}"))?;
    if half && !known {
        say("a public key alone: backups are written, but not restored or verified here\n");
    }
    Ok(())
}

/// The private half of a key whose public one is there.
fn complete(settings: &mut Value, site: &str, id: &str, pasted: &Value) -> Outcome<()> {
    let here = pair(settings, site, id)?;
    if here.get("public") != pasted.get("public") {
        return Err(refused(format!("site '{site}' has another key '{id}'")));
    }
    let private = pasted.get("private").cloned();
    let private = private.ok_or_else(|| refused(format!("key '{id}' is there already")))?;
    let path = ["backup_sites", site, "encryption_keys", id];
    let found = path
        .iter()
        .try_fold(settings, |value, part| value.get_mut(part));
    if let Some(Value::Object(found)) = found {
        found.insert("private".to_owned(), private);
    }
    Ok(())
}

/// A pair, or its public half alone, from what a person pastes.
pub fn pasted_pair(session: &mut Session, id: &str) -> Outcome<Value> {
    const REQUEST: &str = "Paste the key, from -----BEGIN to the end of the line -----END. Ctrl-C \
                           breaks off.\n";
    let pem = session
        .terminal
        .paste(REQUEST, |line| line.starts_with("-----END"))
        .ok_or_else(|| Failure::new(Class::Interrupted, "nothing was changed"))?;
    let begin = pem.find("-----BEGIN").unwrap_or_default();
    let pem = pem.get(begin..).unwrap_or_default();
    let pair = match pem.contains("PRIVATE KEY") {
        true => json!({ "private": pem, "public": public_of(pem)? }),
        false => json!({ "public": pem }),
    };
    let half = |name: &str| pair.get(name).and_then(Value::as_str);
    Keyring::default().insert(id, half("public"), half("private"))?;
    Ok(pair)
}

fn export(session: &Session, key: &Key) -> Outcome<()> {
    let (_, _, pair) = found(session, key)?;
    let public = pair.get("public").and_then(Value::as_str);
    say(public.ok_or_else(|| refused("the public key is not here"))?);
    Ok(())
}

fn recovery(session: &mut Session, key: &Key) -> Outcome<()> {
    let (site, id, pair) = found(session, key)?;
    let private = pair.get("private").and_then(Value::as_str);
    let private = private.ok_or_else(|| refused("the private key is not here"))?;
    if !session
        .terminal
        .yes("Whoever sees it can read the backups. Show it?")
    {
        return Ok(());
    }
    show_recovery(&site, &id, private);
    session.record("keys recovery", &format!("shown: site {site}, key {id}"));
    Ok(())
}

pub fn show_recovery(site: &str, id: &str, private: &str) {
    say(&format!(
        "\nRecovery key '{id}' of site '{site}'. Keep it, and its name, where it does not burn\n\
         together with this machine: without it nobody reads the backups.\n\n"
    ));
    say(private);
    say("\n");
}

fn found(session: &Session, key: &Key) -> Outcome<(String, String, Value)> {
    let site = session.site(key.site.as_deref())?;
    let settings = session.settings()?;
    let current = || {
        let id = settings
            .get("backup_sites")?
            .get(&site)?
            .get("encryption_key_id")?;
        id.as_str().map(str::to_owned)
    };
    let id = key.key_id.clone().or_else(current);
    let id = id.ok_or_else(|| refused(format!("site '{site}' has no key that encrypts")))?;
    let pair = pair(&settings, &site, &id)?.clone();
    Ok((site, id, pair))
}

fn pair<'a>(settings: &'a Value, site: &str, id: &str) -> Outcome<&'a Value> {
    let path = ["backup_sites", site, "encryption_keys", id];
    let found = path
        .iter()
        .try_fold(settings, |value, part| value.get(part));
    found.ok_or_else(|| {
        let message = format!("site '{site}' has no key '{id}'");
        Failure::new(Class::NotFound, message).hint("'keys' lists them")
    })
}

/// Where a new key of that name goes.
fn room<'a>(settings: &'a mut Value, site: &str, id: &str) -> Outcome<&'a mut Map<String, Value>> {
    let object = |value: Option<&'a mut Value>| value.and_then(Value::as_object_mut);
    let own = object(
        settings
            .pointer_mut("/backup_sites")
            .and_then(|all| all.get_mut(site)),
    );
    let own = own.ok_or_else(|| refused(format!("there is no site '{site}' in the settings")))?;
    let keys = own.entry("encryption_keys").or_insert_with(|| json!({}));
    match keys.get(id) {
        Some(_) => Err(refused(format!("site '{site}' has a key '{id}' already"))),
        None => Ok(own),
    }
}

fn put(settings: &mut Value, site: &str, id: &str, pair: Value) -> Outcome<()> {
    let own = room(settings, site, id)?;
    own.insert("encryption_key_id".to_owned(), json!(id));
    if let Some(Value::Object(keys)) = own.get_mut("encryption_keys") {
        keys.insert(id.to_owned(), pair);
    }
    Ok(())
}

fn refused(message: impl Into<String>) -> Failure {
    Failure::new(Class::Config, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Value {
        json!({ "backup_sites": { "a": {}, "b": {
            "encryption_key_id": "k", "encryption_keys": { "k": { "public": "p" } },
        } } })
    }

    #[test]
    fn a_new_key_encrypts_and_old_ones_stay() {
        for (site, id, expect) in [
            ("a", "n", Ok(2)),
            ("b", "n", Ok(3)),
            ("b", "k", Err("site 'b' has a key 'k' already")),
            ("c", "n", Err("there is no site 'c' in the settings")),
        ] {
            let mut settings = settings();
            let done = put(&mut settings, site, id, json!({ "public": "q" }));
            let ids = |()| {
                let own = &settings["backup_sites"][site];
                assert_eq!(own["encryption_key_id"], id);
                own["encryption_keys"].as_object().unwrap().len() + 1
            };
            assert_eq!(
                done.map(ids).map_err(|f| f.message),
                expect.map_err(str::to_owned)
            );
        }
    }

    #[test]
    fn a_missing_half_is_completed_by_its_own_key_alone() {
        for (pasted, expect) in [
            (json!({ "public": "p", "private": "s" }), Ok(())),
            (
                json!({ "public": "q", "private": "s" }),
                Err("site 'b' has another key 'k'"),
            ),
            (json!({ "public": "p" }), Err("key 'k' is there already")),
        ] {
            let mut settings = settings();
            let done = complete(&mut settings, "b", "k", &pasted);
            assert_eq!(done.map_err(|f| f.message), expect.map_err(str::to_owned));
            let private = settings["backup_sites"]["b"]["encryption_keys"]["k"].get("private");
            assert_eq!(private.is_some(), expect.is_ok());
        }
    }
}
