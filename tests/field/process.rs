//! A process that a scenario started.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use super::eventually;

/// How much of a failed scenario's logs is shown.
const SHOWN_LINES: usize = 80;

/// How long reading the rest of a killed process's stdout may take.
const LAST_WORDS: Duration = Duration::from_secs(5);

pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    log: PathBuf,
    lines: Arc<Lines>,
}

/// What a process said on stdout.
#[derive(Default)]
struct Lines {
    said: Mutex<Said>,
    more: Condvar,
}

#[derive(Default)]
struct Said {
    lines: Vec<String>,
    /// Nothing more will come.
    all: bool,
}

impl Process {
    /// Starts it, with stderr added to `log`: a process that is started again goes on in the same
    /// file.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log);
        let file = file.unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().unwrap_or_else(|e| {
            panic!("{name}: {:?} did not start: {e}", command.get_program());
        });
        let lines = Arc::new(Lines::default());
        let stdout = child.stdout.take().expect("stdout is piped");
        std::thread::spawn({
            let lines = lines.clone();
            move || lines.read(BufReader::new(stdout))
        });
        let stdin = child.stdin.take();
        Self { name: name.into(), child, stdin, log: log.into(), lines }
    }

    /// SIGKILL: what a power cut leaves is what is on disk.
    pub fn kill(&mut self) {
        self.child.kill().unwrap_or_else(|e| panic!("{}: kill: {e}", self.name));
        self.child.wait().unwrap_or_else(|e| panic!("{}: wait: {e}", self.name));
        let said = self.lines.said.lock().expect("no reader panics");
        // What it had said is read to its end; a process that it left behind may keep the pipe
        // open.
        let read = self.lines.more.wait_timeout_while(said, LAST_WORDS, |said| !said.all);
        drop(read.expect("no reader panics"));
    }

    /// SIGTERM, and how it ended within `within`, and after how long.
    pub fn terminate(&mut self, within: Duration) -> (ExitStatus, Duration) {
        let start = Instant::now();
        self.signal("TERM");
        let status = self.exit(within);
        (status, start.elapsed())
    }

    /// A signal by its short name.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &kill]).status().expect("sh runs");
        assert!(sent.success(), "{}: {kill}: {sent}", self.name);
    }

    /// Whether SIGSTOP has taken effect: no thread of it is in a system call any more.
    pub fn is_stopped(&self) -> bool {
        let tasks = format!("/proc/{}/task", self.child.id());
        let tasks = std::fs::read_dir(&tasks).unwrap_or_else(|e| panic!("{tasks}: {e}"));
        tasks.flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        })
    }

    /// How it ends by itself within `within`.
    pub fn exit(&mut self, within: Duration) -> ExitStatus {
        let what = format!("{} (process {}) ends", self.name, self.child.id());
        eventually(&what, within, || self.ended())
    }

    /// The kernel's number for it.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap_or_else(|e| panic!("{}: wait: {e}", self.name))
    }

    /// What it logged, former runs included.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// What it said on stdout, line by line.
    pub fn lines(&self) -> Vec<String> {
        self.lines.said.lock().expect("no reader panics").lines.clone()
    }

    /// Waits for a line on stdout.
    pub fn wait_for_line(
        &mut self,
        within: Duration,
        mut fits: impl FnMut(&str) -> bool,
    ) -> String {
        let deadline = Instant::now() + within;
        let mut seen = 0;
        let mut said = self.lines.said.lock().expect("no reader panics");
        loop {
            if let Some(line) = said.lines[seen..].iter().find(|line| fits(line)) {
                return line.clone();
            }
            seen = said.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            let last = said.lines.last().cloned().unwrap_or_default();
            assert!(!left.is_zero(), "{}: no such line within {within:?}; last: {last}", self.name);
            said = self.lines.more.wait_timeout(said, left).expect("no reader panics").0;
        }
    }

    /// Writes a line to its stdin.
    pub fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is piped");
        writeln!(stdin, "{line}").unwrap_or_else(|e| panic!("{}: stdin: {e}", self.name));
    }
}

impl Lines {
    fn read(&self, stdout: impl BufRead) {
        for line in stdout.lines() {
            let Ok(line) = line else { break };
            self.said.lock().expect("no other holder panics").lines.push(line);
            self.more.notify_all();
        }
        self.said.lock().expect("no other holder panics").all = true;
        self.more.notify_all();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended before; there is nothing to do about a child that can't be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if std::thread::panicking() {
            let lines: Vec<&str> = log.lines().collect();
            let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
            eprintln!("--- {}: {} of {} lines", self.name, shown.len(), lines.len());
            eprintln!("{}", shown.join("\n"));
        } else if let Some(panic) = log.lines().find(|line| line.contains("panicked at")) {
            panic!("{} panicked: {panic}", self.name);
        }
    }
}

/// Runs a command to its end within `within`: exit code, stdout, stderr.
pub fn run(mut command: Command, within: Duration) -> (Option<i32>, String, String) {
    let directory = tempfile::tempdir().expect("a directory for temporary files");
    let log = directory.path().join("stderr");
    let out = directory.path().join("stdout");
    let name = format!("{command:?}");
    let stderr = File::create(&log).expect("a file in an own directory");
    let stdout = File::create(&out).expect("a file in an own directory");
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{name}: {e}"));
    let deadline = Instant::now() + within;
    let status = loop {
        match child.try_wait().unwrap_or_else(|e| panic!("{name}: {e}")) {
            Some(status) => break status.code(),
            None if Instant::now() > deadline => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let text =
        |path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    (status, text(out), text(log))
}
