//! Azure's block blobs. Authority: rohmu `object_storage/azure.py`.
//!
//! Metadata has no hyphens there: they are underscores, and every underscore is one. Requests of
//! our own: the container, and the list of blocks that makes a blob, which the library neither
//! gives metadata beside a condition.

use std::fmt::Write;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderMap};
use machine::Class;
use object_store::azure::{
    AzureAuthorizer, AzureCredential, MicrosoftAzure, MicrosoftAzureBuilder, split_sas,
};
use object_store::client::HttpRequest;
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::{Attribute, Attributes};

use super::logins::Logins;
use super::own::{self, Slashes, encoded, insert};
use super::{Client, Multipart, Service, retry, told};
use crate::config::{Azure, AzureLogin};
use crate::failure::{Failure, Outcome};
use crate::store::Put;
use crate::store::wire::{Wire, fault, run};

pub struct Container {
    config: Azure,
    wire: Wire,
    client: Arc<MicrosoftAzure>,
}

impl Container {
    /// No request is made: a daemon has to start while its store is away.
    pub fn new(config: &Azure) -> Outcome<Container> {
        let plain = Wire::new(&config.net)?;
        let (builder, wire) = match &config.login {
            AzureLogin::Key(key) => {
                let builder = builder(config, &plain);
                (builder.with_access_key(key.reveal()), plain)
            }
            AzureLogin::Sas(sas) => {
                let sas = sas.reveal().trim_start_matches('?');
                let pairs = split_sas(sas).map_err(|e| wrong(&e))?;
                let builder = builder(config, &plain);
                (builder.with_sas_authorization(pairs), plain)
            }
            AzureLogin::Identity => {
                let logins = Arc::new(logins(config, &plain)?);
                let wire = plain.renewing(Arc::<Logins<AzureCredential>>::clone(&logins));
                (builder(config, &wire).with_credentials(logins), wire)
            }
        };
        Ok(Container {
            client: Arc::new(builder.build().map_err(|e| wrong(&e))?),
            config: config.clone(),
            wire,
        })
    }

    fn ask(&self, path: &str, query: &str, headers: HeaderMap, body: String) -> Outcome<String> {
        let Azure {
            endpoint,
            container,
            ..
        } = &self.config;
        let url = format!("{endpoint}/{container}{path}?{query}");
        let mut request = own::request(Method::PUT, &url, headers, body.into())?;
        run(async {
            let credential = self.client.credentials().get_credential().await;
            let credential = credential.map_err(|e| told(&e))?;
            let signer = AzureAuthorizer::new(&credential, &self.config.account);
            signer.try_authorize(&mut request).map_err(|e| told(&e))?;
            own::send(&self.wire, request).await
        })
    }
}

impl Service for Container {
    fn place(&self) -> String {
        format!("Azure {}/{}", self.config.endpoint, self.config.container)
    }

    fn client(&self) -> Arc<dyn Client> {
        Arc::<MicrosoftAzure>::clone(&self.client)
    }

    fn writer(&self) -> Outcome<Arc<dyn Client>> {
        Ok(self.client())
    }

    fn name_out(&self, name: &str) -> String {
        name.replace('-', "_")
    }

    fn name_in(&self, name: &str) -> String {
        name.replace('_', "-")
    }

    fn refuses_existing(&self) -> bool {
        true
    }

    /// Blocks are of nothing until there is a list of them.
    fn begin(&self, _path: &Path, _attributes: Attributes) -> Outcome<String> {
        Ok(String::new())
    }

    fn complete(&self, upload: &Multipart, parts: Vec<PartId>, mode: Put) -> Outcome<()> {
        let mut headers = HeaderMap::new();
        if mode == Put::Create {
            insert(&mut headers, "if-none-match", "*")?;
        }
        for (attribute, value) in &upload.attributes {
            if let Attribute::Metadata(name) = attribute {
                insert(&mut headers, &format!("x-ms-meta-{name}"), value.as_ref())?;
            }
        }
        let mut body = "<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>".to_owned();
        for part in parts {
            let id = STANDARD.encode(part.content_id);
            let _infallible = write!(body, "<Uncommitted>{id}</Uncommitted>");
        }
        body.push_str("</BlockList>");
        let path = format!("/{}", encoded(upload.path.as_ref(), Slashes::Stay));
        self.ask(&path, "comp=blocklist", headers, body).map(drop)
    }

    fn make(&self) -> Outcome<()> {
        let made = self.ask("", "restype=container", HeaderMap::new(), String::new());
        match made {
            Err(failure) if failure.message.contains("ContainerAlreadyExists") => Ok(()),
            made => made
                .map(drop)
                .map_err(|failure| failure.about("making the container")),
        }
    }

    /// Azure forgets blocks that became nothing after a week.
    fn sweep(&self, _folder: &Path, _before_ms: i64) -> Outcome<u64> {
        Ok(0)
    }
}

fn builder(config: &Azure, wire: &Wire) -> MicrosoftAzureBuilder {
    MicrosoftAzureBuilder::new()
        .with_account(&config.account)
        .with_container_name(&config.container)
        .with_endpoint(config.endpoint.clone())
        .with_allow_http(true)
        .with_retry(retry())
        .with_http_connector(wire.clone())
}

fn wrong(error: &object_store::Error) -> Failure {
    Failure::new(Class::Config, format!("Azure: {}", fault::root(error)))
}

/// Tokens of an identity.
fn logins(config: &Azure, wire: &Wire) -> Outcome<Logins<AzureCredential>> {
    let account = config.account.clone();
    let (config, wire) = (config.clone(), wire.clone());
    let source = move || {
        let built = identity(builder(&config, &wire)).build();
        Ok(Arc::clone(built.map_err(|e| wrong(&e))?.credentials()))
    };
    Logins::new(source, move |credential, request: &mut HttpRequest| {
        sign(credential, &account, request)
    })
}

fn sign(credential: &AzureCredential, account: &str, request: &mut HttpRequest) -> Outcome<()> {
    // The signer only adds.
    request.headers_mut().remove(AUTHORIZATION);
    let signer = AzureAuthorizer::new(credential, account);
    signer.try_authorize(request).map_err(|e| told(&e))
}

/// Of the workload, where the environment says who that is; else of the machine.
fn identity(builder: MicrosoftAzureBuilder) -> MicrosoftAzureBuilder {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let mut builder = builder;
    if let Some(id) = variable("AZURE_CLIENT_ID") {
        builder = builder.with_client_id(id);
    }
    if let Some(id) = variable("AZURE_TENANT_ID") {
        builder = builder.with_tenant_id(id);
    }
    if let Some(file) = variable("AZURE_FEDERATED_TOKEN_FILE") {
        builder = builder.with_federated_token_file(file);
    }
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_token_takes_the_place_of_the_old_one() {
        let url = "http://127.0.0.1/account/container/blob";
        let empty = String::new();
        let mut request = own::request(Method::GET, url, HeaderMap::new(), empty.into()).unwrap();
        for token in ["old", "new"] {
            let credential = AzureCredential::BearerToken(token.to_owned());
            sign(&credential, "account", &mut request).unwrap();
            let logins: Vec<_> = request.headers().get_all(AUTHORIZATION).iter().collect();
            assert_eq!(logins, [&format!("Bearer {token}")]);
        }
    }
}
