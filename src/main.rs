fn main() {
    std::process::exit(pghoard::tool::pghoard::run(std::env::args_os()));
}
