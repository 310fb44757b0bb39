//! `pghoard_create_keys`: a new RSA pair, shown or put into the configuration.
//!
//! Flags, words, JSON and exit codes are PGHoard's. Different on purpose: everything that can be
//! refused is refused before a key is made; the rewritten file keeps its owner; a configuration
//! reached by a symbolic link stays where it is.
//!
//! | code | when |
//! |---|---|
//! | 0 | done |
//! | 1 | not done: `FATAL: ...` on standard error says why |
//! | 2 | wrong command line |

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap::Parser;
use machine::Class;
use serde_json::{Map, Value, json};

use crate::codec::keys;
use crate::failure::{Failure, Outcome};
use crate::publish::text::pretty;
use crate::{config, durable};

#[derive(Parser)]
#[command(name = "pghoard_create_keys", version, infer_long_args = true)]
/// Make an RSA key pair for the encryption of backups
struct Flags {
    /// Enable debug logging
    #[arg(short = 'D', long = "debug")]
    _debug: bool,
    /// Backup site
    #[arg(long)]
    site: Option<String>,
    /// Key alias, as used with the configuration key encryption_key_id
    #[arg(long)]
    key_id: String,
    /// Length of the generated key in bits
    #[arg(long, default_value_t = 3072)]
    bits: usize,
    /// Configuration file to store the keys in
    // Not a path to clap, which would refuse an empty PGHOARD_CONFIG: it means none.
    #[arg(long, env = "PGHOARD_CONFIG")]
    config: Option<OsString>,
}

/// The command; the first argument is its name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let flags: Flags = match super::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    let done = answer(&flags).and_then(|text| {
        io::stdout()
            .write_all(text.as_bytes())
            .map_err(|error| Failure::io(&error, "writing to standard output"))
    });
    match done {
        Ok(()) => 0,
        Err(failure) => {
            super::warn(format_args!("FATAL: {failure}"));
            1
        }
    }
}

/// What to print, after doing it.
fn answer(flags: &Flags) -> Outcome<String> {
    match &flags.config {
        Some(path) if !path.is_empty() => save(flags, Path::new(path)),
        _ => show(flags),
    }
}

fn show(flags: &Flags) -> Outcome<String> {
    let site = flags.site.as_deref().ok_or_else(|| {
        refused("Site must be defined if configuration file is not provided".to_owned())
    })?;
    let pair = pair(flags.bits)?;
    let key_id = &flags.key_id;
    pretty(&json!({
        "backup_sites": {
            site: {
                "encryption_key_id": key_id,
                "encryption_keys": { key_id: pair },
            },
        },
    }))
}

fn save(flags: &Flags, path: &Path) -> Outcome<String> {
    let (key_id, file) = (&flags.key_id, path.display());
    let mut document = config::load_json(path)?;
    let sites = document.get("backup_sites").and_then(Value::as_object);
    let none = Map::new();
    let (site, _) = config::choose(sites.unwrap_or(&none), flags.site.as_deref())?;
    let site = site.to_owned();
    let settings = document
        .pointer_mut("/backup_sites")
        .and_then(|sites| sites.get_mut(&site))
        .and_then(Value::as_object_mut)
        .ok_or_else(|| refused(format!("site '{site}' in '{file}' is not an object")))?;
    let known = settings
        .entry("encryption_keys")
        .or_insert_with(|| json!({}))
        .as_object_mut()
        .ok_or_else(|| {
            refused(format!(
                "encryption_keys of site '{site}' in '{file}' is not an object"
            ))
        })?;
    if known.contains_key(key_id) {
        return Err(refused(format!(
            "key_id '{key_id}' already defined for site '{site}' in '{file}'"
        )));
    }
    known.insert(key_id.clone(), pair(flags.bits)?);
    settings.insert("encryption_key_id".to_owned(), json!(key_id));
    let target = fs::canonicalize(path).map_err(|error| Failure::io(&error, &file))?;
    durable::write_private(&target, pretty(&document)?.as_bytes())?;
    Ok(format!(
        "Saved new key_id '{key_id}' for site '{site}' in '{file}'\n\
         NOTE: the pghoard daemon only needs the 'public' key to write backups: the 'private' key \
         can be kept elsewhere, and must be kept to restore them\n"
    ))
}

fn pair(bits: usize) -> Outcome<Value> {
    let (private, public) = keys::generate(bits)?;
    Ok(json!({ "private": private.as_str(), "public": public }))
}

fn refused(message: String) -> Failure {
    Failure::new(Class::Config, message)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::codec::keys::Keyring;

    fn call(words: &[&str]) -> Outcome<String> {
        let command = ["pghoard_create_keys", "--bits", "2048"];
        answer(&Flags::try_parse_from(command.iter().chain(words)).unwrap())
    }

    fn check_pair(settings: &Value, id: &str) {
        assert_eq!(settings["encryption_key_id"], id);
        let pair = &settings["encryption_keys"][id];
        let mut ring = Keyring::default();
        ring.insert(id, pair["public"].as_str(), pair["private"].as_str())
            .unwrap();
        assert!(ring.public(id).is_ok() && ring.private(id).is_ok());
    }

    #[test]
    fn without_a_configuration_the_pair_is_shown_as_one() {
        let text = call(&["--config", "", "--site", "main", "--key-id", "k1"]).unwrap();
        assert!(
            text.starts_with("{\n    \"backup_sites\": {\n        \"main\": {\n"),
            "{text}"
        );
        assert!(text.ends_with("}\n"));
        let keys: Vec<usize> = ["encryption_key_id", "encryption_keys", "private", "public"]
            .iter()
            .map(|key| text.find(&format!("\"{key}\"")).unwrap())
            .collect();
        assert!(keys.is_sorted(), "keys are sorted: {text}");
        let document: Value = serde_json::from_str(&text).unwrap();
        check_pair(&document["backup_sites"]["main"], "k1");
    }

    #[test]
    fn the_configuration_is_rewritten_whole_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (
            folder.path().join("real.json"),
            folder.path().join("link.json"),
        );
        fs::write(
            &path,
            r#"{"zeta": [1, 2.5], "backup_sites": {"main": {"x": {}}}, "a": "b"}"#,
        )
        .unwrap();
        symlink(&path, &link).unwrap();
        let file = link.to_str().unwrap();

        let said = call(&["--conf", file, "--key-id", "k1"]).unwrap();
        let saved = format!("Saved new key_id 'k1' for site 'main' in '{file}'\nNOTE: ");
        assert!(said.starts_with(&saved), "{said}");
        assert!(call(&["--config", file, "--site", "main", "--key-id", "k2"]).is_ok());

        assert!(link.is_symlink() && !path.is_symlink());
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("{\n    \"a\": \"b\",\n    \"backup_sites\": {\n"),
            "{text}"
        );
        assert!(text.ends_with("\n}\n"));
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["zeta"], json!([1, 2.5]));
        let settings = &document["backup_sites"]["main"];
        assert_eq!(settings["x"], json!({}));
        assert_eq!(settings["encryption_keys"].as_object().unwrap().len(), 2);
        check_pair(settings, "k2");
    }

    #[test]
    fn a_file_that_root_rewrites_keeps_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.json");
        fs::write(&path, r#"{"backup_sites": {"main": {}}}"#).unwrap();
        if std::os::unix::fs::chown(&path, Some(12345), None).is_err() {
            eprintln!("SKIPPED: only root can give a file away");
            return;
        }
        call(&["--config", path.to_str().unwrap(), "--key-id", "k1"]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().uid(), 12345);
    }

    #[test]
    fn what_is_refused_is_refused_in_pghoards_words_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.json");
        let before = r#"{"backup_sites": {"a": {"encryption_keys": {"k1": {}}}, "b": []}}"#;
        fs::write(&path, before).unwrap();
        let file = path.to_str().unwrap();
        let gone = folder.path().join("gone.json");
        let cases: [(&[&str], String); 7] = [
            (
                &["--config", "", "--key-id", "k"],
                "Site must be defined if configuration file is not provided".to_owned(),
            ),
            (
                &["--config", file, "--site", "a", "--key-id", "k1"],
                format!("key_id 'k1' already defined for site 'a' in '{file}'"),
            ),
            (
                &["--config", file, "--key-id", "k"],
                "Backup site not set and configuration file defines 2 sites: ['a', 'b']".to_owned(),
            ),
            (
                &["--config", file, "--site", "c", "--key-id", "k"],
                "Site 'c' not defined in configuration file.  2 other sites are defined: \
                 ['a', 'b']"
                    .to_owned(),
            ),
            (
                &["--config", file, "--site", "b", "--key-id", "k"],
                format!("site 'b' in '{file}' is not an object"),
            ),
            (
                &["--config", gone.to_str().unwrap(), "--key-id", "k"],
                format!("Configuration file '{}' does not exist", gone.display()),
            ),
            (
                &[
                    "--config", "", "--site", "s", "--key-id", "k", "--bits", "512",
                ],
                "a key of 512 bits: expected 2048 to 4096".to_owned(),
            ),
        ];
        for (words, expected) in cases {
            let command: Vec<&str> = ["x"].iter().chain(words).copied().collect();
            let failure = answer(&Flags::try_parse_from(command).unwrap()).unwrap_err();
            assert_eq!(failure.message, expected);
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
    }

    #[test]
    fn exit_codes_are_those_of_the_table() {
        for (words, code) in [
            (&["--help"][..], 0),
            (&["--version"], 0),
            (&["--site", "main"], 2),
            (&["--key-id", "k", "--bits", "many"], 2),
            (&["--key-id", "k", "--unknown"], 2),
            (&["-D", "--key-id", "k", "--config", ""], 1),
        ] {
            let args = ["pghoard_create_keys"]
                .iter()
                .chain(words)
                .map(OsString::from);
            assert_eq!(run(args), code, "{words:?}");
        }
    }
}
