//! Views: read models of documents that the framework stores.

mod follower;
mod key;

use serde::{Serialize, de::DeserializeOwned};

pub use self::key::KeyRebuilt;
pub(crate) use self::{
    follower::{ViewSql, model},
    key::rebuild_key,
};
use crate::{Event, FailurePolicy, Id, Recorded};

/// What becomes of a document once an event was applied to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is stored.
    Keep,
    /// It is removed; a later event for the same key starts from `Default` again.
    Remove,
}

/// A read model of documents, one a key, folded from events and stored as `jsonb` by the framework.
///
/// Each event is applied exactly once, in position order, together with the view's checkpoint. A view follows the log
/// asynchronously: use `wait_for` to read your own writes.
///
/// Its table is `<store>_<NAME>.documents (key text primary key, document jsonb)`, open to any SQL.
pub trait View: Default + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The view's stable name: lower case letters, digits and `_`.
    const NAME: &'static str;
    /// Raise it when the documents' shape or meaning changes.
    const VERSION: u32 = 1;
    /// Indexes on `documents` for your own queries: `create index on documents ((document->>'city'));`.
    const INDEXES: &'static str = "";
    /// How many partitions it begins with, 1 to 1,024: each has the keys of its own. They run side by side, in one
    /// process or in several. To change their number later, see
    /// [`Followers::set_partitions`](crate::Followers::set_partitions).
    const PARTITIONS: u32 = 1;
    /// What becomes of an event that fails, and how often it is tried.
    const FAILURES: FailurePolicy = FailurePolicy::PARK;
    /// Event types, among those of its categories, that it does not want and need not be able to read. Whatever else of
    /// them it cannot read is a failure.
    const SKIPS: &'static [&'static str] = &[];
    /// The events it reads: an aggregate's, or a union of several aggregates'.
    type Event: Event;

    /// The documents that `event` changes, each once; none for an event that this view does not care for.
    ///
    /// A key has at most 2,000 bytes and holds no NUL character.
    fn keys(event: &Recorded<Self::Event>) -> Vec<Id>;

    /// Applies `event` to the document `key`, which is `Default` if there was none.
    fn apply(&mut self, key: &Id, event: &Recorded<Self::Event>) -> Change;
}
