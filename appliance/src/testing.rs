//! What the unit tests share with the project's other tests: waiting, and saying what is left out.

#[path = "../../tests/support/skip.rs"]
pub mod skip;
#[path = "../../tests/support/wait.rs"]
pub mod wait;
