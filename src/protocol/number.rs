//! Numbers off the wire, within their bounds, so that whoever gets one may calculate with it.

use serde::{Deserialize, Deserializer, de::Error};

/// The largest number of a record (PROTOCOL.md, section 3), and the largest that every JSON parser
/// takes exactly.
const LARGEST: u64 = 1 << 53;

/// A position: 0, or the number of a record.
pub(super) fn position<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    match u64::deserialize(from)? {
        acked @ ..=LARGEST => Ok(acked),
        acked => Err(D::Error::custom(format!("{acked} is no position: 0 to 2^53"))),
    }
}

/// The number of a record.
pub(super) fn seq<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    match Option::deserialize(from)? {
        Some(seq) if !(1..=LARGEST).contains(&seq) => {
            Err(D::Error::custom(format!("{seq} is no number of a record: 1 to 2^53")))
        }
        seq => Ok(seq),
    }
}

/// A time in milliseconds. One that is further off than any clock says as much: far off.
pub(super) fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let time: Option<u64> = Option::deserialize(from)?;
    Ok(time.map(|time| time.min(LARGEST)))
}

/// A bound on bytes or messages. One that is beyond what this machine can count bounds nothing: a
/// board with 32 bits once took the `welcome` of a generous hub for malformed.
pub(super) fn bound<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    let bound = u64::deserialize(from)?;
    Ok(usize::try_from(bound).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use crate::protocol::{Decoded, HubMessage, from_hub};

    #[test]
    fn what_is_no_number_of_a_record_is_refused_and_a_far_time_is_far() {
        let ack = |acked: &str| {
            from_hub(&format!(
                r#"{{"type":"ack","stream":"s","epoch":"0000000000000001","acked":{acked}}}"#
            ))
        };
        assert!(ack("0").is_ok() && ack("9007199254740992").is_ok());
        assert!(ack("9007199254740993").is_err() && ack("-1").is_err());
        let expects =
            |seq| from_hub(&format!(r#"{{"type":"error","code":"gap","expected":{seq}}}"#));
        assert!(expects("1").is_ok() && expects("null").is_ok());
        assert!(expects("0").is_err() && expects("9007199254740993").is_err());
        let expires = from_hub(r#"{"type":"auth_ok","token_expires":18446744073709551615}"#);
        let Ok(Decoded::Message(HubMessage::AuthOk { token_expires })) = expires else { panic!() };
        assert_eq!(token_expires, Some(1 << 53));
    }
}
