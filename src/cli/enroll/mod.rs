//! `fieldgate enroll`: from a code to a gateway that the hub knows, in one command.
//!
//! The key is made here. The code goes out only over a connection whose server is verified: by the
//! system's store, by a CA that is at hand, or by the CA's fingerprint, which the operator carried
//! from the hub together with the code. Nothing is in place before all of it is: an enrolment that
//! is interrupted leaves the board as it was, but for the key that the hub may have certified; the
//! same command, run again, goes on with that.

mod invitation;
mod written;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::ArgMatches;
use serde_json::Value;
use zeroize::Zeroizing;

use self::{invitation::Invitation, written::Plan};
use super::{
    ConfigFile, EXIT_USAGE, dialer, doctor,
    identity::Failure,
    options::{Opt, text, with},
    with_runtime,
};
use crate::{
    config::{Config, HubUrl, Uplink},
    identity::{
        self, Certificate, Clock, Contents, DeviceKey, KeyType, Pair, Staged, Store, TokenSource,
        Word, certificate_request, certificates,
        enrolment::{CaFingerprint, first_contact_tls},
    },
    link,
};

/// What names the hub's answer in errors.
const ANSWER: &str = "the hub's answer";

/// What to enrol with.
#[derive(Debug)]
pub(super) struct Arguments {
    hub: String,
    code: Option<String>,
    ca_fingerprint: Option<String>,
    ca_file: Option<PathBuf>,
    replace: bool,
    config: PathBuf,
}

const OPTIONS: [Opt; 4] = [
    Opt("code", "CODE", "The hub's code; - reads standard input, file:NAME a file"),
    Opt("ca-fingerprint", "FINGERPRINT", "The fingerprint of the hub's CA, as the hub shows it"),
    Opt("ca-file", "FILE", "The CA of the hub's certificate, in PEM [default: the system's store]"),
    Opt("replace", "", "In place of the identity that is there, which is kept as .old"),
];

impl clap::FromArgMatches for Arguments {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self {
            hub: text(matches, "hub").unwrap_or_default(),
            code: text(matches, "code"),
            ca_fingerprint: text(matches, "ca-fingerprint"),
            ca_file: text(matches, "ca-file").map(PathBuf::from),
            replace: matches.get_flag("replace"),
            config: ConfigFile::from_arg_matches(matches)?.config,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Arguments {
    fn augment_args(command: clap::Command) -> clap::Command {
        let help = "The hub, such as https://hub.example.com, or FIELDGATE:HOST/CODE/FINGERPRINT \
                    as the hub shows it";
        let hub = clap::Arg::new("hub").value_name("HUB").help(help).required(true);
        ConfigFile::augment_args(with(command.arg(hub), &OPTIONS))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

/// By what the hub is known at the first contact.
#[derive(Debug)]
enum Trust {
    System,
    File(PathBuf),
    Fingerprint(CaFingerprint),
}

/// What the hub answers (PROTOCOL.md, section 11).
struct Enrolled {
    gateway: String,
    certificate: String,
    ca: String,
    uplink: String,
    /// Empty where the hub takes no tokens.
    audience: String,
    public_key_registered: bool,
}

impl Enrolled {
    fn read(text: &str) -> Option<Self> {
        let answer: Value = serde_json::from_str(text).ok()?;
        let text = |name: &str| answer[name].as_str().map(str::to_owned);
        Some(Self {
            gateway: text("gateway")?,
            certificate: text("certificate")?,
            ca: text("ca")?,
            uplink: text("uplink")?,
            audience: text("audience").unwrap_or_default(),
            public_key_registered: answer["public_key_registered"] == true,
        })
    }
}

/// Enrols this board, and examines what came of it.
pub(super) fn enroll(arguments: &Arguments) -> ExitCode {
    let invitation = match Invitation::read(arguments) {
        Ok(invitation) => invitation,
        Err(fault) => {
            eprintln!("{fault}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match run(arguments, &invitation) {
        Ok(config) => {
            let code = doctor::examine_new(&config);
            println!("next: {}", written::next_step(&config));
            code
        }
        Err(failure) => {
            eprintln!("not enrolled: {failure}");
            failure.exit_code()
        }
    }
}

fn run(arguments: &Arguments, invitation: &Invitation) -> Result<Config, Failure> {
    // What is wrong with the configuration is told before a code is spent.
    let first = Config::towards(&arguments.config, &invitation.hub)?;
    let state_dir = &first.gateway.state_dir;
    let store = Store::of_state_dir(state_dir);
    if store.cert_file().exists() && !arguments.replace {
        let own = Certificate::from_file(&store.cert_file())?;
        return Err(Failure::Other(format!(
            "{}: this board is enrolled already ({}); enrol it anew with --replace",
            store.directory().display(),
            own.subject
        )));
    }
    let clock = Clock::open(&state_dir.join("spool"));
    let uplink = first.uplink.as_ref().expect("it has a hub");
    let begun = store.begun_key_pem();
    let is_again = begun.is_some();
    let key_pem = match begun {
        Some(pem) => pem,
        // A key that was made and never certified is the one that was meant.
        None if store.key_file().exists() && !store.cert_file().exists() => store.key_pem()?,
        None => KeyType::P256.generate().map_err(|error| Failure::Other(error.into()))?,
    };
    let ca = with_runtime(trusted(invitation, uplink))?;
    let contents = Contents { key: &key_pem, certificate: None, ca: ca.as_deref(), uplink: None };
    let mut staged = store.stage(contents, true)?;
    if is_again {
        staged.keep();
    }
    let ca_file = ca.is_some().then(|| staged.files().ca_file());
    let enrolled = with_runtime(ask(invitation, uplink, ca_file, &key_pem, &mut staged, &clock))?;
    install(&store, staged, &enrolled, ca.as_deref(), &arguments.config, &clock).map_err(again)?;
    println!(
        "enrolled as {}; the identity is in {}",
        enrolled.gateway,
        store.directory().display()
    );
    written::write(&arguments.config, &written::least(state_dir))?;
    let config = Config::load(&arguments.config)?;
    if config.enrolled.is_none() {
        config.notes.iter().for_each(|note| println!("note: {note}"));
    }
    Ok(config)
}

/// Whom the first contact is to believe; `None`: the system's store. A CA that is known by its
/// fingerprint alone is asked for.
async fn trusted(invitation: &Invitation, uplink: &Uplink) -> Result<Option<String>, Failure> {
    match &invitation.trust {
        Trust::System => Ok(None),
        Trust::File(file) => {
            let text = std::fs::read_to_string(file)
                .map_err(|error| Failure::Other(format!("{}: {error}", file.display())))?;
            certificates(&file.display().to_string(), &text)?;
            Ok(Some(text))
        }
        Trust::Fingerprint(fingerprint) => pinned(uplink, *fingerprint).await.map(Some),
    }
}

/// The code and the request, over a verified connection. Once they may have been sent, the staged
/// key is kept, for the hub answers the same code for the same key again.
async fn ask(
    invitation: &Invitation,
    uplink: &Uplink,
    ca_file: Option<PathBuf>,
    key_pem: &str,
    staged: &mut Staged,
    clock: &Arc<Clock>,
) -> Result<Enrolled, Failure> {
    let said = Failure::Other;
    let key = DeviceKey::from_pem(key_pem).ok_or_else(|| said("the key can't be used".into()))?;
    // The subject is the hub's to say: the code stands for it.
    let request = certificate_request(&key, "enrol").map_err(said)?;
    let tls = identity::client_tls(ca_file.as_deref(), None, clock)?;
    let mut target = dialer::target(uplink, 0, None, Some(tls)).map_err(said)?;
    target.ca_file = ca_file;
    target.url.path = "/v1/enroll".into();
    let request = Value::from(request);
    let code = invitation.code.reveal();
    let body = Zeroizing::new(format!("{{\"code\":\"{code}\",\"csr\":{request}}}"));
    let reply = match link::exchange(&target, Some(&body)).await {
        Ok(reply) => reply,
        Err(down @ link::Down::Dial { step: "HTTP", .. }) => {
            staged.keep();
            return Err(again(said(down.to_string())));
        }
        Err(down) => return Err(said(down.to_string())),
    };
    match reply.status {
        200 => staged.keep(),
        // Whoever stands between may say so when the hub has done it.
        500.. => {
            staged.keep();
            return Err(again(said(refusal(&reply))));
        }
        _ => return Err(said(refusal(&reply))),
    }
    let enrolled = Enrolled::read(&reply.body)
        .ok_or_else(|| said(format!("{ANSWER} is none; is the hub of another version?")))?;
    // The answer came from a verified hub; still it must be about this key.
    let pair = Pair::answered(ANSWER, &enrolled.certificate, &key, Zeroizing::default(), clock)
        .map_err(|error| again(error.into()))?;
    certificates(ANSWER, &enrolled.ca)?;
    if pair.certificate.common_name.as_ref() != Some(&enrolled.gateway) {
        let text = format!("{ANSWER} names {} and certifies another", enrolled.gateway);
        return Err(said(text + "; see the hub's log"));
    }
    Ok(enrolled)
}

/// The code may be spent; the key that it was spent on is at hand.
fn again(failure: Failure) -> Failure {
    Failure::Other(format!(
        "{failure}; the key is kept: run the same command again, as long as the code is good"
    ))
}

fn refusal(reply: &link::Reply) -> String {
    match (reply.status, reply.retry_after) {
        (403, _) => "the hub refuses the code: it is wrong, used or too old; get a new one with: \
                     fieldgate-hub enroll-code --gateway ID"
            .into(),
        (429, Some(wait)) => {
            format!("the hub had too many attempts; try again in {} s", wait.as_secs())
        }
        (404, _) => "this server enrols nobody (HTTP 404); correct the URL".into(),
        (status, _) => format!("the hub answers with HTTP {status}; its log should say why"),
    }
}

/// The CA that the fingerprint is of, asked of a server that nobody vouches for yet.
async fn pinned(uplink: &Uplink, fingerprint: CaFingerprint) -> Result<String, Failure> {
    let said = Failure::Other;
    let mut target = dialer::target(uplink, 0, None, Some(first_contact_tls())).map_err(said)?;
    target.url.path = "/v1/enroll/ca".into();
    let reply = link::exchange(&target, None).await;
    let reply = reply.map_err(|down| said(down.to_string()))?;
    if reply.status != 200 {
        return Err(said(refusal(&reply)));
    }
    let found = certificates(ANSWER, &reply.body)?;
    let fits = |der: &&rustls::pki_types::CertificateDer<'_>| {
        Certificate::from_der(der).is_some_and(|ca| CaFingerprint::of(&ca) == fingerprint)
    };
    let ca = found.iter().find(fits).ok_or_else(|| {
        said(format!(
            "the CA of {} is not the one with the fingerprint {fingerprint}: somebody may stand \
             between; nothing was sent; compare it with: fieldgate-hub ca show",
            target.url.host
        ))
    })?;
    Ok(identity::certificate_pem(ca))
}

/// Puts the identity in force, with the CA and the kind of credential that a connection shows to be
/// the right ones.
fn install(
    store: &Store,
    staged: Staged,
    enrolled: &Enrolled,
    first_ca: Option<&str>,
    config_file: &Path,
    clock: &Arc<Clock>,
) -> Result<(), Failure> {
    let url = HubUrl::parse(&enrolled.uplink)
        .map_err(|fault| Failure::Other(format!("{ANSWER}: uplink: {fault}")))?;
    let towards = Config::towards(config_file, &url)?;
    let uplink = towards.uplink.as_ref().expect("it has a hub");
    staged.put_certificate(&enrolled.certificate)?;
    let mut plan = Plan::new(enrolled);
    // A hub behind somebody else's TLS shows a certificate that its own CA did not issue.
    for ca in [Some(enrolled.ca.as_str()), first_ca] {
        staged.put_ca(ca)?;
        plan.has_ca = ca.is_some();
        if with_runtime(try_out(uplink, &url, &mut plan, staged.files(), clock))? {
            break;
        }
    }
    let text = plan.to_toml(store);
    Config::enrolled(config_file, &written::least(&towards.gateway.state_dir), &text)?;
    staged.put_uplink(&text)?;
    Ok(staged.promote()?)
}

/// Whether the hub's certificate stands under the staged CA. Where the hub takes no client
/// certificate but a token of the key, the plan says so from then on.
async fn try_out(
    uplink: &Uplink,
    url: &HubUrl,
    plan: &mut Plan,
    staged: &Store,
    clock: &Arc<Clock>,
) -> Result<bool, Failure> {
    let ca_file = Some(staged.ca_file()).filter(|_| plan.has_ca);
    let (cert, key) = (staged.cert_file(), staged.key_file());
    let tls = identity::client_tls(ca_file.as_deref(), Some((&cert, &key)), clock)?;
    let mut target = dialer::target(uplink, 0, None, Some(tls)).map_err(Failure::Other)?;
    target.url.path.clone_from(&url.path);
    match link::examine(&target, &mut |_| ()).await {
        Ok(_) => Ok(true),
        Err(link::Down::Refused { status: 401 | 403, date_ms, valid_until_ms, .. })
            if plan.may_sign() =>
        {
            // A token of a wrong time would be refused, and the certificate taken for the better.
            if let (Some(unix_ms), Some(_)) = (date_ms, valid_until_ms) {
                clock.handle_word(unix_ms, Word::Date, valid_until_ms);
            }
            let tls = identity::client_tls(ca_file.as_deref(), None, clock)?;
            let tokens = TokenSource::Jwt(plan.jwt(key));
            let token = tokens.token(clock.unix_ms())?.0;
            let target = link::Target { bearer: Some(token), tls: Some(tls), ..target };
            plan.signs = link::examine(&target, &mut |_| ()).await.is_ok();
            Ok(true)
        }
        Err(link::Down::Dial { step: "TLS", .. }) => Ok(false),
        // What else keeps it away is for the doctor to tell.
        Err(_) => Ok(true),
    }
}
