//! How the hub says no over HTTP: `{"error":{"code","message"}}`.
//!
//! | status | code | when |
//! |---|---|---|
//! | 400 | `bad_request` | a query or body that is not what the path takes |
//! | 401 | `unauthorized` | no credential, or a wrong one; never which |
//! | 403 | `forbidden` | the token lacks the scope that the message names |
//! | 404 | `not_found` | no such path, gateway or command |
//! | 405 | `method_not_allowed` | the path takes another method |
//! | 409 | `conflict` | the command is final already; the message names its state |
//! | 413 | `too_large` | the body, or the command |
//! | 426 | `upgrade_required` | a WebSocket path without handshake, or without one of its subprotocols |
//! | 403 | `enrolment_refused` | the code or the request is not good; never which |
//! | 408 | `too_slow` | the body did not come in time |
//! | 429 | `too_many` | the gateway has as many open commands as are kept; or the credential as many connections as it may |
//! | 429 | `too_often` | too many attempts; `Retry-After` says when to come again |
//! | 503 | `unavailable` | the store is down; `Retry-After` says when to come again |

use std::time::Duration;

use axum::{
    body::Body,
    http::{Response, StatusCode, header},
    response::IntoResponse,
};
use serde_json::json;

use super::engine::EngineError;

/// A refusal.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after_s: Option<u64>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after_s: None }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "a valid credential is needed")
    }

    pub(super) fn forbidden(scope: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", format!("the token lacks scope {scope}"))
    }

    pub(super) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("no such {what}"))
    }

    pub(super) fn method_not_allowed() -> Self {
        let message = "this path takes another method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub(super) fn upgrade_required(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message)
    }

    pub(super) fn too_many(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many", message)
    }

    pub(super) fn too_many_connections() -> Self {
        Self::too_many("too many connections with this credential are open; close some")
    }

    pub(super) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "the body did not come in time")
    }

    pub(super) fn too_often(wait: Duration) -> Self {
        let message = "too many attempts; come again later";
        let refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_often", message);
        // The next whole second, so that whoever keeps to it is not refused again.
        Self { retry_after_s: Some(wait.as_secs() + 1), ..refusal }
    }

    pub(super) fn enrolment_refused() -> Self {
        let message = "the code or the request is not good; ask the hub's operator for a new code";
        Self::new(StatusCode::FORBIDDEN, "enrolment_refused", message)
    }

    pub(super) fn unavailable() -> Self {
        let message = "the store can't be reached now; try again";
        let refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message);
        Self { retry_after_s: Some(5), ..refusal }
    }

    /// The code and the message, for those who answer over a WebSocket.
    pub(super) fn parts(&self) -> (&'static str, &str) {
        (self.code, &self.message)
    }
}

impl From<EngineError> for Refusal {
    fn from(error: EngineError) -> Self {
        tracing::error!(%error, "the store could not be asked");
        Self::unavailable()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let body = json!({"error": {"code": self.code, "message": self.message}}).to_string();
        let mut response = Response::builder()
            .status(self.status)
            .header(header::CONTENT_TYPE, "application/json");
        response = match self.status {
            StatusCode::UNAUTHORIZED => response.header(header::WWW_AUTHENTICATE, "Bearer"),
            StatusCode::UPGRADE_REQUIRED => response.header(header::UPGRADE, "websocket"),
            _ => response,
        };
        if let Some(seconds) = self.retry_after_s {
            response = response.header(header::RETRY_AFTER, seconds);
        }
        response.body(Body::from(body)).expect("every header is a valid one")
    }
}
