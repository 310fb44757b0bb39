//! The backup appliance: PID 1, the serial console, and every command of PGHoard in one program.
//!
//! - [`network`]: links, addresses, routes, names. [`time`]: the clock, and whether it is right.
//! - [`update`]: the two slots of the boot loader, and bundles that fill one.
//! - [`console`]: what a person types, after login.

mod console;
mod network;
mod time;
mod update;

fn main() {
    let args: Vec<_> = std::env::args_os().collect();
    let called = args.first().map(std::path::Path::new);
    if called.and_then(std::path::Path::file_name) == Some("pghoard_console".as_ref()) {
        std::process::exit(console::run());
    }
    std::process::exit(pghoard::tool::run(args));
}
