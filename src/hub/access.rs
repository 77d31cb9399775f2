//! Who may ask for what: API tokens and their scopes.

use std::{fmt, net::IpAddr, sync::Arc};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
};

use super::{
    arrivals::{Arrival, Holder},
    authenticate::check_rate,
    credential::{bearer, same_digest, token_digest},
    engine::EngineError,
    refusal::Refusal,
    server::{Hub, Peer, blocking, now},
};

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    GatewaysRead,
    RecordsRead,
    CommandsRead,
    CommandsWrite,
    Live,
}

impl Scope {
    pub(super) const ALL: [Self; 5] = [
        Self::GatewaysRead,
        Self::RecordsRead,
        Self::CommandsRead,
        Self::CommandsWrite,
        Self::Live,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::GatewaysRead => "gateways:read",
            Self::RecordsRead => "records:read",
            Self::CommandsRead => "commands:read",
            Self::CommandsWrite => "commands:write",
            Self::Live => "live",
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == name)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who asks: an address and, if it gave one, a token, which its `Debug` does not show.
pub(super) struct Caller {
    address: IpAddr,
    arrival: Arc<Arrival>,
    token: Option<String>,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Caller {
    /// Who sent a request.
    pub(super) fn of(peer: &Peer, headers: &HeaderMap) -> Self {
        let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(bearer).map(str::to_owned);
        Self { address: peer.address, arrival: peer.arrival.clone(), token }
    }

    /// The same with the token that a browser offered, where there is none in the header.
    pub(super) fn or_token(self, offered: impl FnOnce() -> Option<String>) -> Self {
        Self { token: self.token.or_else(offered), ..self }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let peer = parts.extensions.get::<Peer>().ok_or_else(Refusal::unauthorized)?;
        Ok(Self::of(peer, &parts.headers))
    }
}

/// Refuses a caller whose token does not allow `scope`.
pub(super) async fn require(hub: &Arc<Hub>, caller: &Caller, scope: Scope) -> Result<(), Refusal> {
    admit(hub, caller, scope).await.map(drop)
}

/// The token of a caller whom it allows `scope`, and all that it allows.
///
/// Whoever had too many tokens refused is sent away before any look-up.
pub(super) async fn admit(
    hub: &Arc<Hub>,
    caller: &Caller,
    scope: Scope,
) -> Result<(String, Vec<Scope>), Refusal> {
    let token = caller.token.as_deref().ok_or_else(Refusal::unauthorized)?;
    let claim = hub.throttle.claim_of_token(token);
    check_rate(hub, caller.address, claim)?;
    let known = scopes(hub, token).await?;
    let Some((digest, scopes)) = token_digest(token).zip(known) else {
        hub.throttle.failed(now().instant, caller.address, claim);
        let peer = caller.address;
        tracing::warn!(%peer, "an application was refused: its token is not known, or revoked");
        return Err(Refusal::unauthorized());
    };
    hub.throttle.accepted(claim);
    if !caller.arrival.prove(Holder::Application(digest)) {
        if hub.throttle.is_news(now().instant, "connections of an application") {
            tracing::warn!(peer = %caller.address, "an application has too many connections");
        }
        return Err(Refusal::too_many_connections());
    }
    if scopes.contains(&scope) {
        Ok((token.to_owned(), scopes))
    } else {
        Err(Refusal::forbidden(scope.as_str()))
    }
}

/// What a token allows; `None`: it is none of ours, or was revoked.
pub(super) async fn scopes(hub: &Arc<Hub>, token: &str) -> Result<Option<Vec<Scope>>, EngineError> {
    let Some(digest) = token_digest(token) else { return Ok(None) };
    let reader = hub.reader.clone();
    let found = blocking(move || {
        let found = reader.scopes_of_token(&digest)?;
        Ok(found.filter(|(_, stored)| same_digest(stored, &digest)))
    });
    Ok(found.await?.map(|(scopes, _)| scopes.split(' ').filter_map(Scope::parse).collect()))
}
