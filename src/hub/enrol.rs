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
    engine::{Certificate, EngineError, Enrolled, Registry},
    jwt::PublicKey,
    refusal::Refusal,
    server::{Hub, Peer, blocking, now},
    throttle::Kind,
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
    let claim = hub.throttle.claim(Kind::Code, &());
    check_rate(&hub, address, claim)?;
    let failed = || hub.throttle.failed(now().instant, address, claim);
    let wish: Enrolment = read(body).await.inspect_err(|_| failed())?;
    let digest = code_digest(&wish.code);
    if digest.is_some() {
        check_total(&hub, address)?;
    }
    let (config, reader) = (hub.config.clone(), hub.reader.clone());
    let enrolled = blocking(move || {
        // Both are looked at whatever the other is, so that the time does not tell which is wrong;
        // a stranger's attempt writes nothing.
        let key = read_request(&wish.csr);
        let digest = digest.as_deref().unwrap_or(&NO_DIGEST);
        let is_known = reader.knows_code(digest, key.as_ref().ok(), now_ms())?;
        let key = match (key, is_known) {
            (Ok(key), true) => key,
            (Ok(_), false) => return Ok(Err("the code is unknown, used or expired".into())),
            (Err(fault), true) => return Ok(Err(format!("{fault}; the code is good"))),
            (Err(fault), false) => return Ok(Err(format!("{fault}; neither is the code good"))),
        };
        let mut registry = Registry::open(&config.store.path)?;
        let enrolled = Authority::open(&config.ca.dir).map_err(unsigned).and_then(|authority| {
            let sign = |gateway: &str| sign(&authority, gateway, &key, config.ca.days);
            let enrolled = registry.enrol(digest, &key, now_ms(), sign)?;
            Ok(enrolled.map(|enrolled| (enrolled, authority.pem().to_owned())))
        });
        let (enrolled, ca) = match enrolled {
            Ok(Some(enrolled)) => enrolled,
            Ok(None) => return Ok(Err("another board has just used the code".into())),
            Err(error) => return Ok(Err(error.to_string())),
        };
        if !enrolled.again {
            renew_revoked(&config, &registry);
        }
        Ok(Ok((enrolled, ca)))
    });
    match enrolled.await? {
        Ok((Enrolled { gateway, certificate, again }, ca)) => {
            if again {
                tracing::info!(%gateway, peer = %address, "it came again: the same answer to it");
            } else {
                tracing::info!(%gateway, peer = %address, "enrolled; what it had before is revoked");
            }
            Ok(issued(&hub, &headers, gateway, certificate, ca))
        }
        Err(reason) => {
            failed();
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
    hub.throttle.renew(now().instant, &gateway).map_err(|wait| {
        tracing::warn!(%gateway, peer = %peer.address, "the gateway renews too often");
        Refusal::too_often(wait)
    })?;
    let wish: Renewal = read(body).await?;
    let key = read_request(&wish.csr).map_err(|fault| {
        tracing::warn!(%gateway, peer = %peer.address, %fault, "a renewal was refused");
        Refusal::bad_request(fault.to_string())
    })?;
    // Whoever sends a body slowly had a credential when it began.
    if !authenticate::still_stands(&hub, &peer, &identity).await? {
        tracing::warn!(%gateway, peer = %peer.address, "a renewal was refused: revoked meanwhile");
        return Err(Refusal::unauthorized());
    }
    let (config, named) = (hub.config.clone(), gateway.clone());
    let renewed = blocking(move || {
        let mut registry = Registry::open(&config.store.path)?;
        let authority = Authority::open(&config.ca.dir).map_err(unsigned)?;
        let sign = || sign(&authority, &named, &key, config.ca.days);
        let renewed = registry.renew(&named, &key, now_ms(), sign)?;
        Ok(renewed.map(|certificate| (certificate, authority.pem().to_owned())))
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

/// A certificate for the gateway, PEM, and what the registry keeps of it.
fn sign(
    authority: &Authority,
    gateway: &str,
    key: &PublicKey,
    days: u16,
) -> Result<(String, Certificate), EngineError> {
    let signed = authority.sign_client(gateway, key, now().unix_ms / 1000, days);
    let Signed { pem, entry } = signed.map_err(unsigned)?;
    Ok((pem, entry))
}

fn unsigned(error: AuthorityError) -> EngineError {
    EngineError(error.to_string())
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

/// Attempts of all addresses together have a bound too, for codes alone: what can't be one costs
/// those nothing who have one. Nor is it the fault of whoever comes when too many did.
fn check_total(hub: &Hub, address: IpAddr) -> Result<(), Refusal> {
    hub.throttle.enrol(now().instant).map_err(|wait| {
        if hub.throttle.is_news(now().instant, "enrolments") {
            tracing::warn!(peer = %address, "too many attempts to enrol, of all addresses");
        }
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
