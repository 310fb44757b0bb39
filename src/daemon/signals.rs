//! SIGTERM drains, a second one or SIGINT ends at once, SIGHUP reads the configuration again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread;

use async_signal::{Signal, Signals as Stream};
use machine::Class;
use smol::stream::StreamExt;

use crate::failure::{Failure, Outcome};
use crate::journal::run::Report;

#[derive(Debug, Default)]
pub struct Signals {
    stops: AtomicU32,
    reload: AtomicBool,
}

impl Signals {
    pub fn stop(&self) -> bool {
        self.stops.load(Ordering::SeqCst) > 0
    }

    pub fn stop_now(&self) -> bool {
        self.stops.load(Ordering::SeqCst) > 1
    }

    /// Whether somebody wants the configuration to be read again, since this was last asked.
    pub fn reload(&self) -> bool {
        self.reload.swap(false, Ordering::SeqCst)
    }

    fn note(&self, signal: Signal) {
        match signal {
            Signal::Hup => self.reload.store(true, Ordering::SeqCst),
            Signal::Int => drop(self.stops.fetch_add(2, Ordering::SeqCst)),
            _ => drop(self.stops.fetch_add(1, Ordering::SeqCst)),
        }
    }
}

/// A reload that comes while the daemon starts waits for its end instead of killing it.
pub const EARLY: &[Signal] = &[Signal::Hup];
/// To these a daemon that starts obeys as any program.
pub const LATER: &[Signal] = &[Signal::Term, Signal::Int];

/// Watches from a thread of its own; an empty report wakes the loop.
pub fn watch(which: &[Signal], signals: &Arc<Signals>, wake: SyncSender<Report>) -> Outcome<()> {
    let failed = |e: std::io::Error| Failure::io(&e, "watching signals");
    let mut stream = Stream::new(which).map_err(failed)?;
    let shared = Arc::clone(signals);
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            smol::block_on(async {
                while let Some(Ok(signal)) = stream.next().await {
                    shared.note(signal);
                    let nothing = Report::facts(Vec::new());
                    if wake.send(nothing).is_err() {
                        return;
                    }
                }
            });
        })
        .map_err(|e| Failure::new(Class::Internal, format!("no thread for signals: {e}")))?;
    Ok(())
}
