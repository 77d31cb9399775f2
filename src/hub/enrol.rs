//! Enrolment over HTTP: a board that knows a code gets a certificate for its key, and a gateway
//! gets a new one before the old ends (PROTOCOL.md, appendix C).
//!
//! | request | with | answer |
//! |---|---|---|
//! | `GET /v1/enroll/ca` | nothing | 200, the CA's certificate, PEM |
//! | `POST /v1/enroll` | `{"code","csr"}` | 200 [`Issued`]; 403 `enrolment_refused` |
//! | `POST /v1/renew` | `{"csr"}`; a client certificate, or a token of the gateway's key | 200 [`Issued`] |
//!
//! A stranger must not learn what was wrong: with the code, with the request, or with the hub.

use std::{net::IpAddr, sync::Arc};

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{HeaderMap, Response, StatusCode, header},
    response::IntoResponse as _,
};
use serde::{Deserialize, Serialize};

use super::{
    api::{Answered, json, read_body},
    authenticate::{self, check_rate},
    authority::{Authority, AuthorityError, Signed, read_request},
    config::Config,
    credential::{bearer, code_digest},
    engine::{EngineError, Registry},
    jwt::PublicKey,
    refusal::Refusal,
    server::{Hub, Peer, blocking, now},
};

/// The largest body.
const MAX_BODY_BYTES: usize = 16 << 10;

/// What a code is looked up by that can't be one: no code has this digest.
const NO_DIGEST: [u8; 32] = [0; 32];

#[derive(Deserialize)]
struct Enrolment {
    code: String,
    csr: String,
}

#[derive(Deserialize)]
struct Renewal {
    csr: String,
}

/// A certificate and what a board needs beside it.
#[derive(Debug, Serialize)]
struct Issued {
    gateway: String,
    certificate: String,
    ca: String,
    uplink: String,
    audience: String,
    public_key_registered: bool,
}

/// `GET /v1/enroll/ca`
pub(super) async fn authority(State(hub): State<Arc<Hub>>) -> Answered {
    let file = Authority::certificate_file(&hub.config.ca.dir);
    let pem = blocking(move || Ok(std::fs::read(file).ok())).await?;
    let pem = pem.ok_or_else(|| Refusal::not_found("authority: this hub signs no certificates"))?;
    let headers = [(header::CONTENT_TYPE, "application/x-pem-file")];
    Ok((StatusCode::OK, headers, pem).into_response())
}

/// `POST /v1/enroll`
pub(super) async fn enrol(
    State(hub): State<Arc<Hub>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Answered {
    let address = peer.address;
    check_rate(&hub, address)?;
    check_total(&hub, address)?;
    let wish: Enrolment = read(body).await?;
    let digest = code_digest(&wish.code);
    let (config, reader) = (hub.config.clone(), hub.reader.clone());
    let enrolled = blocking(move || {
        // Both are looked at whatever the other is, so that the time does not tell which is wrong;
        // a stranger's attempt writes nothing.
        let key = read_request(&wish.csr);
        let digest = digest.as_deref().unwrap_or(&NO_DIGEST);
        let is_known = reader.knows_code(digest, now_ms())?;
        let key = match (key, is_known) {
            (Ok(key), true) => key,
            (Ok(_), false) => return Ok(Err("the code is unknown, used or expired".into())),
            (Err(fault), true) => return Ok(Err(format!("{fault}; the code is good"))),
            (Err(fault), false) => return Ok(Err(format!("{fault}; neither is the code good"))),
        };
        let mut registry = Registry::open(&config.store.path)?;
        let enrolled = registry.enrol(digest, &key, now_ms(), |gateway| {
            sign(&config, gateway, &key).map(|(signed, ca)| ((signed.pem, ca), signed.entry))
        });
        let enrolled = match enrolled {
            Ok(Some(enrolled)) => enrolled,
            Ok(None) => return Ok(Err("another board has just used the code".into())),
            Err(error) => return Ok(Err(error.to_string())),
        };
        renew_revoked(&config, &registry);
        Ok(Ok(enrolled))
    });
    match enrolled.await? {
        Ok((gateway, (certificate, ca))) => {
            tracing::info!(%gateway, peer = %address, "enrolled; what it had before is revoked");
            Ok(issued(&hub, &headers, gateway, certificate, ca))
        }
        Err(reason) => {
            hub.throttle.failed(now().instant, address);
            tracing::warn!(peer = %address, reason, "an enrolment was refused");
            Err(Refusal::enrolment_refused())
        }
    }
}

/// `POST /v1/renew`
pub(super) async fn renew(
    State(hub): State<Arc<Hub>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Answered {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = authorization.and_then(bearer);
    let identity = authenticate::gateway(&hub, &peer, token).await?;
    let gateway = identity.gateway.to_string();
    if !identity.has_own_key() {
        tracing::warn!(%gateway, peer = %peer.address, "a renewal was refused: no key of its own");
        return Err(Refusal::unauthorized());
    }
    check_total(&hub, peer.address)?;
    let wish: Renewal = read(body).await?;
    let key = read_request(&wish.csr).map_err(|fault| {
        tracing::warn!(%gateway, peer = %peer.address, %fault, "a renewal was refused");
        Refusal::bad_request(fault.to_string())
    })?;
    let (config, named) = (hub.config.clone(), gateway.clone());
    let renewed = blocking(move || {
        let mut registry = Registry::open(&config.store.path)?;
        registry.renew(&named, &key, now_ms(), || {
            sign(&config, &named, &key).map(|(signed, ca)| ((signed.pem, ca), signed.entry))
        })
    });
    let (certificate, ca) = renewed.await?.ok_or_else(Refusal::unauthorized)?;
    tracing::info!(%gateway, peer = %peer.address, "its certificate is renewed");
    Ok(issued(&hub, &headers, gateway, certificate, ca))
}

/// A new list of the revoked beside a change that stands: a hub that can't write it still refuses
/// what the registry says is revoked.
pub(super) fn renew_revoked(config: &Config, registry: &Registry) {
    let renewed = Authority::open(&config.ca.dir)
        .and_then(|authority| authority.renew_revoked(registry, now().unix_ms / 1000));
    if let Err(error) = renewed {
        tracing::error!(%error, "the list of revoked certificates is out of date");
    }
}

fn sign(config: &Config, gateway: &str, key: &PublicKey) -> Result<(Signed, String), EngineError> {
    let signed = || -> Result<_, AuthorityError> {
        let authority = Authority::open(&config.ca.dir)?;
        let now_s = now().unix_ms / 1000;
        let signed = authority.sign_client(gateway, key, now_s, config.ca.days)?;
        Ok((signed, authority.pem().to_owned()))
    };
    signed().map_err(|error| EngineError(error.to_string()))
}

fn issued(
    hub: &Hub,
    headers: &HeaderMap,
    gateway: String,
    certificate: String,
    ca: String,
) -> Response<Body> {
    // Without a configured name, the one by which the board found the hub will do.
    let asked = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = hub.config.public_host.as_deref().or(asked).unwrap_or_default();
    let issued = Issued {
        gateway,
        certificate,
        ca,
        uplink: format!("wss://{host}/v1/gateway"),
        audience: hub.config.jwt.audiences.first().cloned().unwrap_or_default(),
        public_key_registered: true,
    };
    json(StatusCode::OK, &issued)
}

/// Attempts of all addresses together have a bound too.
fn check_total(hub: &Hub, address: IpAddr) -> Result<(), Refusal> {
    hub.throttle.enrol(now().instant).map_err(|wait| {
        // Counted, so that one address can't fill the log with this.
        hub.throttle.failed(now().instant, address);
        tracing::warn!(peer = %address, "too many attempts to enrol or renew, of all addresses");
        Refusal::too_often(wait)
    })
}

async fn read<T: for<'de> Deserialize<'de>>(body: Body) -> Result<T, Refusal> {
    let body = read_body(body, MAX_BODY_BYTES).await?;
    serde_json::from_slice(&body).map_err(|error| {
        Refusal::bad_request(format!(
            "the body: {:?} at column {}",
            error.classify(),
            error.column()
        ))
    })
}

fn now_ms() -> i64 {
    now().unix_ms.cast_signed()
}
