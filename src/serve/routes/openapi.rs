//! The table of routes as an OpenAPI 3 document.
//!
//! Authority: the OpenAPI Specification 3.0.3.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::table::{ALWAYS, Kind, Place, ROUTES, Reply, Route, Takes};
use crate::config::Config;

pub fn document(config: &Config) -> Value {
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_default();
        path.insert(route.method.to_lowercase(), operation(route));
    }
    let login = config.webserver.is_some();
    let schemes = json!({ "login": { "type": "http", "scheme": "basic" } });
    let security: Vec<Value> = login.then(|| json!({ "login": [] })).into_iter().collect();
    json!({
        "openapi": "3.0.3",
        "info": {
            "title": "PGHoard",
            "description": "Backups of PostgreSQL: archive, fetch and restore.",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "paths": paths,
        "components": { "securitySchemes": schemes },
        "security": security,
    })
}

fn operation(route: &Route) -> Value {
    let mut parameters: Vec<Value> = names(route.path)
        .map(|name| parameter(name, "path", ""))
        .collect();
    parameters.extend(route.parameters.iter().map(|p| {
        let place = match p.place {
            Place::Query => "query",
            Place::Header => "header",
        };
        parameter(p.name, place, p.about)
    }));
    let mut answers = Map::new();
    let common = ALWAYS.iter().filter(|common| {
        let mut own = route.answers.iter();
        own.all(|reply| reply.status != common.status)
    });
    for reply in route.answers.iter().chain(common) {
        answers.insert(reply.status.to_string(), answer(reply));
    }
    let mut operation = Map::new();
    let mut set = |name: &str, value: Value| operation.insert(name.to_owned(), value);
    set(
        "operationId",
        json!(format!("{:?}{}", route.act, title(route.method))),
    );
    set("summary", json!(route.about));
    set("parameters", json!(parameters));
    set("responses", json!(answers));
    if let Some(body) = body(route.takes) {
        set("requestBody", body);
    }
    Value::Object(operation)
}

/// What stands in braces in a path.
fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

fn parameter(name: &str, place: &str, about: &str) -> Value {
    json!({
        "name": name,
        "in": place,
        "description": about,
        "required": place == "path",
        "schema": { "type": "string" },
    })
}

fn answer(reply: &Reply) -> Value {
    let schema = match reply.kind {
        Kind::Json => json!({ "type": "object" }),
        Kind::Bytes | Kind::Tar => json!({ "type": "string", "format": "binary" }),
        Kind::Text | Kind::Html | Kind::Metrics | Kind::Script => json!({ "type": "string" }),
    };
    json!({
        "description": reply.about,
        "content": { reply.kind.content_type(): { "schema": schema } },
    })
}

fn body(takes: Takes) -> Option<Value> {
    match takes {
        Takes::Nothing => None,
        Takes::Json(fields) => {
            let bare = |field: &'static str| field.trim_end_matches('?');
            let required = fields.iter().filter(|field| !field.ends_with('?'));
            let properties = fields.iter().map(|field| {
                let kind = match bare(field) {
                    "all" | "immediate" => "boolean",
                    "minutes" => "integer",
                    "tablespaces" => "object",
                    _ => "string",
                };
                (bare(field).to_owned(), json!({ "type": kind }))
            });
            let schema = json!({
                "type": "object",
                "required": required.collect::<Vec<_>>(),
                "properties": properties.collect::<Map<_, _>>(),
            });
            Some(json!({
                "required": true,
                "content": { "application/json": { "schema": schema } },
            }))
        }
        Takes::File | Takes::Bundle => Some(json!({
            "content": {
                "application/octet-stream": { "schema": { "type": "string", "format": "binary" } }
            },
        })),
    }
}

/// `PUT` as `Put`.
fn title(method: &str) -> String {
    let (first, rest) = method.split_at(1);
    format!("{first}{}", rest.to_lowercase())
}
