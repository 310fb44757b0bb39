//! Google's ways. What stands in for its storage looks at tokens; most are handed out here.

use machine::Class;
use serde_json::{Value, json};

use super::{Pairs, file, open_in, stranger};
use crate::s3::with;
use crate::support::stores::google::Google;
use crate::support::stores::lender::Lender;

const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

fn without(google: &Google) -> Value {
    stranger(google.object_storage(), &["credentials"])
}

fn lets_in(storage: &Value, pairs: Pairs<'_>) {
    let store = open_in(storage, pairs).unwrap();
    for _ in 0..2 {
        assert_eq!(store.look("p/absent").unwrap(), None);
    }
}

/// A token that the storage knows, as OAuth's endpoints answer.
fn token(google: &Google) -> String {
    json!({ "access_token": google.token(), "expires_in": 3600, "token_type": "Bearer" })
        .to_string()
}

#[test]
fn google_a_service_account_signs_for_a_token_wherever_its_key_lies() {
    let Some(google) = Google::fake_gcs() else {
        return;
    };
    let inside = google.object_storage();
    lets_in(&inside, &[]);
    let key = inside["credentials"].to_string();
    let (kept, path) = file("application_default_credentials.json", &key);
    let path = path.display().to_string();
    lets_in(
        &with(without(&google), json!({ "credential_file": path })),
        &[],
    );
    lets_in(
        &without(&google),
        &[("GOOGLE_APPLICATION_CREDENTIALS", &path)],
    );
    let folder = kept.path().display().to_string();
    lets_in(&without(&google), &[("CLOUDSDK_CONFIG", &folder)]);

    // One token serves all requests, and the key's mail says whose it is.
    let given = token(&google);
    let endpoint = Lender::start(move |_| (200, given.clone()));
    let mut account = inside["credentials"].clone();
    account["token_uri"] = json!(endpoint.url("/token"));
    lets_in(&with(inside, json!({ "credentials": account })), &[]);
    let asked = endpoint.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].line, "POST /token");
    let grant = "urn:ietf:params:oauth:grant-type:jwt-bearer";
    assert_eq!(asked[0].field("grant_type"), grant);
    let claims = claims(&asked[0].field("assertion"));
    assert_eq!(claims["iss"], "backup@test.iam.gserviceaccount.com");
    assert_eq!(claims["aud"], endpoint.url("/token"));
    assert_eq!(claims["scope"], SCOPE);
    let lasts = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    assert_eq!(lasts, 3_600);
}

fn claims(assertion: &str) -> Value {
    use base64::Engine;
    let claims = assertion.split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims);
    serde_json::from_slice(&claims.unwrap()).unwrap()
}

#[test]
fn google_an_account_that_is_refused_is_told_with_its_name() {
    let Some(google) = Google::fake_gcs() else {
        return;
    };
    let refusal =
        json!({ "error": "invalid_grant", "error_description": "Invalid JWT Signature." });
    let endpoint = Lender::start(move |_| (400, refusal.to_string()));
    let mut storage = google.object_storage();
    storage["credentials"]["token_uri"] = json!(endpoint.url("/token"));
    let failure = open_in(&storage, &[]).unwrap().look("p/x").unwrap_err();
    assert_eq!(failure.class, Class::Auth, "{failure}");
    let told = failure.message;
    assert!(
        told.starts_with("p/x: backup@test.iam.gserviceaccount.com: POST "),
        "{told}"
    );
    assert!(
        told.ends_with("400 invalid_grant, Invalid JWT Signature."),
        "{told}"
    );
    for (credentials, told) in [
        (
            json!({ "type": "executable" }),
            "expected the type service_account",
        ),
        (
            json!({ "type": "service_account", "client_email": "e", "private_key": "x" }),
            "no RSA key",
        ),
        (json!({ "type": "authorized_user" }), "client_id"),
    ] {
        let storage = with(storage.clone(), json!({ "credentials": credentials }));
        let failure = open_in(&storage, &[]).err().unwrap();
        assert_eq!(failure.class, Class::Config, "{failure}");
        assert!(failure.message.contains(told), "{failure}");
    }
}

#[test]
fn google_a_user_and_a_machine_are_let_in() {
    let Some(google) = Google::fake_gcs() else {
        return;
    };
    let given = token(&google);
    let lender = Lender::start(move |asked| {
        let user = asked.field("refresh_token") == "r" && asked.field("client_secret") == "s";
        let path = "/computeMetadata/v1/instance/service-accounts/default/token";
        let machine = asked.line == format!("GET {path}");
        let machine = machine && asked.header("metadata-flavor") == "Google";
        match user || machine {
            true => (200, given.clone()),
            false => (403, String::new()),
        }
    });
    let user = json!({ "type": "authorized_user", "client_id": "c", "client_secret": "s",
        "refresh_token": "r", "token_uri": lender.url("/token") });
    lets_in(&with(without(&google), json!({ "credentials": user })), &[]);
    let url = lender.url("");
    let host = url.strip_prefix("http://").unwrap();
    lets_in(&without(&google), &[("GCE_METADATA_HOST", host)]);
    assert_eq!(lender.asked().len(), 2);
}

/// A token of Kubernetes, say, for one of Google's, for one of a service account.
#[test]
fn google_an_identity_of_elsewhere_is_exchanged() {
    let Some(google) = Google::fake_gcs() else {
        return;
    };
    let given = token(&google);
    let of_account = json!({ "accessToken": google.token(), "expireTime": super::time(3_600) });
    let sts = Lender::start(move |asked| match asked.line.as_str() {
        "POST /sts" if asked.field("subject_token") == "theirs" => (200, given.clone()),
        "POST /account" if asked.header("authorization").starts_with("Bearer ya29.") => {
            (200, of_account.to_string())
        }
        "GET /subject" if asked.header("x-kind") == "test" => {
            (200, json!({ "jwt": "theirs" }).to_string())
        }
        _ => (400, json!({ "error": "invalid_request" }).to_string()),
    });
    let (_kept, path) = file("token", "theirs\n");
    let json_format = json!({ "type": "json", "subject_token_field_name": "jwt" });
    let of_file = json!({ "file": path });
    let of_url = json!({ "url": sts.url("/subject"), "headers": { "x-kind": "test" },
        "format": json_format });
    for (source, more, count) in [
        (of_file.clone(), json!({}), 1),
        (of_url, json!({}), 2),
        (
            of_file,
            json!({ "service_account_impersonation_url": sts.url("/account") }),
            2,
        ),
    ] {
        let account = json!({ "type": "external_account", "audience": "//iam.googleapis.com/x",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": sts.url("/sts"), "credential_source": source });
        let (_kept, path) = file("external.json", &with(account, more).to_string());
        let path = path.display().to_string();
        lets_in(
            &without(&google),
            &[("GOOGLE_APPLICATION_CREDENTIALS", &path)],
        );
        let asked = sts.asked();
        assert_eq!(asked.len(), count, "{asked:?}");
        let exchange = asked.iter().find(|one| one.line == "POST /sts").unwrap();
        assert_eq!(exchange.field("audience"), "//iam.googleapis.com/x");
        assert_eq!(exchange.field("scope"), SCOPE);
    }
}
