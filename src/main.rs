//! The one binary; the name it is called by chooses the tool (`tool`).

fn main() {
    std::process::exit(pghoard::tool::run(std::env::args_os()));
}
