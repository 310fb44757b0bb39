//! Who we are to Azure without a key: a workload, a program with a secret, the machine.
//!
//! Authority: azure-identity `DefaultAzureCredential` and its environment; Microsoft's "Use managed
//! identities to acquire an access token".

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use hyper::header::HeaderMap;
use object_store::StaticCredentialProvider;
use object_store::azure::{AzureAccessKey, AzureCredential, AzureCredentialProvider, split_sas};

use super::{Environment, Lent, Renewed, Source, Ways, bearer, get, post, read};
use crate::config::{Azure, AzureLogin};
use crate::failure::{Failure, Outcome};
use crate::store::cloud::own::{self, Slashes, encoded, hidden};
use crate::store::wire::fault;

/// Nobody is asked yet.
pub(in crate::store) fn provider(
    config: &Azure,
    environment: &Environment,
) -> Outcome<AzureCredentialProvider> {
    let wrong = |name: &str, e: &dyn std::error::Error| {
        let why = e.source().map_or_else(|| e.to_string(), fault::root);
        Failure::new(machine::Class::Config, format!("{name}: {why}"))
    };
    let fixed = match &config.login {
        AzureLogin::Key(key) => {
            let key = AzureAccessKey::try_new(key.reveal());
            AzureCredential::AccessKey(key.map_err(|e| wrong("account_key", &e))?)
        }
        AzureLogin::Sas(sas) => {
            let sas = split_sas(sas.reveal().trim_start_matches('?'));
            AzureCredential::SASToken(sas.map_err(|e| wrong("sas_token", &e))?)
        }
        AzureLogin::Identity => {
            let source = identity(config, environment);
            return Ok(Arc::new(Renewed::new(source)));
        }
    };
    Ok(Arc::new(StaticCredentialProvider::new(fixed)))
}

/// By a login of Microsoft's.
#[derive(Debug)]
struct Login {
    ways: Ways,
    url: String,
    id: String,
    proof: Proof,
}

/// By a service of the machine.
#[derive(Debug)]
struct Machine {
    url: String,
    /// Whoever asks there shows what the environment has.
    secret: Option<Environment>,
}

enum Proof {
    /// A token of Kubernetes, say, which is renewed in its file.
    File(PathBuf),
    Secret(String),
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proof")
    }
}

fn identity(config: &Azure, environment: &Environment) -> Box<dyn Source<AzureCredential>> {
    let id = environment.get("AZURE_CLIENT_ID");
    let file = environment
        .path("AZURE_FEDERATED_TOKEN_FILE")
        .map(Proof::File);
    let proof = file.or_else(|| environment.get("AZURE_CLIENT_SECRET").map(Proof::Secret));
    if let (Some(id), Some(tenant), Some(proof)) = (&id, environment.get("AZURE_TENANT_ID"), proof)
    {
        let host = environment.get("AZURE_AUTHORITY_HOST");
        let host = host.unwrap_or_else(|| authority(&config.endpoint).to_owned());
        return Box::new(Login {
            ways: Ways::new(&config.net, own_server(config)),
            url: format!("{}/{tenant}/oauth2/v2.0/token", host.trim_end_matches('/')),
            id: id.clone(),
            proof,
        });
    }
    let (url, version, secret) = match environment.get("IDENTITY_ENDPOINT") {
        // Of App Service and its like.
        Some(url) => (url, "2019-08-01", Some(environment.clone())),
        None => {
            let host = environment.get("AZURE_POD_IDENTITY_AUTHORITY_HOST");
            let host = host.unwrap_or_else(|| "http://169.254.169.254".to_owned());
            let host = host.trim_end_matches('/');
            (
                format!("{host}/metadata/identity/oauth2/token"),
                "2018-02-01",
                None,
            )
        }
    };
    let resource = encoded(RESOURCE, Slashes::Go);
    let of = id.map_or(String::new(), |id| {
        format!("&client_id={}", encoded(&id, Slashes::Go))
    });
    Box::new(Machine {
        url: format!("{url}?api-version={version}&resource={resource}{of}"),
        secret,
    })
}

/// A server of one's own has the account in the path.
fn own_server(config: &Azure) -> Option<&str> {
    let cloud = format!("://{}.blob.", config.account);
    Some(config.endpoint.as_str()).filter(|url| !url.contains(&cloud))
}

/// Who logs in to the cloud of a store.
fn authority(endpoint: &str) -> &'static str {
    match endpoint {
        end if end.ends_with("chinacloudapi.cn") => "https://login.chinacloudapi.cn",
        end if end.ends_with("cloudapi.de") => "https://login.microsoftonline.de",
        _ => "https://login.microsoftonline.com",
    }
}

#[async_trait]
impl Source<AzureCredential> for Login {
    async fn fetch(&self) -> Outcome<Lent<AzureCredential>> {
        let text = match &self.proof {
            Proof::File(path) => read(path)?,
            Proof::Secret(secret) => secret.clone(),
        };
        let scope = format!("{RESOURCE}/.default");
        let mut form = vec![
            ("grant_type", "client_credentials"),
            ("client_id", self.id.as_str()),
            ("scope", &scope),
        ];
        match self.proof {
            Proof::File(_) => form.extend([
                ("client_assertion_type", ASSERTION),
                ("client_assertion", text.as_str()),
            ]),
            Proof::Secret(_) => form.push(("client_secret", &text)),
        }
        let answer = post(&self.ways.far(&self.url)?, &self.url, &form).await;
        token(&answer.map_err(|failure| failure.about(&self.id))?)
    }
}

#[async_trait]
impl Source<AzureCredential> for Machine {
    async fn fetch(&self) -> Outcome<Lent<AzureCredential>> {
        let mut headers = HeaderMap::new();
        own::insert(&mut headers, "metadata", "true")?;
        let secret = self.secret.as_ref();
        if let Some(secret) = secret.and_then(|all| all.get("IDENTITY_HEADER")) {
            hidden(&mut headers, "x-identity-header", &secret)?;
        }
        let hint = "set account_key or sas_token, or give the machine an identity";
        let about = "no credentials for Azure: the machine";
        let text = get(&Ways::near()?, &self.url, headers).await;
        token(&text.map_err(|failure| failure.about(about).hint(hint))?)
    }
}

fn token(text: &str) -> Outcome<Lent<AzureCredential>> {
    let token = bearer(text, "Azure's login")?;
    Ok(Lent {
        credential: AzureCredential::BearerToken(token.credential),
        life: token.life,
    })
}

const RESOURCE: &str = "https://storage.azure.com";
const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
