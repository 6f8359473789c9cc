//! What serde knows about an event enum before there is a value: its variants' names, aliases included.

use std::fmt;

use serde::{
    Deserializer,
    de::{DeserializeOwned, DeserializeSeed, EnumAccess, Error as _, VariantAccess, Visitor, value},
};

type Error = value::Error;

/// What the `Deserialize` of a type asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// An externally tagged enum with these variants.
    Enum(&'static [&'static str]),
    /// Something else, in serde's words: `internally tagged enum OrderEvent`.
    Other(String),
}

/// The shape of `E`.
pub(super) fn shape_of<E: DeserializeOwned>() -> Shape {
    let mut shape = Shape::Other("nothing".into());
    // The probe has no value to give: it notes what it is asked for, and always ends in an error.
    let _ = E::deserialize(Probe(&mut shape));
    shape
}

/// The shape of what the variant `category` of the union `E` holds.
pub(super) fn shape_within<E: DeserializeOwned>(category: &str) -> Shape {
    let mut shape = Shape::Other("nothing".into());
    let _ = E::deserialize(Variant { category, shape: &mut shape });
    shape
}

struct Probe<'a>(&'a mut Shape);

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Error;

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        *self.0 = Shape::Enum(variants);
        Err(probed())
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        *self.0 = Shape::Other(Expected(visitor).to_string());
        Err(probed())
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// Steps into one variant of an enum and probes there.
struct Variant<'a> {
    category: &'a str,
    shape: &'a mut Shape,
}

impl<'de> Deserializer<'de> for Variant<'_> {
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
        Err(probed())
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl<'a, 'de> EnumAccess<'de> for Variant<'a> {
    type Error = Error;
    type Variant = Probe<'a>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Probe<'a>), Error> {
        Ok((seed.deserialize(value::StrDeserializer::<Error>::new(self.category))?, Probe(self.shape)))
    }
}

impl<'de> VariantAccess<'de> for Probe<'_> {
    type Error = Error;

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(self)
    }

    fn unit_variant(self) -> Result<(), Error> {
        self.found("a variant without content")
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        self.found("a variant with several values")
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Error> {
        self.found("a variant with named fields")
    }
}

impl Probe<'_> {
    fn found<T>(self, what: &str) -> Result<T, Error> {
        *self.0 = Shape::Other(what.to_owned());
        Err(probed())
    }
}

fn probed() -> Error {
    Error::custom("probed")
}

/// What a visitor says it expects.
struct Expected<V>(V);

impl<'de, V: Visitor<'de>> fmt::Display for Expected<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }
}
