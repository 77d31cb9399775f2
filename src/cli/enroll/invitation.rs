//! What the operator typed, or scanned: a hub, a code, and whom to believe.

use std::{io::Read as _, path::Path};

use zeroize::Zeroizing;

use super::{Arguments, Trust};
use crate::{
    config::HubUrl,
    identity::enrolment::{CaFingerprint, EnrolmentCode},
};

/// The short form's beginning.
const SHORT: &str = "FIELDGATE:";

/// The most that is read for a code.
const MAX_CODE_BYTES: u64 = 256;

/// An invitation to enrol.
#[derive(Debug)]
pub(super) struct Invitation {
    pub(super) hub: HubUrl,
    pub(super) code: EnrolmentCode,
    pub(super) trust: Trust,
}

impl Invitation {
    /// Reads it from the command line, and the code from where that says.
    ///
    /// # Errors
    /// What was typed can't be meant. No error repeats a code.
    pub(super) fn read(arguments: &Arguments) -> Result<Self, String> {
        if let Some(short) = strip_prefix_any_case(&arguments.hub, SHORT) {
            if arguments.code.is_some() || arguments.ca_fingerprint.is_some() {
                return Err("FIELDGATE:… has its code and its fingerprint; type it alone".into());
            }
            return Self::from_short(short);
        }
        let hub = hub_url(&arguments.hub)?;
        if arguments.ca_fingerprint.is_some() && arguments.ca_file.is_some() {
            return Err("--ca-fingerprint and --ca-file say the same; give one of them".into());
        }
        let trust = match (&arguments.ca_fingerprint, &arguments.ca_file) {
            (Some(text), _) => Trust::Fingerprint(fingerprint(text)?),
            (None, Some(file)) => Trust::File(file.clone()),
            (None, None) => Trust::System,
        };
        let typed = arguments.code.as_deref().ok_or(
            "--code is missing; get one with: fieldgate-hub enroll-code --gateway ID, and give it \
             as --code - (standard input)",
        )?;
        Ok(Self { hub, code: code(&fetched(typed)?)?, trust })
    }

    /// `HOST[:PORT]/CODE/FINGERPRINT`
    fn from_short(short: &str) -> Result<Self, String> {
        let wrong = "the short form is FIELDGATE:HOST[:PORT]/CODE/FINGERPRINT; copy it whole";
        let mut parts = short.split('/');
        let (Some(host), Some(digits), Some(mark), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong.into());
        };
        let hub = hub_url(&format!("https://{host}"))?;
        Ok(Self { hub, code: code(digits)?, trust: Trust::Fingerprint(fingerprint(mark)?) })
    }
}

fn hub_url(text: &str) -> Result<HubUrl, String> {
    let Some(rest) = strip_prefix_any_case(text, "https://") else {
        return Err("the hub is written as https://hub.example.com or FIELDGATE:…".into());
    };
    HubUrl::parse(&format!("wss://{rest}"))
}

fn strip_prefix_any_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn code(text: &str) -> Result<EnrolmentCode, String> {
    EnrolmentCode::parse(text.trim())
        .ok_or_else(|| "this is no enrolment code; it looks like 7F3K-0A1B-2C9D".into())
}

fn fingerprint(text: &str) -> Result<CaFingerprint, String> {
    CaFingerprint::parse(text).ok_or_else(|| {
        format!(
            "{text:?} is no fingerprint of a CA; it has 26 letters and digits, see: \
                 fieldgate-hub ca show"
        )
    })
}

/// The code, or what the file or standard input has in its place.
fn fetched(typed: &str) -> Result<Zeroizing<String>, String> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_CODE_BYTES as usize));
    let read = if typed == "-" {
        std::io::stdin().take(MAX_CODE_BYTES).read_to_string(&mut text)
    } else if let Some(file) = typed.strip_prefix("file:") {
        let opened = std::fs::File::open(Path::new(file));
        opened.and_then(|opened| opened.take(MAX_CODE_BYTES).read_to_string(&mut text))
    } else {
        text.push_str(typed);
        Ok(0)
    };
    read.map(|_| text).map_err(|error| format!("--code: {error}; give another file"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn read(words: &[&str]) -> Result<Invitation, String> {
        let line = Line::parse_from([&["enroll"], words].concat());
        Invitation::read(&line.arguments)
    }

    const MARK: &str = "60RK4CSM6MV3EE1SC5H66S35CR";

    #[test]
    fn both_forms_say_the_same() {
        let short = format!("FIELDGATE:HUB.example.com:8443/7f3koaib2cz9/{MARK}");
        let long = ["https://hub.example.com:8443", "--code", "7F3K-0A1B-2CZ9"];
        let long = [&long[..], &["--ca-fingerprint", MARK]].concat();
        for invitation in [read(&[&short]), read(&long)] {
            let Invitation { hub, code, trust } = invitation.unwrap();
            assert_eq!((hub.host.as_str(), hub.port, hub.tls), ("hub.example.com", 8443, true));
            assert_eq!(code.reveal(), "7F3K-0A1B-2CZ9");
            assert!(matches!(trust, Trust::Fingerprint(mark) if mark.to_string() == MARK));
        }
    }

    #[test]
    fn a_code_may_come_from_a_file_and_is_never_repeated() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("code");
        std::fs::write(&file, "7f3k-0a1b-2cz9\n").unwrap();
        let from = format!("file:{}", file.display());
        let invitation = read(&["https://hub", "--code", &from]).unwrap();
        assert_eq!(invitation.code.reveal(), "7F3K-0A1B-2CZ9");
        assert!(matches!(invitation.trust, Trust::System));
        for wrong in ["FIELDGATE:hub/7F3K-0A1B-2CZU/x", "FIELDGATE:hub/7F3K-0A1B-2CZ9"] {
            let error = read(&[wrong]).unwrap_err();
            assert!(!error.contains("7F3K-0A1B-2CZ"), "{error}");
        }
        assert!(read(&["http://hub", "--code", "x"]).unwrap_err().contains("https://"));
        assert!(read(&["https://hub"]).unwrap_err().contains("enroll-code"));
        assert!(read(&["https://hub", "--code", "file:/nowhere"]).unwrap_err().contains("--code"));
    }
}
