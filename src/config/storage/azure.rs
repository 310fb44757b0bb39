//! `azure`: Azure's block blobs. Authority: rohmu `object_storage/config.py`, `azure.py`.

use super::net::{self, Net};
use super::{Object, Secret, prefix, required, secret};
use crate::failure::Outcome;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Azure {
    pub account: String,
    pub container: String,
    /// Put before every key, without slashes at its ends.
    pub prefix: String,
    /// Of the account, without a slash at its end.
    pub endpoint: String,
    pub login: AzureLogin,
    pub net: Net,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AzureLogin {
    Key(Secret),
    /// A shared access signature, as a query.
    Sas(Secret),
    /// Of the machine or the workload we are.
    Identity,
}

impl Azure {
    pub(super) fn root(&self) -> String {
        let url = &self.endpoint;
        let place = url
            .split_once("://")
            .map_or(url.as_str(), |(_, place)| place);
        format!("{place}/{}", self.container)
    }
}

pub(super) fn parse(object: &Object<'_>) -> Outcome<Azure> {
    let account = required(object, "account_name")?;
    let cloud = object.one_of("azure_cloud", CLOUDS)?.or(PUBLIC);
    let secure = object.flag("is_secure")?.or(true);
    let scheme = if secure { "https" } else { "http" };
    let endpoint = match net::server(object)? {
        // A server of one's own has the account in the path.
        Some(server) => format!("{}/{account}", net::url(&server, secure)),
        None => format!("{scheme}://{account}.blob.{cloud}"),
    };
    let login = match (secret(object, "account_key")?, secret(object, "sas_token")?) {
        (Some(key), _) => AzureLogin::Key(key),
        (None, Some(sas)) => AzureLogin::Sas(sas),
        (None, None) => AzureLogin::Identity,
    };
    Ok(Azure {
        account,
        container: required(object, "bucket_name")?,
        prefix: prefix(object)?,
        endpoint,
        login,
        net: net::net(object, net::authority(object, true)?)?,
    })
}

const PUBLIC: &str = "core.windows.net";
const CLOUDS: &[(&str, &str)] = &[
    ("public", PUBLIC),
    ("germany", "core.cloudapi.de"),
    ("china", "core.chinacloudapi.cn"),
];
