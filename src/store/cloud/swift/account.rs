//! Who we are to Swift: a token and the address of the account, by v1, v2 or v3.
//!
//! Authority: python-swiftclient `client.py` (`get_auth`), Keystone's API.

use hyper::Method;
use hyper::header::HeaderMap;
use machine::Class;
use object_store::client::{HttpRequest, HttpRequestBody, HttpResponse};
use serde_json::{Value, json};
use smol::lock::Mutex;

use super::super::own::{self, hidden, insert};
use crate::config::{AuthVersion, Swift};
use crate::failure::{Failure, Outcome};
use crate::store::wire::{Wire, Words, fault};

#[derive(Debug)]
pub(super) struct Account {
    pub config: Swift,
    pub wire: Wire,
    login: Mutex<Option<Login>>,
}

#[derive(Clone, Debug)]
pub(super) struct Login {
    token: String,
    /// Of the account, without a slash at its end.
    pub url: String,
}

impl Login {
    /// A request below the account; `path` begins with a slash and is encoded.
    pub fn request(
        &self,
        method: Method,
        path: &str,
        mut headers: HeaderMap,
        body: HttpRequestBody,
    ) -> Outcome<HttpRequest> {
        hidden(&mut headers, TOKEN, &self.token)?;
        // Listings and manifests have a query, objects have none.
        let words = method == Method::GET && path.contains('?');
        let mut request = own::request(method, &format!("{}{path}", self.url), headers, body)?;
        if words {
            request.extensions_mut().insert(Words);
        }
        Ok(request)
    }
}

impl Account {
    pub fn new(config: &Swift) -> Outcome<Account> {
        Ok(Account {
            config: config.clone(),
            wire: Wire::new(&config.net)?,
            login: Mutex::new(None),
        })
    }

    /// The answer to a request; a token that ran out is renewed once.
    pub async fn ask(
        &self,
        request: impl Fn(&Login) -> Outcome<HttpRequest>,
    ) -> Outcome<HttpResponse> {
        let login = self.login(None).await?;
        match self.wire.ask(request(&login)?).await {
            Err(failure) if failure.class == Class::Auth => {
                let login = self.login(Some(&login.token)).await?;
                self.wire.ask(request(&login)?).await
            }
            answer => answer,
        }
    }

    /// Another than the one that was refused.
    async fn login(&self, refused: Option<&str>) -> Outcome<Login> {
        let mut known = self.login.lock().await;
        if let Some(login) = known.as_ref().filter(|l| Some(l.token.as_str()) != refused) {
            return Ok(login.clone());
        }
        *known = None;
        let login = match self.config.auth_version {
            AuthVersion::V1 => self.v1().await,
            AuthVersion::V2 => self.v2().await,
            AuthVersion::V3 => self.v3().await,
        };
        let login = login.map_err(|failure| match failure.class {
            // It is no object that is not there.
            Class::NotFound => Failure {
                class: Class::Config,
                ..failure.about("Swift login").hint("is auth_url right?")
            },
            _ => failure.about("Swift login"),
        })?;
        Ok(known.insert(login).clone())
    }

    async fn v1(&self) -> Outcome<Login> {
        let mut headers = HeaderMap::new();
        insert(&mut headers, "x-auth-user", &self.config.user)?;
        hidden(&mut headers, "x-auth-key", self.config.key.reveal())?;
        let url = &self.config.auth_url;
        let request = own::request(Method::GET, url, headers, String::new().into())?;
        let answer = self.wire.ask(request).await?;
        Ok(Login {
            token: header(&answer, TOKEN)?,
            url: trimmed(&header(&answer, "x-storage-url")?),
        })
    }

    async fn v2(&self) -> Outcome<Login> {
        let config = &self.config;
        let mut user = config.user.as_str();
        let mut tenant = config.tenant_name.as_deref();
        if config.tenant_id.is_none()
            && tenant.is_none()
            && let Some((before, after)) = user.split_once(':')
        {
            (tenant, user) = (Some(before), after);
        }
        let login = json!({ "username": user, "password": config.key.reveal() });
        let mut auth = json!({ "passwordCredentials": login });
        set(&mut auth, "tenantName", tenant);
        set(&mut auth, "tenantId", config.tenant_id.as_deref());
        let url = below(&config.auth_url, "/v2.0", "/tokens");
        let (_, answer) = self.post(&url, &json!({ "auth": auth })).await?;
        let access = answer.get("access").unwrap_or(&Value::Null);
        let token = access.pointer("/token/id").and_then(Value::as_str);
        let token = token.ok_or_else(|| odd("no token"))?.to_owned();
        let endpoints = self.services(access.get("serviceCatalog"));
        let field = format!("{}URL", self.interface());
        let url = endpoints.filter(|one| self.in_region(one)).find_map(|one| {
            let url = one.get(&field)?;
            url.as_str().map(trimmed)
        });
        self.found(token, url)
    }

    async fn v3(&self) -> Outcome<Login> {
        let config = &self.config;
        let home = domain(&config.user_domain_id, &config.user_domain_name);
        let home = home.unwrap_or_else(|| json!({ "id": "default" }));
        let password = config.key.reveal();
        let user = match &config.user_id {
            Some(id) => json!({ "id": id, "password": password }),
            None => json!({ "name": config.user, "domain": home, "password": password }),
        };
        let identity = json!({ "methods": ["password"], "password": { "user": user } });
        let id = config.project_id.as_ref().or(config.tenant_id.as_ref());
        let name = config.project_name.as_ref().or(config.tenant_name.as_ref());
        let scope = match (id, name) {
            (Some(id), _) => Some(json!({ "project": { "id": id } })),
            (None, Some(name)) => {
                let of = domain(&config.project_domain_id, &config.project_domain_name);
                let domain = of.unwrap_or(home);
                Some(json!({ "project": { "name": name, "domain": domain } }))
            }
            (None, None) => None,
        };
        let auth = match scope {
            Some(scope) => json!({ "identity": identity, "scope": scope }),
            None => json!({ "identity": identity }),
        };
        let url = below(&config.auth_url, "/v3", "/auth/tokens");
        let (token, answer) = self.post(&url, &json!({ "auth": auth })).await?;
        let token = token.ok_or_else(|| odd("no token"))?;
        let endpoints = self.services(answer.pointer("/token/catalog"));
        let interface = self.interface();
        let url = endpoints
            .filter(|one| one.get("interface").and_then(Value::as_str) == Some(interface))
            .filter(|one| self.in_region(one))
            .find_map(|one| one.get("url")?.as_str().map(trimmed));
        self.found(token, url)
    }

    /// All endpoints of the object store.
    fn services<'a>(&self, catalog: Option<&'a Value>) -> impl Iterator<Item = &'a Value> {
        let wanted = self.config.service_type.clone();
        let wanted = wanted.unwrap_or_else(|| "object-store".to_owned());
        list(catalog)
            .filter(move |one| one.get("type").and_then(Value::as_str) == Some(wanted.as_str()))
            .flat_map(|one| list(one.get("endpoints")))
    }

    fn in_region(&self, endpoint: &Value) -> bool {
        let Some(wanted) = self.config.region_name.as_deref() else {
            return true;
        };
        let names = ["region", "region_id"];
        names
            .iter()
            .any(|name| endpoint.get(name).and_then(Value::as_str) == Some(wanted))
    }

    /// `publicURL` is v2's word and `public` v3's.
    fn interface(&self) -> &str {
        let wanted = self.config.endpoint_type.as_deref().unwrap_or("public");
        wanted.strip_suffix("URL").unwrap_or(wanted)
    }

    fn found(&self, token: String, url: Option<String>) -> Outcome<Login> {
        let url = url.ok_or_else(|| {
            let region = match &self.config.region_name {
                Some(region) => format!(" in region '{region}'"),
                None => String::new(),
            };
            let message = format!("the catalog has no object store{region}");
            let hint = "see region_name, service_type, endpoint_type and the project";
            Failure::new(Class::Config, message).hint(hint)
        })?;
        Ok(Login { token, url })
    }

    /// The token in the headers, and the body.
    async fn post(&self, url: &str, body: &Value) -> Outcome<(Option<String>, Value)> {
        let mut headers = HeaderMap::new();
        insert(&mut headers, "content-type", "application/json")?;
        insert(&mut headers, "accept", "application/json")?;
        let request = own::request(Method::POST, url, headers, body.to_string().into())?;
        let answer = self.wire.ask(request).await?;
        let token = header(&answer, "x-subject-token").ok();
        let bytes = answer.into_body().bytes().await.map_err(|e| {
            let lost = Failure::new(Class::Network, fault::root(&e));
            fault::failure(&e).unwrap_or(lost)
        })?;
        let body = serde_json::from_slice(&bytes).map_err(|e| odd(&format!("no JSON: {e}")))?;
        Ok((token, body))
    }
}

/// The address below a version of Keystone's API, which the configured one may or may not name.
fn below(auth_url: &str, version: &str, path: &str) -> String {
    let url = auth_url.trim_end_matches('/');
    match url.ends_with(version) {
        true => format!("{url}{path}"),
        false => format!("{url}{version}{path}"),
    }
}

fn domain(id: &Option<String>, name: &Option<String>) -> Option<Value> {
    match (id, name) {
        (Some(id), _) => Some(json!({ "id": id })),
        (None, Some(name)) => Some(json!({ "name": name })),
        (None, None) => None,
    }
}

fn set(object: &mut Value, name: &str, value: Option<&str>) {
    if let (Some(map), Some(value)) = (object.as_object_mut(), value) {
        map.insert(name.to_owned(), json!(value));
    }
}

fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

fn trimmed(url: &str) -> String {
    url.trim_end_matches('/').to_owned()
}

fn header(answer: &HttpResponse, name: &str) -> Outcome<String> {
    let found = answer
        .headers()
        .get(name)
        .and_then(|value| value.to_str().ok());
    found
        .map(str::to_owned)
        .ok_or_else(|| odd(&format!("no {name}")))
}

fn odd(what: &str) -> Failure {
    let message = format!("the answer to the login has {what}");
    Failure::new(Class::Unsupported, message).hint("are auth_url and auth_version right?")
}

const TOKEN: &str = "x-auth-token";
