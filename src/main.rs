//! The server with the graphs it ships.

use std::process::ExitCode;

fn main() -> ExitCode {
    session_store::main(session_store::graphs::all())
}
