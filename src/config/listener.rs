//! `[listener]`: where devices connect, and how they say who they are.
//!
//! Whoever can reach an address must prove who it is, and a proof must not cross a network in the
//! clear, unless the file says that it may: loopback is the only exception.

use std::net::SocketAddr;

use super::{Listener, ListenerTls, reader::Reader, values::address};

const WHO: &str = "users_file, client_ca_file or both";

/// Reads the table.
pub(super) fn listener(reader: &mut Reader<'_>, notes: &mut Vec<String>) -> Option<Listener> {
    let users_file = reader.path("users_file");
    let has_users = reader.has("users_file");
    let anonymous = reader.switch("allow_anonymous", false);
    let bind = bind(reader, has_users, anonymous);
    let tls = tls(reader, has_users, anonymous);
    if tls.as_ref().is_some_and(|tls| tls.bind.port() != 0 && bind == Some(tls.bind)) {
        reader.fault("tls_bind", "bind has the same address; write another port");
    }
    let limits_rate = reader.has("max_publish_rate");
    let is_open = |address: &SocketAddr| !address.ip().is_loopback();
    let reached: Vec<String> = (bind.iter().chain(tls.as_ref().map(|tls| &tls.bind)))
        .filter(|address| anonymous && is_open(address))
        .map(SocketAddr::to_string)
        .collect();
    if !reached.is_empty() {
        notes.push(format!(
            "listener.allow_anonymous: whoever reaches {} can publish in any device's name",
            reached.join(" or ")
        ));
    }
    if let Some(address) = bind.filter(|address| has_users && is_open(address)) {
        notes.push(format!(
            "listener.bind: passwords cross the network to {address} in the clear; use tls_bind"
        ));
    }
    Some(Listener {
        bind,
        tls,
        users_file,
        anonymous,
        max_clients: reader.count("max_clients", 100, 1..=10_000).into(),
        max_publish_rate: limits_rate.then(|| reader.count("max_publish_rate", 100, 1..=u16::MAX)),
        max_inflight: reader.count("max_inflight", 100, 1..=u16::MAX).into(),
    })
}

fn bind(reader: &mut Reader<'_>, has_users: bool, anonymous: bool) -> Option<SocketAddr> {
    let in_the_clear = reader.switch("allow_cleartext_passwords", false);
    if !reader.has("bind") && !reader.has("tls_bind") {
        return Some(SocketAddr::from(([127, 0, 0, 1], 1883)));
    }
    reader.parsed("bind", |text| match address(text)? {
        address if address.ip().is_loopback() => Ok(address),
        address if !has_users && !anonymous => Err(format!(
            "devices could connect to {address} without authentication; \
             use tls_bind with {WHO}"
        )),
        address if has_users && !in_the_clear => Err(format!(
            "passwords would cross the network to {address} in the clear; use tls_bind, or write \
             allow_cleartext_passwords = true"
        )),
        address => Ok(address),
    })
}

fn tls(reader: &mut Reader<'_>, has_users: bool, anonymous: bool) -> Option<ListenerTls> {
    let files = ["cert_file", "key_file", "client_ca_file"];
    let [cert_file, key_file, client_ca_file] = files.map(|key| reader.path(key));
    if !reader.has("tls_bind") {
        for key in files.into_iter().filter(|key| reader.has(key)).collect::<Vec<_>>() {
            reader.fault(key, "it is of no use without tls_bind; write both or neither");
        }
        return None;
    }
    let bind = reader.parsed("tls_bind", address);
    for key in
        ["cert_file", "key_file"].into_iter().filter(|key| !reader.has(key)).collect::<Vec<_>>()
    {
        reader.fault("tls_bind", format!("it needs {key}; write cert_file and key_file"));
    }
    if !has_users && !reader.has("client_ca_file") && !anonymous {
        let text = format!("devices could connect to it without authentication; write {WHO}");
        reader.fault("tls_bind", text);
    }
    Some(ListenerTls { bind: bind?, cert_file: cert_file?, key_file: key_file?, client_ca_file })
}
