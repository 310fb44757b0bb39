//! AWS's ways: what each of them gives reaches every request, in their order.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use machine::Class;
use pghoard::store::{Body, Metadata, Put, Store};
use serde_json::{Value, json};

use super::{Pairs, file, open_in, stranger, time};
use crate::s3::with;
use crate::support::stores::lender::{Asked, Lender};
use crate::support::stores::strict::{Login, Strict};
use crate::support::{PATIENCE, wait_until};
use crate::{list_all, read};

const SECRET: &str = "secret/of+a/session";
const TOKEN: &str = "a//token+of==a session";

fn login(access: &str) -> Login {
    Login {
        access: access.to_owned(),
        secret: SECRET.to_owned(),
        token: Some(TOKEN.to_owned()),
    }
}

/// As agents and machines write them.
fn document(access: &str, until: &str) -> String {
    let document = json!({ "Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": access,
        "SecretAccessKey": SECRET, "Token": TOKEN, "Expiration": until });
    document.to_string()
}

/// A server that lets one session in, and its bucket without any keys.
fn server(access: &str) -> (Strict, Value) {
    let strict = Strict::start();
    strict.admit(login(access));
    let storage = strict.bucket().object_storage();
    let _of_the_bucket = strict.seen();
    (strict, without_keys(storage))
}

fn without_keys(storage: Value) -> Value {
    stranger(storage, &["aws_access_key_id", "aws_secret_access_key"])
}

/// Every kind of request there is.
fn everything(store: &dyn Store) {
    let body = vec![7; 9 << 20];
    for (key, body) in [("p/small", &body[..9]), ("p/large", &body)] {
        store
            .put(key, Body::Bytes(body), &Metadata::new(), Put::Create)
            .unwrap();
        assert!(read(store, key) == body);
        assert!(store.look(key).unwrap().is_some());
    }
    assert_eq!(list_all(store, "p"), ["p/large", "p/small"]);
    assert_eq!(store.sweep("p", i64::MAX).unwrap(), 0);
    store.delete("p/small").unwrap();
    store.delete_all(&["p/large".into()]).unwrap();
}

fn lets_in(access: &str, pairs: Pairs<'_>) {
    let (strict, storage) = server(access);
    everything(&*open_in(&storage, pairs).unwrap());
    let seen = strict.seen();
    assert!(seen.len() > 12, "{seen:?}");
    for one in seen {
        assert_eq!(one.headers["x-amz-security-token"], TOKEN, "{}", one.line);
        assert!(
            one.headers["authorization"].contains(access),
            "{}",
            one.line
        );
    }
}

#[test]
fn s3_every_request_has_the_session_of_the_configuration_or_the_environment() {
    let (strict, storage) = server("AKIACONFIG");
    let keys = json!({ "aws_access_key_id": "AKIACONFIG", "aws_secret_access_key": SECRET,
        "aws_session_token": TOKEN });
    everything(&*open_in(&with(storage, keys), &[]).unwrap());
    let all = strict.seen();
    assert!(
        all.iter()
            .all(|one| one.headers["x-amz-security-token"] == TOKEN)
    );
    lets_in(
        "AKIAENV",
        &[
            ("AWS_ACCESS_KEY_ID", "AKIAENV"),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_SESSION_TOKEN", TOKEN),
        ],
    );
}

fn profile(head: &str, access: &str) -> String {
    format!(
        "[default]\naws_access_key_id = AKIAOTHER\naws_secret_access_key = x\n\n[{head}]\n\
         aws_access_key_id={access}\naws_secret_access_key = {SECRET}\n\
         aws_session_token = {TOKEN}\nregion = nowhere\n"
    )
}

#[test]
fn s3_a_profile_is_found_in_both_files_and_by_its_name() {
    let (_kept, path) = file("credentials", &profile("backup", "AKIAPROFILE"));
    let path = path.display().to_string();
    let named = ("AWS_PROFILE", "backup");
    lets_in(
        "AKIAPROFILE",
        &[("AWS_SHARED_CREDENTIALS_FILE", &path), named],
    );
    let (_kept, path) = file("config", &profile("profile backup", "AKIACONFIGFILE"));
    let path = path.display().to_string();
    lets_in("AKIACONFIGFILE", &[("AWS_CONFIG_FILE", &path), named]);
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    let text = profile("x", "AKIAX").replace("AKIAOTHER\naws_secret_access_key = x", "");
    let text = text
        .replace("[default]\naws_access_key_id = ", "")
        .replace("[x]", "[default]");
    std::fs::write(home.path().join(".aws/credentials"), text).unwrap();
    lets_in("AKIAX", &[("HOME", &home.path().display().to_string())]);
}

#[test]
fn s3_a_web_identity_becomes_a_role() {
    let (_kept, token) = file("token", "a.b.c\n");
    let token = token.display().to_string();
    let sts = Lender::start(|asked| {
        let role = asked.field("RoleArn") == "arn:aws:iam::1:role/backup";
        if !role || asked.field("WebIdentityToken") != "a.b.c" {
            let error = "<ErrorResponse><Error><Code>InvalidIdentityToken</Code>\
                         <Message>no such token</Message></Error></ErrorResponse>";
            return (400, error.to_owned());
        }
        let until = time(3_600);
        let text = format!(
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
             <AccessKeyId>ASIAWEB</AccessKeyId><SecretAccessKey>{SECRET}</SecretAccessKey>\
             <SessionToken>{TOKEN}</SessionToken><Expiration>{until}</Expiration></Credentials>\
             </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        );
        (200, text)
    });
    let pairs = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.as_str()),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/backup"),
        ("AWS_ROLE_SESSION_NAME", "night"),
        ("AWS_ENDPOINT_URL_STS", &sts.url("")),
    ];
    lets_in("ASIAWEB", &pairs);
    let asked = sts.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].line, "POST /");
    assert_eq!(asked[0].field("Action"), "AssumeRoleWithWebIdentity");
    assert_eq!(asked[0].field("RoleSessionName"), "night");
    // The one in the file counts, whenever it is asked for.
    std::fs::write(&token, "old").unwrap();
    let (_strict, storage) = server("ASIAWEB");
    let failure = open_in(&storage, &pairs).unwrap().look("p/x").unwrap_err();
    assert_eq!(failure.class, Class::Auth, "{failure}");
    assert!(
        failure
            .message
            .contains("InvalidIdentityToken, no such token"),
        "{failure}"
    );
}

#[test]
fn s3_a_container_asks_its_agent_with_its_token() {
    let agent = Lender::start(|asked| match asked.header("authorization") {
        "from a variable" | "from a file" => (200, document("ASIABOX", &time(3_600))),
        _ => (
            401,
            json!({ "code": "NoToken", "message": "who are you" }).to_string(),
        ),
    });
    let full = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent.url("/v1/x?y=z"));
    let full = (full.0, full.1.as_str());
    let variable = ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "from a variable");
    lets_in("ASIABOX", &[full, variable]);
    let (_kept, path) = file("token", "from a file\n");
    let path = path.display().to_string();
    let in_file = ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", path.as_str());
    lets_in(
        "ASIABOX",
        &[
            full,
            in_file,
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "wrong"),
        ],
    );
    let asked = agent.asked();
    assert_eq!(asked.len(), 2);
    assert!(
        asked.iter().all(|one| one.line == "GET /v1/x?y=z"),
        "{asked:?}"
    );
    let (_strict, storage) = server("ASIABOX");
    let failure = open_in(&storage, &[full]).unwrap().look("p/x").unwrap_err();
    assert_eq!(failure.class, Class::Auth, "{failure}");
    assert!(
        failure.message.contains("NoToken, who are you"),
        "{failure}"
    );
}

const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

/// The metadata of a machine; `first` is what the request for a token of the second version gets.
fn machine(first: u16, document: impl Fn() -> String + Send + Sync + 'static) -> Lender {
    let is_second = first == 200;
    Lender::start(move |asked| {
        let token = asked.header("x-aws-ec2-metadata-token");
        match asked.line.as_str() {
            "PUT /latest/api/token" if is_second => (200, "v2".to_owned()),
            "PUT /latest/api/token" => (first, String::new()),
            _ if is_second != (token == "v2") => (401, String::new()),
            line if line == format!("GET {ROLES}") => (200, "backup\n".to_owned()),
            line if line == format!("GET {ROLES}backup") => (200, document()),
            _ => (404, String::new()),
        }
    })
}

#[test]
fn s3_a_machine_has_a_role_by_either_version() {
    for first in [200, 403, 404, 405] {
        let machine = machine(first, || document("ASIAEC2", &time(3_600)));
        let url = machine.url("");
        lets_in("ASIAEC2", &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url)]);
        let asked = machine.asked();
        let ttl = |one: &Asked| one.header("x-aws-ec2-metadata-token-ttl-seconds") == "21600";
        assert!(asked.len() == 3 && ttl(&asked[0]), "{asked:?}");
        let (_strict, storage) = server("ASIAEC2");
        let second_only = ("AWS_EC2_METADATA_V1_DISABLED", "true");
        let pairs = [
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url.as_str()),
            second_only,
        ];
        let looked = open_in(&storage, &pairs).unwrap().look("p/x");
        assert_eq!(looked.is_ok(), first == 200, "{looked:?}");
    }
    let trouble = machine(200, || {
        json!({ "Code": "AssumeRoleUnauthorizedAccess", "Message": "no trust" }).to_string()
    });
    let (_strict, storage) = server("ASIAEC2");
    let pairs = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", trouble.url(""))];
    let pairs = [(pairs[0].0, pairs[0].1.as_str())];
    let failure = open_in(&storage, &pairs).unwrap().look("p/x").unwrap_err();
    assert_eq!(failure.class, Class::Auth, "{failure}");
    assert!(
        failure
            .message
            .contains("AssumeRoleUnauthorizedAccess, no trust"),
        "{failure}"
    );
    let nobody = [("AWS_EC2_METADATA_DISABLED", "true")];
    let failure = open_in(&storage, &nobody).unwrap().look("p/x").unwrap_err();
    assert_eq!(failure.class, Class::Auth, "{failure}");
    assert!(failure.hint.unwrap().contains("aws_access_key_id"));
}

#[test]
fn s3_what_ends_is_renewed() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let machine = machine(200, move || {
        let number = counted.fetch_add(1, Ordering::SeqCst);
        // The first has ended when it comes.
        document(&format!("ASIA{number}"), &time([0, 3_600][number.min(1)]))
    });
    let (strict, storage) = server("ASIA0");
    strict.admit(login("ASIA1"));
    let url = machine.url("");
    let store = open_in(&storage, &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url)]).unwrap();
    for _ in 0..3 {
        store.list("p", &mut |_| Ok(())).unwrap();
    }
    let used = strict
        .seen()
        .into_iter()
        .map(|one| key_id(&one.headers["authorization"]));
    assert_eq!(used.collect::<Vec<_>>(), ["ASIA0", "ASIA1", "ASIA1"]);
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

/// It is renewed five minutes before its end, and is good until then.
#[test]
fn s3_a_renewal_that_fails_does_no_harm_yet() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let agent = Lender::start(move |_| match counted.fetch_add(1, Ordering::SeqCst) {
        0 => (200, document("ASIAOLD", &time(200))),
        _ => (404, String::new()),
    });
    let (_strict, storage) = server("ASIAOLD");
    let url = agent.url("/");
    let store = open_in(&storage, &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url)]).unwrap();
    wait_until("the next try", PATIENCE, || {
        store.list("p", &mut |_| Ok(())).unwrap();
        count.load(Ordering::SeqCst) > 1
    });
    store.list("p", &mut |_| Ok(())).unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

fn key_id(authorization: &str) -> String {
    let (_, rest) = authorization.split_once("Credential=").unwrap();
    rest.split('/').next().unwrap().to_owned()
}

/// The order of botocore, which PGHoard goes by.
#[test]
fn s3_of_several_sources_the_first_counts() {
    let (_kept, credentials) = file("credentials", &profile("default", "AKIAPROFILE"));
    let credentials = std::fs::read_to_string(&credentials).unwrap();
    let credentials = credentials.replace("[default]\naws_access_key_id = AKIAOTHER", "[other]");
    let (_kept, credentials) = file("credentials", &credentials);
    let (_kept2, token) = file("token", "a.b.c");
    let until = time(3_600);
    let web = format!(
        "<X><AccessKeyId>ASIAWEB</AccessKeyId><SecretAccessKey>s</SecretAccessKey>\
         <SessionToken>t</SessionToken><Expiration>{until}</Expiration></X>"
    );
    let sts = Lender::start(move |_| (200, web.clone()));
    let agent = Lender::start(|_| (200, document("ASIABOX", &time(3_600))));
    let machine = machine(200, || document("ASIAEC2", &time(3_600)));
    let (sts, agent, machine) = (sts.url(""), agent.url("/"), machine.url(""));
    let (credentials, token) = (
        credentials.display().to_string(),
        token.display().to_string(),
    );
    let all: [(&str, &[(&str, &str)]); 5] = [
        (
            "AKIAENV",
            &[
                ("AWS_ACCESS_KEY_ID", "AKIAENV"),
                ("AWS_SECRET_ACCESS_KEY", "s"),
            ],
        ),
        (
            "ASIAWEB",
            &[
                ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
                ("AWS_ROLE_ARN", "arn:x"),
                ("AWS_ENDPOINT_URL_STS", &sts),
            ],
        ),
        (
            "AKIAPROFILE",
            &[("AWS_SHARED_CREDENTIALS_FILE", &credentials)],
        ),
        ("ASIABOX", &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent)]),
        (
            "ASIAEC2",
            &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &machine)],
        ),
    ];
    let strict = Strict::start();
    let keys = strict.bucket().object_storage();
    let first = |storage: &Value, pairs: Pairs<'_>| {
        let _before = strict.seen();
        let _refused = open_in(storage, pairs).unwrap().list("p", &mut |_| Ok(()));
        key_id(&strict.seen()[0].headers["authorization"])
    };
    let pairs = |from: usize| -> Vec<(&str, &str)> {
        all[from..]
            .iter()
            .flat_map(|(_, pairs)| pairs.iter().copied())
            .collect()
    };
    assert_eq!(first(&keys, &pairs(0)), "AKIAPGHOARDTEST");
    let storage = without_keys(keys.clone());
    for (number, (expected, _)) in all.iter().enumerate() {
        assert_eq!(first(&storage, &pairs(number)), *expected);
    }
}

/// Nobody becomes somebody else because a word is missing.
#[test]
fn s3_what_is_half_said_is_an_error() {
    let (_strict, storage) = server("X");
    let (_kept, path) = file("config", "[profile far]\nrole_arn = arn:x\nregion = x\n");
    let path = path.display().to_string();
    let config = ("AWS_CONFIG_FILE", path.as_str());
    for (pairs, told) in [
        (&[("AWS_ACCESS_KEY_ID", "x")][..], "AWS_SECRET_ACCESS_KEY"),
        (&[("AWS_WEB_IDENTITY_TOKEN_FILE", "/x")], "AWS_ROLE_ARN"),
        (
            &[("AWS_PROFILE", "absent"), config],
            "there is no profile 'absent'",
        ),
        (
            &[("AWS_PROFILE", "far"), config],
            "profile 'far' has role_arn, which is not known",
        ),
        (
            &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://example.com/x")],
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ),
    ] {
        let failure = open_in(&storage, pairs).err().unwrap();
        assert_eq!(failure.class, Class::Config, "{failure}");
        assert!(failure.message.contains(told), "{failure}");
    }
}
