//! A network of a test's own: interfaces, addresses, names.

use std::{
    ffi::OsStr,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use super::{Field, SOON, process::Process};

/// Set in the process that runs in namespaces of its own.
const INSIDE: &str = "FIELD_NAMESPACE";

/// An address on the other end of a wire where nobody is: what is sent there is swallowed.
pub const VOID_V6: &str = "2001:db8::1";
pub const VOID_V4: &str = "192.0.2.1";

/// This board's addresses on that wire.
pub const OWN_V6: &str = "2001:db8::2";
pub const OWN_V4: &str = "192.0.2.2";

/// Runs the test of this name once more, alone in namespaces of its own, and says there that it is
/// inside. Outside, it says no once that run has succeeded.
pub fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let program = std::env::current_exe().expect("a test program has a path");
    // The user namespace is what lets somebody who is not root have the others.
    let status = Command::new("unshare")
        .args(["--map-root-user", "--net", "--mount", "--propagation", "slave"])
        .arg(program)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare of util-linux runs");
    assert!(status.success(), "{test} in namespaces of its own: {status}");
    false
}

/// A further network namespace, for as long as this lives.
pub struct Namespace {
    /// It ends with its stdin, however the test ends.
    holder: Process,
}

impl Namespace {
    pub fn new(field: &Field, name: &str) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"]);
        let mut holder = Process::start(name, command, &field.path(format!("{name}.log")));
        holder.wait_for_line(SOON, |line| line == "ready");
        Self { holder }
    }

    /// A command that runs in it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        Self::command_beside(self.id(), program)
    }

    /// A command that runs where the process `holder` is.
    pub fn command_beside(holder: u32, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{holder}/ns/net")).arg("--").arg(program);
        command
    }

    /// Runs each line of a script in it, to its end.
    pub fn run(&self, script: &str) {
        let mut command = self.command("sh");
        command.args(["-euc", script]).env("PATH", root_path());
        let status = command.status().expect("nsenter of util-linux runs");
        assert!(status.success(), "{script}: {status}");
    }

    /// The process that holds it.
    pub fn id(&self) -> u32 {
        self.holder.id()
    }
}

/// Debian has nft and nginx where only root's PATH looks.
pub fn root_path() -> String {
    std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin"
}

/// A wire with [`OWN_V4`] and [`OWN_V6`] on it, and nobody at the other end.
pub fn make_wire() {
    for words in [
        "link set lo up".to_owned(),
        "link add wire0 type veth peer name wire1".into(),
        "link set wire0 up".into(),
        "link set wire1 up".into(),
        format!("addr add {OWN_V4}/24 dev wire0"),
        format!("addr add {OWN_V6}/64 dev wire0 nodad"),
        // Else the kernel would find out that nobody is there, and say so.
        format!("neigh add {VOID_V4} lladdr 02:00:00:00:00:01 dev wire0"),
        format!("neigh add {VOID_V6} lladdr 02:00:00:00:00:01 dev wire0"),
    ] {
        ip(&words);
    }
}

/// `ip(8)`.
pub fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().expect("ip of iproute2 runs");
    assert!(status.success(), "ip {words}: {status}");
}

/// Puts `text` in the place of a file of /etc, for this namespace alone.
pub fn etc(field: &Field, name: &str, text: &str) {
    instead(field, &Path::new("/etc").join(name), text);
}

/// Puts `text` in the place of a file, for this namespace alone.
pub fn instead(field: &Field, place: &Path, text: &str) {
    let own = field.path(place.file_name().expect("a file has a name"));
    let first = !own.exists();
    // The same file: what is mounted is not its name.
    fs::write(&own, text).unwrap_or_else(|e| panic!("{}: {e}", own.display()));
    if first {
        let mut mount = Command::new("mount");
        let status = mount.arg("--bind").arg(&own).arg(place).stdout(Stdio::null()).status();
        assert!(
            status.expect("mount of util-linux runs").success(),
            "mount over {}",
            place.display()
        );
    }
}

/// Puts an empty directory of the scenario's over one of the system's, for this namespace alone.
pub fn mount_over(field: &Field, name: &str, place: &str) {
    let own = field.path(name);
    fs::create_dir(&own).unwrap_or_else(|e| panic!("{}: {e}", own.display()));
    let status = Command::new("mount").arg("--bind").arg(&own).arg(place).status();
    assert!(status.expect("mount of util-linux runs").success(), "mount over {place}");
}
