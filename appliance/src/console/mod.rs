//! The console session: login, then a small command language; no shell.
pub mod page;
pub fn run() -> i32 {
    println!("console");
    0
}
