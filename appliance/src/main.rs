//! PID 1 of the backup appliance: mounts, network, clock, console, supervision of the daemon.
//!
//! Not built yet. The program says so instead of pretending: it exits with 2.

fn main() -> std::process::ExitCode {
    eprintln!(
        "appliance: will be PID 1 of the PGHoard backup appliance (mounts, network, clock, \
         serial console, supervision, updates); not built yet"
    );
    std::process::ExitCode::from(2)
}
