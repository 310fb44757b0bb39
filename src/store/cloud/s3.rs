//! S3, and what speaks its protocol. Authority: rohmu `object_storage/s3.py`.
//!
//! Requests of our own, signed by the library's signer: the bucket, and uploads that nobody ended.

use std::sync::Arc;

use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use machine::Class;
use object_store::aws::{
    AmazonS3, AmazonS3Builder, AwsAuthorizer, AwsCredential, AwsCredentialProvider, Checksum,
};
use object_store::client::HttpRequest;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore};
use smol::stream::StreamExt;

use super::logins::Logins;
use super::own::{self, Slashes, encoded, insert};
use super::{Client, Multipart, Service, no_bucket, retry, told};
use crate::clock;
use crate::config::{Addressing, Encryption, Lock, LockMode, S3};
use crate::failure::{Failure, Outcome};
use crate::store::Put;
use crate::store::login::{self, Environment};
use crate::store::wire::{Wire, fault, run};

pub struct Bucket {
    config: S3,
    wire: Wire,
    credentials: AwsCredentialProvider,
    plain: Arc<AmazonS3>,
    reader: Arc<AmazonS3>,
    /// Deletes many with one request.
    bulk: Arc<AmazonS3>,
}

impl Bucket {
    /// No request is made: a daemon has to start while its store is away.
    pub fn new(config: &S3, environment: &Environment) -> Outcome<Bucket> {
        let plain = Wire::new(&config.net)?;
        let source = {
            let (config, environment) = (config.clone(), environment.clone());
            move || login::aws::provider(&config, &environment)
        };
        let logins = Arc::new(Logins::new(source, signed(&config.region))?);
        let wire = match config.login {
            // Two keys that stand in the configuration are all there is.
            Some(_) => plain,
            None => plain.renewing(Arc::<Logins<AwsCredential>>::clone(&logins)),
        };
        let credentials: AwsCredentialProvider = logins;
        let with = |headers| {
            let builder = builder(config, &wire).with_credentials(credentials.clone());
            builder.with_client_options(options(headers))
        };
        // The answer to a GET then has the checksum that came with the object.
        let mut headers = HeaderMap::new();
        let mode = HeaderName::from_static("x-amz-checksum-mode");
        headers.insert(mode, HeaderValue::from_static("ENABLED"));
        Ok(Bucket {
            plain: Arc::new(build(with(HeaderMap::new()))?),
            reader: Arc::new(build(with(headers))?),
            bulk: Arc::new(build(
                with(HeaderMap::new()).with_disable_bulk_delete(false),
            )?),
            config: config.clone(),
            wire,
            credentials,
        })
    }

    /// A client whose requests have these headers besides their own.
    fn with(&self, headers: HeaderMap) -> Outcome<Arc<AmazonS3>> {
        if headers.is_empty() {
            return Ok(Arc::clone(&self.plain));
        }
        let builder = builder(&self.config, &self.wire);
        let builder = builder.with_credentials(Arc::clone(&self.credentials));
        build(builder.with_client_options(options(headers))).map(Arc::new)
    }

    /// Asks the bucket itself. `query` is encoded.
    fn ask(&self, method: Method, query: &str, body: String) -> Outcome<String> {
        let url = match self.config.addressing {
            Addressing::Virtual => endpoint(&self.config),
            Addressing::Path => format!("{}/{}", endpoint(&self.config), self.config.bucket),
        };
        let slash = match self.config.addressing {
            Addressing::Virtual => "/",
            Addressing::Path => "",
        };
        let url = format!("{url}{slash}{query}");
        let mut request = own::request(method, &url, HeaderMap::new(), body.into())?;
        run(async {
            let credential = self.credentials.get_credential().await;
            let credential = credential.map_err(|e| told(&e))?;
            signed(&self.config.region)(&credential, &mut request)?;
            own::send(&self.wire, request).await
        })
    }

    fn abort(&self, key: &str, id: &str) -> Outcome<()> {
        let path = Path::parse(key).map_err(|e| Failure::new(Class::Corrupt, e.to_string()))?;
        let aborted = run(self.plain.abort_multipart(&path, &id.to_owned()));
        match aborted.map_err(|e| told(&e)) {
            // Ended meanwhile.
            Err(failure) if failure.class != Class::NotFound => Err(failure),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Service for Bucket {
    fn place(&self) -> String {
        match &self.config.endpoint {
            Some(url) => format!("S3 {url}/{}", self.config.bucket),
            None => format!("S3 bucket {}", self.config.bucket),
        }
    }

    fn client(&self) -> Arc<dyn Client> {
        Arc::<AmazonS3>::clone(&self.plain)
    }

    fn reader(&self) -> Arc<dyn Client> {
        Arc::<AmazonS3>::clone(&self.reader)
    }

    fn writer(&self) -> Outcome<Arc<dyn Client>> {
        let mut headers = HeaderMap::new();
        if let Some(class) = &self.config.storage_class {
            insert(&mut headers, "x-amz-storage-class", class)?;
        }
        if let Encryption::Aes256 = self.config.encryption {
            insert(&mut headers, "x-amz-server-side-encryption", "AES256")?;
        }
        if let Some(lock) = self.config.lock {
            let mode = match lock.mode {
                LockMode::Governance => "GOVERNANCE",
                LockMode::Compliance => "COMPLIANCE",
            };
            insert(&mut headers, "x-amz-object-lock-mode", mode)?;
            let until = until(lock)?;
            insert(&mut headers, "x-amz-object-lock-retain-until-date", &until)?;
        }
        Ok(self.with(headers)?)
    }

    fn name_out(&self, name: &str) -> String {
        name.to_ascii_lowercase()
    }

    fn name_in(&self, name: &str) -> String {
        name.to_owned()
    }

    /// Since 2024 AWS does. Of all others only some do.
    fn refuses_existing(&self) -> bool {
        self.config.endpoint.is_none()
    }

    fn labels_come_last(&self) -> bool {
        false
    }

    fn complete(&self, upload: &Multipart, parts: Vec<PartId>, mode: Put) -> Outcome<()> {
        let mut headers = HeaderMap::new();
        if mode == Put::Create {
            insert(&mut headers, "if-none-match", "*")?;
        }
        let Multipart { path, id, .. } = upload;
        let conditional = self.with(headers)?;
        match run(conditional.complete_multipart(path, id, parts.clone())).map_err(|e| told(&e)) {
            Ok(_) => Ok(()),
            // Whoever does not know the condition was asked just before what is there.
            Err(failure) if failure.class == Class::Unsupported && mode == Put::Create => {
                let plain = run(self.plain.complete_multipart(path, id, parts));
                plain.map(drop).map_err(|e| told(&e))
            }
            Err(failure) => Err(failure),
        }
    }

    fn delete_all(&self, paths: Vec<Path>) -> Outcome<()> {
        let one_by_one = |paths: Vec<Path>| {
            let all = smol::stream::iter(paths.into_iter().map(Ok)).boxed();
            run(self
                .plain
                .delete_stream(all)
                .try_for_each(|gone| gone.map(drop)))
        };
        let all = smol::stream::iter(paths.clone().into_iter().map(Ok)).boxed();
        let deleted = run(self.bulk.delete_stream(all).try_for_each(|gone| {
            match gone.map_err(|e| refused(&e)) {
                // Some servers say so of what is gone already.
                Err(failure) if failure.class != Class::NotFound => Err(failure),
                Ok(_) | Err(_) => Ok(()),
            }
        }));
        match deleted {
            Err(failure) if failure.class == Class::Unsupported => {
                one_by_one(paths).map_err(|e| told(&e))
            }
            outcome => outcome,
        }
    }

    fn make(&self) -> Outcome<()> {
        let region = &self.config.region;
        // The one region that must not be named to AWS.
        let body = match region.as_str() {
            "us-east-1" if self.config.endpoint.is_none() => String::new(),
            region => format!(
                "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                 <LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
            ),
        };
        match self.ask(Method::PUT, "", body) {
            Err(failure) if failure.message.contains("BucketAlreadyOwnedByYou") => Ok(()),
            made => made
                .map(drop)
                .map_err(|failure| failure.about("making the bucket")),
        }
    }

    fn sweep(&self, folder: &Path, before_ms: i64) -> Outcome<u64> {
        let mut gone = 0;
        let mut marker = String::new();
        loop {
            let prefix = encoded(folder.as_ref(), Slashes::Go);
            let query = format!("?{marker}prefix={prefix}%2F&uploads=");
            let text = match self.ask(Method::GET, &query, String::new()) {
                Ok(text) => text,
                // Not every server can tell, and no bucket has no uploads.
                Err(failure) if failure.class == Class::Unsupported || no_bucket(&failure) => {
                    return Ok(gone);
                }
                Err(failure) => return Err(failure),
            };
            for upload in text.split("<Upload>").skip(1) {
                let part = |name| fault::between(upload, name).unwrap_or_default();
                let (key, id, began) = (part("Key"), part("UploadId"), part("Initiated"));
                let began: Option<jiff::Timestamp> = began.parse().ok();
                let old = began.is_some_and(|time| time.as_millisecond() < before_ms);
                // Without an id it would be the object that goes.
                if old && !id.is_empty() && key.starts_with(&format!("{folder}/")) {
                    self.abort(&key, &id)?;
                    gone += 1;
                }
            }
            let part = |name| fault::between(&text, name).unwrap_or_default();
            let (key, id) = (part("NextKeyMarker"), part("NextUploadIdMarker"));
            if !text.contains("<IsTruncated>true</IsTruncated>") || key.is_empty() {
                return Ok(gone);
            }
            let next = format!(
                "key-marker={}&upload-id-marker={}&",
                encoded(&key, Slashes::Go),
                encoded(&id, Slashes::Go)
            );
            if next == marker {
                let message = "the list of uploads goes on where it began";
                return Err(Failure::new(Class::Corrupt, message));
            }
            marker = next;
        }
    }
}

fn builder(config: &S3, wire: &Wire) -> AmazonS3Builder {
    let builder = AmazonS3Builder::new()
        .with_region(&config.region)
        .with_bucket_name(&config.bucket)
        .with_endpoint(endpoint(config))
        .with_virtual_hosted_style_request(config.addressing == Addressing::Virtual)
        .with_checksum_algorithm(Checksum::SHA256)
        .with_disable_bulk_delete(true)
        .with_client_options(options(HeaderMap::new()))
        .with_retry(retry())
        .with_http_connector(wire.clone());
    match &config.encryption {
        Encryption::Kms(key) => builder.with_sse_kms_encryption(key),
        Encryption::Aes256 | Encryption::Default => builder,
    }
}

/// Signs a request again; what is signed of its body stays.
fn signed(region: &str) -> impl Fn(&AwsCredential, &mut HttpRequest) -> Outcome<()> + use<> {
    let region = region.to_owned();
    move |credential, request| {
        let headers = request.headers_mut();
        headers.remove(AUTHORIZATION);
        headers.remove("x-amz-security-token");
        let digest = headers.get("x-amz-content-sha256");
        let digest = digest.and_then(|digest| hex::decode(digest.as_bytes()).ok());
        let signer = AwsAuthorizer::new(credential, "s3", &region);
        let signed = signer.try_authorize(request, digest.as_deref());
        signed.map_err(|e| told(&e))
    }
}

fn build(builder: AmazonS3Builder) -> Outcome<AmazonS3> {
    let wrong = |e| Failure::new(Class::Config, format!("S3: {}", fault::root(&e)));
    builder.build().map_err(wrong)
}

fn options(headers: HeaderMap) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(true)
        .with_default_headers(headers)
}

/// With the bucket before it, where it is part of the host's name; without a slash at its end.
fn endpoint(config: &S3) -> String {
    let S3 { region, bucket, .. } = config;
    let bucket = match config.addressing {
        Addressing::Virtual => format!("{bucket}."),
        Addressing::Path => String::new(),
    };
    if let Some(url) = &config.endpoint {
        let (scheme, host) = url.split_once("://").unwrap_or(("https", url));
        return format!("{scheme}://{bucket}{host}");
    }
    let end = match region.starts_with("cn-") {
        true => "amazonaws.com.cn",
        false => "amazonaws.com",
    };
    let both = if config.dualstack { ".dualstack" } else { "" };
    format!("https://{bucket}s3{both}.{region}.{end}")
}

/// The end of a lock on what is written now.
fn until(lock: Lock) -> Outcome<String> {
    let days = u64::from(lock.days).saturating_mul(86_400_000);
    let end = clock::now().plus(days).0 / 1_000;
    let end = jiff::Timestamp::from_second(i64::try_from(end).unwrap_or(i64::MAX));
    let wrong = |e| Failure::new(Class::Internal, format!("end of the lock: {e}"));
    end.map(|end| end.to_string()).map_err(wrong)
}

/// What is said of one of many keys is no error of HTTP: the library tells its code.
fn refused(error: &object_store::Error) -> Failure {
    let failure = told(error);
    match fault::class_within(&failure.message) {
        Some(class) => Failure { class, ..failure },
        None => failure,
    }
}
