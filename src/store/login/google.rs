//! Who we are to Google: a service account, a user, the identity of somewhere else, the machine.
//!
//! Authority: google-auth `_default.py`, `service_account.py`, `external_account.py`; Google's
//! "Application Default Credentials" and RFC 8693.

mod external;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::header::HeaderMap;
use machine::Class;
use object_store::CredentialProvider;
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::Signer;
use serde_json::{Value, json};

use super::{Environment, Lent, Renewed, Source, Ways, bearer, get, post, read, seconds};
use crate::config::{Google, GoogleLogin};
use crate::failure::{Failure, Outcome};
use crate::store::cloud::own;
use external::External;

/// A token for every request.
pub(in crate::store) type Bearer = Arc<dyn CredentialProvider<Credential = String>>;

/// Opens the files that are named; nobody is asked yet.
pub(in crate::store) fn provider(config: &Google, environment: &Environment) -> Outcome<Bearer> {
    let ways = Ways::new(&config.net, config.endpoint.as_deref());
    let source = match &config.login {
        GoogleLogin::File(path) => of_file(path, &ways)?,
        GoogleLogin::Json(text) => of_json(text.reveal(), "credentials", &ways)?,
        GoogleLogin::Default => match default_file(environment) {
            Some(path) => of_file(&path, &ways)?,
            None => Box::new(Machine::of(environment)),
        },
    };
    Ok(Arc::new(Renewed::new(source)))
}

/// The one that is named, or the one that Google's tools leave.
fn default_file(environment: &Environment) -> Option<PathBuf> {
    let left = "application_default_credentials.json";
    environment
        .path("GOOGLE_APPLICATION_CREDENTIALS")
        .or_else(|| {
            let folder = environment
                .path("CLOUDSDK_CONFIG")
                .or_else(|| environment.below_home(".config/gcloud"));
            folder
                .map(|folder| folder.join(left))
                .filter(|path| path.exists())
        })
}

fn of_file(path: &Path, ways: &Ways) -> Outcome<Box<dyn Source<String>>> {
    of_json(&read(path)?, &path.display().to_string(), ways)
}

fn of_json(text: &str, from: &str, ways: &Ways) -> Outcome<Box<dyn Source<String>>> {
    let value = super::json(text, from).map_err(|failure| wrong(failure.message))?;
    let kind = value
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let fields = Fields {
        value: &value,
        from,
    };
    Ok(match kind {
        "access_token" => Box::new(Fixed(fields.word("access_token")?)),
        "service_account" => Box::new(Account::of(&fields, ways)?),
        "authorized_user" => Box::new(User::of(&fields, ways)?),
        "external_account" => Box::new(External::of(&fields, ways)?),
        other => {
            let message = format!(
                "{from}: expected the type service_account, authorized_user, external_account or \
                 access_token, found '{other}'"
            );
            return Err(wrong(message));
        }
    })
}

fn wrong(message: impl Into<String>) -> Failure {
    Failure::new(Class::Config, message)
}

/// Of a file of credentials.
struct Fields<'a> {
    value: &'a Value,
    from: &'a str,
}

impl Fields<'_> {
    fn optional(&self, name: &str) -> Option<String> {
        self.value
            .pointer(&format!("/{name}"))?
            .as_str()
            .map(str::to_owned)
    }

    fn word(&self, name: &str) -> Outcome<String> {
        let missing = || wrong(format!("{}: expected a text as {name}", self.from));
        self.optional(name).ok_or_else(missing)
    }
}

#[derive(Debug)]
struct Fixed(String);

#[async_trait]
impl Source<String> for Fixed {
    async fn fetch(&self) -> Outcome<Lent<String>> {
        let credential = self.0.clone();
        Ok(Lent {
            credential,
            life: None,
        })
    }
}

/// Its key signs for it, and Google gives a token for that.
struct Account {
    ways: Ways,
    email: String,
    key_id: String,
    /// By its RSA key.
    signer: Box<dyn Signer>,
    token_url: String,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.email)
    }
}

impl Account {
    fn of(fields: &Fields<'_>, ways: &Ways) -> Outcome<Account> {
        let pem = fields.word("private_key")?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).ok();
        let key = key.and_then(|key| any_supported_type(&key).ok());
        let signer = key.and_then(|key| key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256]));
        let no_key = || wrong(format!("{}: private_key is no RSA key in PEM", fields.from));
        let token_url = fields.optional("token_uri");
        Ok(Account {
            ways: ways.clone(),
            email: fields.word("client_email")?,
            key_id: fields.optional("private_key_id").unwrap_or_default(),
            signer: signer.ok_or_else(no_key)?,
            token_url: token_url.unwrap_or_else(|| TOKEN_URL.to_owned()),
        })
    }

    /// RFC 7523, section 3.
    fn assertion(&self) -> Outcome<String> {
        let now = seconds();
        let head = json!({ "alg": "RS256", "typ": "JWT", "kid": self.key_id });
        let claims = json!({ "iss": self.email, "scope": SCOPE, "aud": self.token_url,
            "iat": now, "exp": now + ASSERTION_SECONDS });
        let text = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", text(head), text(claims));
        let signature = self.signer.sign(message.as_bytes());
        let signature = signature.map_err(|e| wrong(format!("private_key: {e}")))?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

#[async_trait]
impl Source<String> for Account {
    async fn fetch(&self) -> Outcome<Lent<String>> {
        let assertion = self.assertion()?;
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
            ("assertion", &assertion),
        ];
        let answer = post(&self.ways.far(&self.token_url)?, &self.token_url, &form).await;
        let text = answer.map_err(|failure| failure.about(&self.email))?;
        bearer(&text, &self.token_url)
    }
}

/// A person who logged in once.
struct User {
    ways: Ways,
    id: String,
    secret: String,
    refresh: String,
    token_url: String,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.id)
    }
}

impl User {
    fn of(fields: &Fields<'_>, ways: &Ways) -> Outcome<User> {
        let token_url = fields.optional("token_uri");
        Ok(User {
            ways: ways.clone(),
            id: fields.word("client_id")?,
            secret: fields.word("client_secret")?,
            refresh: fields.word("refresh_token")?,
            token_url: token_url.unwrap_or_else(|| TOKEN_URL.to_owned()),
        })
    }
}

#[async_trait]
impl Source<String> for User {
    async fn fetch(&self) -> Outcome<Lent<String>> {
        let form = [
            ("grant_type", "refresh_token"),
            ("client_id", &self.id),
            ("client_secret", &self.secret),
            ("refresh_token", &self.refresh),
        ];
        let text = post(&self.ways.far(&self.token_url)?, &self.token_url, &form).await?;
        bearer(&text, &self.token_url)
    }
}

/// The service account of the machine.
#[derive(Debug)]
struct Machine {
    hosts: Vec<String>,
}

impl Machine {
    fn of(environment: &Environment) -> Machine {
        let named = environment.get("GCE_METADATA_HOST");
        let named = named.or_else(|| environment.get("GCE_METADATA_ROOT"));
        let address = environment.get("GCE_METADATA_IP");
        Machine {
            hosts: match named {
                Some(host) => vec![host],
                None => vec![
                    "metadata.google.internal".to_owned(),
                    address.unwrap_or_else(|| "169.254.169.254".to_owned()),
                ],
            },
        }
    }
}

#[async_trait]
impl Source<String> for Machine {
    async fn fetch(&self) -> Outcome<Lent<String>> {
        let wire = Ways::near()?;
        let mut last = Err(Failure::new(Class::Auth, "no metadata server"));
        for host in &self.hosts {
            let mut headers = HeaderMap::new();
            own::insert(&mut headers, "metadata-flavor", "Google")?;
            let url =
                format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/token");
            match get(&wire, &url, headers).await {
                Ok(text) => return bearer(&text, &url),
                Err(failure) => last = Err(failure),
            }
        }
        let hint = "name a credential_file, or give the machine a service account";
        last.map_err(|failure| {
            failure
                .about("no credentials for Google: the machine")
                .hint(hint)
        })
    }
}

const TOKEN_URL: &str = "https://oauth2.googleapis.com/token";
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
const ASSERTION_SECONDS: i64 = 3_600;
