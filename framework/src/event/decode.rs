//! From a stored type and payload back to an event.

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, EnumAccess, Error as _, VariantAccess, Visitor, value::BorrowedStrDeserializer},
};
use serde_json::Error;

use super::Event;

/// Decodes a payload that is in the current schema version. In a union the outer variant is `category`.
///
/// # Errors
/// serde_json's, with line and column in the payload.
pub(crate) fn decode<E: Event>(category: &str, event_type: &str, payload: &str) -> Result<E, Error> {
    let content = Tagged { tag: event_type, content: Text(payload) };
    if E::UNION { E::deserialize(Tagged { tag: category, content }) } else { E::deserialize(content) }
}

/// A variant's name beside its content: what serde takes for an externally tagged enum.
struct Tagged<'de, C> {
    tag: &'de str,
    content: C,
}

/// A variant's content as JSON text.
struct Text<'de>(&'de str);

impl<'de, C: VariantAccess<'de, Error = Error>> Deserializer<'de> for Tagged<'de, C> {
    type Error = Error;

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(not_tagged())
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl<'de, C: VariantAccess<'de, Error = Error>> EnumAccess<'de> for Tagged<'de, C> {
    type Error = Error;
    type Variant = C;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, C), Error> {
        Ok((seed.deserialize(BorrowedStrDeserializer::<Error>::new(self.tag))?, self.content))
    }
}

impl<'de> VariantAccess<'de> for Text<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        read(self.0, |json| <()>::deserialize(json))
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        read(self.0, |json| seed.deserialize(json))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        read(self.0, |json| json.deserialize_seq(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        read(self.0, |json| json.deserialize_map(visitor))
    }
}

/// The content of a union's variant: the event of one aggregate.
impl<'de> VariantAccess<'de> for Tagged<'de, Text<'de>> {
    type Error = Error;

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(self)
    }

    fn unit_variant(self) -> Result<(), Error> {
        Err(not_tagged())
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(not_tagged())
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Error> {
        Err(not_tagged())
    }
}

type Json<'de> = serde_json::Deserializer<serde_json::de::StrRead<'de>>;

/// Reads the whole of `text`: what follows the value is an error.
fn read<'de, T>(text: &'de str, value: impl FnOnce(&mut Json<'de>) -> Result<T, Error>) -> Result<T, Error> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = value(&mut json)?;
    json.end()?;
    Ok(value)
}

fn not_tagged() -> Error {
    Error::custom("not an externally tagged enum")
}

#[cfg(test)]
mod tests;
