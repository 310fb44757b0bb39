//! The machine itself, where one runs us: `PUT /appliance/power` and `PUT /appliance/update`, asked
//! of process 1 through its control socket.
//!
//! A request there is one line of JSON, and so is its answer: `{"ok": VALUE}` or
//! `{"error": SENTENCE}`. 501 where there is no such socket, 409 what process 1 refuses, 503 where
//! it does not answer.
//!
//! An update arrives as a draft that vanishes unless it is whole and synced; then it has its name,
//! and the next one replaces it.
//!
//! Budget: one update of [`BUNDLE_BYTES_MAX`] on disk and one on its way.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::StatusCode;
use machine::Class;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::Answer;
use super::operator::{client, operated};
use super::routes::{Asked, Routes};
use crate::durable::{self, Draft};
use crate::failure::{Failure, Outcome};
use crate::publish::text::pretty;

pub const BUNDLE_BYTES_MAX: u64 = 256 << 20;
const BUNDLE: &str = "upload.bundle";
const LINE_BYTES_MAX: u64 = 64 << 10;
/// An update is verified and written to the boot partition before the answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(300);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Power {
    how: How,
    #[serde(default = "client")]
    by: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum How {
    Reboot,
    Poweroff,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            How::Reboot => "reboot",
            How::Poweroff => "poweroff",
        }
    }
}

/// An update on its way in; one that is dropped leaves nothing.
pub struct Upload {
    draft: Draft,
    path: PathBuf,
    bytes: u64,
    who: String,
    _turn: Turn,
}

/// One at a time.
struct Turn(Arc<AtomicBool>);

impl Turn {
    fn take(taken: &Arc<AtomicBool>) -> Option<Turn> {
        let free = !taken.swap(true, Ordering::SeqCst);
        free.then(|| Turn(Arc::clone(taken)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Upload {
    pub fn write(&mut self, bytes: &[u8]) -> Outcome<()> {
        let more = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(more);
        if self.bytes > BUNDLE_BYTES_MAX {
            let most = BUNDLE_BYTES_MAX >> 20;
            let message = format!("an update has at most {most} MiB");
            return Err(Failure::new(Class::Quota, message));
        }
        self.draft.fill(bytes)
    }
}

/// Why an update did not arrive.
pub fn refused(failure: &Failure) -> Answer {
    let status = match failure.class {
        Class::Quota => StatusCode::PAYLOAD_TOO_LARGE,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    Answer::text(status, failure.to_string())
}

impl Routes {
    pub fn power(&self, body: &[u8]) -> Outcome<Answer> {
        let Some(socket) = &self.context.around.control else {
            return Ok(no_appliance());
        };
        let bad = |message: String| Ok(Answer::text(StatusCode::BAD_REQUEST, message));
        let Power { how, by } = match serde_json::from_slice(body) {
            Ok(power) => power,
            Err(error) => return bad(format!("no JSON of a power command: {error}")),
        };
        let how = how.name();
        let event = match operated(&by, &format!("power {how}"), "") {
            Ok(event) => event,
            Err(why) => return bad(why.replacen("'who'", "'by'", 1)),
        };
        // A machine whose log cannot be written may need just this.
        if let Err(failure) = self.context.record(vec![(None, event)]) {
            log::warn!("{by} asks for {how}: {failure}");
        }
        let request = json!({ "do": "power", "how": how, "who": format!("http {by}") });
        told(control(socket, &request)?)
    }

    /// An update comes as the body, if it may.
    pub fn begin_update(&self, asked: &Asked) -> Result<Upload, Answer> {
        let around = &self.context.around;
        let (Some(_), Some(folder)) = (&around.control, &around.updates) else {
            return Err(no_appliance());
        };
        let by = asked.by.as_ref().map(|by| by.to_str().unwrap_or_default());
        let by = by.map_or_else(client, str::to_owned);
        if let Err(why) = operated(&by, "update", "") {
            let why = why.replacen("'who'", "x-pghoard-by", 1);
            return Err(Answer::text(StatusCode::BAD_REQUEST, why));
        }
        let Some(turn) = Turn::take(&self.updating) else {
            let message = "another update is on its way, ask again";
            return Err(Answer::text(StatusCode::SERVICE_UNAVAILABLE, message));
        };
        let path = folder.join(BUNDLE);
        let draft = swept(folder).and_then(|()| Draft::at(&path));
        let draft = draft.map_err(|failure| refused(&failure))?;
        Ok(Upload {
            draft,
            path,
            bytes: 0,
            who: by,
            _turn: turn,
        })
    }

    /// The whole of it is here.
    pub fn update(&self, upload: Upload) -> Outcome<Answer> {
        let Some(socket) = &self.context.around.control else {
            return Ok(no_appliance());
        };
        let Upload {
            draft,
            path,
            bytes,
            who,
            _turn,
        } = upload;
        draft.commit()?;
        let said = operated(&who, "update", &format!("{bytes} bytes by HTTP"));
        let said = said.map_err(|why| Failure::new(Class::Config, why));
        let asked = said.and_then(|event| {
            self.context.record(vec![(None, event)])?;
            let request = json!({ "do": "update", "path": path, "who": format!("http {who}") });
            control(socket, &request)
        });
        // It is process 1's from here on, unless that wants none of it.
        if !matches!(asked, Ok(Ok(_))) {
            durable::remove(&path)?;
        }
        told(asked?)
    }
}

/// Without what a crash left of uploads before.
fn swept(folder: &Path) -> Outcome<()> {
    let told = |e: std::io::Error| Failure::io(&e, folder.display());
    for item in fs::read_dir(folder).map_err(told)? {
        durable::sweep(&item.map_err(told)?.path())?;
    }
    Ok(())
}

pub fn no_appliance() -> Answer {
    let message = "this daemon does not run on an appliance";
    Answer::text(StatusCode::NOT_IMPLEMENTED, message)
}

fn told(answer: Result<Value, String>) -> Outcome<Answer> {
    Ok(match answer {
        Ok(value) => Answer::json(StatusCode::OK, &pretty(&value)?),
        Err(sentence) => Answer::text(StatusCode::CONFLICT, sentence),
    })
}

/// Asks process 1: what it answers, or the sentence by which it refuses.
fn control(socket: &Path, request: &Value) -> Outcome<Result<Value, String>> {
    let about = |e: std::io::Error| Failure::io(&e, socket.display());
    let mut stream = UnixStream::connect(socket).map_err(about)?;
    for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
        set(&stream, Some(ANSWER_WITHIN)).map_err(about)?;
    }
    stream
        .write_all(format!("{request}\n").as_bytes())
        .map_err(about)?;
    let mut line = String::new();
    let mut reader = BufReader::new(stream.take(LINE_BYTES_MAX));
    reader.read_line(&mut line).map_err(about)?;
    let answer: Value = serde_json::from_str(&line).unwrap_or_default();
    match (
        answer.get("ok"),
        answer.get("error").and_then(Value::as_str),
    ) {
        (Some(value), None) => Ok(Ok(value.clone())),
        (None, Some(sentence)) => Ok(Err(sentence.to_owned())),
        _ => {
            let message = format!("{}: no answer that means anything", socket.display());
            Err(Failure::new(Class::Internal, message))
        }
    }
}
