//! The HTTP API: what is stored, and commands. Times are Unix milliseconds; what goes wrong is in
//! [`super::refusal`].
//!
//! | request | scope | answer |
//! |---|---|---|
//! | `GET /healthz` | none | 200 `ok`, 503 while the store is down |
//! | `GET /v1/gateway` | a gateway's credential | 101 (PROTOCOL.md) |
//! | `GET /v1/live` | `live` | 101 ([`super::watch`]) |
//! | `GET /v1/gateways` | `gateways:read` | 200 `{"gateways":[…]}` |
//! | `GET /v1/gateways/{id}` | `gateways:read` | 200 |
//! | `GET /v1/gateways/{id}/records?after=&limit=&device=&stream=` | `records:read` | 200 `{"records":[…],"next_after","more","oldest"}` |
//! | `GET /v1/gateways/{id}/gaps?limit=` | `records:read` | 200 `{"gaps":[…]}`, newest first |
//! | `POST /v1/gateways/{id}/commands` | `commands:write` | 202 `{"id"}`, stored |
//! | `GET /v1/gateways/{id}/commands?limit=` | `commands:read` | 200 `{"commands":[…]}`, newest first |
//! | `GET /v1/gateways/{id}/commands/{id}` | `commands:read` | 200, with `states` |
//! | `POST /v1/gateways/{id}/commands/{id}/cancel` | `commands:write` | 200 cancelled, 202 the gateway is asked |

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{self, Body, Bytes},
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{Response, StatusCode, header},
    response::IntoResponse as _,
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    access::{self, Caller, Scope},
    commands::{self, NewCommand},
    engine::{self, Answer, Request},
    enrol,
    refusal::Refusal,
    server::{Hub, blocking},
    uplink,
    view::{self, RecordView},
    watch,
};
use crate::command::CommandId;

/// The largest body.
const MAX_BODY_BYTES: usize = 256 << 10;

/// How long a body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The most things in one answer, and how many without `limit`.
const MAX_LIMIT: usize = 10_000;
const DEFAULT_LIMIT: usize = 1000;

/// What a handler gives.
pub(super) type Answered = Result<Response<Body>, Refusal>;

/// Every path of the hub.
pub(super) fn router(hub: Arc<Hub>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/v1/gateway", get(uplink::upgrade))
        .route("/v1/live", get(watch::upgrade))
        .route("/v1/enroll", post(enrol::enrol))
        .route("/v1/enroll/ca", get(enrol::authority))
        .route("/v1/renew", post(enrol::renew))
        .route("/v1/gateways", get(gateways))
        .route("/v1/gateways/{gateway}", get(gateway))
        .route("/v1/gateways/{gateway}/records", get(records))
        .route("/v1/gateways/{gateway}/gaps", get(gaps))
        .route("/v1/gateways/{gateway}/commands", get(list_commands).post(create_command))
        .route("/v1/gateways/{gateway}/commands/{command}", get(command))
        .route("/v1/gateways/{gateway}/commands/{command}/cancel", post(cancel_command))
        .fallback(async || Refusal::not_found("path"))
        .method_not_allowed_fallback(async || Refusal::method_not_allowed())
        .with_state(hub)
}

/// What may stand in a query.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Window {
    after: u64,
    limit: Option<usize>,
    device: Option<String>,
    stream: Option<String>,
}

type Asked = Result<Query<Window>, QueryRejection>;

fn window(asked: Asked) -> Result<Window, Refusal> {
    let Query(window) = asked.map_err(|error| Refusal::bad_request(error.body_text()))?;
    match window.limit {
        Some(0) => Err(Refusal::bad_request("limit is at least 1")),
        _ => Ok(window),
    }
}

impl Window {
    fn limit(&self) -> usize {
        self.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT)
    }
}

async fn healthz(State(hub): State<Arc<Hub>>) -> Answered {
    if *hub.store.up().borrow() { Ok("ok".into_response()) } else { Err(Refusal::unavailable()) }
}

async fn gateways(State(hub): State<Arc<Hub>>, caller: Caller) -> Answered {
    access::require(&hub, &caller, Scope::GatewaysRead).await?;
    let reader = hub.reader.clone();
    let rows = blocking(move || reader.gateways(None)).await?;
    let views: Vec<Value> =
        rows.iter().map(|row| view::gateway(row, hub.presence.has(&row.id))).collect();
    Ok(json(StatusCode::OK, &json!({"gateways": views})))
}

async fn gateway(State(hub): State<Arc<Hub>>, Path(id): Path<String>, caller: Caller) -> Answered {
    access::require(&hub, &caller, Scope::GatewaysRead).await?;
    let reader = hub.reader.clone();
    let rows = blocking(move || reader.gateways(Some(&id))).await?;
    let row = rows.first().ok_or_else(|| Refusal::not_found("gateway"))?;
    Ok(json(StatusCode::OK, &view::gateway(row, hub.presence.has(&row.id))))
}

async fn records(
    State(hub): State<Arc<Hub>>,
    Path(id): Path<String>,
    asked: Asked,
    caller: Caller,
) -> Answered {
    #[derive(Serialize)]
    struct View<'a> {
        records: Vec<RecordView<'a>>,
        next_after: u64,
        more: bool,
        oldest: u64,
    }
    access::require(&hub, &caller, Scope::RecordsRead).await?;
    let window = window(asked)?;
    let query = engine::Query {
        after: window.after,
        limit: window.limit(),
        device: window.device,
        stream: window.stream,
    };
    let reader = hub.reader.clone();
    let page = blocking(move || reader.records(&id, &query)).await?;
    let page = page.ok_or_else(|| Refusal::not_found("gateway"))?;
    let view = View {
        records: page.records.iter().map(RecordView::of_row).collect(),
        next_after: page.next_after,
        more: page.more,
        oldest: page.oldest,
    };
    Ok(json(StatusCode::OK, &view))
}

async fn gaps(
    State(hub): State<Arc<Hub>>,
    Path(id): Path<String>,
    asked: Asked,
    caller: Caller,
) -> Answered {
    access::require(&hub, &caller, Scope::RecordsRead).await?;
    let limit = window(asked)?.limit();
    let reader = hub.reader.clone();
    let gaps = blocking(move || {
        let known = !reader.gateways(Some(&id))?.is_empty();
        known.then(|| reader.gaps(&id, limit)).transpose()
    });
    let gaps = gaps.await?.ok_or_else(|| Refusal::not_found("gateway"))?;
    let views: Vec<Value> = gaps.iter().map(view::gap).collect();
    Ok(json(StatusCode::OK, &json!({"gaps": views})))
}

async fn create_command(
    State(hub): State<Arc<Hub>>,
    Path(gateway): Path<String>,
    caller: Caller,
    body: Body,
) -> Answered {
    access::require(&hub, &caller, Scope::CommandsWrite).await?;
    let body = read_body(body, MAX_BODY_BYTES).await?;
    let new: NewCommand = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad_request(format!("the body: {error}")))?;
    let id = commands::create(&hub, gateway, new).await?;
    Ok(json(StatusCode::ACCEPTED, &json!({"id": id})))
}

/// Reads a body: only of those who may send one, and only for so long.
pub(super) async fn read_body(body: Body, max_bytes: usize) -> Result<Bytes, Refusal> {
    let read = timeout(BODY_TIMEOUT, body::to_bytes(body, max_bytes)).await;
    let read = read.map_err(|_| Refusal::too_slow())?;
    read.map_err(|_| Refusal::too_large(format!("the body has at most {max_bytes} bytes")))
}

async fn list_commands(
    State(hub): State<Arc<Hub>>,
    Path(id): Path<String>,
    asked: Asked,
    caller: Caller,
) -> Answered {
    access::require(&hub, &caller, Scope::CommandsRead).await?;
    let limit = window(asked)?.limit();
    let reader = hub.reader.clone();
    let rows = blocking(move || {
        let known = !reader.gateways(Some(&id))?.is_empty();
        known.then(|| reader.commands(Some(&id), limit)).transpose()
    });
    let rows = rows.await?.ok_or_else(|| Refusal::not_found("gateway"))?;
    let views: Vec<Value> = rows.iter().map(|row| view::command(row, None)).collect();
    Ok(json(StatusCode::OK, &json!({"commands": views})))
}

async fn command(
    State(hub): State<Arc<Hub>>,
    Path((gateway, id)): Path<(String, String)>,
    caller: Caller,
) -> Answered {
    access::require(&hub, &caller, Scope::CommandsRead).await?;
    let reader = hub.reader.clone();
    let found = blocking(move || reader.command(&gateway, &id)).await?;
    let (row, states) = found.ok_or_else(|| Refusal::not_found("command"))?;
    Ok(json(StatusCode::OK, &view::command(&row, Some(&states))))
}

async fn cancel_command(
    State(hub): State<Arc<Hub>>,
    Path((gateway, id)): Path<(String, String)>,
    caller: Caller,
) -> Answered {
    access::require(&hub, &caller, Scope::CommandsWrite).await?;
    let id = CommandId::try_from(id).map_err(|_| Refusal::not_found("command"))?;
    let request = Request::CancelCommand { gateway: gateway.clone(), id: id.clone() };
    match hub.store.ask(request).await? {
        Answer::Ended { statuses } => {
            hub.live.show_statuses(&statuses);
            Ok(json(StatusCode::OK, &json!({"id": id, "state": "cancelled"})))
        }
        Answer::CancelRequested => {
            hub.presence.wake(&gateway);
            Ok(json(StatusCode::ACCEPTED, &json!({"id": id})))
        }
        Answer::AlreadyFinal(state) => {
            Err(Refusal::conflict(format!("the command is {state} already")))
        }
        _ => Err(Refusal::not_found("command")),
    }
}

pub(super) fn json(status: StatusCode, view: &impl Serialize) -> Response<Body> {
    let body = serde_json::to_string(view).expect("a view has string keys only");
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CACHE_CONTROL, "no-store")
        .body(Body::from(body))
        .expect("every header is a valid one")
}
