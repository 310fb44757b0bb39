//! The command line of the image builder.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use firmware_image::compose::{self, Order};

#[derive(Debug, Parser)]
#[command(
    name = "firmware-image",
    version,
    about = "Builds the PGHoard appliance's image"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A raw disk image, and a manifest of everything inside beside it
    Compose {
        /// What firmware-image/inputs filled
        #[arg(long, value_name = "DIR")]
        inputs: PathBuf,
        /// The static multi-call program
        #[arg(long, value_name = "FILE")]
        program: PathBuf,
        /// Of the image; a higher one is newer
        #[arg(long, value_name = "VERSION", default_value = env!("CARGO_PKG_VERSION"))]
        image_version: String,
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

fn main() -> ExitCode {
    let Command::Compose {
        inputs,
        program,
        image_version: version,
        out,
    } = Arguments::parse().command;
    let order = Order {
        inputs,
        program,
        version,
        out,
    };
    match compose::compose(&order) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("firmware-image: {failure}");
            ExitCode::FAILURE
        }
    }
}
