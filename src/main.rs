fn main() {
    std::process::exit(pghoard::tool::run(std::env::args_os()));
}
