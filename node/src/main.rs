//! The `maillage` binary: the command line of the library, which see.

/// With the system's, what many threads once had at once is never given back: 162 MiB instead of XXX where 100
/// associations send.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    maillage::main()
}
