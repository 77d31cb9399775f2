//! Who a gateway is: by a token of the hub's, by a token signed with its key or by the issuer, or
//! by its client certificate; and whether that still stands.
//!
//! Why somebody was refused is for the log alone.

use std::{net::IpAddr, sync::Arc};

use rustls::pki_types::CertificateDer;

use super::{
    arrivals::Holder,
    credential::{ClientCertificate, is_gateway_id, same_digest, token_digest},
    engine::{EngineError, Reader, Voucher},
    jwt::{self, Claims, Fault, PublicKey, Unverified},
    refusal::Refusal,
    server::{Hub, Peer, blocking, now},
    session::Expiry,
    throttle::Claim,
};

/// A client certificate that TLS verified, with its chain.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) certificate: ClientCertificate,
    pub(super) chain: Vec<CertificateDer<'static>>,
}

/// A gateway whose credential was verified.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) gateway: Arc<str>,
    /// When the credential ends; `None`: never.
    pub(super) expiry: Option<Expiry>,
    proof: Proof,
}

#[derive(Debug, Clone)]
enum Proof {
    /// A token of the hub's, by its SHA-256.
    Token(Vec<u8>),
    /// A token that was signed with this key of the gateway's.
    Key(PublicKey),
    /// A token of the issuer.
    Issuer,
    /// The client certificate.
    Certificate,
}

/// Somebody was not let in.
#[derive(Debug)]
pub(super) enum Denied {
    /// Why, for the log.
    Refused(String),
    /// It can't be known now.
    Store(EngineError),
}

impl From<EngineError> for Denied {
    fn from(error: EngineError) -> Self {
        Self::Store(error)
    }
}

impl From<Fault> for Denied {
    fn from(fault: Fault) -> Self {
        Self::Refused(fault.to_string())
    }
}

impl Identity {
    /// Whether it was proven with a key of its own, and not with a secret that others could know.
    pub(super) fn has_own_key(&self) -> bool {
        matches!(self.proof, Proof::Key(_) | Proof::Certificate)
    }
}

/// Verifies the token, or else the client certificate.
///
/// Whoever had too many refused is sent away before any of it is looked at; what is refused counts.
pub(super) async fn gateway(
    hub: &Arc<Hub>,
    peer: &Peer,
    token: Option<&str>,
) -> Result<Identity, Refusal> {
    let claim = hub.throttle.claim_of_gateway(token, peer.shown.as_deref());
    check_rate(hub, peer.address, claim)?;
    let verified = match token {
        Some(token) => of_token(hub, token).await,
        None => of_certificate(hub, peer).await,
    };
    let identity = verified.map_err(|denied| match denied {
        Denied::Refused(reason) => {
            hub.throttle.failed(now().instant, peer.address, claim);
            tracing::warn!(peer = %peer.address, reason, "a gateway was refused");
            Refusal::unauthorized()
        }
        Denied::Store(error) => error.into(),
    })?;
    hub.throttle.accepted(claim);
    if !peer.arrival.prove(Holder::Gateway(identity.gateway.clone())) {
        if hub.throttle.is_news(now().instant, "connections of a gateway") {
            let (gateway, peer) = (&identity.gateway, peer.address);
            tracing::warn!(%gateway, %peer, "the gateway has too many connections");
        }
        return Err(Refusal::too_many_connections());
    }
    Ok(identity)
}

/// Sends away whoever had too many credentials refused.
pub(super) fn check_rate(hub: &Hub, address: IpAddr, claim: Claim) -> Result<(), Refusal> {
    hub.throttle.may_try(now().instant, address, claim).map_err(|wait| {
        tracing::debug!(peer = %address, ?wait, "too many credentials were refused");
        Refusal::too_often(wait)
    })
}

/// Verifies a token.
pub(super) async fn of_token(hub: &Arc<Hub>, token: &str) -> Result<Identity, Denied> {
    if jwt::is_jwt(token) {
        return of_jwt(hub, token).await;
    }
    let unknown = || Denied::Refused("the token is not known".into());
    let digest = token_digest(token).ok_or_else(unknown)?;
    let gateway = gateway_of(hub, digest.clone()).await?.ok_or_else(unknown)?;
    Ok(Identity { gateway: gateway.into(), expiry: None, proof: Proof::Token(digest) })
}

/// Whether a credential that was good is still.
pub(super) async fn still_stands(
    hub: &Arc<Hub>,
    peer: &Peer,
    identity: &Identity,
) -> Result<bool, EngineError> {
    let gateway = identity.gateway.clone();
    let reader = hub.reader.clone();
    match &identity.proof {
        Proof::Token(digest) => {
            Ok(gateway_of(hub, digest.clone()).await?.as_deref() == Some(&*gateway))
        }
        Proof::Key(key) => {
            let key = key.clone();
            blocking(move || Ok(reader.keys_of_gateway(&gateway)?.contains(&key))).await
        }
        Proof::Issuer => blocking(move || reader.is_admitted(&gateway, Voucher::Outside)).await,
        Proof::Certificate => {
            let Some(shown) = peer.shown.clone() else { return Ok(false) };
            let Some(voucher) = hub.voucher(&shown.chain) else { return Ok(false) };
            let serial = shown.certificate.serial.clone();
            let admitted = blocking(move || admitted(&reader, &gateway, &serial, voucher));
            Ok(admitted.await?.is_ok())
        }
    }
}

async fn gateway_of(hub: &Arc<Hub>, digest: Vec<u8>) -> Result<Option<String>, EngineError> {
    let reader = hub.reader.clone();
    blocking(move || {
        let found = reader.gateway_of_token(&digest)?;
        Ok(found.filter(|(_, stored)| same_digest(stored, &digest)).map(|(gateway, _)| gateway))
    })
    .await
}

async fn of_jwt(hub: &Arc<Hub>, token: &str) -> Result<Identity, Denied> {
    let token = Unverified::read(token)?;
    let subject = token.subject().filter(|id| is_gateway_id(id)).ok_or(Fault::Subject)?.to_owned();
    let of = |what: String| Denied::Refused(format!("{what}; it claims to be {subject}"));
    let issuer = hub.issuer.as_ref().filter(|issuer| token.issuer() == Some(issuer.name()));
    let keys = match issuer {
        None => {
            let (reader, subject) = (hub.reader.clone(), subject.clone());
            blocking(move || reader.keys_of_gateway(&subject)).await?
        }
        Some(issuer) => match token.kid() {
            Some(kid) => issuer.key(kid).await.into_iter().collect(),
            None => return Err(of("the issuer's token has no kid".into())),
        },
    };
    let now_s = now().unix_ms / 1000;
    let claims = token.verify(&keys, now_s, &hub.config.jwt.audiences);
    let Claims { expires_s, key, .. } = claims.map_err(|fault| of(fault.to_string()))?;
    let proof = if issuer.is_some() {
        let (reader, gateway) = (hub.reader.clone(), subject.clone());
        if !blocking(move || reader.is_admitted(&gateway, Voucher::Outside)).await? {
            return Err(of("the issuer's token names no gateway that is let in by name".into()));
        }
        Proof::Issuer
    } else {
        Proof::Key(key)
    };
    let expiry = Expiry {
        ends_ms: (expires_s + jwt::LEEWAY_S).saturating_mul(1000),
        told_ms: Some(expires_s.saturating_mul(1000)),
    };
    Ok(Identity { gateway: subject.into(), expiry: Some(expiry), proof })
}

async fn of_certificate(hub: &Arc<Hub>, peer: &Peer) -> Result<Identity, Denied> {
    let none = || Denied::Refused("it showed neither a token nor a client certificate".into());
    let shown = peer.shown.clone().ok_or_else(none)?;
    let ClientCertificate { gateway, serial, not_after_ms } = shown.certificate.clone();
    if not_after_ms <= now().unix_ms {
        return Err(Denied::Refused("the client certificate has expired".into()));
    }
    // TLS verified it when the connection began, or the session that it resumed: since then a list
    // may have named it, and its CA may be gone.
    let voucher = hub.voucher(&shown.chain).ok_or_else(|| {
        Denied::Refused("the client certificate is revoked, or its CA is no longer trusted".into())
    })?;
    let gateway = gateway.ok_or_else(|| {
        Denied::Refused(
            "the client certificate names no gateway: its one common name, a DNS name or a URI is \
             to be the id"
                .into(),
        )
    })?;
    let (reader, named) = (hub.reader.clone(), gateway.clone());
    let admitted = blocking(move || admitted(&reader, &named, &serial, voucher)).await?;
    admitted.map_err(|fault| Denied::Refused(format!("{fault}: {gateway}")))?;
    let expiry = Some(Expiry { ends_ms: not_after_ms, told_ms: None });
    Ok(Identity { gateway: gateway.into(), expiry, proof: Proof::Certificate })
}

/// Whether the registry lets this certificate of the gateway in, or why not.
fn admitted(
    reader: &Reader,
    gateway: &str,
    serial: &[u8],
    voucher: Voucher,
) -> Result<Result<(), &'static str>, EngineError> {
    if voucher == Voucher::OwnCa && reader.is_revoked_certificate(serial)? {
        return Ok(Err("the client certificate is revoked"));
    }
    Ok(match reader.is_admitted(gateway, voucher)? {
        true => Ok(()),
        false => Err("the client certificate names no gateway that is let in by such a one"),
    })
}
