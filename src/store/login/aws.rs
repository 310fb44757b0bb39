//! Who we are to AWS, in the order of the tools that PGHoard uses: the configuration, the
//! environment, a web identity, the profile, the container, the machine.
//!
//! Authority: botocore `credentials.py` and `utils.py`; the "AWS SDKs and Tools Reference Guide".
//! The first of them that says anything counts: what is half said there is an error, not a reason
//! to be somebody else.

mod profile;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use hyper::Method;
use hyper::header::HeaderMap;
use machine::Class;
use object_store::StaticCredentialProvider;
use object_store::aws::{AwsCredential, AwsCredentialProvider};
use serde_json::Value;

use super::{Environment, Lent, Renewed, Source, Ways, get, host, json, life, post, read};
use crate::config::S3;
use crate::failure::{Failure, Outcome};
use crate::store::cloud::own::{self, hidden};
use crate::store::wire::{Wire, fault};
use profile::Profile;

/// Nobody is asked yet.
pub fn provider(config: &S3, environment: &Environment) -> Outcome<AwsCredentialProvider> {
    if let Some(login) = &config.login {
        return Ok(fixed(AwsCredential {
            key_id: login.key_id.clone(),
            secret_key: login.secret.reveal().to_owned(),
            token: login
                .session_token
                .as_ref()
                .map(|token| token.reveal().to_owned()),
        }));
    }
    if let Some(credential) = of_variables(environment)? {
        return Ok(fixed(credential));
    }
    let ways = Ways::new(&config.net, config.endpoint.as_deref());
    let web = || WebIdentity::of(environment, config, &ways);
    let source: Box<dyn Source<AwsCredential>> = if let Some(web) = web()? {
        Box::new(web)
    } else if let Some(profile) = Profile::of(environment)? {
        Box::new(profile)
    } else if let Some(container) = Container::of(environment)? {
        Box::new(container)
    } else {
        Box::new(Machine::of(environment))
    };
    Ok(Arc::new(Renewed::new(source)))
}

fn fixed(credential: AwsCredential) -> AwsCredentialProvider {
    Arc::new(StaticCredentialProvider::new(credential))
}

fn wrong(message: impl Into<String>) -> Failure {
    Failure::new(Class::Config, message)
}

fn of_variables(environment: &Environment) -> Outcome<Option<AwsCredential>> {
    let Some(key_id) = environment.get("AWS_ACCESS_KEY_ID") else {
        return Ok(None);
    };
    let secret = environment.get("AWS_SECRET_ACCESS_KEY").ok_or_else(|| {
        wrong("the environment has AWS_ACCESS_KEY_ID without AWS_SECRET_ACCESS_KEY")
    })?;
    Ok(Some(AwsCredential {
        key_id,
        secret_key: secret,
        token: environment.get("AWS_SESSION_TOKEN"),
    }))
}

/// A token of somebody else's, Kubernetes mostly, for a role.
#[derive(Debug)]
struct WebIdentity {
    ways: Ways,
    endpoint: String,
    token: PathBuf,
    role: String,
    session: String,
}

impl WebIdentity {
    fn of(environment: &Environment, config: &S3, ways: &Ways) -> Outcome<Option<WebIdentity>> {
        let Some(token) = environment.path("AWS_WEB_IDENTITY_TOKEN_FILE") else {
            return Ok(None);
        };
        let role = environment.get("AWS_ROLE_ARN").ok_or_else(|| {
            wrong("the environment has AWS_WEB_IDENTITY_TOKEN_FILE without AWS_ROLE_ARN")
        })?;
        let end = match config.region.starts_with("cn-") {
            true => "amazonaws.com.cn",
            false => "amazonaws.com",
        };
        let theirs = || format!("https://sts.{}.{end}", config.region);
        let session = environment.get("AWS_ROLE_SESSION_NAME");
        Ok(Some(WebIdentity {
            ways: ways.clone(),
            endpoint: environment
                .get("AWS_ENDPOINT_URL_STS")
                .unwrap_or_else(theirs),
            token,
            role,
            session: session.unwrap_or_else(|| "pghoard".to_owned()),
        }))
    }
}

#[async_trait]
impl Source<AwsCredential> for WebIdentity {
    async fn fetch(&self) -> Outcome<Lent<AwsCredential>> {
        let token = read(&self.token)?;
        let form = [
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", &self.role),
            ("RoleSessionName", &self.session),
            ("WebIdentityToken", &token),
        ];
        let url = format!("{}/", self.endpoint.trim_end_matches('/'));
        let answer = post(&self.ways.far(&url)?, &url, &form).await;
        let text = answer.map_err(|failure| failure.about("AWS_ROLE_ARN"))?;
        let part = |name| fault::between(&text, name);
        let whole = (
            part("AccessKeyId"),
            part("SecretAccessKey"),
            part("SessionToken"),
        );
        let (Some(key_id), Some(secret_key), Some(token)) = whole else {
            let message = format!("{url}: the answer has no credentials");
            return Err(Failure::new(Class::Corrupt, message));
        };
        Ok(Lent {
            credential: AwsCredential {
                key_id,
                secret_key,
                token: Some(token),
            },
            life: part("Expiration").and_then(|until| life(&until)),
        })
    }
}

/// What the agent of a container hands out: ECS, EKS.
#[derive(Debug)]
struct Container {
    url: String,
    environment: Environment,
}

impl Container {
    fn of(environment: &Environment) -> Outcome<Option<Container>> {
        let relative = environment.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
        let full = environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI");
        let url = match (relative, full) {
            (Some(path), _) => format!("http://{AGENT}{path}"),
            (None, Some(url)) if is_near(&url) => url,
            (None, Some(url)) => {
                let message = format!(
                    "AWS_CONTAINER_CREDENTIALS_FULL_URI is neither of this machine nor https: {}",
                    host(&url)
                );
                return Err(wrong(message));
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(Container {
            url,
            environment: environment.clone(),
        }))
    }
}

/// Whoever else answered in the clear could be anybody.
fn is_near(url: &str) -> bool {
    let host = host(url);
    let address: Option<IpAddr> = host.parse().ok();
    url.starts_with("https://")
        || host == "localhost"
        || address.is_some_and(|address| address.is_loopback())
        || AGENTS.contains(&host)
}

#[async_trait]
impl Source<AwsCredential> for Container {
    async fn fetch(&self) -> Outcome<Lent<AwsCredential>> {
        let mut headers = HeaderMap::new();
        let file = self
            .environment
            .path("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
        let token = match file {
            Some(path) => Some(read(&path)?),
            None => self.environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
        };
        if let Some(token) = token {
            hidden(&mut headers, "authorization", &token)?;
        }
        let text = get(&Ways::near()?, &self.url, headers).await;
        lent(&text.map_err(|failure| failure.about("credentials of the container"))?)
    }
}

/// The role of an EC2 machine, by the second version of its metadata service, or by the first one
/// where there is no second.
#[derive(Debug)]
struct Machine {
    /// None where nobody is to be asked.
    endpoint: Option<String>,
    first_version: bool,
}

impl Machine {
    fn of(environment: &Environment) -> Machine {
        let by_mode = || {
            let mode = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE");
            match mode.is_some_and(|mode| mode.eq_ignore_ascii_case("ipv6")) {
                true => "http://[fd00:ec2::254]".to_owned(),
                false => "http://169.254.169.254".to_owned(),
            }
        };
        let endpoint = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT");
        let endpoint = endpoint.unwrap_or_else(by_mode);
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let disabled = environment.is_true("AWS_EC2_METADATA_DISABLED");
        Machine {
            endpoint: (!disabled).then_some(endpoint),
            first_version: !environment.is_true("AWS_EC2_METADATA_V1_DISABLED"),
        }
    }

    async fn token(&self, wire: &Wire, endpoint: &str) -> Outcome<Option<String>> {
        let mut headers = HeaderMap::new();
        own::insert(
            &mut headers,
            "x-aws-ec2-metadata-token-ttl-seconds",
            "21600",
        )?;
        let url = format!("{endpoint}/latest/api/token");
        let request = own::request(Method::PUT, &url, headers, String::new().into())?;
        let first_version = self.first_version;
        match own::send(wire, request).await {
            Ok(token) => Ok(Some(token)),
            // So answers who knows the first version only, or a hop too far away.
            Err(failure) => match failure.class {
                Class::Denied | Class::NotFound | Class::Unsupported | Class::Timeout
                    if first_version =>
                {
                    Ok(None)
                }
                _ => Err(failure),
            },
        }
    }

    async fn ask(&self, endpoint: &str) -> Outcome<Lent<AwsCredential>> {
        let wire = Ways::near()?;
        let mut headers = HeaderMap::new();
        if let Some(token) = self.token(&wire, endpoint).await? {
            hidden(&mut headers, "x-aws-ec2-metadata-token", &token)?;
        }
        let roles = format!("{endpoint}/latest/meta-data/iam/security-credentials/");
        let found = get(&wire, &roles, headers.clone()).await?;
        let role = found.lines().next().unwrap_or_default().trim().to_owned();
        if role.is_empty() {
            return Err(Failure::new(Class::NotFound, "the machine has no role"));
        }
        lent(&get(&wire, &format!("{roles}{role}"), headers).await?)
    }
}

#[async_trait]
impl Source<AwsCredential> for Machine {
    async fn fetch(&self) -> Outcome<Lent<AwsCredential>> {
        let hint = "set aws_access_key_id and aws_secret_access_key, or give the machine a role";
        let Some(endpoint) = &self.endpoint else {
            return Err(Failure::new(Class::Auth, "no credentials for S3").hint(hint));
        };
        let asked = self.ask(endpoint).await;
        let about = "no credentials for S3: the machine";
        asked.map_err(|failure| failure.about(about).hint(hint))
    }
}

/// The answer of a container's agent or a machine.
fn lent(text: &str) -> Outcome<Lent<AwsCredential>> {
    let value = json(text, "credentials")?;
    let word = |name| value.get(name).and_then(Value::as_str).map(str::to_owned);
    if let Some(code) = word("Code").filter(|code| code != "Success") {
        let message = word("Message").unwrap_or_default();
        return Err(Failure::new(Class::Auth, format!("{code}, {message}")));
    }
    let (Some(key_id), Some(secret_key)) = (word("AccessKeyId"), word("SecretAccessKey")) else {
        return Err(Failure::new(
            Class::Corrupt,
            "the answer has no credentials",
        ));
    };
    Ok(Lent {
        credential: AwsCredential {
            key_id,
            secret_key,
            token: word("Token"),
        },
        life: word("Expiration").and_then(|until| life(&until)),
    })
}

/// Of ECS.
const AGENT: &str = "169.254.170.2";
/// Of ECS, and EKS.
const AGENTS: [&str; 3] = [AGENT, "169.254.170.23", "fd00:ec2::23"];

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        let pairs = pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()));
        Environment::of(pairs.collect())
    }

    /// Where nobody of a test can stand.
    #[test]
    fn a_container_asks_its_agent_and_nobody_far_away() {
        let relative = [("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/x?id=1")];
        let container = Container::of(&environment(&relative)).unwrap().unwrap();
        assert_eq!(container.url, "http://169.254.170.2/v2/x?id=1");
        for (url, fine) in [
            ("http://169.254.170.23/v1/credentials", true),
            ("http://[fd00:ec2::23]/v1/credentials", true),
            ("http://localhost:80/x", true),
            ("http://127.0.0.2/x", true),
            ("http://[::1]:80/x", true),
            ("https://example.com/x", true),
            ("http://example.com/x", false),
            ("http://169.254.169.254/x", false),
        ] {
            let full = environment(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)]);
            assert_eq!(Container::of(&full).is_ok(), fine, "{url}");
        }
    }

    #[test]
    fn the_machine_is_asked_where_the_environment_says() {
        let endpoint = |pairs: &[_]| Machine::of(&environment(pairs)).endpoint;
        let usual = endpoint(&[]).unwrap();
        assert_eq!(usual, "http://169.254.169.254");
        let mode = ("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv6");
        assert_eq!(endpoint(&[mode]).unwrap(), "http://[fd00:ec2::254]");
        let other = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1/");
        assert_eq!(endpoint(&[mode, other]).unwrap(), "http://127.0.0.1:1");
        assert_eq!(endpoint(&[("AWS_EC2_METADATA_DISABLED", "True")]), None);
    }
}
