//! `google`: Google Cloud Storage. Authority: rohmu `object_storage/config.py`, `google.py`.

use std::path::PathBuf;

use serde_json::Value;

use super::net::{self, Net};
use super::{Object, Secret, file, required, rooted, text};
use crate::failure::Outcome;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Google {
    /// Needed to make a bucket.
    pub project_id: Option<String>,
    pub bucket: String,
    /// Put before every key, without slashes at its ends.
    pub prefix: String,
    /// None is Google.
    pub endpoint: Option<String>,
    pub login: GoogleLogin,
    pub net: Net,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GoogleLogin {
    /// Application default credentials: a file named in the environment, the metadata server.
    Default,
    File(PathBuf),
    /// JSON of a service account, an authorized user or an access token.
    Json(Secret),
}

impl Google {
    pub(super) fn root(&self) -> String {
        match &self.endpoint {
            None => self.bucket.clone(),
            Some(url) => format!("{url}/{}", self.bucket),
        }
    }
}

pub(super) fn parse(object: &Object<'_>) -> Outcome<Google> {
    let server = net::server(object)?;
    let secure = object.flag("is_secure")?.or(true);
    let credentials = object.map("credentials")?.filter(|map| !map.is_empty());
    let login = match (credentials, file(object, "credential_file")?) {
        (Some(map), _) => GoogleLogin::Json(Secret::new(Value::Object(map.clone()).to_string())),
        (None, Some(path)) => GoogleLogin::File(path),
        (None, None) => GoogleLogin::Default,
    };
    Ok(Google {
        project_id: text(object, "project_id")?,
        bucket: required(object, "bucket_name")?,
        prefix: match rooted(object)? {
            slash if slash == "/" => String::new(),
            // rohmu, too, makes the slash a part of every name, here alone.
            prefix => prefix,
        },
        endpoint: server.map(|server| net::url(&server, secure)),
        login,
        net: net::net(object, net::authority(object, true)?)?,
    })
}
