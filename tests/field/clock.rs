//! A system clock that says what a scenario wants, for one process: Debian's libfaketime.
//!
//! Only the system clock is touched. The monotonic ones are the kernel's, as on a board.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use super::Field;

pub struct WrongClock {
    file: PathBuf,
}

impl WrongClock {
    /// A clock that is ahead of the real one by `off_s`.
    pub fn ahead(field: &Field, off_s: i64) -> Self {
        let clock = Self { file: field.path("clock") };
        clock.jump(off_s);
        clock
    }

    /// From now on it is ahead by so much.
    pub fn jump(&self, off_s: i64) {
        // Renamed: whoever reads it sees the one or the other.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{off_s:+}\n")).expect("a file in an own directory");
        std::fs::rename(&new, &self.file).expect("a file in an own directory");
    }

    /// What makes a process see it.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        vec![
            ("LD_PRELOAD", library().into()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.clone().into()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("NO_FAKE_STAT", "1".into()),
        ]
    }
}

/// Whether a time service vouches for this machine's clock: then a gateway believes that, whatever
/// is shown to it, and there is nothing to be seen here.
pub fn is_kept(status: &Value) -> bool {
    let by = status["clock"]["by"].as_str().unwrap_or_default();
    let kept = by == "systemd-timesyncd" || by == "a time service";
    if kept {
        eprintln!("not run: {by} keeps the clock of this machine");
    }
    kept
}

pub fn unix_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock that is set");
    since.as_secs() as i64
}

pub const YEAR_S: i64 = 31_556_952;

/// The year that it is.
pub fn this_year() -> i32 {
    1970 + (unix_s() / YEAR_S) as i32
}

fn library() -> PathBuf {
    let places = std::fs::read_dir("/usr/lib").expect("/usr/lib is there").flatten();
    let library = |place: &Path| place.join("faketime/libfaketime.so.1");
    places
        .map(|place| library(&place.path()))
        .find(|path| path.exists())
        .expect("libfaketime (Debian: faketime), which tests/run installs")
}
