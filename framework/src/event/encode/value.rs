//! Compact JSON as serde_json writes it, with checks on the way.

use std::fmt::{self, Display, Write as _};

use serde::{Serialize, Serializer, ser::Error as _};
use serde_json::ser::{CompactFormatter, Formatter};

use super::compound::{Compound, Fields};
use crate::event::{PayloadLimits, json::scan, refusal::Refusal};

/// The names by which serde_json passes on text that is JSON already: `RawValue`, and `Number` if the build keeps
/// numbers of any precision.
const JSON_TEXT: [&str; 2] = ["$serde_json::private::RawValue", "$serde_json::private::Number"];

/// Writes one value. A refusal leaves it half written and of no further use.
pub(super) struct Writer<'l> {
    pub(super) out: Vec<u8>,
    /// Arrays and objects that are open.
    depth: usize,
    limits: &'l PayloadLimits,
}

impl<'l> Writer<'l> {
    pub(super) fn new(limits: &'l PayloadLimits) -> Self {
        Self { out: Vec::with_capacity(512), depth: 0, limits }
    }

    pub(super) fn finish(self) -> Result<String, Refusal> {
        self.room(0)?;
        String::from_utf8(self.out).map_err(Refusal::custom)
    }

    /// Refuses when `more` bytes would pass the limit. Asked before every text, element and key: whatever is written in
    /// between is short.
    pub(super) fn room(&self, more: usize) -> Result<(), Refusal> {
        let bytes = self.out.len().saturating_add(more);
        if bytes > self.limits.bytes {
            return Err(Refusal::too_large(bytes, self.limits.bytes));
        }
        Ok(())
    }

    pub(super) fn open_array(&mut self) -> Result<Compound<'_, 'l>, Refusal> {
        self.open(b'[', b"]", None)
    }

    pub(super) fn open_object(&mut self) -> Result<Compound<'_, 'l>, Refusal> {
        self.open(b'{', b"}", None)
    }

    pub(super) fn close(&mut self, closing: &[u8]) {
        self.out.extend_from_slice(closing);
        self.depth -= closing.len();
    }

    fn open(
        &mut self,
        bracket: u8,
        closing: &'static [u8],
        variant: Option<&'static str>,
    ) -> Result<Compound<'_, 'l>, Refusal> {
        self.depth += 1;
        if self.depth > self.limits.depth {
            return Err(Refusal::too_deep(self.limits.depth));
        }
        self.out.push(bracket);
        Ok(Compound::new(self, closing, variant))
    }

    /// `{"variant":`, the shape in which a variant stands anywhere but at the top.
    fn open_variant(&mut self, variant: &'static str) -> Result<(), Refusal> {
        self.depth += 1;
        if self.depth > self.limits.depth {
            return Err(Refusal::too_deep(self.limits.depth));
        }
        self.out.push(b'{');
        self.text(variant)?;
        self.out.push(b':');
        Ok(())
    }

    pub(super) fn text(&mut self, text: &str) -> Result<(), Refusal> {
        self.out.push(b'"');
        self.escaped(text)?;
        self.out.push(b'"');
        Ok(())
    }

    fn escaped(&mut self, text: &str) -> Result<(), Refusal> {
        self.room(text.len())?;
        // Without an early exit the compiler checks 16 bytes at a time; ordinary text needs no escape.
        if !text.bytes().fold(false, |any, byte| any | needs_escape(byte)) {
            self.out.extend_from_slice(text.as_bytes());
            return Ok(());
        }
        for byte in text.bytes() {
            match byte {
                b'"' => self.out.extend_from_slice(b"\\\""),
                b'\\' => self.out.extend_from_slice(b"\\\\"),
                b'\x08' => self.out.extend_from_slice(b"\\b"),
                b'\x0c' => self.out.extend_from_slice(b"\\f"),
                b'\n' => self.out.extend_from_slice(b"\\n"),
                b'\r' => self.out.extend_from_slice(b"\\r"),
                b'\t' => self.out.extend_from_slice(b"\\t"),
                0 => return Err(Refusal::value("the text holds the character \\u0000, which Postgres cannot store")),
                1..0x20 => {
                    const HEX: &[u8; 16] = b"0123456789abcdef";
                    let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                    self.out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
                }
                _ => self.out.push(byte),
            }
        }
        Ok(())
    }

    /// Text that is JSON already, passed through as it is.
    pub(super) fn json_text(&mut self, text: &str) -> Result<(), Refusal> {
        self.room(text.len())?;
        scan(text, self.depth, self.limits.depth)?;
        self.out.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

macro_rules! numbers {
    ($($serialize:ident($type:ty) = $write:ident;)*) => {
        $(fn $serialize(self, value: $type) -> Result<(), Refusal> {
            CompactFormatter.$write(&mut self.out, value).map_err(Refusal::custom)
        })*
    };
}

impl<'a, 'l> Serializer for &'a mut Writer<'l> {
    type Ok = ();
    type Error = Refusal;
    type SerializeSeq = Compound<'a, 'l>;
    type SerializeTuple = Compound<'a, 'l>;
    type SerializeTupleStruct = Compound<'a, 'l>;
    type SerializeTupleVariant = Compound<'a, 'l>;
    type SerializeMap = Compound<'a, 'l>;
    type SerializeStruct = Fields<'a, 'l>;
    type SerializeStructVariant = Compound<'a, 'l>;

    numbers! {
        serialize_bool(bool) = write_bool;
        serialize_i8(i8) = write_i8;
        serialize_i16(i16) = write_i16;
        serialize_i32(i32) = write_i32;
        serialize_i64(i64) = write_i64;
        serialize_i128(i128) = write_i128;
        serialize_u8(u8) = write_u8;
        serialize_u16(u16) = write_u16;
        serialize_u32(u32) = write_u32;
        serialize_u64(u64) = write_u64;
        serialize_u128(u128) = write_u128;
    }

    fn serialize_f32(self, value: f32) -> Result<(), Refusal> {
        check_finite(value.into())?;
        CompactFormatter.write_f32(&mut self.out, value).map_err(Refusal::custom)
    }

    fn serialize_f64(self, value: f64) -> Result<(), Refusal> {
        check_finite(value)?;
        CompactFormatter.write_f64(&mut self.out, value).map_err(Refusal::custom)
    }

    fn serialize_char(self, value: char) -> Result<(), Refusal> {
        self.text(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<(), Refusal> {
        self.text(value)
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Refusal> {
        self.room(value.len().saturating_mul(2))?;
        self.collect_seq(value)
    }

    fn serialize_none(self) -> Result<(), Refusal> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Refusal> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Refusal> {
        self.out.extend_from_slice(b"null");
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Refusal> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), Refusal> {
        self.text(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Refusal> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Refusal> {
        self.open_variant(variant)?;
        value.serialize(&mut *self).map_err(|refusal| refusal.within_key(variant))?;
        self.close(b"}");
        Ok(())
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Compound<'a, 'l>, Refusal> {
        self.open_array()
    }

    fn serialize_tuple(self, _: usize) -> Result<Compound<'a, 'l>, Refusal> {
        self.open_array()
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Compound<'a, 'l>, Refusal> {
        self.open_array()
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Compound<'a, 'l>, Refusal> {
        self.open_variant(variant)?;
        self.open(b'[', b"]}", Some(variant)).map_err(|refusal| refusal.within_key(variant))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Compound<'a, 'l>, Refusal> {
        self.open_object()
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Fields<'a, 'l>, Refusal> {
        if JSON_TEXT.contains(&name) {
            return Ok(Fields::JsonText(self));
        }
        self.open_object().map(Fields::Object)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Compound<'a, 'l>, Refusal> {
        self.open_variant(variant)?;
        self.open(b'{', b"}}", Some(variant)).map_err(|refusal| refusal.within_key(variant))
    }

    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<(), Refusal> {
        self.out.push(b'"');
        let mut fragments = Fragments { writer: self, refusal: None };
        let written = write!(fragments, "{value}");
        match (written, fragments.refusal) {
            (_, Some(refusal)) => Err(refusal),
            (Err(error), None) => Err(Refusal::custom(error)),
            (Ok(()), None) => {
                self.out.push(b'"');
                Ok(())
            }
        }
    }
}

pub(super) fn check_finite(value: f64) -> Result<(), Refusal> {
    if !value.is_finite() {
        return Err(Refusal::value(format!("JSON has no number for {value}")));
    }
    Ok(())
}

/// Escapes what a value prints, a piece at a time.
struct Fragments<'a, 'l> {
    writer: &'a mut Writer<'l>,
    refusal: Option<Refusal>,
}

impl fmt::Write for Fragments<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.writer.escaped(text).map_err(|refusal| {
            self.refusal = Some(refusal);
            fmt::Error
        })
    }
}
