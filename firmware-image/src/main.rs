//! Builds the bootable appliance image and its signed update bundles.
//!
//! Not built yet. The program says so instead of pretending: it exits with 2.

fn main() -> std::process::ExitCode {
    eprintln!(
        "firmware-image: will compose the PGHoard appliance's disk image and sign its update \
         bundles; not built yet"
    );
    std::process::ExitCode::from(2)
}
