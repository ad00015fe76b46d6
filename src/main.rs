//! The server with the graphs it ships.

use std::process::ExitCode;

fn main() -> ExitCode {
    session_store::main(Vec::new())
}
