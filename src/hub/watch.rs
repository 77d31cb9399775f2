//! `GET /v1/live`: the WebSocket of applications and browsers. JSON in text messages.
//!
//! The token, with scope `live`, comes in `Authorization`, or from a browser as a further
//! subprotocol `base64url.bearer.fieldgate.<base64url(token)>` beside [`SUBPROTOCOL`], which alone
//! is ever selected. Any origin is welcome, for nothing is authorised by a cookie.
//!
//! | the client says | the hub answers |
//! |---|---|
//! | `{"type":"subscribe","id","gateway"?,"device"?,"stream"?}` | `{"type":"subscribed","id"}` |
//! | `{"type":"unsubscribe","id"}` | `{"type":"unsubscribed","id"}` |
//! | `{"type":"command","ref"?,"gateway","device","name","params"?,"ttl_ms"?,"timeout_ms"?,"idempotent"?}` (scope `commands:write`) | `{"type":"accepted","ref","id"}` |
//! | `{"type":"ping"}` | `{"type":"pong"}` |
//!
//! Unasked it sends `record`, `gateway`, `command_status` and, to whoever reads too slowly,
//! `{"type":"lagged","missed"}`. What goes wrong is `{"type":"error","code","message","ref"?}`.
//! Closed with 1008 when the token is revoked, 1012 when the hub restarts.
//!
//! It must never keep more for a watcher that reads slowly than `live` does beside a little
//! (`outbox`), and never let its slowness hold up what ends it.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{Request, Response},
    response::IntoResponse as _,
};
use futures_util::{StreamExt as _, stream::SplitStream};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio::{
    sync::watch,
    time::{Instant, interval},
};
use tokio_tungstenite::tungstenite::{
    Error, Message, Utf8Bytes,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::{
    access::{self, Caller, Scope},
    commands::{self, NewCommand},
    credential::bearer_subprotocol,
    live::{Filter, MAX_SUBSCRIPTIONS, Watch},
    outbox::{self, Outbox},
    patience::Progress,
    refusal::Refusal,
    server::{Hub, Peer, stopped},
    upgrade::{self, Socket},
};
use crate::{command::CommandId, protocol::close};

/// The subprotocol of this path.
pub const SUBPROTOCOL: &str = "fieldgate.live.v1";

/// The largest message that a watcher may send.
const MAX_MESSAGE_BYTES: usize = 256 << 10;

/// Answers the upgrade.
pub(super) async fn upgrade(
    State(hub): State<Arc<Hub>>,
    Extension(peer): Extension<Peer>,
    Extension(progress): Extension<Arc<Progress>>,
    request: Request<Body>,
) -> Response<Body> {
    let offered = upgrade::offered(&request).unwrap_or_default();
    if !offered.iter().any(|name| name == SUBPROTOCOL) {
        let message = format!("this is a WebSocket; offer the subprotocol {SUBPROTOCOL}");
        return Refusal::upgrade_required(message).into_response();
    }
    // Before the look-up, so that no change after it is missed.
    let changes = hub.changes();
    let caller = Caller::of(&peer, request.headers())
        .or_token(|| offered.iter().find_map(|name| bearer_subprotocol(name)));
    let (token, scopes) = match access::admit(&hub, &caller, Scope::Live).await {
        Ok(admitted) => admitted,
        Err(refusal) => return refusal.into_response(),
    };
    upgrade::accept(request, SUBPROTOCOL, MAX_MESSAGE_BYTES, move |socket| async move {
        let watch = hub.live.watch();
        let seen = progress.bytes();
        let (sink, stream) = socket.split();
        let (outbox, writer) = outbox::open();
        let mut client =
            Client { hub: &hub, token, scopes, changes, watch, stream, outbox, progress, seen };
        let ended = tokio::select! {
            ended = client.run() => ended,
            () = writer.write(sink) => Ok(()),
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a watcher is gone");
        }
        // Until here its place counts against the bound on connections.
        drop(peer);
    })
}

/// What a client may say.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Wish {
    Subscribe {
        id: String,
        #[serde(default)]
        gateway: Option<String>,
        #[serde(default)]
        device: Option<String>,
        #[serde(default)]
        stream: Option<String>,
    },
    Unsubscribe {
        id: String,
    },
    Command,
    Ping,
}

struct Client<'a> {
    hub: &'a Arc<Hub>,
    token: String,
    scopes: Vec<Scope>,
    changes: watch::Receiver<u64>,
    watch: Watch<'a>,
    stream: SplitStream<Socket>,
    outbox: Outbox,
    progress: Arc<Progress>,
    /// What it was when it was last looked at.
    seen: u64,
}

impl Client<'_> {
    async fn run(&mut self) -> Result<(), Arc<Error>> {
        let mut stopping = self.hub.stopping();
        let mut beat = interval(self.hub.config.ping_interval);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let silence = self.hub.config.ping_interval + self.hub.config.ping_timeout;
        let mut heard = Instant::now();
        loop {
            let (has_room, is_full) = (self.outbox.has_room(), self.outbox.is_full());
            tokio::select! {
                biased;
                // What ends it goes first, and the timer after what came: a Pong that has come is
                // heard before it is missed.
                Ok(()) = self.changes.changed() => {
                    if self.is_revoked().await {
                        return self.close(close::POLICY, "credential revoked").await;
                    }
                }
                () = stopped(&mut stopping) => {
                    return self.close(close::RESTART, "the hub restarts").await;
                }
                fault = self.outbox.room(!has_room, is_full) => {
                    if let Some(fault) = fault {
                        return Err(fault);
                    }
                }
                message = self.stream.next(), if !is_full => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(Message::Text(text))) => {
                            let answer = self.obey(&text).await;
                            self.send(answer.to_string().into());
                        }
                        Some(Ok(Message::Binary(_))) => {
                            return self.close(close::UNSUPPORTED_DATA, "text messages only").await;
                        }
                        Some(Ok(Message::Close(_))) => {
                            self.outbox.part(&mut self.stream).await;
                            return Ok(());
                        }
                        None => return Ok(()),
                        Some(Ok(_)) => {}
                        Some(Err(error)) => return self.refuse(error).await,
                    }
                }
                _ = beat.tick() => {
                    let seen = self.progress.bytes();
                    if std::mem::replace(&mut self.seen, seen) != seen || is_full {
                        heard = Instant::now();
                    }
                    if heard.elapsed() > silence {
                        return self.close(close::GOING_AWAY, "no pong in time").await;
                    }
                    if self.is_revoked().await {
                        return self.close(close::POLICY, "credential revoked").await;
                    }
                    self.outbox.put(Message::Ping(Default::default()));
                }
                Some(message) = self.watch.next(), if has_room => self.send(message),
            }
        }
    }

    /// A store that is down says nothing about the token; it is asked again with the next Ping.
    async fn is_revoked(&mut self) -> bool {
        match access::scopes(self.hub, &self.token).await {
            Ok(Some(scopes)) if scopes.contains(&Scope::Live) => {
                self.scopes = scopes;
                false
            }
            Ok(_) => true,
            Err(_) => false,
        }
    }

    async fn obey(&mut self, text: &str) -> Value {
        match serde_json::from_str(text) {
            Ok(Wish::Ping) => json!({"type": "pong"}),
            Ok(Wish::Subscribe { id, gateway, device, stream }) => {
                if self.watch.subscribe(id.clone(), Filter { gateway, device, stream }) {
                    json!({"type": "subscribed", "id": id})
                } else {
                    let message = format!("at most {MAX_SUBSCRIPTIONS} subscriptions");
                    error("too_many", &message, Some(json!(id)))
                }
            }
            Ok(Wish::Unsubscribe { id }) if self.watch.unsubscribe(&id) => {
                json!({"type": "unsubscribed", "id": id})
            }
            Ok(Wish::Unsubscribe { id }) => {
                error("not_found", "no such subscription", Some(json!(id)))
            }
            Ok(Wish::Command) => self.command(text).await,
            Err(fault) => error("bad_message", &fault.to_string(), None),
        }
    }

    async fn command(&mut self, text: &str) -> Value {
        // Taken apart member by member, so that `params` stays as it was written.
        let mut members: BTreeMap<String, Box<RawValue>> = match serde_json::from_str(text) {
            Ok(members) => members,
            Err(fault) => return error("bad_message", &fault.to_string(), None),
        };
        members.remove("type");
        let mut take = |name: &str| -> Option<Value> {
            serde_json::from_str(members.remove(name)?.get()).ok()
        };
        let (reference, gateway) = (take("ref"), take("gateway"));
        match create(self.hub, &self.scopes, gateway, &members).await {
            Ok(id) => json!({"type": "accepted", "ref": reference, "id": id}),
            Err(refusal) => {
                let (code, message) = refusal.parts();
                error(code, message, reference)
            }
        }
    }

    fn send(&self, text: Utf8Bytes) {
        self.outbox.put(Message::Text(text));
    }

    /// What came can't be read.
    async fn refuse(&mut self, error: Error) -> Result<(), Arc<Error>> {
        if let Error::Capacity(_) = error {
            return self.close(close::TOO_BIG, "message too big").await;
        }
        match upgrade::fault_code(&error) {
            Some(code) => self.close(code, "a frame breaks RFC 6455").await,
            None => Err(error.into()),
        }
    }

    async fn close(&mut self, code: u16, reason: &'static str) -> Result<(), Arc<Error>> {
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
        self.outbox.put(Message::Close(Some(frame)));
        self.outbox.part(&mut self.stream).await;
        Ok(())
    }
}

async fn create(
    hub: &Arc<Hub>,
    scopes: &[Scope],
    gateway: Option<Value>,
    members: &BTreeMap<String, Box<RawValue>>,
) -> Result<CommandId, Refusal> {
    if !scopes.contains(&Scope::CommandsWrite) {
        return Err(Refusal::forbidden(Scope::CommandsWrite.as_str()));
    }
    let Some(Value::String(gateway)) = gateway else {
        return Err(Refusal::bad_request("gateway is the id of a gateway"));
    };
    let bad = |error: serde_json::Error| Refusal::bad_request(error.to_string());
    let text = serde_json::to_string(members).map_err(bad)?;
    let new: NewCommand = serde_json::from_str(&text).map_err(bad)?;
    commands::create(hub, gateway, new).await
}

fn error(code: &str, message: &str, reference: Option<Value>) -> Value {
    let mut view = json!({"type": "error", "code": code, "message": message});
    if let Some(reference) = reference {
        view["ref"] = reference;
    }
    view
}
