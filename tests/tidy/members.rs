//! The other members of the workspace say what they are.

use std::process::Command;

use crate::top;

/// Not built yet: it prints what it will do and ends with 2, so that nobody takes it for done.
#[test]
fn unbuilt_programs_say_so() {
    let (package, subject) = ("pghoard-appliance", "PID 1");
    let words = ["run", "--quiet", "--offline", "--locked", "--package"];
    let ran = Command::new(env!("CARGO"))
        .args(words)
        .arg(package)
        .current_dir(top())
        .output()
        .unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(2), "{package}: {said}");
    assert!(
        said.contains(subject) && said.contains("not built yet"),
        "{package}: {said}"
    );
}
