//! Plain data ↔ bytes by serde: fields in their order without names, small numbers in few bytes. Texts and floats that are the same as in a template (the
//! first header of a series) take one byte, so that a slice among slices costs two hundred bytes in memory and on disk. Not for exchange: who reads must
//! know the type, and the layout may change with every version.

use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor};
use serde::ser;
use serde::{Deserialize, Serialize};

/// Why bytes are not what they should be (or data cannot be packed).
#[derive(Debug, thiserror::Error)]
#[error("packed data: {0}")]
pub struct Broken(String);

impl Broken {
    pub fn early() -> Self {
        Broken("it ends too early".into())
    }
}

impl ser::Error for Broken {
    fn custom<T: std::fmt::Display>(msg: T) -> Self {
        Broken(msg.to_string())
    }
}

impl de::Error for Broken {
    fn custom<T: std::fmt::Display>(msg: T) -> Self {
        Broken(msg.to_string())
    }
}

/// Texts and floats in the order in which they are met.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Template {
    texts: Vec<String>,
    floats: Vec<u64>,
}

impl Template {
    pub fn of(data: &impl Serialize) -> Template {
        let mut seen = Template::default();
        let mut w = Writer { out: Vec::new(), template: &Template::default(), n_texts: 0, n_floats: 0, seen: Some(&mut seen) };
        data.serialize(&mut w).expect("plain data can be packed");
        seen
    }
}

pub fn pack(data: &impl Serialize, template: &Template) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    pack_into(data, template, &mut out);
    out
}

/// Appends what [`pack`] gives.
pub fn pack_into(data: &impl Serialize, template: &Template, out: &mut Vec<u8>) {
    let mut w = Writer { out: std::mem::take(out), template, n_texts: 0, n_floats: 0, seen: None };
    data.serialize(&mut w).expect("plain data can be packed");
    *out = w.out;
}

pub fn unpack<T: DeserializeOwned>(bytes: &[u8], template: &Template) -> Result<T, Broken> {
    match unpack_start(bytes, template)? {
        (data, []) => Ok(data),
        (_, left) => Err(Broken(format!("{} bytes too many", left.len()))),
    }
}

/// The first of what stands in the bytes, and the bytes behind it.
pub fn unpack_start<'b, T: DeserializeOwned>(bytes: &'b [u8], template: &Template) -> Result<(T, &'b [u8]), Broken> {
    let mut r = Reader { left: bytes, template, n_texts: 0, n_floats: 0 };
    Ok((T::deserialize(&mut r)?, r.left))
}

struct Writer<'a> {
    out: Vec<u8>,
    template: &'a Template,
    n_texts: usize,
    n_floats: usize,
    seen: Option<&'a mut Template>,
}

impl Writer<'_> {
    fn number(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.out.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.out.push(n as u8);
    }

    fn signed(&mut self, n: i64) {
        self.number(((n << 1) ^ (n >> 63)) as u64);
    }

    /// 0: as in the template; else the length plus one, and the text.
    fn text(&mut self, text: &str) {
        let same = self.template.texts.get(self.n_texts).is_some_and(|t| t == text);
        self.n_texts += 1;
        if let Some(seen) = &mut self.seen {
            seen.texts.push(text.to_string());
        }
        if same {
            return self.out.push(0);
        }
        self.number(text.len() as u64 + 1);
        self.out.extend_from_slice(text.as_bytes());
    }

    fn float(&mut self, v: f64) {
        let bits = v.to_bits();
        let same = self.template.floats.get(self.n_floats) == Some(&bits);
        self.n_floats += 1;
        if let Some(seen) = &mut self.seen {
            seen.floats.push(bits);
        }
        self.out.push(same as u8);
        if !same {
            self.out.extend_from_slice(&bits.to_le_bytes());
        }
    }
}

type Done = Result<(), Broken>;

impl ser::Serializer for &mut Writer<'_> {
    type Ok = ();
    type Error = Broken;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = ser::Impossible<(), Broken>;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    fn serialize_bool(self, v: bool) -> Done {
        self.out.push(v as u8);
        Ok(())
    }
    fn serialize_i8(self, v: i8) -> Done {
        self.serialize_i64(v as i64)
    }
    fn serialize_i16(self, v: i16) -> Done {
        self.serialize_i64(v as i64)
    }
    fn serialize_i32(self, v: i32) -> Done {
        self.serialize_i64(v as i64)
    }
    fn serialize_i64(self, v: i64) -> Done {
        self.signed(v);
        Ok(())
    }
    fn serialize_u8(self, v: u8) -> Done {
        self.serialize_u64(v as u64)
    }
    fn serialize_u16(self, v: u16) -> Done {
        self.serialize_u64(v as u64)
    }
    fn serialize_u32(self, v: u32) -> Done {
        self.serialize_u64(v as u64)
    }
    fn serialize_u64(self, v: u64) -> Done {
        self.number(v);
        Ok(())
    }
    fn serialize_f32(self, v: f32) -> Done {
        self.serialize_f64(v as f64)
    }
    fn serialize_f64(self, v: f64) -> Done {
        self.float(v);
        Ok(())
    }
    fn serialize_char(self, v: char) -> Done {
        self.serialize_u64(v as u64)
    }
    fn serialize_str(self, v: &str) -> Done {
        self.text(v);
        Ok(())
    }
    fn serialize_bytes(self, v: &[u8]) -> Done {
        self.number(v.len() as u64);
        self.out.extend_from_slice(v);
        Ok(())
    }
    fn serialize_none(self) -> Done {
        self.out.push(0);
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, v: &T) -> Done {
        self.out.push(1);
        v.serialize(self)
    }
    fn serialize_unit(self) -> Done {
        Ok(())
    }
    fn serialize_unit_struct(self, _: &'static str) -> Done {
        Ok(())
    }
    fn serialize_unit_variant(self, _: &'static str, variant: u32, _: &'static str) -> Done {
        self.serialize_u32(variant)
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, v: &T) -> Done {
        v.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(self, _: &'static str, variant: u32, _: &'static str, v: &T) -> Done {
        self.number(variant as u64);
        v.serialize(self)
    }
    fn serialize_seq(self, len: Option<usize>) -> Result<Self, Broken> {
        self.number(len.ok_or_else(|| Broken("a sequence without a length".into()))? as u64);
        Ok(self)
    }
    fn serialize_tuple(self, _: usize) -> Result<Self, Broken> {
        Ok(self)
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Broken> {
        Ok(self)
    }
    fn serialize_tuple_variant(self, _: &'static str, variant: u32, _: &'static str, _: usize) -> Result<Self, Broken> {
        self.number(variant as u64);
        Ok(self)
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, Broken> {
        Err(Broken("maps are not packed".into()))
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Broken> {
        Ok(self)
    }
    fn serialize_struct_variant(self, _: &'static str, variant: u32, _: &'static str, _: usize) -> Result<Self, Broken> {
        self.number(variant as u64);
        Ok(self)
    }
    fn is_human_readable(&self) -> bool {
        false
    }
}

macro_rules! parts {
    ($($of:ident $part:ident),*) => {
        $(impl ser::$of for &mut Writer<'_> {
            type Ok = ();
            type Error = Broken;
            fn $part<T: Serialize + ?Sized>(&mut self, v: &T) -> Done {
                v.serialize(&mut **self)
            }
            fn end(self) -> Done {
                Ok(())
            }
        })*
    };
}
parts!(SerializeSeq serialize_element, SerializeTuple serialize_element, SerializeTupleStruct serialize_field, SerializeTupleVariant serialize_field);

macro_rules! fields {
    ($($of:ident),*) => {
        $(impl ser::$of for &mut Writer<'_> {
            type Ok = ();
            type Error = Broken;
            fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, v: &T) -> Done {
                v.serialize(&mut **self)
            }
            fn skip_field(&mut self, name: &'static str) -> Done {
                Err(Broken(format!("field {name} is skipped: who reads could not tell")))
            }
            fn end(self) -> Done {
                Ok(())
            }
        })*
    };
}
fields!(SerializeStruct, SerializeStructVariant);

struct Reader<'de, 'a> {
    left: &'de [u8],
    template: &'a Template,
    n_texts: usize,
    n_floats: usize,
}

impl<'de> Reader<'de, '_> {
    fn take(&mut self, n: usize) -> Result<&'de [u8], Broken> {
        let (taken, left) = self.left.split_at_checked(n).ok_or_else(Broken::early)?;
        self.left = left;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Broken> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u64, Broken> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            n |= ((b & 0x7f) as u64) << shift;
            if b < 0x80 {
                return Ok(n);
            }
        }
        Err(Broken("a number without end".into()))
    }

    fn count(&mut self) -> Result<usize, Broken> {
        // Everything that is counted takes a byte at least, but for empty tuples, which nobody packs.
        let n = self.number()?;
        if n > self.left.len() as u64 { Err(Broken(format!("{n} parts in {} bytes", self.left.len()))) } else { Ok(n as usize) }
    }

    fn signed(&mut self) -> Result<i64, Broken> {
        let n = self.number()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    fn float(&mut self) -> Result<f64, Broken> {
        let at = self.n_floats;
        self.n_floats += 1;
        if self.byte()? == 1 {
            return self.template.floats.get(at).map(|b| f64::from_bits(*b)).ok_or_else(|| Broken("no such float in the template".into()));
        }
        Ok(f64::from_le_bytes(self.take(8)?.try_into().expect("8 bytes")))
    }

    fn text(&mut self) -> Result<&str, Broken> {
        let at = self.n_texts;
        self.n_texts += 1;
        match self.number()? {
            0 => self.template.texts.get(at).map(String::as_str).ok_or_else(|| Broken("no such text in the template".into())),
            n => std::str::from_utf8(self.take(usize::try_from(n - 1).unwrap_or(usize::MAX))?).map_err(|_| Broken("no text".into())),
        }
    }
}

macro_rules! numbers {
    ($($of:ident $visit:ident $read:ident $t:ty),*) => {
        $(fn $of<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Broken> {
            let n = self.$read()?;
            v.$visit(<$t>::try_from(n).map_err(|_| Broken("a number out of range".into()))?)
        })*
    };
}

impl<'de> de::Deserializer<'de> for &mut Reader<'de, '_> {
    type Error = Broken;

    numbers!(
        deserialize_i8 visit_i8 signed i8, deserialize_i16 visit_i16 signed i16, deserialize_i32 visit_i32 signed i32, deserialize_i64 visit_i64 signed i64,
        deserialize_u8 visit_u8 number u8, deserialize_u16 visit_u16 number u16, deserialize_u32 visit_u32 number u32, deserialize_u64 visit_u64 number u64
    );
    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Broken> {
        Err(Broken("of no known type".into()))
    }
    fn deserialize_ignored_any<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Broken> {
        self.deserialize_any(v)
    }
    fn deserialize_bool<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Broken> {
        let b = self.byte()?;
        v.visit_bool(b == 1)
    }
    fn deserialize_f32<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Broken> {
        let f = self.float()?;
        v.visit_f32(f as f32)
    }
    fn deserialize_f64<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Broken> {
        let f = self.float()?;
        v.visit_f64(f)
    }
    fn deserialize_char<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Broken> {
        let c = self.number()?;
        v.visit_char(u32::try_from(c).ok().and_then(char::from_u32).ok_or_else(|| Broken("no character".into()))?)
    }
    fn deserialize_str<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Broken> {
        v.visit_str(self.text()?)
    }
    fn deserialize_string<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Broken> {
        v.visit_str(self.text()?)
    }
    fn deserialize_bytes<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Broken> {
        let n = self.count()?;
        v.visit_bytes(self.take(n)?)
    }
    fn deserialize_byte_buf<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Broken> {
        self.deserialize_bytes(v)
    }
    fn deserialize_option<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Broken> {
        if self.byte()? == 1 { v.visit_some(self) } else { v.visit_none() }
    }
    fn deserialize_unit<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Broken> {
        v.visit_unit()
    }
    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, v: V) -> Result<V::Value, Broken> {
        v.visit_unit()
    }
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, v: V) -> Result<V::Value, Broken> {
        v.visit_newtype_struct(self)
    }
    fn deserialize_seq<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Broken> {
        let left = self.count()?;
        v.visit_seq(Parts { reader: self, left })
    }
    fn deserialize_tuple<V: Visitor<'de>>(self, left: usize, v: V) -> Result<V::Value, Broken> {
        v.visit_seq(Parts { reader: self, left })
    }
    fn deserialize_tuple_struct<V: Visitor<'de>>(self, _: &'static str, left: usize, v: V) -> Result<V::Value, Broken> {
        v.visit_seq(Parts { reader: self, left })
    }
    fn deserialize_map<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Broken> {
        self.deserialize_any(v)
    }
    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, fields: &'static [&'static str], v: V) -> Result<V::Value, Broken> {
        v.visit_seq(Parts { reader: self, left: fields.len() })
    }
    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], v: V) -> Result<V::Value, Broken> {
        v.visit_enum(self)
    }
    fn deserialize_identifier<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Broken> {
        self.deserialize_any(v)
    }
    fn is_human_readable(&self) -> bool {
        false
    }
}

struct Parts<'r, 'de, 'a> {
    reader: &'r mut Reader<'de, 'a>,
    left: usize,
}

impl<'de> de::SeqAccess<'de> for Parts<'_, 'de, '_> {
    type Error = Broken;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Broken> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.reader).map(Some)
    }
}

impl<'de> de::EnumAccess<'de> for &mut Reader<'de, '_> {
    type Error = Broken;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Broken> {
        let n = u32::try_from(self.number()?).map_err(|_| Broken("no such variant".into()))?;
        Ok((seed.deserialize(IntoDeserializer::<Broken>::into_deserializer(n))?, self))
    }
}

impl<'de> de::VariantAccess<'de> for &mut Reader<'de, '_> {
    type Error = Broken;

    fn unit_variant(self) -> Done {
        Ok(())
    }
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Broken> {
        seed.deserialize(self)
    }
    fn tuple_variant<V: Visitor<'de>>(self, left: usize, v: V) -> Result<V::Value, Broken> {
        v.visit_seq(Parts { reader: self, left })
    }
    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], v: V) -> Result<V::Value, Broken> {
        v.visit_seq(Parts { reader: self, left: fields.len() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Data {
        text: String,
        number: Option<i64>,
        floats: Vec<f64>,
    }

    fn data(z: f64) -> Data {
        Data { text: "1.2.840.10008.5.1.4.1.1.2".into(), number: Some(-5), floats: vec![0.1 + 0.2, -z, f64::MAX] }
    }

    #[test]
    fn data_survive_to_the_last_bit_and_are_small_beside_their_template() {
        let template = Template::of(&data(1.0));
        for d in [Data::default(), data(1.0), data(4.9e-324), data(123456.789012345), data(-0.0)] {
            for t in [&template, &Template::default()] {
                assert_eq!(unpack::<Data>(&pack(&d, t), t).unwrap(), d);
            }
        }
        assert!(pack(&data(2.0), &template).len() < 16, "{}", pack(&data(2.0), &template).len());
    }

    #[test]
    fn torn_bytes_are_an_error() {
        let bytes = pack(&data(1.0), &Template::default());
        for n in 0..bytes.len() {
            assert!(unpack::<Data>(&bytes[..n], &Template::default()).is_err());
        }
        assert!(unpack::<Data>(&[&bytes[..], &[0]].concat(), &Template::default()).is_err());
        assert!(unpack::<Vec<u64>>(&[0xff, 0xff, 0xff, 0xff, 0x7f], &Template::default()).is_err());
    }
}
