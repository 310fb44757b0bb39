//! The keys of a site: do they parse, do they fit, does a sample come back?

use std::io::{Read, Write};

use super::finding::Finding;
use super::site;
use crate::codec::keys::Keyring;
use crate::codec::{Encoder, Encoding, decoder};
use crate::config::{Config, Site};
use crate::failure::{Failure, Outcome};
use crate::store::Metadata;

/// Enough for every stage to have something in its buffers.
const SAMPLE_BYTES: usize = 256 << 10;

pub fn findings(config: &Config, site: &Site) -> Vec<Finding> {
    let mut findings: Vec<Finding> = site::digest(&config.hash_algorithm).into_iter().collect();
    let keyring = match site.keyring() {
        Ok(keyring) => keyring,
        Err(failure) => {
            let cure = "correct encryption_keys, or take that key out";
            findings.push(Finding::failed("keys", &failure, cure));
            return findings;
        }
    };
    findings.push(match config.encoding(site, 1) {
        Ok(encoding) => told(&encoding, &keyring, site),
        Err(failure) => Finding::failed("keys", &failure, "give the public part of that key"),
    });
    findings
}

fn told(encoding: &Encoding, keyring: &Keyring, site: &Site) -> Finding {
    let Some(encryption) = &encoding.encryption else {
        return match sample(encoding, keyring, true) {
            Ok(()) => Finding::warn(
                "keys",
                "backups are written in the clear",
                format!(
                    "pghoard_create_keys --site {} --key-id ID --config ...",
                    site.name
                ),
            ),
            Err(failure) => Finding::failed("keys", &failure, "check compression"),
        };
    };
    let (id, envelope) = (&encryption.key_id, encryption.envelope);
    let private = keyring.private(id).is_ok();
    match sample(encoding, keyring, private) {
        Err(failure) => Finding::failed("keys", &failure, "check compression and the key"),
        Ok(()) if private => {
            let told = format!("'{id}' ({envelope}) writes, and reads what it wrote");
            Finding::ok("keys", told)
        }
        Ok(()) => Finding::ok(
            "keys",
            format!(
                "'{id}' ({envelope}) writes; its private part is not here: a restore needs it, \
                 keep it elsewhere"
            ),
        ),
    }
}

/// Through the codec, and back if there is a key for it.
fn sample(encoding: &Encoding, keyring: &Keyring, back: bool) -> Outcome<()> {
    let plain: Vec<u8> = (0..=u8::MAX).cycle().take(SAMPLE_BYTES).collect();
    let io = |e: std::io::Error| Failure::from_io(&e, "a sample");
    let mut encoder = Encoder::new(Vec::new(), encoding)?;
    encoder.write_all(&plain).map_err(io)?;
    let (stored, _) = encoder.finish()?;
    if !back {
        return Ok(());
    }
    let mut metadata = Metadata::new();
    let algorithm = encoding.compression.name().to_owned();
    metadata.insert("compression-algorithm".to_owned(), algorithm);
    if let Some(encryption) = &encoding.encryption {
        metadata.insert("encryption-key-id".to_owned(), encryption.key_id.clone());
    }
    let bytes = u64::try_from(stored.len()).unwrap_or(u64::MAX);
    let mut read = Vec::new();
    let mut reader = decoder(std::io::Cursor::new(stored), bytes, &metadata, keyring)?;
    reader.read_to_end(&mut read).map_err(io)?;
    match read == plain {
        true => Ok(()),
        false => Err(Failure::new(
            machine::Class::Corrupt,
            "a sample came back as something else",
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::finding::Verdict;
    use super::*;
    use crate::codec::keys::generate;
    use crate::config::parse;

    #[test]
    fn keys_that_do_not_fit_are_told_and_a_missing_private_one_is_said() {
        let (private, public) = generate(2048).unwrap();
        let (other, _) = generate(2048).unwrap();
        let look = |keys: Value, id: Value, global: Value| {
            let mut raw = global;
            raw["backup_sites"] = json!({ "a": { "encryption_keys": keys,
                "encryption_key_id": id } });
            let (config, _) = parse(&raw).unwrap();
            let mut findings = findings(&config, &config.sites["a"]);
            assert_eq!(findings.len(), 1, "{findings:?}");
            findings.remove(0)
        };
        let pair = |private: &str| json!({ "k": { "public": public, "private": private } });
        let good = look(pair(&private), json!("k"), json!({}));
        assert_eq!(good.verdict, Verdict::Ok, "{good:?}");
        let half = look(json!({ "k": { "public": public } }), json!("k"), json!({}));
        assert_eq!(half.verdict, Verdict::Ok);
        assert!(half.text.contains("keep it elsewhere"));
        let clear = look(json!({}), Value::Null, json!({}));
        assert_eq!(clear.verdict, Verdict::Warn);
        for wrong in [
            look(pair(&other), json!("k"), json!({})),
            look(pair("no PEM"), json!("k"), json!({})),
            look(
                json!({ "k": { "private": private.as_str() } }),
                json!("k"),
                json!({}),
            ),
            look(
                pair(&private),
                json!("k"),
                json!({ "compression": {
                "algorithm": "lzma", "level": 99 } }),
            ),
        ] {
            assert_eq!(
                (wrong.point, wrong.verdict),
                ("keys", Verdict::Fail),
                "{wrong:?}"
            );
            assert!(wrong.cure.is_some());
        }
    }
}
