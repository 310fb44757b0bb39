//! The one error of the builder: a line for the human.

use std::fmt;
use std::fs;
use std::path::Path;

#[derive(Debug)]
pub struct Failure(String);

pub type Outcome<T> = Result<T, Failure>;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub fn failure(message: impl Into<String>) -> Failure {
    Failure(message.into())
}

pub fn read(path: &Path) -> Outcome<Vec<u8>> {
    fs::read(path).map_err(|error| failure(format!("{}: {error}", path.display())))
}

pub fn write(path: &Path, bytes: &[u8]) -> Outcome<()> {
    fs::write(path, bytes).map_err(|error| failure(format!("{}: {error}", path.display())))
}

/// For tools that want files.
pub fn scratch() -> Outcome<tempfile::TempDir> {
    tempfile::tempdir().map_err(|error| failure(format!("a scratch folder: {error}")))
}
