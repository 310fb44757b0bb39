//! What others see of the daemon, made equal to the state: alert files, the state file, metrics.
//! And who waits for it: `archive_command`.

use std::sync::{Arc, Mutex, PoisonError};

use machine::decide::Busy;
use machine::policy::Policy;
use machine::rule::alerts::alerts;
use machine::rule::coverage::Live;
use machine::{Event, State};

use crate::clock;
use crate::config::Config;
use crate::daemon::{site, status};
use crate::failure::{Failure, Outcome};
use crate::publish::alerts::Alerts;
use crate::publish::metrics::Facts;
use crate::publish::metrics::send::Metrics;
use crate::publish::stats::{self, Stats};
use crate::serve::archive::Desk;

pub struct Front {
    alerts: Alerts,
    stats: Stats,
    pub metrics: Metrics,
    /// How objects are compressed.
    algorithm: &'static str,
    /// What publishing last failed with: said once, not at every turn.
    complaint: Option<Failure>,
    /// The same for the service manager, in one line.
    pub status: String,
    /// The state document, for HTTP.
    pub document: Arc<Mutex<Arc<str>>>,
    /// Where `archive_command`'s files wait for their verdict.
    pub desk: Arc<Desk>,
}

impl Front {
    /// `state` as the run before left it: what was counted then was told then.
    pub fn new(config: &Config, state: &State, policy: &Policy, desk: Arc<Desk>) -> Outcome<Front> {
        let algorithm = config.compression.algorithm.name();
        let start = |before: &Facts<'_>| Metrics::start(config, &site::host_name(), before);
        Ok(Front {
            alerts: Alerts::new(&config.alert_file_dir),
            stats: Stats::new(&config.json_state_file_path),
            metrics: counted(state, policy, algorithm, start)?,
            algorithm,
            complaint: None,
            status: String::new(),
            document: Arc::new(Mutex::new(Arc::from("{}"))),
            desk,
        })
    }

    /// Metrics as another configuration wants them, if it wants them otherwise.
    pub fn metrics_under(
        &self,
        configs: (&Config, &Config),
        state: &State,
        policy: &Policy,
    ) -> Outcome<Option<Metrics>> {
        counted(state, policy, self.algorithm, |sent| {
            self.metrics.changed(configs, &site::host_name(), sent)
        })
    }

    /// Where alert files lie stays.
    pub fn adopt(&mut self, config: &Config, metrics: Option<Metrics>) {
        self.algorithm = config.compression.algorithm.name();
        self.stats.move_to(&config.json_state_file_path);
        if let Some(metrics) = metrics {
            self.metrics = metrics;
        }
    }

    /// What fails here must not stop the loop. Answers what a person did, for the log.
    pub fn show(&mut self, state: &State, policy: &Policy, busy: &Busy, live: &Live) -> Vec<Event> {
        let now = clock::now();
        let raised = alerts(state, policy, live, now);
        let noted = self.alerts.publish(&raised);
        let document = stats::document(state, policy, busy, live, now);
        let written = self.stats.publish(document, now);
        self.metrics.publish(&Facts {
            state,
            policy,
            live,
            alerts: &raised,
            algorithm: self.algorithm,
            now,
        });
        let complaint = noted.as_ref().err().or(written.as_ref().err()).cloned();
        if let Some(failure) = complaint
            .as_ref()
            .filter(|new| Some(*new) != self.complaint.as_ref())
        {
            ::log::warn!("{failure}");
        }
        self.complaint = complaint;
        self.status = status::line(state, policy, busy, &raised);
        if let Ok(Some(text)) = written {
            *self.document.lock().unwrap_or_else(PoisonError::into_inner) = text;
        }
        noted.unwrap_or_default()
    }
}

/// What was counted so far was told before.
fn counted<T>(
    state: &State,
    policy: &Policy,
    algorithm: &'static str,
    start: impl FnOnce(&Facts<'_>) -> T,
) -> T {
    let live = Live::default();
    let now = clock::now();
    start(&Facts {
        state,
        policy,
        live: &live,
        alerts: &alerts(state, policy, &live, now),
        algorithm,
        now,
    })
}
