//! SIGTERM drains, a second one or SIGINT ends at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread;

use async_signal::{Signal, Signals as Stream};
use machine::Class;
use smol::stream::StreamExt;

use crate::failure::{Failure, Outcome};
use crate::journal::run::Report;

#[derive(Debug, Default)]
pub struct Signals(AtomicU32);

impl Signals {
    pub fn stop(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }

    pub fn stop_now(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 1
    }
}

/// Watches from a thread of its own; an empty report wakes the loop.
pub fn watch(wake: SyncSender<Report>) -> Outcome<Arc<Signals>> {
    let failed = |e: std::io::Error| Failure::io(&e, "watching signals");
    let mut stream = Stream::new([Signal::Term, Signal::Int]).map_err(failed)?;
    let signals = Arc::new(Signals::default());
    let shared = Arc::clone(&signals);
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            smol::block_on(async {
                while let Some(Ok(signal)) = stream.next().await {
                    let weight = if signal == Signal::Int { 2 } else { 1 };
                    shared.0.fetch_add(weight, Ordering::SeqCst);
                    let nothing = Report {
                        task: None,
                        events: Vec::new(),
                        closing: false,
                    };
                    if wake.send(nothing).is_err() {
                        return;
                    }
                }
            });
        })
        .map_err(|e| Failure::new(Class::Internal, format!("no thread for signals: {e}")))?;
    Ok(signals)
}
