//! Keys of a profile in `~/.aws/credentials` and `~/.aws/config`, which are read again when the
//! store refused them: whoever renews them writes them there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use machine::Class;
use object_store::aws::AwsCredential;

use super::super::{Environment, Lent, Source};
use super::wrong;
use crate::failure::{Failure, Outcome};

#[derive(Debug)]
pub(super) struct Profile {
    name: String,
    /// With the keys themselves.
    credentials: Option<PathBuf>,
    /// With everything else, and keys for whoever has them there.
    config: Option<PathBuf>,
}

type Section = BTreeMap<String, String>;

impl Profile {
    /// None where none has a key, and none was named.
    pub fn of(environment: &Environment) -> Outcome<Option<Profile>> {
        let named = environment
            .get("AWS_PROFILE")
            .or_else(|| environment.get("AWS_DEFAULT_PROFILE"));
        let or = |variable: &str, path: &str| {
            let named = environment.path(variable);
            named.or_else(|| environment.below_home(path))
        };
        let profile = Profile {
            name: named.clone().unwrap_or_else(|| "default".to_owned()),
            credentials: or("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
            config: or("AWS_CONFIG_FILE", ".aws/config"),
        };
        let found = profile.sections()?;
        let has = |name: &str| found.iter().any(|section| section.contains_key(name));
        if has("aws_access_key_id") {
            return Ok(Some(profile));
        }
        if let Some(way) = UNKNOWN.iter().find(|way| has(way)) {
            let message = format!("profile '{}' has {way}, which is not known", profile.name);
            let hint = "name keys, or a web identity in the environment";
            return Err(wrong(message).hint(hint));
        }
        match named {
            Some(name) if found.is_empty() => {
                Err(wrong(format!("AWS_PROFILE: there is no profile '{name}'")))
            }
            _ => Ok(None),
        }
    }

    /// That of the credentials first.
    fn sections(&self) -> Outcome<Vec<Section>> {
        let own = match self.name.as_str() {
            "default" => "default".to_owned(),
            name => format!("profile {name}"),
        };
        let files = [(&self.credentials, &self.name), (&self.config, &own)];
        let mut found = Vec::new();
        for (path, wanted) in files {
            if let Some(path) = path {
                found.extend(section(&text(path)?, wanted));
            }
        }
        Ok(found)
    }
}

#[async_trait]
impl Source<AwsCredential> for Profile {
    async fn fetch(&self) -> Outcome<Lent<AwsCredential>> {
        let found = self.sections()?;
        let keys = |section: &&Section| section.contains_key("aws_access_key_id");
        let name = &self.name;
        let gone = || {
            let message = format!("profile '{name}' has no aws_access_key_id any more");
            Failure::new(Class::Auth, message)
        };
        let section = found.iter().find(keys).ok_or_else(gone)?;
        let value = |name: &str| section.get(name).filter(|value| !value.is_empty()).cloned();
        let half = || wrong(format!("profile '{name}' has no aws_secret_access_key"));
        Ok(Lent {
            credential: AwsCredential {
                key_id: value("aws_access_key_id").ok_or_else(gone)?,
                secret_key: value("aws_secret_access_key").ok_or_else(half)?,
                token: value("aws_session_token").or_else(|| value("aws_security_token")),
            },
            life: None,
        })
    }
}

/// Nothing where there is none.
fn text(path: &Path) -> Outcome<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(Failure::io(&e, path.display())),
    }
}

fn section(text: &str, wanted: &str) -> Option<Section> {
    let mut inside = false;
    let mut found = None;
    for line in text.lines().map(str::trim) {
        let head = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        if let Some(name) = head {
            inside = name.split_whitespace().eq(wanted.split_whitespace());
            if inside {
                found.get_or_insert_with(Section::new);
            }
        } else if let Some((name, value)) = line.split_once('=').filter(|_| inside)
            && !line.starts_with(['#', ';'])
            && let Some(found) = &mut found
        {
            found.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    found
}

/// What botocore would go by.
const UNKNOWN: [&str; 5] = [
    "role_arn",
    "credential_process",
    "sso_session",
    "sso_start_url",
    "login_session",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_a_section_of_a_file() {
        let text = "# x\n[default]\naws_access_key_id = A\n\n[ other ]\n# aws_access_key_id=C\n\
                    AWS_ACCESS_KEY_ID=B\naws_secret_access_key = s=/+\n[profile  far]\nregion=x\n";
        assert_eq!(section(text, "default").unwrap()["aws_access_key_id"], "A");
        let other = section(text, "other").unwrap();
        assert_eq!(other["aws_access_key_id"], "B");
        assert_eq!(other["aws_secret_access_key"], "s=/+");
        assert_eq!(section(text, "profile far").unwrap()["region"], "x");
        assert_eq!(section(text, "none"), None);
    }
}
