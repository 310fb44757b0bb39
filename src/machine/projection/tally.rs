//! Counters behind the statistics file: what was stored, how often it failed, when it last worked.

use alloc::collections::BTreeMap;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::event::{Event, Millis};
use crate::task::TaskId;

/// By PGHoard's file type: `xlog`, `timeline`, `basebackup`, `basebackup_chunk`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    pub uploads: BTreeMap<String, Count>,
    pub xlogs_since_basebackup: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Count {
    pub count: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub failures: u64,
    pub millis: u64,
    pub last_success: Option<Millis>,
    pub latest: Option<crate::file::File>,
}

impl Tally {
    pub fn apply(&mut self, event: &Event, at: Millis) {
        match event {
            Event::Stored {
                file,
                bytes_in,
                bytes_out,
                millis,
                ..
            } => {
                self.xlogs_since_basebackup = match file.kind() {
                    "xlog" => self.xlogs_since_basebackup.saturating_add(1),
                    "timeline" => self.xlogs_since_basebackup,
                    _ => 0,
                };
                let count = self.uploads.entry(file.kind().into()).or_default();
                count.count = count.count.saturating_add(1);
                count.bytes_in = count.bytes_in.saturating_add(*bytes_in);
                count.bytes_out = count.bytes_out.saturating_add(*bytes_out);
                count.millis = count.millis.saturating_add(*millis);
                count.last_success = Some(at);
                count.latest = Some(file.clone());
            }
            Event::TaskFailed {
                task: TaskId::Store(_, file),
                ..
            } => {
                let count = self.uploads.entry(file.kind().into()).or_default();
                count.failures = count.failures.saturating_add(1);
            }
            _ => {}
        }
    }
}
