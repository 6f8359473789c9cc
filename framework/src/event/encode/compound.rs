//! What holds other values: arrays, objects, and serde_json's struct around text that is JSON already.

use serde::{
    Serialize,
    ser::{
        Error as _, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
        SerializeTupleStruct, SerializeTupleVariant,
    },
};

use super::{key::Key, value::Writer};
use crate::event::refusal::{Refusal, Step};

/// An open array or object.
pub(super) struct Compound<'a, 'l> {
    writer: &'a mut Writer<'l>,
    closing: &'static [u8],
    /// The variant whose content it is, when that is not an event's own.
    variant: Option<&'static str>,
    elements: usize,
    /// Where the key of the current entry stands in the output, without its quotes.
    key: (usize, usize),
}

impl<'a, 'l> Compound<'a, 'l> {
    pub(super) fn new(writer: &'a mut Writer<'l>, closing: &'static [u8], variant: Option<&'static str>) -> Self {
        Self { writer, closing, variant, elements: 0, key: (0, 0) }
    }

    pub(super) fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
        let index = self.elements;
        self.separate()?;
        value.serialize(&mut *self.writer).map_err(|refusal| self.outwards(refusal.within(Step::Index(index))))
    }

    pub(super) fn field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Refusal> {
        self.separate()?;
        self.writer.text(key).map_err(Refusal::of_key)?;
        self.writer.out.push(b':');
        value.serialize(&mut *self.writer).map_err(|refusal| self.outwards(refusal.within_key(key)))
    }

    pub(super) fn close(self) {
        self.writer.close(self.closing);
    }

    fn separate(&mut self) -> Result<(), Refusal> {
        if self.elements > 0 {
            self.writer.out.push(b',');
        }
        self.elements += 1;
        self.writer.room(0)
    }

    fn outwards(&self, refusal: Refusal) -> Refusal {
        match self.variant {
            Some(variant) => refusal.within_key(variant),
            None => refusal,
        }
    }
}

impl SerializeMap for Compound<'_, '_> {
    type Ok = ();
    type Error = Refusal;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refusal> {
        self.separate()?;
        let start = self.writer.out.len() + 1;
        key.serialize(Key(&mut *self.writer)).map_err(Refusal::of_key)?;
        self.key = (start, self.writer.out.len() - 1);
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
        self.writer.out.push(b':');
        value.serialize(&mut *self.writer).map_err(|refusal| {
            let (start, end) = self.key;
            refusal.within_key(&String::from_utf8_lossy(&self.writer.out[start..end]))
        })
    }

    fn end(self) -> Result<(), Refusal> {
        self.close();
        Ok(())
    }
}

macro_rules! elements {
    ($($trait:ident::$method:ident),*) => {
        $(impl $trait for Compound<'_, '_> {
            type Ok = ();
            type Error = Refusal;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
                self.element(value)
            }

            fn end(self) -> Result<(), Refusal> {
                self.close();
                Ok(())
            }
        })*
    };
}

elements!(
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field
);

impl SerializeStructVariant for Compound<'_, '_> {
    type Ok = ();
    type Error = Refusal;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Refusal> {
        self.field(key, value)
    }

    fn end(self) -> Result<(), Refusal> {
        self.close();
        Ok(())
    }
}

/// A struct's fields, or the one field by which serde_json passes JSON text.
pub(super) enum Fields<'a, 'l> {
    Object(Compound<'a, 'l>),
    JsonText(&'a mut Writer<'l>),
}

impl SerializeStruct for Fields<'_, '_> {
    type Ok = ();
    type Error = Refusal;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Refusal> {
        match self {
            Self::Object(object) => object.field(key, value),
            Self::JsonText(writer) => {
                let text = serde_json::to_value(value).map_err(Refusal::custom)?;
                writer.json_text(text.as_str().unwrap_or_default())
            }
        }
    }

    fn end(self) -> Result<(), Refusal> {
        if let Self::Object(object) = self {
            object.close();
        }
        Ok(())
    }
}
