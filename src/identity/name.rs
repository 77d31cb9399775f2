//! What this gateway is called when nobody gave it a name, and which boot of the board this is.

use std::{fs, path::Path};

use ring::digest::{SHA256, digest};

use super::{Certificate, IdentityError};
use crate::protocol::{MAX_GATEWAY_BYTES, is_gateway_id};

const HOST_NAME: &str = "/proc/sys/kernel/hostname";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const MACHINE_ID: &str = "/etc/machine-id";

/// The gateway's id when `gateway.id` is not set: the client certificate's common name, else the
/// host name and 6 digits of the machine id (hashed, as machine-id(5) asks for).
///
/// # Errors
///
/// The certificate can't be read, or the board has no machine id: a host name alone is not unique,
/// every image has the same.
pub fn gateway_id(client_cert: Option<&Path>) -> Result<String, IdentityError> {
    if let Some(file) = client_cert {
        let subject = Certificate::from_file(file)?.common_name;
        return subject.filter(|name| is_gateway_id(name)).ok_or_else(|| {
            IdentityError::new(
                file,
                "its subject has no common name that could name a gateway",
                "set gateway.id, or have the certificate issued with the gateway's id as CN",
            )
        });
    }
    let host_name = fs::read_to_string(HOST_NAME).unwrap_or_default();
    let machine_id = fs::read_to_string(MACHINE_ID).unwrap_or_default();
    from_machine(&host_name, &machine_id).ok_or_else(|| {
        IdentityError::new(
            Path::new(MACHINE_ID),
            "it holds no machine id to name the gateway by",
            "set gateway.id, or run systemd-machine-id-setup",
        )
    })
}

/// The kernel's random name of this boot, in lower-case hexadecimal with hyphens.
///
/// # Errors
///
/// `/proc` is not mounted.
pub fn boot_id() -> Result<String, IdentityError> {
    let id = fs::read_to_string(BOOT_ID).unwrap_or_default();
    let id = id.trim();
    if id.len() == 36 && id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        Ok(id.to_owned())
    } else {
        let remedy = "mount /proc, and don't hide it from the service (ProcSubset=all)";
        Err(IdentityError::new(Path::new(BOOT_ID), "it holds no boot id", remedy))
    }
}

fn from_machine(host_name: &str, machine_id: &str) -> Option<String> {
    let machine_id = machine_id.trim();
    if machine_id.len() != 32 || !machine_id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let room = MAX_GATEWAY_BYTES - "-123456".len();
    let host_name: String = host_name.trim().chars().filter(|c| safe(*c)).take(room).collect();
    let host_name = if host_name.is_empty() { "gateway" } else { &host_name };
    let hash = digest(&SHA256, format!("fieldgate gateway id {machine_id}").as_bytes());
    let [a, b, c, ..] = *hash.as_ref() else { return None };
    Some(format!("{host_name}-{a:02x}{b:02x}{c:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef\n";

    #[test]
    fn the_default_name_is_steady_and_does_not_show_the_machine_id() {
        let name = from_machine("raspberrypi\n", ID).unwrap();
        assert_eq!(Some(name.clone()), from_machine("raspberrypi\n", ID));
        let (host_name, digits) = name.rsplit_once('-').unwrap();
        assert_eq!((host_name, digits.len()), ("raspberrypi", 6));
        assert!(!ID.contains(digits));
        assert_ne!(Some(name), from_machine("raspberrypi", &ID.replace('0', "1")));
        assert!(from_machine("a#b+\u{1f}", ID).unwrap().starts_with("ab-"));
        assert!(from_machine("", ID).unwrap().starts_with("gateway-"));
        // As long as the kernel lets a host name be: with its digits no hub took it.
        let long = from_machine(&"h".repeat(64), ID).unwrap();
        assert!(is_gateway_id(&long) && long.len() == MAX_GATEWAY_BYTES, "{long}");
        for bad in ["", "uninitialized\n", "0123"] {
            assert_eq!(from_machine("raspberrypi", bad), None);
        }
    }

    #[test]
    fn this_boot_has_an_id() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }

    #[cfg(feature = "hub")]
    #[test]
    fn a_client_certificate_names_the_gateway() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("gw.pem");
        let named = |name: &str| {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            let key = rcgen::KeyPair::generate().unwrap();
            fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
            gateway_id(Some(&file))
        };
        assert_eq!(named("gw-7f3a").unwrap(), "gw-7f3a");
        // A device could be called so; no hub would know such a gateway.
        for name in ["gw/#", "gw 1", "gateway/1", &"g".repeat(65)] {
            let error = named(name).unwrap_err().to_string();
            assert!(error.contains("set gateway.id"), "{error}");
        }
    }
}
