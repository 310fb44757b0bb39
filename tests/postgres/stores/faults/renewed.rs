//! Credentials that end before their time while the daemon runs: replaced where they come from, it
//! goes on with the new ones.

use std::sync::Arc;
use std::sync::Mutex;

use super::super::install;
use super::*;
use crate::support::http::{Endpoint, respond};
use crate::support::process::{Scratch, hand_over};
use crate::support::stores::s3::ADMIN;
use crate::support::stores::strict::Strict;

/// Without keys of its own.
fn keyless(bucket: &Bucket, proxy: &Proxy) -> Value {
    let mut storage = through(bucket, proxy);
    let keys = storage.as_object_mut().unwrap();
    keys.remove("aws_access_key_id");
    keys.remove("aws_secret_access_key");
    storage
}

fn goes_on(mut world: World, strict: &Strict, hand_out: impl Fn(&str)) {
    for token in ["second", "third"] {
        hand_out(token);
        strict.session(token);
        let name = world.segment();
        world.wait_archived(&name, token);
    }
    // Withdrawn, and nothing new to be had: told, and tried again.
    strict.session("fourth");
    let name = world.segment();
    world.daemon.wait_alert("upload_retries_warning");
    assert!(!world.says_archived(&name));
    assert!(
        world.classes().iter().all(|class| class == "auth"),
        "{:?}",
        world.classes()
    );
    hand_out("fourth");
    world.wait_archived(&name, "fourth");
}

fn bucket(strict: &Strict) -> Bucket {
    let bucket = strict.bucket();
    strict.session("first");
    bucket
}

#[test]
fn a_session_token_that_ended_is_read_again_from_the_credentials_file() {
    let Some(install) = install(15) else { return };
    let strict = Strict::start();
    let bucket = bucket(&strict);
    let scratch = Scratch::new();
    let path = scratch.join("credentials");
    let hand_out = |token: &str| {
        let (key, secret) = (ADMIN.access, ADMIN.secret);
        let text = format!(
            "[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n\
             aws_session_token = {token}\n"
        );
        let fresh = scratch.file("fresh", &text);
        fs::rename(fresh, &path).unwrap();
        hand_over(&path);
    };
    hand_out("first");
    let proxy = Proxy::to(bucket.port);
    let storage = keyless(&bucket, &proxy);
    let file = path.display().to_string();
    let environment = vec![("AWS_SHARED_CREDENTIALS_FILE", file)];
    let world = World::over(install, &bucket, proxy, storage, environment);
    goes_on(world, &strict, hand_out);
}

/// The container's endpoint says that its credentials are good for hours; they are not.
#[test]
fn a_session_token_that_ended_is_asked_for_again_at_the_endpoint() {
    let Some(install) = install(15) else { return };
    let strict = Strict::start();
    let bucket = bucket(&strict);
    let token = Arc::new(Mutex::new("first".to_owned()));
    let own = Arc::clone(&token);
    let endpoint = Endpoint::start(move |_| {
        let said = json!({
            "AccessKeyId": ADMIN.access,
            "SecretAccessKey": ADMIN.secret,
            "Token": *own.lock().unwrap(),
            "Expiration": "2099-01-01T00:00:00Z",
        });
        respond(
            200,
            &[("Content-Type", "application/json")],
            said.to_string(),
        )
    });
    let proxy = Proxy::to(bucket.port);
    let storage = keyless(&bucket, &proxy);
    let url = format!("http://127.0.0.1:{}/credentials", endpoint.port);
    let scratch = Scratch::new();
    let pod = scratch.file("pod", "who we are").display().to_string();
    let environment = vec![
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", pod),
    ];
    let world = World::over(install, &bucket, proxy, storage, environment);
    goes_on(world, &strict, |new| {
        new.clone_into(&mut token.lock().unwrap())
    });
}
