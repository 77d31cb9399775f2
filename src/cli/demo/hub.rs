//! The hub as an application sees it: its HTTP API over TLS, with the throwaway CA and an API
//! token.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, bail};
use axum::body::{Body, to_bytes};
use hyper::{Method, Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::identity::{self, Clock, Token};

/// How long one request may take, a new connection included.
const PATIENCE: Duration = Duration::from_secs(5);

/// The largest answer, in bytes: a page of records has a tenth of it.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// How many records a page has, and how many pages one look may take; the next look goes on.
const PAGE_RECORDS: usize = 1000;
const MAX_PAGES: usize = 20;

/// A client of the hub.
pub(super) struct Hub {
    address: SocketAddr,
    tls: TlsConnector,
    token: Token,
    gateway: &'static str,
    connection: Option<http1::SendRequest<Body>>,
    /// The last record that was seen.
    after: u64,
}

/// A record of one of the demo's devices.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) device: String,
    /// What the device numbered it.
    pub(super) number: u64,
}

#[derive(Deserialize)]
struct Page {
    records: Vec<Record>,
    next_after: u64,
    more: bool,
}

#[derive(Deserialize)]
struct Record {
    device: String,
    #[serde(default)]
    payload: Value,
}

impl Hub {
    /// A client for what concerns `gateway`; it connects when it is first asked.
    ///
    /// # Errors
    /// A file can't be used.
    pub(super) fn new(
        address: SocketAddr,
        ca_file: &Path,
        token_file: &Path,
        gateway: &'static str,
    ) -> anyhow::Result<Self> {
        let tls = identity::client_tls(Some(ca_file), None, &Clock::of_system())?.into();
        let token = Token::from_file(token_file)?;
        Ok(Self { address, tls, token, gateway, connection: None, after: 0 })
    }

    /// Whether it serves.
    pub(super) async fn is_ready(&mut self) -> anyhow::Result<()> {
        self.ask(Method::GET, "/healthz", Body::empty()).await.map(drop)
    }

    /// The telemetry that came since the last look.
    pub(super) async fn new_rows(&mut self) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for _ in 0..MAX_PAGES {
            let path = format!(
                "/v1/gateways/{}/records?stream=telemetry&limit={PAGE_RECORDS}&after={}",
                self.gateway, self.after
            );
            let answer = self.ask(Method::GET, &path, Body::empty()).await?;
            let page: Page = serde_json::from_slice(&answer)
                .with_context(|| format!("GET {path}: the answer is no page of records"))?;
            rows.extend(page.records.into_iter().filter_map(|record| {
                let number = record.payload.get("n")?.as_u64()?;
                Some(Row { device: record.device, number })
            }));
            self.after = page.next_after;
            if !page.more {
                break;
            }
        }
        Ok(rows)
    }

    /// Gives a device a command; gives its id.
    pub(super) async fn send_command(
        &mut self,
        device: &str,
        name: &str,
        params: &Value,
    ) -> anyhow::Result<String> {
        let path = format!("/v1/gateways/{}/commands", self.gateway);
        let body = json!({"device": device, "name": name, "params": params}).to_string();
        let answer = self.ask(Method::POST, &path, Body::from(body)).await?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        let id = answer["id"].as_str().with_context(|| format!("POST {path}: no id came back"))?;
        Ok(id.to_owned())
    }

    /// A command as it stands, with its states.
    pub(super) async fn command(&mut self, id: &str) -> anyhow::Result<Value> {
        let path = format!("/v1/gateways/{}/commands/{id}", self.gateway);
        let answer = self.ask(Method::GET, &path, Body::empty()).await?;
        serde_json::from_slice(&answer)
            .with_context(|| format!("GET {path}: the answer is no JSON"))
    }

    async fn ask(&mut self, method: Method, path: &str, body: Body) -> anyhow::Result<Vec<u8>> {
        let what = format!("{method} https://{}{path}", self.address);
        match timeout(PATIENCE, self.exchange(method, path, body)).await {
            Ok(answer) => answer.context(what),
            Err(_) => {
                // An answer that comes yet must not be taken for the next one's.
                self.connection = None;
                bail!("{what}: no answer within {} s", PATIENCE.as_secs())
            }
        }
    }

    async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: Body,
    ) -> anyhow::Result<Vec<u8>> {
        let mut connection = match self.kept_connection().await {
            Some(kept) => kept,
            None => self.connect().await?,
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.to_string())
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token.reveal()))
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)?;
        let response = connection.send_request(request).await?;
        let status = response.status();
        let answer = to_bytes(Body::new(response.into_body()), MAX_ANSWER_BYTES).await?;
        self.connection = Some(connection);
        if !matches!(status, StatusCode::OK | StatusCode::ACCEPTED) {
            bail!("{status}: {}", String::from_utf8_lossy(&answer));
        }
        Ok(answer.into())
    }

    /// `None` at first, and when the hub closed it between two requests.
    async fn kept_connection(&mut self) -> Option<http1::SendRequest<Body>> {
        let mut kept = self.connection.take()?;
        kept.ready().await.ok().map(|()| kept)
    }

    async fn connect(&self) -> anyhow::Result<http1::SendRequest<Body>> {
        let socket = TcpStream::connect(self.address).await.context("connecting")?;
        socket.set_nodelay(true)?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let socket = self.tls.connect(name, socket).await.context("TLS handshake")?;
        let (sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
        // How it ends shows at the next request.
        tokio::spawn(connection);
        Ok(sender)
    }
}
