//! `[uplink]`: which hubs there are, the way to each, and who we are there.

use std::{path::Path, time::Duration};

use super::{
    Hub, HubUrl, Jwt, Uplink,
    error::{Fault, Origin},
    proxy::{Proxy, ProxyLogin, proxy_url},
    reader::{Places, Reader},
    values::hub_url,
};
use crate::protocol::Mode;

/// The most hubs of one gateway.
const MAX_HUBS: usize = 8;

/// What fits into an HTTP header and a SOCKS request (RFC 1929) alike.
const MAX_USER_BYTES: usize = 255;

/// Linux's IFNAMSIZ, less its NUL.
const MAX_INTERFACE_BYTES: usize = 15;

/// Where in the state directory the device key and its certificate are kept.
pub const IDENTITY_DIR: &str = "identity";

/// The device key's file there.
pub const IDENTITY_KEY: &str = "gateway.key";

/// The file there that says which hub the identity is for, where it came by enrolment.
pub const IDENTITY_UPLINK: &str = "uplink.toml";

const MAX_CLAIM_BYTES: usize = 256;

const MS_10: Duration = Duration::from_millis(10);
const MS_100: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

pub(super) fn uplink(reader: &mut Reader<'_>, places: &Places) -> Option<Uplink> {
    let urls = urls(reader);
    let modes = [("managed", Mode::Managed), ("plain", Mode::Plain), ("auto", Mode::Auto)];
    let protocol = reader.one_of("protocol", Mode::Auto, &modes);
    if !urls.is_empty() && urls.iter().all(|url| !url.tls) {
        for key in ["ca_file", "client_cert_file", "client_key_file"] {
            if reader.has(key) {
                reader.fault(key, "a ws:// URL has no TLS; use wss:// or remove this key");
            }
        }
    }
    let backoff_min = reader.duration("backoff_min", SECOND / 2, MS_10..=HOUR);
    let backoff_max = reader.duration("backoff_max", 60 * SECOND, MS_10..=24 * HOUR);
    if backoff_max < backoff_min {
        reader.fault("backoff_max", "it is shorter than backoff_min; write a longer one");
    }
    let proxy = proxy(reader);
    let hubs: Vec<Hub> =
        urls.into_iter().map(|url| hub(url, proxy.as_ref(), reader, places)).collect();
    // The keys are checked without a url as well.
    let without_url = hubs.is_empty();
    let uplink = Uplink {
        hubs,
        protocol,
        ca_file: reader.path("ca_file"),
        client_cert: reader.paths("client_cert_file", "client_key_file"),
        token_file: reader.path("token_file"),
        jwt: None,
        bind_interface: reader.parsed("bind_interface", interface),
        ping_interval: reader.duration("ping_interval", 25 * SECOND, MS_100..=HOUR),
        ping_timeout: reader.duration("ping_timeout", 10 * SECOND, MS_100..=HOUR),
        ack_timeout: reader.duration("ack_timeout", 10 * SECOND, MS_100..=HOUR),
        connect_timeout: reader.duration("connect_timeout", 10 * SECOND, MS_100..=HOUR),
        backoff: (backoff_min, backoff_max),
        return_after: reader.duration("return_after", 600 * SECOND, SECOND..=24 * HOUR),
        plain_commands: reader.switch("plain_commands", false),
    };
    (!without_url).then_some(uplink)
}

/// `[uplink.jwt]`, where it was written.
pub(super) fn jwt(reader: &mut Reader<'_>, state_dir: &Path) -> Jwt {
    let claim = |text: &str| {
        let fits = (1..=MAX_CLAIM_BYTES).contains(&text.len()) && !text.contains(char::is_control);
        let wanted = || format!("write 1 to {MAX_CLAIM_BYTES} bytes of text");
        fits.then(|| text.to_owned()).ok_or_else(wanted)
    };
    let key_file = reader.path("key_file");
    Jwt {
        key_file: key_file.unwrap_or_else(|| state_dir.join(IDENTITY_DIR).join(IDENTITY_KEY)),
        audience: reader.parsed("audience", claim),
        // PROTOCOL.md, section 11: at most a day.
        lifetime: reader.duration("lifetime", 600 * SECOND, 60 * SECOND..=24 * HOUR),
        issuer: reader.parsed("issuer", claim),
        kid: reader.parsed("kid", claim),
    }
}

fn urls(reader: &mut Reader<'_>) -> Vec<HubUrl> {
    if !reader.is_list("url") {
        return reader.parsed("url", hub_url).into_iter().collect();
    }
    let Some(texts) = reader.texts("url", MAX_HUBS) else { return Vec::new() };
    if texts.is_empty() {
        reader.fault("url", "the list is empty; write one URL");
    }
    let mut urls = Vec::new();
    for (origin, text) in texts {
        match hub_url(&text) {
            Ok(url) if urls.contains(&url) => {
                reader.fault_at(origin, "url", format!("{url} comes twice; remove one"));
            }
            Ok(url) => urls.push(url),
            Err(text) => reader.fault_at(origin, "url", text),
        }
    }
    urls
}

fn hub(url: HubUrl, proxy: Option<&Proxy>, reader: &mut Reader<'_>, places: &Places) -> Hub {
    let proxy = match proxy {
        Some(proxy) => Some(proxy.clone()),
        // `proxy = "none"`, or one that is at fault.
        None if reader.has("proxy") => None,
        None => places.environment.proxies.proxy_to(&url).unwrap_or_else(|(name, text)| {
            reader.add(Fault { origin: Origin::Variable(name), key: String::new(), text });
            None
        }),
    };
    Hub { url, proxy }
}

/// The proxy that the file names, with who we are there.
fn proxy(reader: &mut Reader<'_>) -> Option<Proxy> {
    reader.both("proxy_user", "proxy_password_file");
    let user = reader.parsed("proxy_user", |user| {
        let fits = (1..=MAX_USER_BYTES).contains(&user.len())
            && !user.contains(|c: char| c == ':' || c.is_control());
        if fits {
            return Ok(user.to_owned());
        }
        Err(format!("write 1 to {MAX_USER_BYTES} bytes without a colon or a control character"))
    });
    let login = user.zip(reader.path("proxy_password_file"));
    if reader.has("proxy_user") && !reader.has("proxy") {
        reader.fault("proxy_user", "there is no proxy to show it to; write proxy, too");
    }
    let proxy = reader.parsed("proxy", |text| match text {
        "none" => Ok(None),
        url => proxy_url(url).map(Some),
    })??;
    let login = login.map(|(user, password_file)| ProxyLogin::File { user, password_file });
    Some(Proxy { login, ..proxy })
}

fn interface(name: &str) -> Result<String, String> {
    let fits = (1..=MAX_INTERFACE_BYTES).contains(&name.len())
        && !name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control());
    if fits {
        return Ok(name.to_owned());
    }
    Err(format!("{name:?} is not a network interface; write one that `ip link` shows"))
}
