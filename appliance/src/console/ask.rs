//! Asking PID 1 over its control socket: one line of JSON there, one back.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use machine::Class;
use pghoard::{Failure, Outcome};
use serde_json::{Value, json};

/// An `apply` may stop the daemon first, which finishes its uploads.
const PATIENCE: Duration = Duration::from_secs(600);
/// Of settings and a status; both are far smaller.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

pub struct Control(PathBuf);

impl Control {
    pub fn new(path: &Path) -> Control {
        Control(path.to_owned())
    }

    /// What is inside `{"ok": ...}`; `{"error": ...}` is a failure with those words.
    pub fn ask(&self, request: &Value) -> Outcome<Value> {
        let told = |e: std::io::Error| {
            Failure::io(&e, self.0.display()).hint("does the appliance's PID 1 run?")
        };
        let mut stream = UnixStream::connect(&self.0).map_err(told)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(told)?;
        stream
            .write_all(format!("{request}\n").as_bytes())
            .map_err(told)?;
        let mut line = String::new();
        let mut answer = BufReader::new(stream.take(ANSWER_BYTES_MAX));
        answer.read_line(&mut line).map_err(told)?;
        understood(&line)
    }

    pub fn status(&self) -> Outcome<Value> {
        self.ask(&json!({ "do": "status" }))
    }
}

fn understood(line: &str) -> Outcome<Value> {
    let answer: Value = serde_json::from_str(line).unwrap_or_default();
    if let Some(error) = answer.get("error").and_then(Value::as_str) {
        return Err(Failure::new(Class::Config, error));
    }
    let ok = answer.get("ok").cloned();
    ok.ok_or_else(|| {
        let message = "PID 1 answered without 'ok' or 'error'";
        Failure::new(Class::Internal, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_value_or_a_sentence() {
        for (line, expect) in [
            (r#"{"ok": {"a": 1}}"#, Ok(json!({ "a": 1 }))),
            (r#"{"ok": null}"#, Ok(Value::Null)),
            (r#"{"error": "no such slot"}"#, Err("no such slot")),
            ("{}", Err("PID 1 answered without 'ok' or 'error'")),
            ("", Err("PID 1 answered without 'ok' or 'error'")),
        ] {
            let found = understood(line).map_err(|failure| failure.message);
            assert_eq!(found, expect.map_err(str::to_owned), "{line}");
        }
    }

    #[test]
    fn nobody_there_is_told_with_the_path() {
        let failure = Control::new(Path::new("/nowhere/control")).status();
        let text = failure.unwrap_err().to_string();
        assert!(text.starts_with("/nowhere/control: "), "{text}");
    }
}
