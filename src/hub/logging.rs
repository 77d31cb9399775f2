//! The log, on standard error: for a person on a terminal, for journald otherwise.

use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;

/// Starts logging at `level`. A second call changes nothing: whoever runs the hub inside another
/// program has a log.
pub(super) fn start(level: LevelFilter) {
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level);
    // An error says that a log was started already.
    let _ = if std::io::stderr().is_terminal() {
        builder.with_target(false).try_init()
    } else {
        // journald stamps the lines by itself.
        builder.with_ansi(false).without_time().with_target(false).try_init()
    };
}
