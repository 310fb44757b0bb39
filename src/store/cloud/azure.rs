//! Azure's block blobs. Authority: rohmu `object_storage/azure.py`.
//!
//! Metadata has no hyphens there: they are underscores, and every underscore is one. Requests of
//! our own: the container, the list of blocks that makes a blob, which the library neither gives
//! metadata beside a condition, and all that has bytes, to which it gives no checksum: each has
//! its MD5, which Azure compares, and keeps of a blob to answer with it.

use std::fmt::Write;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderMap};
use machine::Class;
use md5::{Digest, Md5};
use object_store::azure::{
    AzureAuthorizer, AzureCredential, MicrosoftAzure, MicrosoftAzureBuilder,
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
use crate::store::login::{self, Environment};
use crate::store::wire::{Wire, fault, run};

pub struct Container {
    config: Azure,
    wire: Wire,
    client: Arc<MicrosoftAzure>,
}

impl Container {
    /// No request is made: a daemon has to start while its store is away.
    pub fn new(config: &Azure, environment: &Environment) -> Outcome<Container> {
        let plain = Wire::new(&config.net)?;
        let source = {
            let (config, environment) = (config.clone(), environment.clone());
            move || login::azure::provider(&config, &environment)
        };
        let account = config.account.clone();
        let sign = move |credential: &AzureCredential, request: &mut HttpRequest| {
            sign(credential, &account, request)
        };
        let logins = Arc::new(Logins::new(source, sign)?);
        let wire = match &config.login {
            // What stands in the configuration is all there is.
            AzureLogin::Key(_) | AzureLogin::Sas(_) => plain,
            AzureLogin::Identity => plain.renewing(Arc::<Logins<AzureCredential>>::clone(&logins)),
        };
        let wrong = |e| Failure::new(Class::Config, format!("Azure: {}", fault::root(&e)));
        let builder = MicrosoftAzureBuilder::new()
            .with_account(&config.account)
            .with_container_name(&config.container)
            .with_endpoint(config.endpoint.clone())
            .with_allow_http(true)
            .with_retry(retry())
            .with_credentials(logins)
            .with_http_connector(wire.clone());
        Ok(Container {
            client: Arc::new(builder.build().map_err(wrong)?),
            config: config.clone(),
            wire,
        })
    }

    fn ask(
        &self,
        path: &str,
        query: &str,
        mut headers: HeaderMap,
        body: Vec<u8>,
    ) -> Outcome<String> {
        if !body.is_empty() {
            insert(
                &mut headers,
                "content-md5",
                &STANDARD.encode(Md5::digest(&body)),
            )?;
        }
        let Azure {
            endpoint,
            container,
            ..
        } = &self.config;
        let mark = if query.is_empty() { "" } else { "?" };
        let url = format!("{endpoint}/{container}{path}{mark}{query}");
        let mut request = own::request(Method::PUT, &url, headers, body.into())?;
        run(async {
            let credential = self.client.credentials().get_credential().await;
            let credential = credential.map_err(|e| told(&e))?;
            sign(&credential, &self.config.account, &mut request)?;
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

    fn put(&self, path: &Path, bytes: Vec<u8>, attributes: Attributes, mode: Put) -> Outcome<()> {
        let mut headers = labels(&attributes, mode)?;
        insert(&mut headers, "x-ms-blob-type", "BlockBlob")?;
        self.ask(&place(path), "", headers, bytes).map(drop)
    }

    fn part(&self, upload: &Multipart, _number: u64, bytes: Vec<u8>) -> Outcome<PartId> {
        let mut random = [0; 16];
        let no_id = |e| Failure::new(Class::Internal, format!("no randomness: {e}"));
        getrandom::fill(&mut random).map_err(no_id)?;
        // As long as the library's, as all blocks of a blob have to be.
        let content_id = hex::encode(random);
        let id = encoded(&STANDARD.encode(&content_id), Slashes::Go);
        let query = format!("comp=block&blockid={id}");
        self.ask(&place(&upload.path), &query, HeaderMap::new(), bytes)?;
        Ok(PartId { content_id })
    }

    fn notes_md5(&self) -> bool {
        true
    }

    /// Blocks are of nothing until there is a list of them.
    fn begin(&self, _path: &Path, _attributes: Attributes) -> Outcome<String> {
        Ok(String::new())
    }

    fn labels_come_last(&self) -> bool {
        true
    }

    fn complete(&self, upload: &Multipart, parts: Vec<PartId>, mode: Put) -> Outcome<()> {
        let mut headers = labels(&upload.attributes, mode)?;
        if let Some(md5) = upload.md5 {
            insert(&mut headers, "x-ms-blob-content-md5", &STANDARD.encode(md5))?;
        }
        let mut body = "<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>".to_owned();
        for part in parts {
            let id = STANDARD.encode(part.content_id);
            let _infallible = write!(body, "<Uncommitted>{id}</Uncommitted>");
        }
        body.push_str("</BlockList>");
        let body = body.into_bytes();
        self.ask(&place(&upload.path), "comp=blocklist", headers, body)
            .map(drop)
    }

    fn make(&self) -> Outcome<()> {
        let made = self.ask("", "restype=container", HeaderMap::new(), Vec::new());
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

fn place(path: &Path) -> String {
    format!("/{}", encoded(path.as_ref(), Slashes::Stay))
}

fn labels(attributes: &Attributes, mode: Put) -> Outcome<HeaderMap> {
    let mut headers = HeaderMap::new();
    if mode == Put::Create {
        insert(&mut headers, "if-none-match", "*")?;
    }
    for (attribute, value) in attributes {
        if let Attribute::Metadata(name) = attribute {
            insert(&mut headers, &format!("x-ms-meta-{name}"), value.as_ref())?;
        }
    }
    Ok(headers)
}

fn sign(credential: &AzureCredential, account: &str, request: &mut HttpRequest) -> Outcome<()> {
    // The signer only adds.
    request.headers_mut().remove(AUTHORIZATION);
    let signer = AzureAuthorizer::new(credential, account);
    signer.try_authorize(request).map_err(|e| told(&e))
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
