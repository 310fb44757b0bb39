//! `swift`: OpenStack's object store. Authority: rohmu `object_storage/config.py`, `swift.py`.

use super::net::{self, Net};
use super::{Object, Secret, bytes, prefix, required, secret, text};
use crate::failure::Outcome;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swift {
    pub auth_url: String,
    pub auth_version: AuthVersion,
    pub user: String,
    pub key: Secret,
    pub container: String,
    /// Put before every key, without slashes at its ends.
    pub prefix: String,
    /// Larger objects are stored in segments of this size.
    pub segment_bytes: u64,
    pub tenant_name: Option<String>,
    pub tenant_id: Option<String>,
    pub region_name: Option<String>,
    pub user_id: Option<String>,
    pub user_domain_id: Option<String>,
    pub user_domain_name: Option<String>,
    pub project_id: Option<String>,
    pub project_name: Option<String>,
    pub project_domain_id: Option<String>,
    pub project_domain_name: Option<String>,
    pub service_type: Option<String>,
    pub endpoint_type: Option<String>,
    pub net: Net,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthVersion {
    V1,
    V2,
    V3,
}

impl Swift {
    /// Whose container it is: who is let in may have one of the same name elsewhere.
    pub(super) fn root(&self) -> String {
        let url = self.auth_url.trim_end_matches('/');
        let ids = [&self.project_id, &self.tenant_id];
        let names = [&self.project_name, &self.tenant_name];
        let account = ids.into_iter().chain(names).flatten().next();
        let account = account.unwrap_or(&self.user);
        format!("{url} {account}/{}", self.container)
    }
}

pub(super) fn parse(object: &Object<'_>) -> Outcome<Swift> {
    Ok(Swift {
        auth_url: required(object, "auth_url")?,
        auth_version: object.one_of("auth_version", VERSIONS)?.or(AuthVersion::V2),
        user: required(object, "user")?,
        key: secret(object, "key")?.ok_or_else(|| object.wrong("key", "a text"))?,
        container: required(object, "container_name")?,
        prefix: prefix(object)?,
        segment_bytes: bytes(object, "segment_size")?.unwrap_or(SEGMENT_BYTES),
        tenant_name: text(object, "tenant_name")?,
        tenant_id: text(object, "tenant_id")?,
        region_name: text(object, "region_name")?,
        user_id: text(object, "user_id")?,
        user_domain_id: text(object, "user_domain_id")?,
        user_domain_name: text(object, "user_domain_name")?,
        project_id: text(object, "project_id")?,
        project_name: text(object, "project_name")?,
        project_domain_id: text(object, "project_domain_id")?,
        project_domain_name: text(object, "project_domain_name")?,
        service_type: text(object, "service_type")?,
        endpoint_type: text(object, "endpoint_type")?,
        net: net::net(object, net::authority(object, true)?)?,
    })
}

const SEGMENT_BYTES: u64 = 3 << 30;
const VERSIONS: &[(&str, AuthVersion)] = &[
    ("1.0", AuthVersion::V1),
    ("1", AuthVersion::V1),
    ("2.0", AuthVersion::V2),
    ("2", AuthVersion::V2),
    ("3.0", AuthVersion::V3),
    ("3", AuthVersion::V3),
];
