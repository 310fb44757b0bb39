//! The OpenAPI document against the running API: every route answers as it is documented, and no
//! other method does.

use super::*;
use crate::serve::routes::table::ROUTES;

const METHODS: [&str; 4] = ["GET", "HEAD", "PUT", "DELETE"];

fn document(api: &Api) -> Value {
    let (status, head, body) = api.ask("GET", "/openapi.json", "");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/json"), "{head}");
    serde_json::from_str(&body).unwrap()
}

fn concrete(path: &str) -> String {
    path.replace("{site}", "main")
        .replace("{name}", "latest")
        .replace("{file}", NAME)
}

/// The answer's status is documented for the route, with its content type.
fn check(api: &Api, route: &Value, request: (&str, &str, &str), version: &str) -> u16 {
    let (method, path, headers) = request;
    let (status, head, _) = api.speak(method, path, headers, version);
    let documented = &route["responses"][status.to_string()];
    assert!(
        !documented.is_null(),
        "{method} {path}: {status} is not documented"
    );
    let kinds = documented["content"].as_object().unwrap();
    let kind = head.lines().find_map(|l| l.strip_prefix("content-type: "));
    let kind = kind.unwrap();
    assert!(
        kinds.keys().any(|known| known == kind),
        "{method} {path}: {status} as {kind}"
    );
    status
}

#[test]
fn every_route_answers_as_documented() {
    let api = Api::new(json!({ "webserver_username": "u", "webserver_password": "p" }));
    let open = Api::new(json!({}));
    open.put(
        "main/basebackup/b.00000000.pghoard",
        b"x",
        &[("format", "future")],
    );
    let document = document(&open);
    assert_eq!(document["openapi"], "3.0.3");
    let paths = document["paths"].as_object().unwrap();
    for route in ROUTES {
        let operation = &paths[route.path][route.method.to_lowercase()];
        let path = concrete(route.path);
        let ask = |headers: &str| {
            check(&open, operation, (route.method, &path, headers), "1.1");
        };
        ask("");
        ask("x-pghoard-body: 1\r\n");
        ask("x-pghoard-target-path: /none/x\r\n");
        ask("content-length: 2\r\n\r\n{}");
        let huge = format!("content-length: {}\r\nexpect: 100-continue\r\n", 2u64 << 30);
        assert_eq!(
            check(&open, operation, (route.method, &path, &huge), "1.1"),
            413
        );
        check(&open, operation, (route.method, &path, ""), "1.0");
        let stranger = path.replace("main", "who");
        if stranger != path {
            let status = check(&open, operation, (route.method, &stranger, ""), "1.1");
            assert_eq!(status, 404);
        }
        let login = (route.method, path.as_str(), "authorization: Basic eDp5\r\n");
        assert_eq!(check(&api, operation, login, "1.1"), 401);
        // Room for what was asked for.
        let _report = open.reports.try_recv();
    }
}

#[test]
fn nothing_is_served_that_is_not_documented() {
    let api = Api::new(json!({}));
    let document = document(&api);
    let paths = document["paths"].as_object().unwrap();
    let rows: usize = paths
        .values()
        .map(|path| path.as_object().unwrap().len())
        .sum();
    assert_eq!(rows, ROUTES.len(), "two rows of one path and method");
    for (path, operations) in paths {
        let known = |method: &&str| !operations[method.to_lowercase()].is_null();
        let allowed: Vec<&str> = METHODS.into_iter().filter(known).collect();
        for method in METHODS.into_iter().filter(|method| !known(method)) {
            let (status, head, _) = api.ask(method, &concrete(path), "");
            assert_eq!(status, 405, "{method} {path}");
            let told = head
                .lines()
                .find_map(|l| l.strip_prefix("allow: "))
                .unwrap();
            let mut told: Vec<String> = told.split(", ").map(str::to_uppercase).collect();
            let mut allowed = allowed.clone();
            told.sort();
            allowed.sort_unstable();
            assert_eq!(told, allowed, "{path}");
        }
        for method in ["POST", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            assert_eq!(
                api.ask(method, &concrete(path), "").0,
                501,
                "{method} {path}"
            );
        }
    }
    assert_eq!(document["security"], json!([]));
}
