//! The server's side of fieldgate, by itself.

use std::process::ExitCode;

fn main() -> ExitCode {
    fieldgate::hub::main_from(std::env::args_os())
}
