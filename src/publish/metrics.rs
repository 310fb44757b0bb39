//! Metrics: one table of what is told, read from the state, and three ways out.
//!
//! Names and tags are PGHoard's, so that its dashboards go on working; what they do not say, above
//! all what can be restored, stands beside them. Every number is read from the state: counters
//! survive a restart, and none is lost because a datagram was.
//!
//! - [`theirs`]: PGHoard's metrics. [`ours`]: what can be restored, what is not safe yet.
//! - [`exposition`]: Prometheus' text. [`statsd`]: datagrams of telegraf and datadog.
//! - [`send`]: the threads that send them, which the loop never waits for.
//!
//! Budget: one sampling in five seconds, and none where no metrics are configured.

use std::collections::BTreeMap;
use std::fmt;

use machine::policy::{Policy, SitePolicy};
use machine::rule::alerts::Alert;
use machine::rule::coverage::{self, Coverage, Live};
use machine::rule::holes;
use machine::{Millis, Site, SiteState, State};

use crate::config;

pub mod exposition;
pub mod ours;
pub mod send;
pub mod statsd;
pub mod theirs;

#[cfg(test)]
mod tests;

/// One row of the table.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// By the alphabet, as they are sent.
    pub tags: &'static [&'static str],
    pub help: &'static str,
    read: Read,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Gauge,
    /// Only grows, over restarts too.
    Counter,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        }
    }
}

/// How a metric is read; what is not known is not told.
#[derive(Debug)]
enum Read {
    One(fn(&View<'_>) -> Option<Value>),
    /// Each with its tags.
    Many(fn(&View<'_>) -> Vec<(Tags, Value)>),
    /// One a site; the tag `site` is added.
    Site(fn(&Of<'_>) -> Option<Value>),
    /// Several a site.
    Sites(fn(&Of<'_>) -> Vec<(Tags, Value)>),
}

/// By the alphabet.
pub type Tags = Vec<(&'static str, String)>;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    Whole(u64),
    Real(f64),
}

/// As Python's `str`.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Whole(value) => write!(f, "{value}"),
            Value::Real(value) => write!(f, "{value:?}"),
        }
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Value {
        Value::Whole(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Value {
        Value::Whole(u64::try_from(value).unwrap_or(u64::MAX))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Whole(value.into())
    }
}

/// One number of one metric.
#[derive(Clone, Debug)]
pub struct Sample {
    pub metric: &'static Metric,
    pub tags: Tags,
    pub value: Value,
}

/// What metrics are read from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub state: &'a State,
    pub policy: &'a Policy,
    pub live: &'a Live,
    pub alerts: &'a BTreeMap<&'static str, Alert>,
    /// How objects are compressed.
    pub algorithm: &'a str,
    pub now: Millis,
}

struct View<'a> {
    facts: Facts<'a>,
    sites: Vec<Of<'a>>,
}

/// One site that is configured.
struct Of<'a> {
    name: &'a Site,
    site: &'a SiteState,
    policy: &'a SitePolicy,
    coverage: Coverage,
    holes: usize,
    facts: Facts<'a>,
}

impl Of<'_> {
    /// Whole seconds since then.
    fn age(&self, at: Millis) -> Value {
        Value::Whole(self.facts.now.since(at) / 1_000)
    }
}

/// The table: PGHoard's metrics first.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    theirs::METRICS.iter().chain(ours::METRICS)
}

/// Every number there is now, metric by metric in the order of the table.
pub fn samples(facts: &Facts<'_>) -> Vec<Sample> {
    let unknown = SiteState::default();
    // One at rest would look like one that fails.
    let sites = facts.policy.sites.iter().filter(|(_, site)| site.active);
    let sites = sites.map(|(name, policy)| {
        let site = facts.state.sites.get(name).unwrap_or(&unknown);
        Of {
            name,
            site,
            policy,
            coverage: coverage::coverage(name, site, Some(policy), facts.live, facts.now),
            holes: holes::holes(site).len(),
            facts: *facts,
        }
    });
    let view = View {
        facts: *facts,
        sites: sites.collect(),
    };
    let mut samples = Vec::new();
    for metric in all() {
        for (tags, value) in metric.values(&view) {
            samples.push(Sample {
                metric,
                tags,
                value,
            });
        }
    }
    samples
}

impl Metric {
    fn values(&self, view: &View<'_>) -> Vec<(Tags, Value)> {
        let named = |of: &Of<'_>, mut tags: Tags| {
            tags.push(("site", of.name.0.clone()));
            tags.sort_unstable();
            tags
        };
        match self.read {
            Read::One(read) => read(view)
                .map(|value| (Tags::new(), value))
                .into_iter()
                .collect(),
            Read::Many(read) => read(view),
            Read::Site(read) => {
                let each = |of: &Of<'_>| Some((named(of, Tags::new()), read(of)?));
                view.sites.iter().filter_map(each).collect()
            }
            Read::Sites(read) => {
                let each = |of| read(of).into_iter().map(move |(t, v)| (named(of, t), v));
                view.sites.iter().flat_map(each).collect()
            }
        }
    }
}

/// The sample's tags and the configured ones, by the alphabet; where both have a name it is the
/// sample's.
fn merged<'a>(sample: &'a Sample, tags: &'a config::Tags) -> BTreeMap<&'a str, &'a str> {
    let configured = tags
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let own = sample
        .tags
        .iter()
        .map(|(name, value)| (*name, value.as_str()));
    configured.chain(own).collect()
}

/// Rows of the table.
const fn gauge(
    name: &'static str,
    tags: &'static [&'static str],
    read: Read,
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind: Kind::Gauge,
        tags,
        help,
        read,
    }
}

const fn counter(
    name: &'static str,
    tags: &'static [&'static str],
    read: Read,
    help: &'static str,
) -> Metric {
    Metric {
        kind: Kind::Counter,
        ..gauge(name, tags, read, help)
    }
}
