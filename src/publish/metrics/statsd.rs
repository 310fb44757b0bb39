//! Datagrams for a statsd server, in the form of telegraf or datadog.
//!
//! A statsd server adds up what it is sent: a counter goes as what it grew by since it was last
//! sent, beginning with what it was when the daemon started.

use std::collections::BTreeMap;

use super::{Kind, Sample, Tags, Value};
use crate::config::{self, StatsdFormat};

/// Lines share a datagram up to this size: what an Ethernet carries in one piece.
const DATAGRAM_BYTES_MAX: usize = 1_400;

/// What was sent of each counter.
#[derive(Debug)]
pub struct Sent(BTreeMap<(&'static str, Tags), u64>);

impl Sent {
    /// As if these had been sent.
    pub fn upto(samples: &[Sample]) -> Sent {
        let mut sent = Sent(BTreeMap::new());
        for sample in samples {
            let _sent_already = sent.grown(sample);
        }
        sent
    }

    /// What is to be sent; `None` for a counter that stands still.
    fn grown(&mut self, sample: &Sample) -> Option<Value> {
        match (sample.metric.kind, sample.value) {
            (Kind::Counter, Value::Whole(now)) => {
                let key = (sample.metric.name, sample.tags.clone());
                let before = self.0.insert(key, now).unwrap_or(0);
                let grown = now.saturating_sub(before);
                (grown > 0).then_some(Value::Whole(grown))
            }
            (_, value) => Some(value),
        }
    }
}

/// Whole lines, in as few datagrams as they fit.
pub fn render(
    samples: &[Sample],
    sent: &mut Sent,
    tags: &config::Tags,
    format: StatsdFormat,
) -> Vec<String> {
    let mut datagrams: Vec<String> = Vec::new();
    for sample in samples {
        let Some(value) = sent.grown(sample) else {
            continue;
        };
        let line = line(sample, value, tags, format);
        match datagrams.last_mut() {
            Some(last) if last.len() + 1 + line.len() <= DATAGRAM_BYTES_MAX => {
                last.push('\n');
                last.push_str(&line);
            }
            Some(_) | None => datagrams.push(line),
        }
    }
    datagrams
}

fn line(sample: &Sample, value: Value, tags: &config::Tags, format: StatsdFormat) -> String {
    let kind = match sample.metric.kind {
        Kind::Gauge => "g",
        Kind::Counter => "c",
    };
    let name = sample.metric.name;
    let merged = super::merged(sample, tags);
    let tags = |between: &str| {
        let tags = merged.iter();
        let tags = tags.map(|(name, value)| format!("{}{between}{}", plain(name), plain(value)));
        tags.collect::<Vec<String>>().join(",")
    };
    match (format, merged.is_empty()) {
        (_, true) => format!("{name}:{value}|{kind}"),
        (StatsdFormat::Telegraf, false) => format!("{name},{}:{value}|{kind}", tags("=")),
        (StatsdFormat::Datadog, false) => format!("{name}:{value}|{kind}|#{}", tags(":")),
    }
}

/// Neither form can quote what it is made of.
fn plain(text: &str) -> String {
    let special = |c: char| c.is_control() || matches!(c, ',' | ':' | '=' | '|' | '#' | '@');
    text.replace(special, "_")
}
