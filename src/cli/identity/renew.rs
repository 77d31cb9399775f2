//! `fieldgate identity renew`: a request to the hub, a new certificate, a connection with it, and
//! only then is it put in force.

use std::{path::Path, process::ExitCode, sync::Arc};

use serde_json::{Value, json};

use super::Failure;
use crate::{
    cli::{dialer, run::spool_dir, with_runtime},
    config::{Config, HubUrl, Uplink},
    identity::{
        self, Certificate, Clock, Contents, DeviceKey, Jwt, KeyType, Pair, Store, Token,
        TokenSource, certificate_request,
    },
    link,
};

/// What names the hub's answer in errors.
const ANSWER: &str = "the hub's answer";

/// Renews the certificate that the configuration names. What is in force stays so until a
/// connection with the new one worked.
pub(super) fn renew(file: &Path, url: Option<&str>, new_key: bool) -> Result<ExitCode, Failure> {
    let config = Config::load(file)?;
    let uplink = config.uplink.as_ref().ok_or_else(|| {
        Failure::Other(format!("{}: there is no [uplink] url to renew at", file.display()))
    })?;
    let store = Store::of_state_dir(&config.gateway.state_dir);
    let clock = Clock::open(&spool_dir(&config));
    if let Some((cert, _)) = uplink.client_cert.as_ref().filter(|it| it.0 != store.cert_file()) {
        return Err(Failure::Other(format!(
            "{}: this certificate is not kept by this program; have it renewed where it was \
             issued, or hand it over: fieldgate identity import --cert {0} --key …, and set \
             client_cert_file to {}",
            cert.display(),
            store.cert_file().display()
        )));
    }
    let id = match &config.gateway.id {
        Some(id) => id.clone(),
        None => identity::gateway_id(uplink.client_cert.as_ref().map(|(cert, _)| &**cert))?,
    };
    let tokens = TokenSource::of(uplink, &id);
    let token = tokens.as_ref().map(|tokens| tokens.token(clock.unix_ms())).transpose()?;
    let token = token.map(|(token, _)| token);
    let (key, key_pem) = key_for(&store, new_key)?;
    let request = certificate_request(&key, &id)
        .map_err(|fault| Failure::Other(format!("{}: {fault}", store.key_file().display())))?;
    let pair = with_runtime(async {
        let answer = ask(uplink, url, token, &request, &clock).await?;
        Ok::<_, Failure>(Pair::answered(ANSWER, &answer, &key, key_pem, &clock)?)
    })?;
    let (ca, hub) = (store.ca()?, store.uplink()?);
    let contents = Contents {
        key: &pair.key,
        certificate: Some(&pair.chain),
        ca: ca.as_deref(),
        uplink: hub.as_deref(),
    };
    let staged = store.stage(contents, true)?;
    let tokens = tokens.map(|tokens| of_staged(tokens, &store, staged.files()));
    if let Err(why) = with_runtime(try_out(uplink, staged.files(), tokens, &clock)) {
        return Err(Failure::Other(format!(
            "the new certificate is not taken over, the old one stays in force: {why}"
        )));
    }
    staged.promote()?;
    told(&pair.certificate);
    Ok(ExitCode::SUCCESS)
}

fn told(certificate: &Certificate) {
    println!(
        "renewed until {}; a running gateway uses it from its next connection on",
        certificate.not_after
    );
}

fn key_for(
    store: &Store,
    new_key: bool,
) -> Result<(DeviceKey, zeroize::Zeroizing<String>), Failure> {
    if !new_key {
        return Ok((store.key()?, store.key_pem()?));
    }
    // Whoever chose the kind had a reason; of those that are none of ours the next is P-256.
    let kind = store.key()?.kind().unwrap_or(KeyType::P256);
    let pem = kind.generate().map_err(|error| Failure::Other(error.into()))?;
    Ok((DeviceKey::from_pem(&pem).expect("a key that was just made"), pem))
}

async fn ask(
    uplink: &Uplink,
    url: Option<&str>,
    token: Option<Token>,
    request: &str,
    clock: &Arc<Clock>,
) -> Result<String, Failure> {
    let said = |text: String| Failure::Other(text);
    let pair = uplink.client_cert.as_ref().map(|(cert, key)| (&**cert, &**key));
    let tls = tls(uplink, pair, clock)?;
    let mut target = dialer::target(uplink, 0, token, tls).map_err(said)?;
    if let Some(url) = url {
        let url = url.replacen("https://", "wss://", 1);
        target.url = HubUrl::parse(&url).map_err(|fault| said(format!("--url: {fault}")))?;
    }
    target.url.path = "/v1/renew".into();
    let body = json!({ "csr": request }).to_string();
    let reply = link::exchange(&target, Some(&body)).await;
    let reply = reply.map_err(|down| said(down.to_string()))?;
    if reply.status != 200 {
        let why = match reply.status {
            401 | 403 => "the hub refuses the credential in force; its log should say why".into(),
            404 => "the hub renews nothing (HTTP 404); correct the URL".to_owned(),
            status => format!("the hub answers with HTTP {status}; its log should say why"),
        };
        return Err(said(format!("not renewed: {why}")));
    }
    let answer: Value = serde_json::from_str(&reply.body).unwrap_or_default();
    let certificate = answer["certificate"].as_str().map(str::to_owned);
    certificate.ok_or_else(|| said(format!("{ANSWER} has no certificate; see its version")))
}

/// Tokens as they will be once what is staged is in force: signed with its key.
fn of_staged(tokens: TokenSource, store: &Store, staged: &Store) -> TokenSource {
    match tokens {
        TokenSource::Jwt(jwt) if jwt.key_file == store.key_file() => {
            TokenSource::Jwt(Jwt { key_file: staged.key_file(), ..jwt })
        }
        others => others,
    }
}

/// A connection with the staged pair, up to and with the upgrade.
async fn try_out(
    uplink: &Uplink,
    staged: &Store,
    tokens: Option<TokenSource>,
    clock: &Arc<Clock>,
) -> Result<(), String> {
    let token = tokens.map(|tokens| tokens.token(clock.unix_ms())).transpose();
    let token = token.map_err(|error| error.to_string())?.map(|(token, _)| token);
    let (cert, key) = (staged.cert_file(), staged.key_file());
    // A gateway that shows a token alone shows no certificate here either.
    let pair = uplink.client_cert.is_some().then_some((&*cert, &*key));
    let tls = tls(uplink, pair, clock).map_err(|failure| failure.to_string())?;
    let target = dialer::target(uplink, 0, token, tls)?;
    let done = link::examine(&target, &mut |_| ()).await;
    done.map(drop).map_err(|down| down.to_string())
}

fn tls(
    uplink: &Uplink,
    pair: Option<(&Path, &Path)>,
    clock: &Arc<Clock>,
) -> Result<Option<Arc<rustls::ClientConfig>>, Failure> {
    let wanted = uplink.hubs.iter().any(|hub| hub.url.tls);
    let made = wanted.then(|| identity::client_tls(uplink.ca_file.as_deref(), pair, clock));
    Ok(made.transpose()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_the_trial_are_signed_with_the_staged_key_unless_another_signs_them() {
        let store = Store::of_state_dir(Path::new("/s"));
        let staged = Store::at(Path::new("/s/identity.new"));
        let tokens = |key_file: &str| {
            TokenSource::Jwt(Jwt {
                key_file: key_file.into(),
                subject: "gw-1".into(),
                audience: "hub-1".into(),
                issuer: None,
                kid: None,
                lifetime: std::time::Duration::from_secs(60),
            })
        };
        let tried = |source| of_staged(source, &store, &staged);
        let ours = tried(tokens("/s/identity/gateway.key"));
        assert_eq!(ours, tokens("/s/identity.new/gateway.key"));
        let file = TokenSource::File("/s/identity/gateway.key".into());
        for other in [tokens("/etc/gw.key"), file] {
            assert_eq!(tried(other.clone()), other);
        }
    }
}
