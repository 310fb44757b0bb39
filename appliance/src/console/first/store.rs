//! Which store, and the keys it cannot do without. What is rarer is set by `config set`.

use pghoard::Outcome;
use serde_json::{Map, Value, json};

use super::{Answers, one_of, port, secret, words};
use crate::console::Session;

struct Store {
    kind: &'static str,
    questions: &'static [Question],
}

struct Question {
    /// Of `object_storage`.
    key: &'static str,
    text: &'static str,
    default: &'static str,
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Needed,
    /// Empty leaves the key out.
    Optional,
    Secret,
    /// Empty leaves the key out.
    Port,
    /// `yes` or `no`, where a host was named.
    OfHost,
}

const fn ask(key: &'static str, text: &'static str, default: &'static str, form: Form) -> Question {
    Question {
        key,
        text,
        default,
        form,
    }
}

const PREFIX: Question = ask(
    "prefix",
    "Prefix of every object, or empty",
    "",
    Form::Optional,
);

const STORES: &[Store] = &[
    Store {
        kind: "local",
        questions: &[ask(
            "directory",
            "Directory of the backups, on the data partition",
            "/data/store",
            Form::Needed,
        )],
    },
    Store {
        kind: "s3",
        questions: &[
            ask("bucket_name", "Bucket", "", Form::Needed),
            ask("region", "Region", "us-east-1", Form::Needed),
            ask(
                "host",
                "Host of the service, or empty for AWS",
                "",
                Form::Optional,
            ),
            ask("port", "Its port", "", Form::Port),
            ask(
                "is_secure",
                "Does it speak TLS, yes or no",
                "yes",
                Form::OfHost,
            ),
            ask(
                "is_verify_tls",
                "Is its certificate checked, yes or no",
                "yes",
                Form::OfHost,
            ),
            ask("aws_access_key_id", "Access key", "", Form::Needed),
            ask("aws_secret_access_key", "Secret key", "", Form::Secret),
            PREFIX,
        ],
    },
    Store {
        kind: "azure",
        questions: &[
            ask("account_name", "Storage account", "", Form::Needed),
            ask("account_key", "Its key", "", Form::Secret),
            ask("bucket_name", "Container", "", Form::Needed),
            PREFIX,
        ],
    },
    Store {
        kind: "google",
        questions: &[
            ask("bucket_name", "Bucket", "", Form::Needed),
            ask(
                "credentials",
                "Credentials, the JSON in one line",
                "",
                Form::Secret,
            ),
            PREFIX,
        ],
    },
    Store {
        kind: "swift",
        questions: &[
            ask("auth_url", "URL to log in at", "", Form::Needed),
            ask(
                "auth_version",
                "Version of it: 1.0, 2.0 or 3.0",
                "3.0",
                Form::Needed,
            ),
            ask("user", "User", "", Form::Needed),
            ask("key", "Password of the user", "", Form::Secret),
            ask(
                "tenant_name",
                "Tenant or project, or empty",
                "",
                Form::Optional,
            ),
            ask("container_name", "Container", "", Form::Needed),
            PREFIX,
        ],
    },
];

pub fn ask_for(session: &mut Session, answers: &mut Answers) -> Outcome<Value> {
    let kinds: Vec<&str> = STORES.iter().map(|store| store.kind).collect();
    let question = format!("Where to keep backups: {}", kinds.join(", "));
    let question = ("storage_type", question.as_str(), "local");
    let kind = answers.text(session, question, &|text| one_of(text, &kinds))?;
    let questions = STORES.iter().filter(|store| store.kind == kind);
    let mut given = Map::new();
    for question in questions.flat_map(|store| store.questions) {
        if !applies(question, &given) {
            continue;
        }
        let text = match question.form {
            Form::Secret => secret(session, question.text)?.to_string(),
            form => {
                // The server has a host and a port as well.
                let name = format!("{kind} {}", question.key);
                let asked = (name.as_str(), question.text, question.default);
                answers.text(session, asked, &|text| judge(form, text))?
            }
        };
        if let Some(value) = value(question.form, question.key, &text) {
            given.insert(question.key.to_owned(), value);
        }
    }
    given.insert("storage_type".to_owned(), json!(kind));
    Ok(Value::Object(given))
}

fn applies(question: &Question, given: &Map<String, Value>) -> bool {
    match question.form {
        Form::OfHost | Form::Port => given.contains_key("host"),
        Form::Needed | Form::Optional | Form::Secret => true,
    }
}

fn judge(form: Form, text: &str) -> Result<(), String> {
    match form {
        Form::Needed => words(text, 1),
        Form::Optional | Form::Secret => words(text, 0),
        Form::Port if text.is_empty() => Ok(()),
        Form::Port => port(text),
        Form::OfHost => one_of(text, &["yes", "no"]),
    }
}

fn value(form: Form, key: &str, text: &str) -> Option<Value> {
    match form {
        _ if text.is_empty() => None,
        Form::Port => text.parse::<u16>().ok().map(Value::from),
        Form::OfHost => Some(json!(text == "yes")),
        // An object, in the one key that is one.
        Form::Secret if key == "credentials" => {
            Some(serde_json::from_str(text).unwrap_or_else(|_| json!(text)))
        }
        Form::Needed | Form::Optional | Form::Secret => Some(json!(text)),
    }
}

#[cfg(test)]
mod tests {
    use pghoard::config;

    use super::*;

    /// Every store that is asked for is one the configuration takes, by keys it knows.
    #[test]
    fn what_is_asked_for_is_a_store() {
        for store in STORES {
            let mut given = Map::new();
            for question in store.questions {
                assert!(question.text.len() < 60, "{}", question.text);
                let text = match (question.key, question.default, question.form) {
                    ("credentials", ..) => r#"{"type": "service_account"}"#,
                    ("auth_url", ..) => "http://127.0.0.1/v3",
                    (_, "", Form::Port) => "9000",
                    ("account_key", ..) => "c2VjcmV0",
                    (_, "", _) => "x",
                    (_, default, _) => default,
                };
                if question.form != Form::Secret {
                    assert_eq!(judge(question.form, text), Ok(()), "{}", question.key);
                }
                let value = value(question.form, question.key, text).unwrap();
                given.insert(question.key.to_owned(), value);
            }
            given.insert("storage_type".to_owned(), json!(store.kind));
            let settings = json!({ "backup_sites": { "a": { "object_storage": given } } });
            let (config, warnings) = config::parse(&settings).unwrap();
            let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
            assert!(warnings.is_empty(), "{}: {warnings:?}", store.kind);
            assert!(config.sites["a"].object_storage.is_some(), "{}", store.kind);
        }
    }

    #[test]
    fn what_is_left_empty_is_left_out() {
        for (form, text, expect) in [
            (Form::Optional, "", None),
            (Form::Port, "", None),
            (Form::Port, "9000", Some(json!(9_000))),
            (Form::OfHost, "no", Some(json!(false))),
            (Form::Needed, "x", Some(json!("x"))),
        ] {
            assert_eq!(value(form, "k", text), expect, "{text}");
        }
    }
}
