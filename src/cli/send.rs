//! `fieldgate send`: a record by hand, the quickest way to see that everything works.

use std::{io::Read as _, process::ExitCode, time::Duration};

use crate::{
    config::Config,
    ops::control::{Ask, SAFE_WITHIN, ask},
};

/// The gateway says by itself that the record is not safe in time.
const PATIENCE: Duration = SAFE_WITHIN.saturating_add(Duration::from_secs(5));

/// Sends, waits until the record is safe, and says so.
pub(super) fn send(
    config: &Config,
    device: String,
    topic: Option<String>,
    payload: String,
) -> ExitCode {
    let payload = if payload == "-" {
        let mut text = String::new();
        match std::io::stdin().read_to_string(&mut text) {
            Ok(_) => text.trim_end().to_owned(),
            Err(error) => {
                eprintln!("standard input: {error}");
                return ExitCode::FAILURE;
            }
        }
    } else {
        payload
    };
    match ask(&config.gateway.state_dir, &Ask::Send { device, topic, payload }, PATIENCE) {
        Ok(_) => {
            println!("safe");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
