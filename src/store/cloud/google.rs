//! Google Cloud Storage. Authority: rohmu `object_storage/google.py`.
//!
//! Requests of our own: the bucket, which the JSON API makes, and finishing an upload where nothing
//! is.

use std::fmt::Write;
use std::sync::Arc;

use hyper::Method;
use hyper::header::HeaderMap;
use machine::Class;
use object_store::StaticCredentialProvider;
use object_store::gcp::{GcpCredential, GoogleCloudStorage, GoogleCloudStorageBuilder};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use serde_json::{Value, json};

use super::own::{self, Slashes, encoded, insert};
use super::{Client, Multipart, Service, retry, told};
use crate::config::{Google, GoogleLogin};
use crate::failure::{Failure, Outcome};
use crate::store::Put;
use crate::store::wire::{Wire, fault, run};

pub struct Bucket {
    config: Google,
    wire: Wire,
    client: Arc<GoogleCloudStorage>,
}

impl Bucket {
    /// No request is made: a daemon has to start while its store is away.
    pub fn new(config: &Google) -> Outcome<Bucket> {
        let wire = Wire::new(&config.net)?;
        let wrong = |e| Failure::new(Class::Config, format!("Google: {}", fault::root(&e)));
        let mut builder = GoogleCloudStorageBuilder::new()
            .with_bucket_name(&config.bucket)
            .with_retry(retry())
            .with_http_connector(wire.clone());
        if let Some(url) = &config.endpoint {
            builder = builder.with_base_url(url);
        }
        let builder = match &config.login {
            GoogleLogin::Default => builder,
            GoogleLogin::File(path) => {
                builder.with_application_credentials(path.display().to_string())
            }
            GoogleLogin::Json(text) => json_login(builder, text.reveal())?,
        };
        Ok(Bucket {
            client: Arc::new(builder.build().map_err(wrong)?),
            config: config.clone(),
            wire,
        })
    }

    fn ask(&self, url: &str, mut headers: HeaderMap, body: String) -> Outcome<String> {
        run(async {
            let credential = self.client.credentials().get_credential().await;
            let credential = credential.map_err(|e| told(&e))?;
            if !credential.bearer.is_empty() {
                let bearer = format!("Bearer {}", credential.bearer);
                insert(&mut headers, "authorization", &bearer)?;
            }
            let request = own::request(Method::POST, url, headers, body)?;
            own::send(&self.wire, request).await
        })
    }

    fn url(&self) -> &str {
        let google = "https://storage.googleapis.com";
        self.config.endpoint.as_deref().unwrap_or(google)
    }
}

/// The kinds that rohmu takes; the library has no words for a token alone.
fn json_login(
    builder: GoogleCloudStorageBuilder,
    text: &str,
) -> Outcome<GoogleCloudStorageBuilder> {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let word = |name| value.get(name).and_then(Value::as_str).unwrap_or_default();
    match word("type") {
        "access_token" => {
            let bearer = word("access_token").to_owned();
            let token = StaticCredentialProvider::new(GcpCredential { bearer });
            Ok(builder.with_credentials(Arc::new(token)))
        }
        "service_account" => Ok(builder.with_service_account_key(text)),
        _ => {
            let message = "credentials: expected the type service_account or access_token";
            let hint = "any other goes into a file that credential_file names";
            Err(Failure::new(Class::Config, message).hint(hint))
        }
    }
}

impl Service for Bucket {
    fn place(&self) -> String {
        match &self.config.endpoint {
            Some(url) => format!("Google {url}/{}", self.config.bucket),
            None => format!("Google bucket {}", self.config.bucket),
        }
    }

    fn client(&self) -> Arc<dyn Client> {
        Arc::clone(&self.client) as _
    }

    fn writer(&self) -> Outcome<Arc<dyn Client>> {
        Ok(self.client())
    }

    fn name_out(&self, name: &str) -> String {
        name.to_owned()
    }

    fn name_in(&self, name: &str) -> String {
        name.to_owned()
    }

    /// Google does; what stands in for it in tests does so for some requests.
    fn refuses_existing(&self) -> bool {
        self.config.endpoint.is_none()
    }

    fn complete(&self, upload: &Multipart, parts: Vec<PartId>, mode: Put) -> Outcome<()> {
        let Multipart { path, id, .. } = upload;
        if mode == Put::Replace {
            let done = run(self.client.complete_multipart(path, id, parts));
            return done.map(drop).map_err(|e| told(&e));
        }
        let mut headers = HeaderMap::new();
        insert(&mut headers, "x-goog-if-generation-match", "0")?;
        let mut body = "<CompleteMultipartUpload>".to_owned();
        for (number, part) in (1..).zip(parts) {
            let tag = part.content_id;
            let _infallible = write!(
                body,
                "<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>"
            );
        }
        body.push_str("</CompleteMultipartUpload>");
        let key = encoded(path.as_ref(), Slashes::Stay);
        let (url, bucket) = (self.url(), &self.config.bucket);
        let id = encoded(id, Slashes::Go);
        let url = format!("{url}/{bucket}/{key}?uploadId={id}");
        self.ask(&url, headers, body).map(drop)
    }

    fn make(&self) -> Outcome<()> {
        let Some(project) = &self.config.project_id else {
            let message = format!("bucket {} does not exist", self.config.bucket);
            let hint = "make it, or name the project to make it in by project_id";
            return Err(Failure::new(Class::Config, message).hint(hint));
        };
        let project = encoded(project, Slashes::Go);
        let url = format!("{}/storage/v1/b?project={project}", self.url());
        let mut headers = HeaderMap::new();
        insert(&mut headers, "content-type", "application/json")?;
        let body = json!({ "name": self.config.bucket }).to_string();
        match self.ask(&url, headers, body) {
            Err(failure) if failure.class == Class::Conflict => Ok(()),
            made => made
                .map(drop)
                .map_err(|failure| failure.about("making the bucket")),
        }
    }

    /// The XML API lists uploads as S3's does; a rule of the bucket is the better place for it.
    fn sweep(&self, _folder: &Path, _before_ms: i64) -> Outcome<u64> {
        Ok(0)
    }
}
