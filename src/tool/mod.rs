//! One file a command, and which one was meant.
//!
//! One binary has several names, told apart by the name it is called by; `pghoard COMMAND` does
//! the same where there are no links.

use std::ffi::OsString;
use std::path::Path;

pub mod create_keys;
mod http;
pub mod pghoard;
pub mod postgres_command;
pub mod restore;

type Tool = fn(Vec<OsString>) -> i32;

/// By the part after `pghoard_`.
const TOOLS: &[(&str, Tool)] = &[
    ("create_keys", |args| create_keys::run(args)),
    ("postgres_command", |args| postgres_command::run(args)),
    ("restore", |args| restore::run(args)),
];

/// Runs the tool that the arguments name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let called = args.first().map(Path::new).and_then(Path::file_name);
    let called = called.and_then(|name| name.to_str()).unwrap_or_default();
    if let Some(tool) = tool(called.strip_prefix("pghoard_")) {
        return tool(args);
    }
    if let Some(tool) = tool(args.get(1).and_then(|arg| arg.to_str())) {
        args.remove(0);
        return tool(args);
    }
    pghoard::run(args)
}

fn tool(name: Option<&str>) -> Option<Tool> {
    let found = TOOLS.iter().find(|(known, _)| Some(*known) == name);
    found.map(|(_, tool)| *tool)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_chooses_the_tool() {
        for (words, code) in [
            (
                &["/usr/bin/pghoard_postgres_command", "--mode", "restore"][..],
                255,
            ),
            (&["pghoard", "postgres_command", "--mode", "restore"], 255),
            (&["pghoard_restore"], 1),
            (&["pghoard_create_keys"], 2),
            (&["pghoard", "--version"], 0),
            (&["pghoard", "/nowhere/pghoard.json"], 1),
        ] {
            assert_eq!(run(words.iter().map(OsString::from)), code, "{words:?}");
        }
    }
}
