//! DER, as far as certificates, requests and signatures need it: a walk over elements, and elements
//! put together (ITU-T X.690). Lengths of more than four bytes are not taken; no real certificate
//! has them.

use super::calendar::Moment;

pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(super) const UTF8_STRING: u8 = 0x0c;
pub(super) const PRINTABLE_STRING: u8 = 0x13;
pub(super) const IA5_STRING: u8 = 0x16;
pub(super) const UTC_TIME: u8 = 0x17;
pub(super) const GENERALIZED_TIME: u8 = 0x18;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
/// Context-specific and constructed, number 0: a certificate's version, a request's attributes.
pub(super) const CONTEXT_0: u8 = 0xa0;
/// Context-specific and constructed, number 3: a certificate's extensions.
pub(super) const CONTEXT_3: u8 = 0xa3;

/// An element; `parts` one after another are its content.
pub(super) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut der = vec![tag];
    match content.len() {
        short @ ..0x80 => der.push(short as u8),
        long => {
            let bytes = long.to_be_bytes();
            let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len() - 1);
            der.push(0x80 | (bytes.len() - first) as u8);
            der.extend_from_slice(&bytes[first..]);
        }
    }
    der.extend_from_slice(&content);
    der
}

/// A walk over DER elements.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn next_tag(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next element's tag and content. Lengths up to four bytes, as every real certificate has.
    pub(super) fn element(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], rest) = self.0.split_first_chunk()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
                let length = bytes.iter().fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
                (usize::try_from(length).ok()?, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    pub(super) fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.element().and_then(|(found, content)| (found == tag).then_some(content))
    }

    pub(super) fn nested(&mut self, tag: u8) -> Option<Reader<'a>> {
        self.expect(tag).map(Reader)
    }

    pub(super) fn time(&mut self) -> Option<Moment> {
        match self.element()? {
            (UTC_TIME, bytes) if bytes.len() == 13 => Moment::from_certificate(bytes),
            (GENERALIZED_TIME, bytes) if bytes.len() == 15 => Moment::from_certificate(bytes),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_as_they_were_written() {
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 70_000] {
            let content = vec![7; length];
            let (half, rest) = content.split_at(length / 2);
            let der = element(OCTET_STRING, &[half, rest]);
            let mut reader = Reader(&der);
            assert_eq!(reader.expect(OCTET_STRING), Some(&content[..]), "{length}");
            assert!(reader.0.is_empty());
            assert!(Reader(&der[..der.len() - 1]).element().is_none());
        }
    }
}
