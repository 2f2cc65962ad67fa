//! The `maillage` binary: the command line of the library, which see.

fn main() -> std::process::ExitCode {
    maillage::main()
}
