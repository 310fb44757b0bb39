//! Prometheus' text format, for a scrape and for a push.
//!
//! Authority: `docs/instrumenting/exposition_formats` of Prometheus. Unlike PGHoard's, lines carry
//! no time (a scrape is of now, and an old time would hide that a daemon died) and counters are
//! sums.

use std::fmt::Write;

use super::{Kind, Metric, Sample};
use crate::config;

/// What the text says it is.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// What `GET /metrics` answers.
    Scrape,
    /// The body of a push.
    Push,
}

/// Samples of one metric are beside each other, as the format wants them.
pub fn render(samples: &[Sample], tags: &config::Tags, form: Form) -> String {
    let mut text = String::new();
    let mut last = "";
    for sample in samples {
        let metric = sample.metric;
        let name = metric.name.replace(['.', '-'], "_");
        // Writing to a String cannot fail.
        if metric.name != last {
            if form == Form::Scrape {
                let _ = writeln!(text, "# HELP {name} {}", metric.help);
            }
            let _ = writeln!(text, "# TYPE {name} {}", kind(metric, form));
            last = metric.name;
        }
        let _ = writeln!(text, "{name}{} {}", labels(sample, tags), sample.value);
    }
    text
}

/// In a scrape a counter has a name that ends in `_total` or, as all of PGHoard's, no type: so
/// `promtool check metrics` wants it. A pushgateway refuses a type that differs from what another
/// PGHoard pushed.
fn kind(metric: &Metric, form: Form) -> &'static str {
    let named = metric.name.ends_with("_total");
    match (form, metric.kind) {
        (Form::Scrape, Kind::Counter) if !named => "untyped",
        (_, kind) => kind.name(),
    }
}

fn labels(sample: &Sample, tags: &config::Tags) -> String {
    let merged = super::merged(sample, tags);
    let labels = merged
        .into_iter()
        .map(|(name, value)| format!("{}=\"{}\"", label(name), escaped(value)));
    let labels: Vec<String> = labels.collect();
    match labels.is_empty() {
        true => String::new(),
        false => format!("{{{}}}", labels.join(",")),
    }
}

/// `[a-zA-Z_][a-zA-Z0-9_]*`: a tag of the configuration may be called anything.
fn label(name: &str) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = name.chars().map(fit).collect();
    match name.starts_with(|c: char| c.is_ascii_digit()) || name.is_empty() {
        true => format!("_{name}"),
        false => name,
    }
}

fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    value.replace('\n', "\\n")
}
