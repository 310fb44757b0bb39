//! House style as a test: form, size, who may use whom, and README's tables against the code.
//!
//! Every finding is a line `file:line: what is wrong`. Length of functions is clippy's part
//! (`too_many_lines`, with its threshold in `.clippy.toml`), layout rustfmt's. Reads text, compiles
//! nothing, takes milliseconds.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test binary: a panic is how it reports"
)]

use std::fs;
use std::path::{Path, PathBuf};

mod buildroot;
mod form;
mod proofs;
mod tables;
mod uses;

/// A file of the project that a person reads and writes.
struct Text {
    /// Relative to the top, with `/`.
    path: String,
    content: String,
}

impl Text {
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.content.lines())
    }

    /// Rust before its unit tests: what ends up in the product. Nothing of a test's own file.
    fn product(&self) -> impl Iterator<Item = (usize, &str)> {
        let whole = !self.is_rust()
            || self.path.starts_with("tests/")
            || self.path.ends_with("/tests.rs")
            || self.path.ends_with("/testing.rs");
        let code = self.lines().take_while(|(_, line)| *line != "mod tests {");
        code.filter(move |_| !whole)
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// What [`Text::product`] leaves out.
    fn tests(&self) -> impl Iterator<Item = (usize, &str)> {
        let product = self.product().map(|(number, _)| number).last();
        self.lines()
            .filter(move |(number, _)| product.is_none_or(|last| *number > last))
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_script(&self) -> bool {
        self.content.starts_with("#!/")
    }
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> Text {
    let content = fs::read_to_string(top().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    Text {
        path: path.to_owned(),
        content,
    }
}

/// Data that other programs made: its form is not ours to choose.
const DATA: &str = "tests/golden/";

/// Everything but data, what Cargo builds and what git keeps.
fn texts() -> Vec<Text> {
    let mut found = Vec::new();
    walk(Path::new(""), &mut |path| found.push(path));
    found.sort();
    let ours = |path: &String| !path.starts_with(DATA) || path.ends_with(".rs");
    found
        .iter()
        .filter(|path| ours(path))
        .map(|p| read(p))
        .collect()
}

fn walk(folder: &Path, each: &mut dyn FnMut(String)) {
    for (name, path) in entries(folder) {
        let hidden = folder.as_os_str().is_empty() && (name == ".git" || name == "target");
        match top().join(&path).is_dir() {
            _ if hidden => {}
            true => walk(&path, each),
            false => each(path.to_str().unwrap().to_owned()),
        }
    }
}

/// Names in a folder with their paths from the top.
fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = fs::read_dir(top().join(folder))
        .unwrap()
        .map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let path = folder.join(&name);
            (name, path)
        })
        .collect();
    found.sort();
    found
}

/// Shows all findings at once: nobody wants to meet them one by one.
fn none(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}
