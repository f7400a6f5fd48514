//! Headers of a series ↔ few bytes: what a slice says as the first of its series does takes one byte, and is one piece of memory for all slices when they
//! are read back; of the rest, texts and floats that are those of the first take one byte each ([`super::pack`]).

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::header::{Common, Header};
use super::pack::{Broken, Template, pack_into, unpack, unpack_start};

/// The first header of a series, for packing the others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pattern {
    common: Arc<Common>,
    of_common: Template,
    of_slice: Template,
}

impl Pattern {
    pub fn of(h: &Header) -> Pattern {
        Pattern { common: h.common.clone(), of_common: Template::of(&*h.common), of_slice: Template::of(h) }
    }

    /// The same in the memory of the pattern, where it is the same.
    pub fn share(&self, h: &mut Header) {
        if self.is_common(h) {
            h.common = self.common.clone();
        }
    }

    /// To the last bit: of numbers that are equal, zeros may differ in their sign.
    fn is_common(&self, h: &Header) -> bool {
        Arc::ptr_eq(&h.common, &self.common) || (h.common == self.common && bits(&h.common) == bits(&self.common))
    }

    pub fn pack(&self, h: &Header) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        self.pack_into(h, &mut out);
        out
    }

    /// Appends what [`Pattern::pack`] gives.
    pub fn pack_into(&self, h: &Header, out: &mut Vec<u8>) {
        let is_common = self.is_common(h);
        out.push(is_common as u8);
        if !is_common {
            pack_into(&*h.common, &self.of_common, out);
        }
        pack_into(h, &self.of_slice, out);
    }

    pub fn unpack(&self, bytes: &[u8]) -> Result<Header, Broken> {
        let (is_common, rest) = bytes.split_first().ok_or_else(Broken::early)?;
        let (common, rest) = match is_common {
            1 => (self.common.clone(), rest),
            _ => {
                let (common, rest) = unpack_start::<Common>(rest, &self.of_common)?;
                (Arc::new(common), rest)
            }
        };
        Ok(Header { common, ..unpack(rest, &self.of_slice)? })
    }
}

fn bits(c: &Common) -> (Option<[u64; 2]>, Vec<u64>) {
    (c.imager_spacing_mm.map(|mm| mm.map(f64::to_bits)), c.frame_times_ms.iter().map(|t| t.to_bits()).collect())
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        (&*self.common, &self.of_slice).serialize(s)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let (common, of_slice) = <(Common, Template)>::deserialize(d)?;
        Ok(Pattern { of_common: Template::of(&common), common: Arc::new(common), of_slice })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::header::FrameHeader;
    use super::super::pack::pack;
    use super::*;

    fn slice(z: f64) -> Header {
        let frame = FrameHeader { position: Some([0.1 + 0.2, -z, z / 3.0]), slope: Some(f64::MAX), ..FrameHeader::default() };
        let common = Common { patient: "x".into(), sop_class: "1.2.840.10008.5.1.4.1.1.2".into(), ..Common::default() };
        Header { sop_instance: format!("1.2.{z}"), instance_number: Some(-5), frames: vec![frame], ..common.into() }
    }

    #[test]
    fn a_header_survives_to_the_last_bit_and_is_small_beside_the_first() {
        let first = slice(1.0);
        let pattern = Pattern::of(&first);
        let (mut other, mut zero) = (slice(2.0), slice(2.0));
        other.modality = "CT".into();
        zero.frame_times_ms = vec![-0.0];
        for h in [Header::default(), first, slice(4.9e-324), slice(123456.789012345), other, zero.clone()] {
            for p in [&pattern, &Pattern::default(), &Pattern::of(&zero)] {
                assert_eq!(p.unpack(&p.pack(&h)).unwrap(), h);
            }
        }
        let read: Vec<Header> = [3.0, 4.0].map(|z| pattern.unpack(&pattern.pack(&slice(z))).unwrap()).into();
        assert!(read.iter().all(|h| Arc::ptr_eq(&h.common, &pattern.common)), "one piece of memory");
        assert!(pattern.pack(&slice(2.0)).len() < 80, "{}", pattern.pack(&slice(2.0)).len());
        let mut positive = zero.clone();
        positive.frame_times_ms = vec![0.0];
        let p = Pattern::of(&zero);
        assert!(p.unpack(&p.pack(&positive)).unwrap().frame_times_ms[0].is_sign_positive());
    }

    #[test]
    fn a_pattern_is_written_and_read_back_and_torn_bytes_are_an_error() {
        let pattern = Pattern::of(&slice(1.0));
        let bytes = pack(&pattern, &Template::default());
        assert_eq!(unpack::<Pattern>(&bytes, &Template::default()).unwrap(), pattern);
        let mut other = slice(2.0);
        other.modality = "CT".into();
        for bytes in [pattern.pack(&other), pattern.pack(&slice(2.0))] {
            assert!((0..bytes.len()).all(|n| pattern.unpack(&bytes[..n]).is_err()));
        }
    }
}
