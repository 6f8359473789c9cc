//! Words of the log: streams, versions, positions.

use std::{fmt, ops::Deref, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::InvalidInput;

/// The name of a stream, `<category>-<id>`: every event of one aggregate, in version order.
///
/// 1 to 255 bytes, compared byte by byte, without control or bidirectional formatting characters. A leading `$` marks
/// the framework's own streams. Everything before the first `-` is the category, everything behind it the id.
///
/// # Example
/// ```
/// use annals::StreamId;
///
/// let stream = StreamId::of("order", "0198")?;
/// assert_eq!(stream.as_str(), "order-0198");
/// assert_eq!((stream.category(), stream.id()), ("order", "0198"));
/// assert!(StreamId::new("$mine").is_err());
/// # Ok::<(), annals::InvalidInput>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(Arc<str>);

impl StreamId {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Checks `name` and makes it a stream id.
    ///
    /// # Errors
    /// [`InvalidInput::StreamName`] says which rule `name` breaks.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidInput> {
        let name = name.into();
        if name.starts_with('$') {
            return Err(InvalidInput::stream_name(&name, "a leading `$` is kept for the framework's own streams"));
        }
        Self::check(name)
    }

    /// The stream of the aggregate `id` in `category`.
    ///
    /// # Errors
    /// [`InvalidInput::StreamName`] if `id` is empty, if `category` is or holds a `-`, or if the whole name breaks a rule.
    pub fn of(category: &str, id: impl Into<Id>) -> Result<Self, InvalidInput> {
        let id = id.into();
        let name = format!("{category}-{}", &*id);
        if id.is_empty() {
            return Err(InvalidInput::stream_name(&name, "the id is empty"));
        }
        if category.is_empty() || category.contains('-') {
            return Err(InvalidInput::stream_name(&name, "a category is at least one character and holds no `-`"));
        }
        Self::new(name)
    }

    /// The stream of the instance `id` of a saga.
    pub(crate) fn of_saga(saga: &str, id: &Id) -> Result<Self, InvalidInput> {
        Self::of(saga, id.clone())?;
        Self::check(format!("${saga}-{}", &**id))
    }

    fn check(name: String) -> Result<Self, InvalidInput> {
        let rule = if name.is_empty() {
            "it is empty"
        } else if name.len() > Self::MAX_BYTES {
            "it is longer than 255 bytes"
        } else if name.chars().any(char::is_control) {
            "it holds a control character"
        } else if name.chars().any(is_bidi) {
            "it holds a bidirectional formatting character"
        } else {
            return Ok(Self(name.into()));
        };
        Err(InvalidInput::stream_name(&name, rule))
    }

    /// A name that the database already holds.
    pub(crate) fn stored(name: &str) -> Self {
        Self(name.into())
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Everything before the first `-`; the whole name if there is none.
    pub fn category(&self) -> &str {
        self.0.split_once('-').map_or(&*self.0, |(category, _)| category)
    }

    /// Everything behind the first `-`; empty if there is none.
    pub fn id(&self) -> &str {
        self.0.split_once('-').map_or("", |(_, id)| id)
    }
}

/// Characters that make a name read otherwise than it is compared.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl AsRef<str> for StreamId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// The id of one aggregate or of one document: any text. Made from whatever prints itself.
///
/// It dereferences to its text: `&*id` is a `&str`, and what takes `impl Into<Id>` takes `&*id` for an id that is kept.
///
/// ```
/// # use annals::Id;
/// assert_eq!(&*Id::from(42), "42");
/// assert_eq!(&*Id::from("ada"), "ada");
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Id(String);

impl<T: fmt::Display> From<T> for Id {
    fn from(text: T) -> Self {
        Self(text.to_string())
    }
}

impl Deref for Id {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// How many events a stream holds; also the number of one of them, from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(i64);

impl Version {
    /// A stream that has no events.
    pub const NONE: Self = Self(0);

    /// The version `number`, in events; a negative number is [`Version::NONE`].
    pub const fn new(number: i64) -> Self {
        Self(if number < 0 { 0 } else { number })
    }

    /// The number, in events.
    pub const fn get(self) -> i64 {
        self.0
    }

    pub(crate) fn plus(self, events: usize) -> Self {
        Self(self.0 + events as i64)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where an event stands in the log of all streams. Positions grow; numbers may be left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Position(i64);

impl Position {
    /// Before the first event.
    pub const START: Self = Self(0);

    /// The position `number`; a negative number is [`Position::START`].
    pub const fn new(number: i64) -> Self {
        Self(if number < 0 { 0 } else { number })
    }

    /// The number.
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the writer of an append believes about the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedVersion {
    /// The stream is at this version.
    Exact(Version),
    /// The stream has no events yet.
    NoStream,
    /// The writer does not care: the events go behind whatever is there.
    Any,
}

impl From<Version> for ExpectedVersion {
    fn from(version: Version) -> Self {
        Self::Exact(version)
    }
}

impl fmt::Display for ExpectedVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(version) => version.fmt(f),
            Self::NoStream => f.write_str("0 (no stream)"),
            Self::Any => f.write_str("any"),
        }
    }
}

/// Where the events of an append or a command stand: the proof that they are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The version of the stream behind the last event.
    pub version: Version,
    /// The position of the last event. For an empty decision, that of the stream's last event.
    pub position: Position,
    /// How many events were appended now: 0 for an empty decision, and for a command that had taken effect before.
    pub appended: usize,
}
