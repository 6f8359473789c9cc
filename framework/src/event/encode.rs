//! From an event to its stored type and payload, in one pass over its fields.

mod compound;
mod key;
mod value;

use std::fmt::Display;

use serde::{
    Serialize, Serializer,
    ser::{Impossible, SerializeStructVariant, SerializeTupleVariant},
};

use super::{Event, PayloadLimits, refusal::Refusal};
use crate::InvalidInput;
use compound::Compound;
use value::Writer;

/// An event as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Encoded {
    /// The serde name of the variant.
    pub(crate) event_type: &'static str,
    /// The variant's content as compact JSON; `null` for a variant without content.
    pub(crate) payload: String,
}

/// Encodes `event`: byte for byte what serde_json writes for the variant's content, or an error where serde_json
/// would write something that cannot be stored or does not read back as it was.
///
/// # Errors
/// - [`InvalidInput::Field`] for NaN and infinity, the character `\u0000`, too many levels, or whatever the event's own
///   `Serialize` refuses, with the path of the field.
/// - [`InvalidInput::PayloadTooLarge`] as soon as the limit is passed: no more than the limit is ever built.
/// - [`InvalidInput::NotTagged`] if `E` is not an externally tagged enum, or is a union, which is only read.
pub(crate) fn encode<E: Event>(event: &E, limits: &PayloadLimits) -> Result<Encoded, InvalidInput> {
    if E::UNION {
        return Err(InvalidInput::NotTagged { rust_type: std::any::type_name::<E>() });
    }
    encode_variant(event, limits)
}

/// [`encode`] for any enum, also a union.
pub(crate) fn encode_variant<E: Serialize>(event: &E, limits: &PayloadLimits) -> Result<Encoded, InvalidInput> {
    let mut writer = Writer::new(limits);
    let mut event_type = "";
    let top = Top { writer: &mut writer, event_type: &mut event_type };
    match event.serialize(top).and_then(|()| writer.finish()) {
        Ok(payload) => Ok(Encoded { event_type, payload }),
        Err(refusal) => Err(refusal.into_invalid_input(event_type, std::any::type_name::<E>())),
    }
}

/// Writes `value`, which is no event, with the same checks. `what` names it in an error.
///
/// # Errors
/// As [`encode`], but for the tagging.
pub(crate) fn to_json<T: Serialize>(
    what: impl Display,
    value: &T,
    limits: &PayloadLimits,
) -> Result<String, InvalidInput> {
    let mut writer = Writer::new(limits);
    let written = value.serialize(&mut writer).and_then(|()| writer.finish());
    written.map_err(|refusal| refusal.into_invalid_input(&what.to_string(), std::any::type_name::<T>()))
}

/// The outermost serializer: notes the variant's name, lets its content be written, refuses everything else.
struct Top<'a, 'l> {
    writer: &'a mut Writer<'l>,
    event_type: &'a mut &'static str,
}

macro_rules! refuse {
    ($($method:ident($($type:ty),*) -> $ok:ty;)*) => {
        $(fn $method(self $(, _: $type)*) -> Result<$ok, Refusal> { Err(Refusal::not_tagged()) })*
    };
}

impl<'a, 'l> Serializer for Top<'a, 'l> {
    type Ok = ();
    type Error = Refusal;
    type SerializeSeq = Impossible<(), Refusal>;
    type SerializeTuple = Impossible<(), Refusal>;
    type SerializeTupleStruct = Impossible<(), Refusal>;
    type SerializeTupleVariant = Content<'a, 'l>;
    type SerializeMap = Impossible<(), Refusal>;
    type SerializeStruct = Impossible<(), Refusal>;
    type SerializeStructVariant = Content<'a, 'l>;

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), Refusal> {
        *self.event_type = variant;
        self.writer.serialize_unit()
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Refusal> {
        *self.event_type = variant;
        value.serialize(self.writer)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Content<'a, 'l>, Refusal> {
        *self.event_type = variant;
        Ok(Content(self.writer.open_array()?))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Content<'a, 'l>, Refusal> {
        *self.event_type = variant;
        Ok(Content(self.writer.open_object()?))
    }

    refuse! {
        serialize_bool(bool) -> ();
        serialize_i8(i8) -> ();
        serialize_i16(i16) -> ();
        serialize_i32(i32) -> ();
        serialize_i64(i64) -> ();
        serialize_u8(u8) -> ();
        serialize_u16(u16) -> ();
        serialize_u32(u32) -> ();
        serialize_u64(u64) -> ();
        serialize_f32(f32) -> ();
        serialize_f64(f64) -> ();
        serialize_char(char) -> ();
        serialize_str(&str) -> ();
        serialize_bytes(&[u8]) -> ();
        serialize_none() -> ();
        serialize_unit() -> ();
        serialize_unit_struct(&'static str) -> ();
        serialize_seq(Option<usize>) -> Self::SerializeSeq;
        serialize_tuple(usize) -> Self::SerializeTuple;
        serialize_tuple_struct(&'static str, usize) -> Self::SerializeTupleStruct;
        serialize_map(Option<usize>) -> Self::SerializeMap;
        serialize_struct(&'static str, usize) -> Self::SerializeStruct;
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<(), Refusal> {
        Err(Refusal::not_tagged())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, _: &T) -> Result<(), Refusal> {
        Err(Refusal::not_tagged())
    }
}

/// The content of a tuple or struct variant: an array or an object.
struct Content<'a, 'l>(Compound<'a, 'l>);

impl SerializeTupleVariant for Content<'_, '_> {
    type Ok = ();
    type Error = Refusal;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
        self.0.element(value)
    }

    fn end(self) -> Result<(), Refusal> {
        self.0.close();
        Ok(())
    }
}

impl SerializeStructVariant for Content<'_, '_> {
    type Ok = ();
    type Error = Refusal;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Refusal> {
        self.0.field(key, value)
    }

    fn end(self) -> Result<(), Refusal> {
        self.0.close();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
