//! The identity of somewhere else (Kubernetes, another cloud, a company's own), for a token of
//! Google's, and that for one of a service account, if that is asked for.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use hyper::Method;
use hyper::header::HeaderMap;
use machine::Class;
use serde_json::{Value, json};

use super::super::{Lent, Source, Ways, bearer, get, life, post, read};
use super::{Fields, SCOPE, wrong};
use crate::failure::{Failure, Outcome};
use crate::store::cloud::own::{self, hidden};

pub(super) struct External {
    ways: Ways,
    audience: String,
    kind: String,
    token_url: String,
    subject: Subject,
    /// The field of a JSON object, where the token is in one.
    field: Option<String>,
    /// Of the service account, and for how many seconds.
    act_as: Option<(String, u64)>,
}

enum Subject {
    File(PathBuf),
    Url(String, Vec<(String, String)>),
}

impl std::fmt::Debug for External {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.audience)
    }
}

impl External {
    pub fn of(fields: &Fields<'_>, ways: &Ways) -> Outcome<External> {
        let source = |name: &str| format!("credential_source/{name}");
        let subject = match (
            fields.optional(&source("file")),
            fields.optional(&source("url")),
        ) {
            (Some(path), _) => Subject::File(PathBuf::from(path)),
            (None, Some(url)) => Subject::Url(url, headers(fields.value)),
            (None, None) => {
                let message = format!("{}: credential_source has no file and no url", fields.from);
                return Err(wrong(message).hint("no program is run to get a token"));
            }
        };
        let field = match fields.optional(&source("format/type")).as_deref() {
            Some("json") => Some(fields.word(&source("format/subject_token_field_name"))?),
            _ => None,
        };
        let seconds = "/service_account_impersonation/token_lifetime_seconds";
        let seconds = fields.value.pointer(seconds).and_then(Value::as_u64);
        let act_as = fields.optional("service_account_impersonation_url");
        let token_url = fields.optional("token_url");
        Ok(External {
            ways: ways.clone(),
            audience: fields.word("audience")?,
            kind: fields.word("subject_token_type")?,
            token_url: token_url.unwrap_or_else(|| STS_URL.to_owned()),
            subject,
            field,
            act_as: act_as.map(|url| (url, seconds.unwrap_or(3_600))),
        })
    }

    async fn subject(&self) -> Outcome<String> {
        let text = match &self.subject {
            Subject::File(path) => read(path)?,
            Subject::Url(url, pairs) => {
                let mut headers = HeaderMap::new();
                for (name, value) in pairs {
                    hidden(&mut headers, name, value)?;
                }
                get(&Ways::near()?, url, headers).await?
            }
        };
        let Some(field) = &self.field else {
            return Ok(text.trim().to_owned());
        };
        let value = super::super::json(&text, "credential_source")?;
        let token = value.get(field).and_then(Value::as_str);
        let none = || Failure::new(Class::Auth, format!("credential_source has no {field}"));
        token.map(str::to_owned).ok_or_else(none)
    }

    /// RFC 8693, section 2.1.
    async fn exchanged(&self) -> Outcome<Lent<String>> {
        let token = self.subject().await?;
        let form = [
            (
                "grant_type",
                "urn:ietf:params:oauth:grant-type:token-exchange",
            ),
            (
                "requested_token_type",
                "urn:ietf:params:oauth:token-type:access_token",
            ),
            ("audience", &self.audience),
            ("scope", SCOPE),
            ("subject_token", &token),
            ("subject_token_type", &self.kind),
        ];
        let text = post(&self.ways.far(&self.token_url)?, &self.token_url, &form).await?;
        bearer(&text, &self.token_url)
    }
}

#[async_trait]
impl Source<String> for External {
    async fn fetch(&self) -> Outcome<Lent<String>> {
        let first = self.exchanged().await?;
        let Some((url, seconds)) = &self.act_as else {
            return Ok(first);
        };
        let mut headers = HeaderMap::new();
        hidden(
            &mut headers,
            "authorization",
            &format!("Bearer {}", first.credential),
        )?;
        own::insert(&mut headers, "content-type", "application/json")?;
        let body = json!({ "scope": [SCOPE], "lifetime": format!("{seconds}s") }).to_string();
        let request = own::request(Method::POST, url, headers, body.into())?;
        let text = own::send(&self.ways.far(url)?, request).await?;
        let value = super::super::json(&text, url)?;
        let word = |name| value.get(name).and_then(Value::as_str);
        let none = || Failure::new(Class::Corrupt, format!("{url}: the answer has no token"));
        let token = word("accessToken").ok_or_else(none)?;
        Ok(Lent {
            credential: token.to_owned(),
            life: word("expireTime")
                .and_then(life)
                .or(Some(Duration::from_secs(*seconds))),
        })
    }
}

fn headers(value: &Value) -> Vec<(String, String)> {
    let map = value
        .pointer("/credential_source/headers")
        .and_then(Value::as_object);
    let pairs = map.into_iter().flatten();
    pairs
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}

const STS_URL: &str = "https://sts.googleapis.com/v1/token";
