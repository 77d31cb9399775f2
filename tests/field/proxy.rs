//! Real proxies: tinyproxy (HTTP CONNECT) and microsocks (SOCKS 5), each with one user.

use std::{net::TcpStream, path::PathBuf, process::Command};

use super::{Field, SOON, certificate::private, eventually, free_port, process::Process};

pub const USER: &str = "gateway";

pub struct Proxy {
    pub port: u16,
    pub process: Process,
    command: Box<dyn Fn() -> Command>,
    log: PathBuf,
}

impl Proxy {
    pub fn tinyproxy(field: &Field, password: &str) -> Self {
        let port = free_port();
        let config = field.write(
            "tinyproxy.conf",
            format!(
                "Port {port}\nListen 127.0.0.1\nTimeout 600\nMaxClients 20\nAllow 127.0.0.1\n\
                 BasicAuth {USER} {password}\nLogLevel Info\n"
            ),
        );
        Self::start(field, port, move || {
            let mut command = Command::new("tinyproxy");
            command.arg("-d").arg("-c").arg(&config);
            command
        })
    }

    pub fn microsocks(field: &Field, password: &str) -> Self {
        let port = free_port();
        let password = password.to_owned();
        Self::start(field, port, move || {
            let mut command = Command::new("microsocks");
            command.args(["-i", "127.0.0.1", "-p", &port.to_string(), "-u", USER, "-P", &password]);
            command
        })
    }

    fn start(field: &Field, port: u16, command: impl Fn() -> Command + 'static) -> Self {
        let log = field.path("proxy.log");
        let process = Process::start("the proxy", command(), &log);
        let proxy = Self { port, process, command: Box::new(command), log };
        proxy.wait_until_it_listens();
        proxy
    }

    /// The same again, on the same port, after it was killed.
    pub fn restart(&mut self) {
        self.process = Process::start("the proxy", (self.command)(), &self.log);
        self.wait_until_it_listens();
    }

    fn wait_until_it_listens(&self) {
        eventually("the proxy listens (installed by tests/run)", SOON, || {
            TcpStream::connect(("127.0.0.1", self.port)).ok()
        });
    }

    /// The members of `[uplink]` that lead through it, with this password.
    pub fn members(&self, field: &Field, scheme: &str, password: &str) -> String {
        let file = field.write("proxy-password", password);
        private(&file);
        format!(
            "proxy = \"{scheme}://127.0.0.1:{}\"\nproxy_user = \"{USER}\"\n\
             proxy_password_file = \"proxy-password\"",
            self.port
        )
    }
}
