//! Who we are to AWS, in the order of its own tools: the configuration, the environment, a web
//! identity, the credentials file, the container, the machine.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::PathBuf;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};

use crate::config::S3;
use crate::failure::{Failure, Outcome};

pub(super) fn with(builder: AmazonS3Builder, config: &S3) -> Outcome<AmazonS3Builder> {
    use AmazonS3ConfigKey as Key;
    if let Some(login) = &config.login {
        let builder = builder
            .with_access_key_id(&login.key_id)
            .with_secret_access_key(login.secret.reveal());
        return Ok(match &login.session_token {
            Some(token) => builder.with_token(token.reveal()),
            None => builder,
        });
    }
    let from = |builder: AmazonS3Builder, names: &[(&str, Key)]| {
        let set = names
            .iter()
            .filter_map(|(name, key)| Some((variable(name)?, *key)));
        set.fold(builder, |builder, (value, key)| {
            builder.with_config(key, value)
        })
    };
    if variable("AWS_ACCESS_KEY_ID").is_some() {
        let names = [
            ("AWS_ACCESS_KEY_ID", Key::AccessKeyId),
            ("AWS_SECRET_ACCESS_KEY", Key::SecretAccessKey),
            ("AWS_SESSION_TOKEN", Key::Token),
        ];
        return Ok(from(builder, &names));
    }
    // The library prefers a web identity to a container, and that to the machine.
    let names = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", Key::WebIdentityTokenFile),
        ("AWS_ROLE_ARN", Key::RoleArn),
        ("AWS_ROLE_SESSION_NAME", Key::RoleSessionName),
        ("AWS_ENDPOINT_URL_STS", Key::StsEndpoint),
        (
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            Key::ContainerCredentialsRelativeUri,
        ),
        (
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            Key::ContainerCredentialsFullUri,
        ),
        (
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            Key::ContainerAuthorizationTokenFile,
        ),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", Key::MetadataEndpoint),
    ];
    let builder = from(builder, &names);
    if variable("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() {
        return Ok(builder);
    }
    let Some(profile) = profile()? else {
        return Ok(builder);
    };
    let value = |name: &str| profile.get(name).cloned().unwrap_or_default();
    let builder = builder
        .with_access_key_id(value("aws_access_key_id"))
        .with_secret_access_key(value("aws_secret_access_key"));
    Ok(match profile.get("aws_session_token") {
        Some(token) => builder.with_token(token),
        None => builder,
    })
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Keys of our profile in the credentials file, if there is one with a key in it.
fn profile() -> Outcome<Option<BTreeMap<String, String>>> {
    let named = variable("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
    let home = || variable("HOME").map(|home| PathBuf::from(home).join(".aws/credentials"));
    let Some(path) = named.or_else(home) else {
        return Ok(None);
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Failure::io(&e, path.display())),
    };
    let wanted = variable("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
    let found = section(&text, &wanted);
    Ok(Some(found).filter(|found| found.contains_key("aws_access_key_id")))
}

fn section(text: &str, wanted: &str) -> BTreeMap<String, String> {
    let mut inside = false;
    let mut found = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            inside = name.trim() == wanted;
        } else if let Some((name, value)) = line.split_once('=').filter(|_| inside)
            && !line.starts_with(['#', ';'])
        {
            found.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_a_section_of_the_credentials_file() {
        let text = "# x\n[default]\naws_access_key_id = A\n\n[ other ]\n# aws_access_key_id=C\n\
                    AWS_ACCESS_KEY_ID=B\naws_secret_access_key = s=/+\n";
        assert_eq!(section(text, "default")["aws_access_key_id"], "A");
        let other = section(text, "other");
        assert_eq!(other["aws_access_key_id"], "B");
        assert_eq!(other["aws_secret_access_key"], "s=/+");
        assert!(section(text, "none").is_empty());
    }
}
