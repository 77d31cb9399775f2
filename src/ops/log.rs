//! The log, on standard error: for a person on a terminal with time and colour; otherwise for
//! journald, which knows the time itself: one line per event, `key=value`, and the syslog priority
//! in front where the journal reads it.
//!
//! What devices and servers sent may stand in a field, so no event may make a line of its own:
//! control characters are written as escapes. Source of the prefix: sd-daemon(3).

use std::{
    fmt::{self, Write as _},
    io::IsTerminal as _,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
};

use tracing::{Event, Level, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    filter::Targets,
    fmt::{FmtContext, FormatEvent, FormatFields, format::DefaultFields, format::Writer},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

/// What is logged when nobody says otherwise.
const DEFAULT_LEVEL: LevelFilter = LevelFilter::INFO;

/// Crates that tell every packet and every record of TLS: they speak up only when something is
/// wrong, unless named.
const QUIET: [&str; 8] =
    ["h2", "hyper", "hyper_util", "mio", "rumqttc", "rustls", "tokio_tungstenite", "tungstenite"];

/// How many filters `--log` may name; more is a mistake.
const MAX_FILTERS: usize = 64;

/// What `--log` or `FIELDGATE_LOG` says is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a log filter; write error, warn, info, debug or trace, or target=level, joined \
     by commas"
)]
pub struct FilterError(String);

/// Starts logging. `level` is `--log`, else `FIELDGATE_LOG` says it, else it is `info`: a level
/// (`error|warn|info|debug|trace`), `target=level`, or several of them joined by commas
/// (`info,fieldgate::link=debug`).
///
/// A second start in one process changes nothing.
///
/// # Errors
/// When `level` can't be read; then nothing was started.
pub fn start(level: Option<&str>) -> Result<(), FilterError> {
    let variable = std::env::var("FIELDGATE_LOG").ok().filter(|text| !text.is_empty());
    let targets = targets(level.or(variable.as_deref()).unwrap_or_default())?;
    let registry = tracing_subscriber::registry().with(targets);
    let stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // The other outcome is that a log was started before, which goes on.
    let _ = if std::io::stderr().is_terminal() {
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        registry.with(stderr.with_ansi(colour)).try_init()
    } else {
        let journal = std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stderr(&stream));
        let format = Line { priority: journal };
        registry.with(stderr.with_ansi(false).event_format(format)).try_init()
    };
    Ok(())
}

/// Reads the filters. Later ones win over earlier ones of the same target, longer targets over
/// shorter.
fn targets(text: &str) -> Result<Targets, FilterError> {
    let mut default = DEFAULT_LEVEL;
    let mut named = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let wrong = || FilterError(part.chars().take(80).collect());
        match part.split_once('=') {
            None => default = level(part).ok_or_else(wrong)?,
            Some((target, text)) => {
                let is_target = !target.is_empty()
                    && target.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | ':' | '-'));
                named.push((target, level(text).filter(|_| is_target).ok_or_else(wrong)?));
            }
        }
        if named.len() > MAX_FILTERS {
            return Err(wrong());
        }
    }
    let quiet = default.min(LevelFilter::WARN);
    let targets = Targets::new().with_default(default);
    Ok(targets.with_targets(QUIET.map(|target| (target, quiet))).with_targets(named))
}

/// One of the names of a level; `tracing` itself would take numbers as well.
fn level(text: &str) -> Option<LevelFilter> {
    ["off", "error", "warn", "info", "debug", "trace"]
        .contains(&text)
        .then(|| text.parse().ok())
        .flatten()
}

/// Whether `$JOURNAL_STREAM` (`device:inode`) names our standard error: the variable is inherited
/// also by those whose output goes elsewhere.
fn is_stderr(journal_stream: &str) -> bool {
    let Ok(stderr) = std::io::stderr().as_fd().try_clone_to_owned() else { return false };
    let Ok(stderr) = std::fs::File::from(stderr).metadata() else { return false };
    journal_stream == format!("{}:{}", stderr.dev(), stderr.ino())
}

/// `<6>target: message key=value`, in one line.
#[derive(Debug)]
struct Line {
    /// Whether the priority stands in front.
    priority: bool,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        if self.priority {
            write!(writer, "<{}>", priority(level))?;
        } else {
            write!(writer, "{level} ")?;
        }
        let mut line = String::with_capacity(160);
        write!(line, "{}: ", event.metadata().target())?;
        DefaultFields::new().format_fields(Writer::new(&mut line), event)?;
        for span in context.event_scope().into_iter().flatten() {
            let fields = span.extensions();
            let fields = fields.get::<tracing_subscriber::fmt::FormattedFields<N>>();
            if let Some(fields) = fields.filter(|fields| !fields.is_empty()) {
                write!(line, " {fields}")?;
            }
        }
        write_in_one_line(&mut writer, &line)?;
        writer.write_char('\n')
    }
}

fn write_in_one_line(writer: &mut Writer<'_>, line: &str) -> fmt::Result {
    for part in line.split_inclusive(char::is_control) {
        let plain = part.trim_end_matches(char::is_control);
        writer.write_str(plain)?;
        write!(writer, "{}", part[plain.len()..].escape_default())?;
    }
    Ok(())
}

/// The syslog priority of a level (RFC 5424, table 2).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing::level_filters::LevelFilter as L;

    use super::*;

    #[test]
    fn filters_are_read() {
        for (text, target, level, enabled) in [
            ("", "fieldgate::link", Level::INFO, true),
            ("", "fieldgate::link", Level::DEBUG, false),
            ("", "rumqttc::state", Level::INFO, false),
            ("", "rumqttc::state", Level::WARN, true),
            ("debug", "fieldgate::link", Level::DEBUG, true),
            ("debug", "rustls::client", Level::DEBUG, false),
            ("debug,rustls=trace", "rustls::client", Level::TRACE, true),
            ("error", "rustls::client", Level::WARN, false),
            ("warn,fieldgate::link=trace", "fieldgate::link::dial", Level::TRACE, true),
            ("warn, fieldgate::link=trace", "fieldgate::spool", Level::INFO, false),
            ("off", "fieldgate", Level::ERROR, false),
        ] {
            let targets = targets(text).expect("a filter");
            assert_eq!(targets.would_enable(target, &level), enabled, "{text} {target} {level}");
        }
        assert_eq!(targets("").unwrap().default_level(), Some(L::INFO));
    }

    #[test]
    fn a_bad_filter_says_what_to_write() {
        for bad in ["loud", "3", "a=b", "=info", "info,a b=info", "[span]=info"] {
            assert!(targets(bad).is_err(), "{bad}");
        }
        assert_eq!(
            targets("info,loud").unwrap_err().to_string(),
            "\"loud\" is not a log filter; write error, warn, info, debug or trace, or \
             target=level, joined by commas"
        );
    }

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no test panics with it").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(priority: bool, log: impl FnOnce()) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .event_format(Line { priority });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = memory.0.lock().expect("no test panics with it").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn an_event_is_one_line_with_its_priority() {
        let line = logged(true, || {
            tracing::warn!(target: "fieldgate::link", topic = %"a\n<0>b\u{1b}[31m", bytes = 7, "é \
             cut");
        });
        assert_eq!(line, "<4>fieldgate::link: é cut topic=a\\n<0>b\\u{1b}[31m bytes=7\n");
        let line = logged(false, || tracing::info!(target: "fieldgate", "ready"));
        assert_eq!(line, "INFO fieldgate: ready\n");
    }

    #[test]
    fn the_fields_of_a_span_stand_behind_those_of_the_event() {
        let line = logged(false, || {
            let _in = tracing::info_span!("session", url = "wss://h").entered();
            tracing::info!(target: "fieldgate", "up");
        });
        assert_eq!(line, "INFO fieldgate: up url=\"wss://h\"\n");
    }

    #[test]
    fn the_journal_is_known_by_its_inode() {
        assert!(!is_stderr("0:0"));
        assert!(!is_stderr(""));
    }
}
