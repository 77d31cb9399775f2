//! One small document over HTTP/1.1: the key set of an issuer. Over TLS, or plain on this machine.

use std::{path::Path, sync::Arc, time::Duration};

use axum::{
    body::{self, Body},
    http::{Request, StatusCode, Uri, header},
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// How long everything may take, the name's resolution included.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The largest document, in bytes.
const MAX_BYTES: usize = 256 << 10;

/// Fetches a document. Redirects are not followed.
///
/// # Errors
/// What went wrong, for the operator.
pub(super) async fn get(url: &Uri, ca_file: Option<&Path>) -> Result<Vec<u8>, String> {
    let got = timeout(TIMEOUT, request(url, ca_file)).await;
    got.unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}")))
        .map_err(|error| format!("{url}: {error}"))
}

async fn request(url: &Uri, ca_file: Option<&Path>) -> Result<Vec<u8>, String> {
    let host = url.host().ok_or("the URL has no host")?;
    let is_tls = url.scheme_str() == Some("https");
    let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let bare = host.trim_matches(['[', ']']);
    let socket = TcpStream::connect((bare, port)).await.map_err(|error| error.to_string())?;
    if !is_tls {
        return exchange(url, socket).await;
    }
    let name = ServerName::try_from(bare.to_owned()).map_err(|error| error.to_string())?;
    let connector = TlsConnector::from(Arc::new(trusting(ca_file)?));
    let socket = connector.connect(name, socket).await.map_err(|error| error.to_string())?;
    exchange(url, socket).await
}

async fn exchange<S>(url: &Uri, socket: S) -> Result<Vec<u8>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let said = |error: hyper::Error| error.to_string();
    let (mut sender, connection) =
        http1::handshake::<_, Body>(TokioIo::new(socket)).await.map_err(said)?;
    // Ends with the sender; what goes wrong on it is seen there.
    let connection = tokio::spawn(connection);
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/json")
        .body(Body::empty())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(said)?;
    if response.status() != StatusCode::OK {
        return Err(format!("the answer is {}", response.status()));
    }
    let document = body::to_bytes(Body::new(response.into_body()), MAX_BYTES).await;
    connection.abort();
    document.map(|bytes| bytes.to_vec()).map_err(|error| error.to_string())
}

fn trusting(ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let mut anchors = RootCertStore::empty();
    match ca_file {
        None => {
            // A store with some faulty certificates is still a store.
            anchors.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        Some(file) => {
            let fault = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
            let certificates =
                CertificateDer::pem_file_iter(file).map_err(|error| fault(&error))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| fault(&error))?;
                anchors.add(certificate).map_err(|error| fault(&error))?;
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(anchors).with_no_client_auth())
}
