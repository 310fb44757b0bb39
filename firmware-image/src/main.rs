//! The command line of the image builder.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use firmware_image::compose::{Built, Format, Order};
use firmware_image::failure::{Outcome, failure};
use firmware_image::run::{self, Virtual};
use firmware_image::sign;

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
    /// A disk image, and a manifest of everything inside beside it
    Compose {
        #[command(flatten)]
        order: Order,
        #[arg(long, value_enum, default_value = "raw")]
        format: Format,
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// An update bundle of the image with these inputs, not signed yet
    Bundle {
        #[command(flatten)]
        order: Order,
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// A new key for bundles: the secret one in FILE, the public one in FILE.pub
    Keygen {
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Add a signature to a bundle
    Sign {
        /// The bundle
        #[arg(value_name = "FILE")]
        bundle: PathBuf,
        /// The secret key, of keygen or of 'openssl genpkey -algorithm ed25519'
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// A virtual machine on an image
    Run {
        #[command(flatten)]
        machine: Virtual,
        /// Only say the command
        #[arg(long)]
        print: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("firmware-image: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Outcome<()> {
    match command {
        Command::Compose { order, format, out } => Built::of(&order)?.disk(&out, format),
        Command::Bundle { order, out } => Built::of(&order)?.bundle(&out),
        Command::Keygen { out } => {
            println!("{}", sign::make_key(&out)?);
            Ok(())
        }
        Command::Sign { bundle, key } => sign::bundle(&bundle, &key),
        Command::Run { machine, print } => {
            let mut command = machine.command()?;
            if print {
                println!("{}", run::line(&command));
                return Ok(());
            }
            // In its place, so that who ends this ends it.
            let error = command.exec();
            let name = command.get_program().to_string_lossy().into_owned();
            Err(failure(format!(
                "{name}: {error}; it is Debian's package qemu-system-x86"
            )))
        }
    }
}
