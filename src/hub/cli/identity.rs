//! `enroll-code` and `ca`: how a board gets its certificate, by itself or by hand.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use zeroize::Zeroizing;

use super::manage::{check_gateway_id, now_ms, say};
use crate::files;
use crate::hub::{
    authority::{Authority, Signed, read_request},
    config::{Config, parse_time},
    credential::{code_digest, new_code},
    engine::Registry,
    jwt::PublicKey,
    server::now,
};

/// How long a code may be good: it is read to somebody, or put on a label, and used.
const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Debug, clap::Args)]
pub(super) struct EnrollCodeArguments {
    /// The gateway's id; it need not be known yet.
    #[arg(long)]
    gateway: String,
    /// How long the code is good: 30m, 1h, 7d at most.
    #[arg(long, default_value = "1h", value_parser = parse_time)]
    ttl: Duration,
    /// The hub's name, with :PORT if that is not 443, for the short form; default: public_host.
    #[arg(long)]
    host: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum CaCommand {
    /// Makes the authority; refuses where there is one.
    Init {
        /// What the authority is called.
        #[arg(long, default_value = "fieldgate hub CA")]
        name: String,
    },
    /// Shows the authority's certificate, PEM, and its fingerprint.
    Show,
    /// Makes a key and a client certificate of a gateway, for one that can't make its own.
    Issue {
        /// The gateway's id.
        #[arg(long)]
        gateway: String,
        /// Where GATEWAY.pem and GATEWAY.key go.
        #[arg(long, default_value = ".")]
        dir: PathBuf,
        /// How long it lasts; default: ca.days.
        #[arg(long)]
        days: Option<u16>,
    },
    /// Signs a gateway's certificate request and prints the certificate, PEM.
    Sign {
        /// The request, PEM; its subject is of no matter.
        #[arg(long, value_name = "FILE")]
        csr: PathBuf,
        /// The gateway's id.
        #[arg(long)]
        gateway: String,
        /// How long it lasts; default: ca.days.
        #[arg(long)]
        days: Option<u16>,
    },
    /// Makes a key and a certificate for the hub's own TLS, so that boards that have the authority
    /// pinned need no other.
    IssueServer {
        /// The hub's names and addresses; may be given several times.
        #[arg(long, required = true, value_delimiter = ',')]
        host: Vec<String>,
        /// Where hub.pem and hub.key go.
        #[arg(long, default_value = ".")]
        dir: PathBuf,
        /// How long it lasts.
        #[arg(long, default_value_t = 365)]
        days: u16,
    },
    /// Writes the list of revoked certificates anew and prints it, PEM.
    Crl,
}

pub(super) fn enroll_code(config: &Config, wanted: &EnrollCodeArguments) -> anyhow::Result<()> {
    let EnrollCodeArguments { gateway, ttl, host } = wanted;
    check_gateway_id(gateway)?;
    ensure!(*ttl <= MAX_TTL, "--ttl: a code is good for at most 7d");
    Authority::check_owner(&config.ca.dir)?;
    let authority = Authority::open(&config.ca.dir)?;
    let code = new_code()?;
    let digest = code_digest(&code).context("a fresh code has a digest")?;
    let now_ms = now_ms();
    let expires_ms = now_ms + i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    Registry::open(&config.store.path)?.add_code(gateway, &digest, now_ms, expires_ms)?;
    say(&code)?;
    match host.as_deref().or(config.public_host.as_deref()) {
        Some(host) => {
            warn_of_other_authority(config, &authority);
            say(&short_form(host, &code, &authority.fingerprint()))
        }
        None => {
            eprintln!("set public_host, or give --host, for the short form with the fingerprint");
            Ok(())
        }
    }
}

/// A board that pinned our authority believes no server of another one.
fn warn_of_other_authority(config: &Config, authority: &Authority) {
    // Whose certificate a proxy in front shows is not to be seen from here.
    let Some(tls) = &config.tls else { return };
    let ours = CertificateDer::from_pem_file(&tls.cert_file)
        .is_ok_and(|certificate| authority.has_signed(&certificate));
    if !ours {
        eprintln!(
            "warning: {} is not of the hub's own authority: no board gets in by the short form; \
             make one that is: fieldgate-hub ca issue-server --host NAME, or enrol with the \
             hub's address and --code",
            tls.cert_file.display()
        );
    }
}

/// What a QR code holds best: capitals, digits and few signs (ISO/IEC 18004, alphanumeric mode).
fn short_form(host: &str, code: &str, fingerprint: &str) -> String {
    format!("FIELDGATE:{}/{code}/{fingerprint}", host.to_ascii_uppercase())
}

pub(super) fn ca(config: &Config, command: &CaCommand) -> anyhow::Result<()> {
    let dir = &config.ca.dir;
    Authority::check_owner(dir)?;
    let now_s = now().unix_ms / 1000;
    match command {
        CaCommand::Init { name } => {
            let authority = Authority::init(dir, name, now_s)?;
            say(&format!("{}: ca.pem, ca.key, crl.pem", dir.display()))?;
            say(&format!("fingerprint {}", authority.fingerprint()))
        }
        CaCommand::Show => {
            let authority = Authority::open(dir)?;
            say(authority.pem().trim_end())?;
            let days = authority.not_after_s().saturating_sub(now_s) / (24 * 3600);
            say(&format!("fingerprint {}, {days} days left", authority.fingerprint()))
        }
        CaCommand::Issue { gateway, dir: out, days } => {
            let (pair, key) = new_key()?;
            let signed = sign(config, gateway, &key, *days, now_s)?;
            write(out, gateway, &signed, &pair)
        }
        CaCommand::Sign { csr, gateway, days } => {
            let pem = fs::read_to_string(csr).with_context(|| csr.display().to_string())?;
            let key = read_request(&pem).with_context(|| csr.display().to_string())?;
            say(sign(config, gateway, &key, *days, now_s)?.pem.trim_end())
        }
        CaCommand::IssueServer { host, dir: out, days } => {
            let (signed, key) = Authority::open(dir)?.issue_server(host, now_s, *days)?;
            write(out, "hub", &signed, &key)
        }
        CaCommand::Crl => {
            let registry = Registry::open(&config.store.path)?;
            say(Authority::open(dir)?.renew_revoked(&registry, now_s)?.trim_end())
        }
    }
}

/// Signs, and enters the certificate with its gateway, so that revoking one ends the other.
fn sign(
    config: &Config,
    gateway: &str,
    key: &PublicKey,
    days: Option<u16>,
    now_s: u64,
) -> anyhow::Result<Signed> {
    check_gateway_id(gateway)?;
    let days = days.unwrap_or(config.ca.days);
    ensure!(days > 0, "--days: at least 1");
    let signed = Authority::open(&config.ca.dir)?.sign_client(gateway, key, now_s, days)?;
    let mut registry = Registry::open(&config.store.path)?;
    ensure!(
        registry.add_certificate(gateway, &signed.entry, now_ms())?,
        "{gateway}: no gateway of this id is let in; add it: gateway add {gateway} --certificate"
    );
    Ok(signed)
}

fn new_key() -> anyhow::Result<(Zeroizing<String>, PublicKey)> {
    let pair = rcgen::KeyPair::generate().context("no key can be made")?;
    let key = PublicKey::from_pem(pair.public_key_pem().as_bytes())?;
    Ok((Zeroizing::new(pair.serialize_pem()), key))
}

fn write(dir: &Path, name: &str, signed: &Signed, key: &str) -> anyhow::Result<()> {
    let certificate = (format!("{name}.pem"), 0o644, signed.pem.as_str());
    for (name, mode, content) in [(format!("{name}.key"), 0o600, key), certificate] {
        let file = dir.join(name);
        files::replace(&file, mode, content.as_bytes())
            .with_context(|| format!("{}: can't be written", file.display()))?;
    }
    say(&format!("{}: {name}.pem, {name}.key", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_form_fits_the_alphanumeric_mode_of_qr_codes() {
        let code = new_code().unwrap();
        let short = short_form("hub.example.com:8443", &code, "0123456789ABCDEFGHJKMNPQRS");
        assert_eq!(
            short,
            format!("FIELDGATE:HUB.EXAMPLE.COM:8443/{code}/0123456789ABCDEFGHJKMNPQRS")
        );
        let fits =
            |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || " $%*+-./:".contains(c);
        assert!(short.chars().all(fits));
    }
}
