//! What the answers of a store come to, by driver: each one's own words for what is wrong.

use machine::Class;
use pghoard::store::choose::Missing;
use pghoard::store::{Body, Metadata, Put};
use serde_json::{Value, json};

use super::s3::{open, with};
use crate::support::stores::lender::Lender;

/// What the server says, and what each call has to come to.
type Row = (u16, String, Class);

fn xml(status: u16, code: &str, class: Class) -> Row {
    let text = format!("<Error><Code>{code}</Code><Message>said\nat once</Message></Error>");
    (status, text, class)
}

fn told(status: u16, reason: &str, class: Class) -> Row {
    let error = json!({ "error": { "code": status, "message": "said",
        "errors": [{ "reason": reason, "message": "said" }] } });
    (status, error.to_string(), class)
}

fn plain(status: u16, class: Class) -> Row {
    (status, String::new(), class)
}

/// Every call of a driver against a server that answers everything but logins with the row.
fn each(storage: impl Fn(&Lender) -> Value, rows: Vec<Row>) {
    for (status, text, class) in rows {
        let body = text.clone();
        let lender = Lender::start(move |asked| match asked.line.contains("/login/") {
            true => (
                200,
                json!({ "access": { "token": { "id": "t" },
                "serviceCatalog": [{ "type": "object-store", "endpoints": [{
                    "publicURL": format!("http://{}/v1/a", asked.header("host")) }] }] } })
                .to_string(),
            ),
            false => (status, body.clone()),
        });
        let store = open(storage(&lender), Missing::Refuse);
        let put = |mode| store.put("p/x", Body::Bytes(b"x"), &Metadata::new(), mode);
        let mut failures = vec![
            ("look", store.look("p/x").unwrap_err()),
            ("get", store.get("p/x").err().unwrap()),
            ("list", store.list("p", &mut |_| Ok(())).unwrap_err()),
            ("put", put(Put::Replace).unwrap_err()),
            ("create", put(Put::Create).unwrap_err()),
            ("delete", store.delete("p/x").unwrap_err()),
        ];
        if let Err(failure) = store.begin("p/x", &Metadata::new()).map(drop) {
            failures.push(("begin", failure));
        }
        for (call, failure) in failures {
            assert_eq!(failure.class, class, "{call} {status} {text}: {failure}");
        }
    }
}

fn here(lender: &Lender) -> Value {
    json!({ "host": "127.0.0.1", "port": lender.port(), "is_secure": false, "bucket_name": "b" })
}

#[test]
fn s3_every_answer_comes_to_its_class() {
    let storage = |lender: &Lender| {
        let more = json!({ "storage_type": "s3", "region": "r", "aws_access_key_id": "x",
            "aws_secret_access_key": "y" });
        with(here(lender), more)
    };
    each(
        storage,
        vec![
            xml(403, "InvalidAccessKeyId", Class::Auth),
            xml(403, "SignatureDoesNotMatch", Class::Auth),
            xml(400, "ExpiredToken", Class::Auth),
            xml(403, "RequestTimeTooSkewed", Class::Auth),
            xml(403, "AccessDenied", Class::Denied),
            xml(404, "NoSuchBucket", Class::Config),
            xml(301, "PermanentRedirect", Class::Config),
            xml(400, "AuthorizationHeaderMalformed", Class::Config),
            xml(400, "KMS.DisabledException", Class::Config),
            xml(403, "QuotaExceeded", Class::Quota),
            xml(501, "NotImplemented", Class::Unsupported),
            plain(401, Class::Auth),
            plain(403, Class::Denied),
            plain(407, Class::Auth),
            plain(451, Class::Denied),
            plain(507, Class::Quota),
        ],
    );
}

#[test]
fn azure_every_answer_comes_to_its_class() {
    let storage = |lender: &Lender| {
        let more = json!({ "storage_type": "azure", "account_name": "a", "account_key": "a2V5" });
        with(here(lender), more)
    };
    each(
        storage,
        vec![
            xml(403, "AuthenticationFailed", Class::Auth),
            xml(401, "NoAuthenticationInformation", Class::Auth),
            xml(401, "InvalidAuthenticationInfo", Class::Auth),
            xml(403, "AuthorizationFailure", Class::Denied),
            xml(403, "AuthorizationPermissionMismatch", Class::Denied),
            xml(403, "InsufficientAccountPermissions", Class::Denied),
            xml(404, "ContainerNotFound", Class::Config),
            xml(403, "AccountBeingCreated", Class::Denied),
            plain(507, Class::Quota),
        ],
    );
}

/// S-66: what is locked is refused with a 409, which is no conflict of two writers.
#[test]
fn s66_azure_what_is_locked_is_denied() {
    for code in ["BlobImmutableDueToPolicy", "BlobImmutableDueToLegalHold"] {
        let text = format!("<Error><Code>{code}</Code><Message>said</Message></Error>");
        let lender = Lender::start(move |_| (409, text.clone()));
        let more = json!({ "storage_type": "azure", "account_name": "a", "account_key": "a2V5" });
        let store = open(with(here(&lender), more), Missing::Refuse);
        let keys = ["p/x".to_owned()];
        let put = store.put("p/x", Body::Bytes(b"x"), &Metadata::new(), Put::Replace);
        let failures = [
            put.unwrap_err(),
            store.delete("p/x").unwrap_err(),
            store.delete_all(&keys).unwrap_err(),
        ];
        for failure in failures {
            assert_eq!(failure.class, Class::Denied, "{failure}");
        }
    }
}

#[test]
fn google_every_answer_comes_to_its_class() {
    let storage = |lender: &Lender| {
        let token = json!({ "type": "access_token", "access_token": "t" });
        with(
            here(lender),
            json!({ "storage_type": "google", "credentials": token }),
        )
    };
    each(
        storage,
        vec![
            told(401, "authError", Class::Auth),
            told(403, "forbidden", Class::Denied),
            told(403, "retentionPolicyNotMet", Class::Denied),
            told(403, "accountDisabled", Class::Denied),
            told(400, "invalid", Class::Config),
            plain(401, Class::Auth),
            plain(403, Class::Denied),
            plain(507, Class::Quota),
        ],
    );
}

#[test]
fn swift_every_answer_comes_to_its_class() {
    let storage = |lender: &Lender| {
        json!({ "storage_type": "swift", "auth_url": lender.url("/login"), "user": "t:u",
            "key": "k", "container_name": "c" })
    };
    each(
        storage,
        vec![
            plain(401, Class::Auth),
            plain(403, Class::Denied),
            plain(413, Class::Quota),
            plain(507, Class::Quota),
            plain(501, Class::Unsupported),
        ],
    );
}

/// Whom a login asks counts as much as the store.
#[test]
fn swift_a_login_that_fails_comes_to_its_class() {
    for (status, class) in [
        (401, Class::Auth),
        (403, Class::Denied),
        (404, Class::Config),
        (400, Class::Config),
    ] {
        let lender = Lender::start(move |_| (status, String::new()));
        let storage = json!({ "storage_type": "swift", "auth_url": lender.url("/login"),
            "user": "t:u", "key": "k", "container_name": "c" });
        let store = open(storage, Missing::Refuse);
        let failures = [
            store.look("p/x").unwrap_err(),
            store.delete("p/x").unwrap_err(),
        ];
        for failure in failures {
            assert_eq!(failure.class, class, "{failure}");
            assert!(failure.message.starts_with("p/x: Swift login"), "{failure}");
        }
    }
}

/// A key that no header can carry is told, but not what it is.
#[test]
fn swift_a_key_that_does_not_fit_is_not_shown() {
    let lender = Lender::start(|_| (401, String::new()));
    let storage = json!({ "storage_type": "swift", "auth_url": lender.url("/login"),
        "auth_version": "1.0", "user": "u", "key": "h\u{1}sh", "container_name": "c" });
    let failure = open(storage, Missing::Refuse).look("p/x").unwrap_err();
    assert_eq!(failure.class, Class::Config);
    let told = failure.to_string();
    assert!(told.contains("x-auth-key"), "{told}");
    assert!(!told.contains("h\u{1}sh"), "{told}");
}
