//! The way to a hub: everything that a connection needs and the configuration says, with the
//! secrets and certificates of this moment.

use std::sync::Arc;

use rustls::ClientConfig;

use super::driver::Dialer;
use crate::{
    config::{Credentials, HubUrl, Proxy, ProxyLogin, Uplink},
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

/// Where this URL, which a hub wrote, stands among the configuration's. To no other is anything
/// sent: a hub may choose among those that the operator trusts, and send a credential nowhere else.
pub(super) fn place_of(urls: &[String], url: &str) -> Option<usize> {
    let named = HubUrl::parse(url).ok()?.to_string();
    urls.iter().position(|known| *known == named)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_names_one_that_is_configured_or_none() {
        let urls = ["wss://a.example:443/v1/gateway", "wss://b.example:8443/v1/gateway"];
        let urls = urls.map(|url| HubUrl::parse(url).expect("a URL").to_string());
        let place = |url| place_of(&urls, url);
        assert_eq!(place("wss://A.example/v1/gateway"), Some(0), "written in another way");
        assert_eq!(place("wss://b.example:8443/v1/gateway"), Some(1));
        for other in [
            "wss://b.example/v1/gateway",
            "wss://b.example:8443/",
            "wss://evil.example/v1/gateway",
            "ws://a.example:443/v1/gateway",
            "ws://127.0.0.1:443/v1/gateway",
            "https://a.example/v1/gateway",
            "",
        ] {
            assert_eq!(place(other), None, "{other}");
        }
    }
}
