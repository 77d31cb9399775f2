//! Servers that others wrote, or could have: Node, Python, and a browser.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Field, SOON, free_port,
    hub::{CERT, KEY},
    process::Process,
};

/// A server in tests/interop, over TLS with the certificate of [`super::hub::authority`].
pub struct Peer {
    pub port: u16,
    pub process: Process,
    pub script: &'static str,
    arguments: Vec<PathBuf>,
    log: PathBuf,
}

impl Peer {
    /// Starts `script`; `store` is the file of those that keep one.
    pub fn start(field: &Field, script: &'static str, store: Option<&str>) -> Self {
        let port = free_port();
        let mut arguments = vec![field.path(CERT), field.path(KEY)];
        arguments.extend(store.map(|name| field.path(name)));
        let log = field.path(format!("{script}.log"));
        let process = listening(script, port, &arguments, &log);
        Self { port, process, script, arguments, log }
    }

    /// The same again, on the same port.
    pub fn restart(&mut self) {
        self.process = listening(self.script, self.port, &self.arguments, &self.log);
    }
}

fn listening(script: &'static str, port: u16, arguments: &[PathBuf], log: &Path) -> Process {
    let mut command = interpreter(script);
    command.arg(port.to_string()).args(arguments);
    let mut process = Process::start(script, command, log);
    process.wait_for_line(SOON, |line| line == "listening");
    process
}

/// Node or Python, with the packages that tests/run installed.
pub fn interpreter(script: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = root.join("target/interop");
    let modules = packages.join("node_modules");
    let python = packages.join("venv/bin/python");
    assert!(
        modules.is_dir() && python.exists(),
        "{} has not what the peers need: run `tests/run interop`, which installs it",
        packages.display()
    );
    let mut command =
        Command::new(if script.ends_with(".py") { &python } else { Path::new("node") });
    command.arg(root.join("tests/interop").join(script)).env("NODE_PATH", modules);
    command
}
