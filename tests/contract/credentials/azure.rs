//! Azure's ways. Azurite takes tokens by HTTPS alone, so a blob service of one answer looks at
//! them; signatures are Azurite's.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use machine::Class;
use serde_json::{Value, json};
use sha2::Sha256;

use super::{Pairs, file, open_in, stranger, time};
use crate::clouds::rest;
use crate::contract;
use crate::s3::with;
use crate::support::stores::azure::azurite;
use crate::support::stores::lender::Lender;

/// Knows one token and no blob.
fn blobs() -> Lender {
    Lender::start(|asked| {
        let code = match asked.header("authorization") {
            "Bearer eyJ.token" => (404, "BlobNotFound"),
            _ => (401, "InvalidAuthenticationInfo"),
        };
        (code.0, format!("<Error><Code>{}</Code></Error>", code.1))
    })
}

fn storage(blobs: &Lender) -> Value {
    json!({ "storage_type": "azure", "account_name": "account", "bucket_name": "container",
        "host": "127.0.0.1", "port": blobs.port(), "is_secure": false })
}

fn lets_in(pairs: Pairs<'_>) {
    let blobs = blobs();
    let store = open_in(&storage(&blobs), pairs).unwrap();
    for _ in 0..2 {
        assert_eq!(store.look("p/absent").unwrap(), None);
    }
    let asked = blobs.asked();
    let all = asked
        .iter()
        .all(|one| one.header("authorization") == "Bearer eyJ.token");
    assert!(all && asked.len() == 4, "{asked:?}");
}

#[test]
fn azure_a_machine_has_an_identity() {
    let until = (jiff::Timestamp::now().as_second() + 3_600).to_string();
    let given = json!({ "access_token": "eyJ.token", "expires_on": until }).to_string();
    let lender = Lender::start(move |asked| {
        let known = asked.header("metadata") == "true"
            && asked
                .line
                .contains("resource=https%3A%2F%2Fstorage.azure.com");
        match known {
            true => (200, given.clone()),
            false => (400, json!({ "error": "invalid_request" }).to_string()),
        }
    });
    let url = lender.url("");
    lets_in(&[("AZURE_POD_IDENTITY_AUTHORITY_HOST", &url)]);
    let asked = lender.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    let path = "GET /metadata/identity/oauth2/token?api-version=2018-02-01&";
    assert!(asked[0].line.starts_with(path), "{asked:?}");
    lets_in(&[
        ("IDENTITY_ENDPOINT", &lender.url("/msi/token")),
        ("IDENTITY_HEADER", "hush"),
        ("AZURE_CLIENT_ID", "mine"),
    ]);
    let asked = lender.asked();
    assert!(
        asked[0]
            .line
            .starts_with("GET /msi/token?api-version=2019-08-01&"),
        "{asked:?}"
    );
    assert!(asked[0].line.ends_with("&client_id=mine"), "{asked:?}");
    assert_eq!(asked[0].header("x-identity-header"), "hush");
}

#[test]
fn azure_a_workload_and_a_secret_log_in() {
    let lender = Lender::start(|asked| {
        let assertion = asked.field("client_assertion") == "a.b.c"
            && asked.field("client_assertion_type").ends_with("jwt-bearer");
        let secret = asked.field("client_secret") == "hush";
        let scope = asked.field("scope") == "https://storage.azure.com/.default";
        match scope && (assertion || secret) && asked.line == "POST /tenant/oauth2/v2.0/token" {
            true => {
                let token = json!({ "access_token": "eyJ.token", "expires_in": 3_600 });
                (200, token.to_string())
            }
            false => {
                let error = json!({ "error": "invalid_client", "error_description": "AADSTS1" });
                (401, error.to_string())
            }
        }
    });
    let (_kept, path) = file("token", "a.b.c\n");
    let path = path.display().to_string();
    let url = lender.url("/");
    let us = [
        ("AZURE_AUTHORITY_HOST", url.as_str()),
        ("AZURE_TENANT_ID", "tenant"),
        ("AZURE_CLIENT_ID", "us"),
    ];
    let and = |name, value| [&us[..], &[(name, value)]].concat();
    lets_in(&and("AZURE_FEDERATED_TOKEN_FILE", &path));
    lets_in(&and("AZURE_CLIENT_SECRET", "hush"));
    assert_eq!(lender.asked().len(), 2);
    let blobs = blobs();
    let wrong = and("AZURE_CLIENT_SECRET", "wrong");
    let failure = open_in(&storage(&blobs), &wrong)
        .unwrap()
        .look("p/x")
        .unwrap_err();
    assert_eq!(failure.class, Class::Auth, "{failure}");
    assert!(failure.message.contains("us: POST "), "{failure}");
    assert!(
        failure.message.ends_with("401 invalid_client, AADSTS1"),
        "{failure}"
    );
}

/// Signed as Azure documents it ("Create a service SAS"), version 2020-12-06.
fn sas(account: &str, container: &str, key: &str, permissions: &str) -> String {
    const VERSION: &str = "2020-12-06";
    let until = time(3_600);
    let signed = format!(
        "{permissions}\n\n{until}\n/blob/{account}/{container}\n\n\n\n{VERSION}\nc\n\n\n\n\n\n\n"
    );
    let key = STANDARD.decode(key).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    mac.update(signed.as_bytes());
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    let signature = signature
        .replace('+', "%2B")
        .replace('/', "%2F")
        .replace('=', "%3D");
    let until = until.replace(':', "%3A");
    format!("?sv={VERSION}&sr=c&sp={permissions}&se={until}&sig={signature}")
}

#[test]
fn azure_a_shared_access_signature_is_all_that_is_needed() {
    let Some(azurite) = azurite() else { return };
    let container = azurite.container();
    let keyed = container.object_storage();
    let word = |name: &str| keyed[name].as_str().unwrap().to_owned();
    let signed = |permissions: &str| {
        let sas = sas(
            &word("account_name"),
            &container.name,
            &word("account_key"),
            permissions,
        );
        with(
            stranger(keyed.clone(), &["account_key"]),
            json!({ "sas_token": sas }),
        )
    };
    let all = signed("racwdl");
    contract(&*open_in(&all, &[]).unwrap());
    rest(all);
    let reader = open_in(&signed("rl"), &[]).unwrap();
    assert_eq!(reader.look("p/x").unwrap(), None);
    let body = pghoard::store::Body::Bytes(b"x");
    let put = reader.put(
        "p/x",
        body,
        &Default::default(),
        pghoard::store::Put::Create,
    );
    let failure = put.unwrap_err();
    assert!(
        matches!(failure.class, Class::Denied | Class::Auth),
        "{failure}"
    );
    assert!(!failure.to_string().contains("sig="), "{failure}");
}
