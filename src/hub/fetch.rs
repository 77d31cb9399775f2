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
    let builder = ClientConfig::builder_with_provider(crate::crypto::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(anchors).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use rustls::{ServerConfig, pki_types::PrivateKeyDer};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::hub::demo_ca::{self, DemoCa};

    /// Answers every request over TLS with these bytes; the URL.
    async fn server(dir: &Path, answer: String) -> Uri {
        let hosts = ["localhost".to_owned()];
        demo_ca::make(&DemoCa { dir, hosts: &hosts, clients: &[] }).unwrap();
        let chain = CertificateDer::from_pem_file(dir.join("hub.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(dir.join("hub.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let Ok(mut socket) = acceptor.accept(socket).await else { continue };
                let _ = socket.read(&mut [0; 4096]).await;
                // A client that has enough goes before the end.
                let _ = socket.write_all(answer.as_bytes()).await;
                let _ = socket.shutdown().await;
            }
        });
        format!("https://localhost:{port}/keys?a=b").parse().unwrap()
    }

    #[tokio::test]
    async fn a_document_comes_from_whom_is_trusted_and_nobody_else() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_owned();
        let url = server(dir.path(), answer).await;
        let (ca, hosts) = (dir.path().join("ca.pem"), ["localhost".to_owned()]);
        assert_eq!(get(&url, Some(&ca)).await.unwrap(), b"{}");
        demo_ca::make(&DemoCa { dir: other.path(), hosts: &hosts, clients: &[] }).unwrap();
        let error = get(&url, Some(&other.path().join("ca.pem"))).await.unwrap_err();
        assert!(error.contains("invalid peer certificate"), "{error}");
        assert!(get(&url, None).await.is_err(), "the system does not trust it");
        let error = get(&url, Some(&other.path().join("none.pem"))).await.unwrap_err();
        assert!(error.contains("none.pem"), "{error}");
    }

    #[tokio::test]
    async fn redirects_and_large_documents_are_not_taken() {
        let location = "HTTP/1.1 302 Found\r\nlocation: https://localhost/\r\n";
        let size = MAX_BYTES + 1;
        for (head, body, expected) in [
            (location.to_owned(), 0, "302"),
            (format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n"), size, "limit"),
            ("HTTP/1.1 200 OK\r\n".to_owned(), size, "limit"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let url = server(dir.path(), format!("{head}\r\n{}", " ".repeat(body))).await;
            let error = get(&url, Some(&dir.path().join("ca.pem"))).await.unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
