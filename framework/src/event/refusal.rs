//! Why a value cannot be stored, and where in it.

use std::fmt;

use crate::InvalidInput;

/// A refused value. The path is built while the error unwinds, so that a value which is accepted pays nothing for it.
#[derive(Debug)]
pub(crate) struct Refusal(Box<Details>);

#[derive(Debug)]
struct Details {
    reason: Reason,
    /// From the refused value outwards.
    path: Vec<Step>,
}

#[derive(Debug)]
enum Reason {
    Value(String),
    TooLarge { bytes: usize, limit: usize },
    NotTagged,
}

/// One step from a value to a part of it.
#[derive(Debug)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

impl Refusal {
    pub(crate) fn value(reason: impl Into<String>) -> Self {
        Self::new(Reason::Value(reason.into()))
    }

    pub(crate) fn too_deep(limit: usize) -> Self {
        Self::value(format!("it is nested deeper than {limit} levels"))
    }

    pub(crate) fn too_large(bytes: usize, limit: usize) -> Self {
        Self::new(Reason::TooLarge { bytes, limit })
    }

    pub(crate) fn not_tagged() -> Self {
        Self::new(Reason::NotTagged)
    }

    fn new(reason: Reason) -> Self {
        Self(Box::new(Details { reason, path: vec![] }))
    }

    /// The same refusal, of the value that holds the refused one.
    pub(crate) fn within(mut self, step: Step) -> Self {
        self.0.path.push(step);
        self
    }

    pub(crate) fn within_key(self, key: &str) -> Self {
        self.within(Step::Key(key.chars().take(Step::SHOWN_CHARS).collect()))
    }

    /// The same refusal, of a map's key and not of the value behind it.
    pub(crate) fn of_key(mut self) -> Self {
        if let Reason::Value(reason) = &mut self.0.reason {
            reason.insert_str(0, "a key is refused: ");
        }
        self
    }

    /// `what` is the event type, or the name of whatever else holds the value; `rust_type` is its type in Rust.
    pub(crate) fn into_invalid_input(self, what: &str, rust_type: &'static str) -> InvalidInput {
        let field = self.field();
        match self.0.reason {
            Reason::Value(reason) => InvalidInput::Field { event_type: what.to_owned(), field, reason },
            Reason::TooLarge { bytes, limit } => {
                InvalidInput::PayloadTooLarge { event_type: what.to_owned(), bytes, limit }
            }
            Reason::NotTagged => InvalidInput::NotTagged { rust_type },
        }
    }

    fn field(&self) -> String {
        let mut field = String::from("$");
        for step in self.0.path.iter().rev().take(Step::SHOWN) {
            match step {
                Step::Key(key) if is_plain(key) => field.extend([".", key]),
                Step::Key(key) => field += &format!("[{key:?}]"),
                Step::Index(index) => field += &format!("[{index}]"),
            }
        }
        if self.0.path.len() > Step::SHOWN {
            field.push('…');
        }
        field
    }
}

impl Step {
    /// Steps of a path that an error shows.
    const SHOWN: usize = 32;
    /// Characters of a key that an error shows.
    const SHOWN_CHARS: usize = 80;
}

fn is_plain(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || c == '_')
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.reason {
            Reason::Value(reason) => write!(f, "{}: {reason}", self.field()),
            Reason::TooLarge { bytes, limit } => write!(f, "it has at least {bytes} bytes, the limit is {limit}"),
            Reason::NotTagged => f.write_str("not an externally tagged enum"),
        }
    }
}

impl std::error::Error for Refusal {}

impl serde::ser::Error for Refusal {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self::value(reason.to_string())
    }
}
