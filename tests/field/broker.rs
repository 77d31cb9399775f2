//! A real mosquitto.

use std::{net::TcpStream, process::Command};

use super::{Field, SOON, eventually, free_port, process::Process};

/// What mosquitto keeps in flight for one client; the rest waits in its queue.
pub const MAX_INFLIGHT: u64 = 100;

pub struct Broker {
    pub port: u16,
    process: Option<Process>,
    config: std::path::PathBuf,
    log: std::path::PathBuf,
}

impl Broker {
    /// A broker that is not started yet.
    pub fn new(field: &Field) -> Self {
        Self::with(field, &format!("max_inflight_messages {MAX_INFLIGHT}"))
    }

    /// A broker with more lines of configuration, that is not started yet.
    pub fn with(field: &Field, more: &str) -> Self {
        let port = free_port();
        let store = field.path("mosquitto");
        std::fs::create_dir(&store).expect("a directory in an own directory");
        let config = field.write(
            "mosquitto.conf",
            // Started by root it would become a user who can't write into the scenario's
            // directory.
            format!(
                "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n\
                 persistence true\npersistence_location {}/\n\
                 max_queued_messages 0\n{more}\n\
                 log_dest stderr\nlog_type error\nlog_type warning\nlog_type notice\n",
                store.display()
            ),
        );
        Self { port, process: None, config, log: field.path("mosquitto.log") }
    }

    pub fn started(field: &Field) -> Self {
        let mut broker = Self::new(field);
        broker.start();
        broker
    }

    pub fn start(&mut self) {
        // Debian has it where only root's PATH looks.
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let mut command = Command::new("sh");
        command.args(["-c", "exec mosquitto -c \"$0\""]).arg(&self.config).env("PATH", path);
        self.process = Some(Process::start("mosquitto", command, &self.log));
        eventually("mosquitto listens (installed by tests/run)", SOON, || {
            TcpStream::connect(("127.0.0.1", self.port)).ok()
        });
    }

    pub fn terminate(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.terminate(SOON);
        }
    }
}
