//! The backup appliance: PID 1, the serial console, and every command of PGHoard in one program.
//!
//! As the kernel's first process it is the machine; as `pghoard_console` a session on one of its
//! consoles; by any other name what PGHoard's program is by that name.
//!
//! - [`boot`]: from the kernel to a machine that backs up, and back.
//! - [`host`]: what the threads of PID 1 share, and what is wrong with the machine.
//! - [`control`]: who else may ask it, and for what.
//! - [`children`], [`supervise`], [`watchdog`], [`power`]: processes, the daemon, and the end.
//! - [`disk`], [`diary`]: the data partition and the log on it.
//! - [`settings`]: what it is to do, and where that comes from.
//! - [`network`]: links, addresses, routes, names. [`time`]: the clock, and whether it is right.
//! - [`update`]: the two slots of the boot loader, bundles that fill one, and keeping it.
//! - [`lines`]: the status page on each console. [`console`]: what a person types there.
//! - [`sys`]: the only unsafe code.
//!
//! PID 1 knows no events and opens no log: it hears from the daemon by sd_notify(3), and looks at
//! its state file.

mod boot;
mod children;
mod console;
mod control;
mod diary;
mod disk;
mod host;
mod lines;
mod network;
mod power;
mod settings;
mod supervise;
mod sys;
#[cfg(test)]
mod testing;
mod time;
mod update;
mod watchdog;

use std::path::Path;

fn main() {
    let args: Vec<_> = std::env::args_os().collect();
    if std::process::id() == 1 {
        // The kernel panics now, and starts the machine anew.
        if let Err(failure) = boot::run() {
            boot::last_words(&failure.to_string());
        }
        return;
    }
    let called = args.first().map(Path::new).and_then(Path::file_name);
    let code = match called.and_then(|name| name.to_str()) {
        Some("pghoard_console") => {
            control_line();
            console::run()
        }
        _ => pghoard::tool::run(args),
    };
    std::process::exit(code);
}

/// A session of its own, with the line as its terminal: Ctrl-C ends a command, not the machine.
fn control_line() {
    let session = nix::unistd::setsid()
        .map(drop)
        .map_err(std::io::Error::from);
    let taken = session.and_then(|()| sys::control_terminal(std::io::stdin()));
    if let Err(error) = taken {
        log::debug!("no controlling terminal: {error}");
    }
}
