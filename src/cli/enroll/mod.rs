//! `fieldgate enroll`: from a code to a gateway that the hub knows, in one command.
//!
//! The key is made here. The code goes out only over a connection whose server is verified: by the
//! system's store, by a CA that is at hand, or by the CA's fingerprint, which the operator carried
//! from the hub together with the code. Nothing is in place before all of it is: an enrolment that
//! is interrupted leaves the board as it was.

mod invitation;
mod written;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::ArgMatches;
use serde_json::Value;
use zeroize::Zeroizing;

use self::{invitation::Invitation, written::Plan};
use super::{
    ConfigFile, EXIT_USAGE, dialer, doctor,
    identity::{Failure, state_dir},
    options::{Opt, text, with},
    with_runtime,
};
use crate::{
    config::{Config, HubUrl, Uplink},
    identity::{
        self, Certificate, Clock, Contents, DeviceKey, KeyType, Pair, Staged, Store, TokenSource,
        certificate_request, certificates,
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
        Ok(config) => doctor::examine_new(&config),
        Err(failure) => {
            eprintln!("not enrolled: {failure}");
            failure.exit_code()
        }
    }
}

fn run(arguments: &Arguments, invitation: &Invitation) -> Result<Config, Failure> {
    let config_file = &arguments.config;
    let state_dir = state_dir(config_file)?;
    let store = Store::of_state_dir(&state_dir);
    if store.cert_file().exists() && !arguments.replace {
        let own = Certificate::from_file(&store.cert_file())?;
        return Err(Failure::Other(format!(
            "{}: this board is enrolled already ({}); enrol it anew with --replace",
            store.directory().display(),
            own.subject
        )));
    }
    // A key that was made and never certified is the one that was meant.
    let key_pem = match store.key_file().exists() && !store.cert_file().exists() {
        true => store.key_pem()?,
        false => KeyType::P256.generate().map_err(|error| Failure::Other(error.into()))?,
    };
    let first = written::first_contact(config_file, &invitation.hub)?;
    let clock = Clock::open(&state_dir.join("spool"));
    let enrolled = with_runtime(contact(invitation, &first, &store, &key_pem, &clock))?;
    let plan = install(&store, &key_pem, enrolled, &state_dir, config_file, &clock)?;
    let text = plan.to_toml();
    let config = plan.check(config_file)?;
    written::write(config_file, &text, &state_dir)?;
    Ok(config)
}

/// The first contact: the CA, where it is known by its fingerprint alone, then the code and the
/// request over a verified connection.
async fn contact(
    invitation: &Invitation,
    uplink: &Uplink,
    store: &Store,
    key_pem: &str,
    clock: &Arc<Clock>,
) -> Result<(Enrolled, Option<String>), Failure> {
    let said = Failure::Other;
    let ca = match &invitation.trust {
        Trust::System => None,
        Trust::File(file) => {
            let text = std::fs::read_to_string(file)
                .map_err(|error| said(format!("{}: {error}", file.display())))?;
            certificates(&file.display().to_string(), &text)?;
            Some(text)
        }
        Trust::Fingerprint(fingerprint) => Some(pinned(uplink, *fingerprint).await?),
    };
    let key = DeviceKey::from_pem(key_pem).ok_or_else(|| said("the key can't be used".into()))?;
    // The subject is the hub's to say: the code stands for it.
    let request = certificate_request(&key, "enrol").map_err(said)?;
    let contents = Contents { key: key_pem, certificate: None, ca: ca.as_deref() };
    let staged = store.stage(contents, true)?;
    let ca_file = staged.files().ca_file();
    let tls = identity::client_tls(ca.is_some().then_some(&*ca_file), None, clock)?;
    let mut target = dialer::target(uplink, 0, None, Some(tls)).map_err(said)?;
    target.ca_file = ca.is_some().then_some(ca_file);
    target.url.path = "/v1/enroll".into();
    let request = Value::from(request);
    let code = invitation.code.reveal();
    let body = Zeroizing::new(format!("{{\"code\":\"{code}\",\"csr\":{request}}}"));
    let reply = link::exchange(&target, Some(&body)).await;
    let reply = reply.map_err(|down| said(down.to_string()))?;
    let enrolled = match reply.status {
        200 => Enrolled::read(&reply.body)
            .ok_or_else(|| said(format!("{ANSWER} is none; is the hub of another version?")))?,
        _ => return Err(said(refusal(&reply))),
    };
    // The answer came from a verified hub; still it must be about this key.
    let pair = Pair::answered(ANSWER, &enrolled.certificate, &key, Zeroizing::default())?;
    certificates(ANSWER, &enrolled.ca)?;
    if pair.certificate.common_name.as_ref() != Some(&enrolled.gateway) {
        let text = format!("{ANSWER} names {} and certifies another", enrolled.gateway);
        return Err(said(text + "; see the hub's log"));
    }
    Ok((enrolled, ca))
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
    key_pem: &str,
    (enrolled, first_ca): (Enrolled, Option<String>),
    state_dir: &std::path::Path,
    config_file: &std::path::Path,
    clock: &Arc<Clock>,
) -> Result<Plan, Failure> {
    let url = HubUrl::parse(&enrolled.uplink)
        .map_err(|fault| Failure::Other(format!("{ANSWER}: uplink: {fault}")))?;
    // A hub behind somebody else's TLS shows a certificate that its own CA did not issue.
    let candidates = [Some(enrolled.ca.as_str()), first_ca.as_deref()];
    let (mut staged, mut plan) = (None::<Staged>, None);
    for ca in candidates {
        drop(staged.take());
        let contents = Contents { key: key_pem, certificate: Some(&enrolled.certificate), ca };
        let ready = store.stage(contents, true)?;
        let mut planned = Plan::new(store, state_dir, &enrolled, ca.is_some());
        let works = with_runtime(try_out(config_file, &url, &mut planned, ready.files(), clock))?;
        staged = Some(ready);
        plan = Some(planned);
        if works {
            break;
        }
    }
    let (staged, plan) = staged.zip(plan).expect("there are two candidates");
    staged.promote()?;
    println!(
        "enrolled as {}; the identity is in {}",
        enrolled.gateway,
        store.directory().display()
    );
    Ok(plan)
}

/// Whether the hub's certificate stands under the staged CA. Where the hub takes no client
/// certificate but a token of the key, the plan says so from then on.
async fn try_out(
    config_file: &std::path::Path,
    url: &HubUrl,
    plan: &mut Plan,
    staged: &Store,
    clock: &Arc<Clock>,
) -> Result<bool, Failure> {
    let uplink = written::first_contact(config_file, url)?;
    let ca_file = Some(staged.ca_file()).filter(|_| plan.has_ca());
    let (cert, key) = (staged.cert_file(), staged.key_file());
    let tls = identity::client_tls(ca_file.as_deref(), Some((&cert, &key)), clock)?;
    let mut target = dialer::target(&uplink, 0, None, Some(tls)).map_err(Failure::Other)?;
    target.url.path.clone_from(&url.path);
    match link::examine(&target, &mut |_| ()).await {
        Ok(_) => Ok(true),
        Err(link::Down::Refused { status: 401 | 403, .. }) if plan.may_sign() => {
            let tls = identity::client_tls(ca_file.as_deref(), None, clock)?;
            let tokens = TokenSource::Jwt(plan.jwt(key));
            let token = tokens.token(clock.now().0.unix_ms)?.0;
            let target = link::Target { bearer: Some(token), tls: Some(tls), ..target };
            if link::examine(&target, &mut |_| ()).await.is_ok() {
                plan.sign();
            }
            Ok(true)
        }
        Err(link::Down::Dial { step: "TLS", .. }) => Ok(false),
        // What else keeps it away is for the doctor to tell.
        Err(_) => Ok(true),
    }
}
