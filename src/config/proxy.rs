//! The proxy on the way to a hub: `uplink.proxy`, or what the environment says. Pure.
//!
//! `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` are read as curl reads them: the lower-case name goes
//! first, an empty value is none, and loopback never goes through a proxy of the environment. What
//! the file says holds for every hub, whatever the environment says.

use std::{fmt, net::IpAddr, path::PathBuf};

use zeroize::Zeroizing;

use super::{HubUrl, values};

/// A proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// What it speaks.
    pub kind: ProxyKind,
    /// A name or an address (IPv6 without brackets).
    pub host: String,
    /// 3128 or 1080 when not given.
    pub port: u16,
    /// Who we are there.
    pub login: Option<ProxyLogin>,
}

/// What a proxy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyKind {
    /// HTTP's CONNECT (RFC 9110, section 9.3.6).
    Http,
    /// SOCKS 5 (RFC 1928), which resolves the hub's name.
    Socks5,
}

/// Who we are at a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyLogin {
    /// `proxy_user` and `proxy_password_file`.
    File {
        /// The user.
        user: String,
        /// The file with the password.
        password_file: PathBuf,
    },
    /// Of a URL in the environment.
    Given(Credentials),
}

/// A user and a password; the `Debug` hides the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// The password, for the proxy alone.
    pub password: Zeroizing<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({:?}, password hidden)", self.user)
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            ProxyKind::Http => "http",
            ProxyKind::Socks5 => "socks5",
        };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// `http://proxy.lan:3128` or `socks5://127.0.0.1`, without credentials: a configuration file is no
/// place for a secret.
pub(super) fn proxy_url(text: &str) -> Result<Proxy, String> {
    let (scheme, rest) = values::scheme(
        text,
        "write one such as http://proxy.lan:3128",
        "use proxy_user and proxy_password_file",
    )?;
    proxy(&scheme, rest, None)
}

fn proxy(scheme: &str, rest: &str, login: Option<ProxyLogin>) -> Result<Proxy, String> {
    let (kind, default_port) = match scheme {
        "http" => (ProxyKind::Http, 3128),
        "socks5" | "socks5h" => (ProxyKind::Socks5, 1080),
        "https" => {
            let why = "TLS to the proxy itself is not available; write http:// (what passes the \
                       proxy is TLS from here to the hub all the same)";
            return Err(why.into());
        }
        _ => return Err(format!("scheme {scheme:?} is no proxy's; use http:// or socks5://")),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err("a proxy's URL ends with its port; remove what follows".into());
    }
    let (host, port) = values::host_and_port(authority, default_port)?;
    Ok(Proxy { kind, host, port, login })
}

/// What the environment says of proxies.
#[derive(Debug, Default)]
pub(super) struct ProxyEnvironment {
    /// Name and value, by how much they weigh: the lower-case name before the upper-case one, and
    /// `https_proxy` before `all_proxy`.
    proxies: [Option<(String, String)>; 4],
    no_proxy: [Option<String>; 2],
}

impl ProxyEnvironment {
    /// Takes a variable; `false` when it says nothing of proxies.
    pub(super) fn take(&mut self, name: &str, value: &str) -> bool {
        let proxies = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
        if let Some(at) = proxies.iter().position(|known| *known == name) {
            self.proxies[at] = Some((name.to_owned(), value.to_owned()));
        } else if let Some(at) = ["no_proxy", "NO_PROXY"].iter().position(|known| *known == name) {
            self.no_proxy[at] = Some(value.to_owned());
        } else {
            return false;
        }
        true
    }

    /// The proxy to this hub, if there is one; else the variable that can't be used, and why.
    pub(super) fn proxy_to(&self, url: &HubUrl) -> Result<Option<Proxy>, (String, String)> {
        let exceptions = self.no_proxy.iter().flatten().next().map_or("", String::as_str);
        let given = self.proxies.iter().flatten().next().filter(|(_, value)| !value.is_empty());
        match given {
            Some((name, value))
                if !values::is_loopback(&url.host) && !is_excepted(exceptions, url) =>
            {
                with_userinfo(value).map(Some).map_err(|text| (name.clone(), text))
            }
            _ => Ok(None),
        }
    }
}

/// `[http://][user:password@]proxy.lan[:3128]`, as the environment may have it. No error repeats
/// any of it.
fn with_userinfo(text: &str) -> Result<Proxy, String> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let (login, rest) = match rest.rsplit_once('@') {
        None => (None, rest),
        Some((userinfo, rest)) => {
            let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
            let decoded = percent_decoded(user).zip(percent_decoded(password));
            let (user, password) =
                decoded.ok_or("its user or password is not UTF-8 in %XX; write it so")?;
            let password = Zeroizing::new(password);
            (Some(ProxyLogin::Given(Credentials { user, password })), rest)
        }
    };
    // The fault's own words may quote what is part of a password.
    proxy(&scheme.to_ascii_lowercase(), rest, login).map_err(|_| {
        "this is no URL of an http:// or socks5:// proxy; write one such as http://proxy.lan:3128, \
         with / and @ in a password as %2F and %40"
            .into()
    })
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        let digits = std::str::from_utf8(&digits).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// Whether `NO_PROXY` names this hub: by `*`, by its name or a domain it is in (`example.com` and
/// `.example.com` alike), by its address or a network (`10.0.0.0/8`), each with or without a port.
/// Names are not resolved.
fn is_excepted(exceptions: &str, url: &HubUrl) -> bool {
    let items = exceptions.split(|c: char| c == ',' || c.is_whitespace());
    items.filter(|item| !item.is_empty()).any(|item| excepts(item, url))
}

fn excepts(item: &str, url: &HubUrl) -> bool {
    let address: Option<IpAddr> = url.host.parse().ok();
    let whole = item.trim_start_matches('[').trim_end_matches(']');
    if let Some(address) = address
        && (in_network(address, whole) || whole.parse() == Ok(address))
    {
        return true;
    }
    let (name, port) = match item.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => (name, port.parse().ok()),
        _ => (item, None),
    };
    if port.is_some_and(|port: u16| port != url.port) {
        return false;
    }
    let name = name.trim_start_matches('[').trim_end_matches(']');
    if name == "*" {
        return true;
    }
    if let Some(address) = address {
        return name.parse() == Ok(address);
    }
    let domain = name.trim_start_matches("*.").trim_matches('.').to_ascii_lowercase();
    let host = url.host.trim_end_matches('.');
    let below = host.strip_suffix(&domain);
    !domain.is_empty() && below.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn in_network(address: IpAddr, network: &str) -> bool {
    let Some((base, bits)) = network.split_once('/') else { return false };
    let (Ok(base), Ok(bits)) = (base.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    let (address, base, length) = match (address, base) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    bits <= length && (address ^ base).checked_shr(length - bits).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(host: &str) -> HubUrl {
        HubUrl { tls: true, host: host.into(), port: 443, path: "/".into() }
    }

    fn environment(variables: &[(&str, &str)]) -> ProxyEnvironment {
        let mut environment = ProxyEnvironment::default();
        for (name, value) in variables {
            assert!(environment.take(name, value), "{name}");
        }
        assert!(!environment.take("HTTP_PROXY", "http://for-http-alone"));
        environment
    }

    fn chosen(variables: &[(&str, &str)], host: &str) -> Option<String> {
        let found = environment(variables).proxy_to(&hub(host)).expect("a right environment");
        found.map(|proxy| proxy.to_string())
    }

    #[test]
    fn a_proxy_of_the_file_has_no_credentials() {
        let proxy = proxy_url("http://Proxy.lan:8080/").unwrap();
        assert_eq!(proxy.to_string(), "http://proxy.lan:8080");
        assert_eq!(proxy_url("socks5h://[::1]").unwrap().to_string(), "socks5://[::1]:1080");
        for (text, says) in [
            ("http://u:s3cret@p", "use proxy_user and proxy_password_file"),
            ("https://p", "write http://"),
            ("ftp://p", "is no proxy's"),
            ("http://p/path", "ends with its port"),
            ("p:3128", "is not a URL"),
        ] {
            let error = proxy_url(text).unwrap_err();
            assert!(error.contains(says) && !error.contains("s3cret"), "{text}: {error}");
        }
    }

    #[test]
    fn the_lower_case_name_goes_first_and_https_before_all() {
        let all = [("ALL_PROXY", "socks5://a"), ("HTTPS_PROXY", "h:1"), ("https_proxy", "l:2")];
        assert_eq!(chosen(&all, "hub.example.com"), Some("http://l:2".into()));
        assert_eq!(chosen(&all[..2], "hub.example.com"), Some("http://h:1".into()));
        assert_eq!(chosen(&all[..1], "hub.example.com"), Some("socks5://a:1080".into()));
        assert_eq!(chosen(&[("https_proxy", ""), ("ALL_PROXY", "a")], "hub.example.com"), None);
        assert_eq!(chosen(&all, "localhost"), None);
        assert_eq!(chosen(&all, "127.0.0.1"), None);
        assert_eq!(chosen(&all, "::1"), None);
    }

    #[test]
    fn credentials_of_the_environment_are_decoded_and_hidden() {
        let one = environment(&[("HTTPS_PROXY", "http://us%40er:p%2Fw:x@proxy:3128/")]);
        let proxy = one.proxy_to(&hub("h")).unwrap().unwrap();
        let Some(ProxyLogin::Given(login)) = &proxy.login else { panic!("{proxy:?}") };
        assert_eq!((login.user.as_str(), login.password.as_str()), ("us@er", "p/w:x"));
        let shown = format!("{proxy:?} {proxy}");
        assert!(!shown.contains("p/w") && !shown.contains("p%2F"), "{shown}");
        for bad in ["http://u:s3cret%zz@p", "ftp://u:s3cret@p", "http://u:s3cr/et@p/x"] {
            let found = environment(&[("ALL_PROXY", bad)]).proxy_to(&hub("h"));
            let (name, text) = found.unwrap_err();
            assert_eq!(name, "ALL_PROXY");
            assert!(!text.contains("s3cr"), "{text}");
        }
    }

    #[test]
    fn no_proxy_names_hosts_domains_addresses_networks_and_all() {
        for (exceptions, host) in [
            ("*", "hub.example.com"),
            ("x, example.com", "hub.example.com"),
            ("x .example.com", "example.com"),
            ("*.Example.com", "hub.example.com"),
            ("hub.example.com:443", "hub.example.com"),
            ("10.0.0.0/8", "10.200.3.4"),
            ("10.2.3.4", "10.2.3.4"),
            ("10.2.3.4:443", "10.2.3.4"),
            ("2001:db8::/32", "2001:db8:1::5"),
            ("[2001:db8::5]", "2001:db8::5"),
            ("[2001:db8::5]:443", "2001:db8::5"),
            ("0.0.0.0/0", "8.8.8.8"),
        ] {
            assert!(is_excepted(exceptions, &hub(host)), "{exceptions} {host}");
        }
        for (exceptions, host) in [
            ("", "hub.example.com"),
            (" , .", "hub.example.com"),
            ("example.com", "notexample.com"),
            ("hub.example.com", "example.com"),
            ("hub.example.com:8443", "hub.example.com"),
            ("10.0.0.0/8", "11.0.0.1"),
            ("10.0.0.0/33", "10.0.0.1"),
            ("10.0.0.0/8", "hub10.example.com"),
            ("2001:db8::/32", "2001:db9::5"),
            ("::/0", "10.0.0.1"),
        ] {
            assert!(!is_excepted(exceptions, &hub(host)), "{exceptions} {host}");
        }
    }
}
