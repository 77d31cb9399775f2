//! The way to a hub: everything that a connection needs and the configuration says, with the
//! secrets and certificates of this moment.

use std::sync::Arc;

use rustls::ClientConfig;

use super::driver::Dialer;
use crate::{
    config::{Credentials, Proxy, ProxyLogin, Uplink},
    identity::{self, Clock, FollowedTls, IdentityError, Token, TokenSource},
    link,
    protocol::{DEFAULT_MESSAGE_BYTES, SUBPROTOCOL_JSON},
};

/// What makes the gateway's links. Files that changed since the last one count for the next.
pub(super) fn dialer(
    uplink: Option<Uplink>,
    tokens: Option<TokenSource>,
    mut tls: Option<FollowedTls>,
    clock: Arc<Clock>,
) -> Dialer {
    Box::new(move |hub, managed| {
        let uplink = uplink.as_ref().ok_or("there is no [uplink] url")?;
        let now_ms = clock.now().0.unix_ms;
        let bearer = tokens.as_ref().map(|tokens| tokens.token(now_ms)).transpose();
        let bearer = bearer.map_err(|error| error.to_string())?.map(|(token, _)| token);
        let target = target(uplink, hub, bearer, tls.as_mut().map(FollowedTls::current))?;
        let subprotocols = if managed { target.subprotocols } else { Vec::new() };
        Ok(link::Target { subprotocols, ..target })
    })
}

/// A hub of the configuration, by its place there, taken for a managed one.
///
/// # Errors
/// The proxy's password can't be read.
pub(super) fn target(
    uplink: &Uplink,
    hub: usize,
    bearer: Option<Token>,
    tls: Option<Arc<ClientConfig>>,
) -> Result<link::Target, String> {
    let hub = &uplink.hubs[hub];
    let proxy = hub.proxy.as_ref().map(via).transpose();
    Ok(link::Target {
        url: hub.url.clone(),
        subprotocols: vec![SUBPROTOCOL_JSON.into()],
        bearer,
        tls,
        ca_file: uplink.ca_file.clone(),
        proxy: proxy.map_err(|error| error.to_string())?,
        bind_interface: uplink.bind_interface.clone(),
        connect_timeout: uplink.connect_timeout,
        max_message_bytes: DEFAULT_MESSAGE_BYTES,
    })
}

/// The way through a proxy, its password read anew: a changed one needs no restart.
pub(super) fn via(proxy: &Proxy) -> Result<link::Via, IdentityError> {
    let Proxy { kind, host, port, login } = proxy;
    let credentials = match login {
        Some(ProxyLogin::File { user, password_file }) => {
            let password = identity::password(password_file)?;
            Some(Credentials { user: user.clone(), password })
        }
        Some(ProxyLogin::Given(credentials)) => Some(credentials.clone()),
        None => None,
    };
    Ok(link::Via { kind: *kind, host: host.clone(), port: *port, credentials })
}
