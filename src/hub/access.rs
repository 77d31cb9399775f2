//! Who may ask for what: API tokens and their scopes.

use std::{fmt, sync::Arc};

use axum::http::{HeaderMap, header};

use super::{
    credential::{bearer, same_digest, token_digest},
    engine::EngineError,
    refusal::Refusal,
    server::{Hub, blocking},
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

/// Refuses a request whose `Authorization` does not allow `scope`.
pub(super) async fn require(
    hub: &Arc<Hub>,
    headers: &HeaderMap,
    scope: Scope,
) -> Result<(), Refusal> {
    let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(bearer).ok_or_else(Refusal::unauthorized)?;
    let scopes = scopes(hub, token).await?.ok_or_else(Refusal::unauthorized)?;
    if scopes.contains(&scope) { Ok(()) } else { Err(Refusal::forbidden(scope.as_str())) }
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
