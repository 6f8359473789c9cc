//! What a view keeps in memory: documents that it stored lately, and, in a shadow, what it has not stored yet.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;
use quick_cache::{Weighter, unsync::Cache};

use crate::{
    Change, Id, PayloadLimits, Position, Recorded, View,
    event::encode::to_json,
    subscription::{Checkpoint, FollowError, Letters, guarded},
};

/// What is kept of a view in memory, in bytes of its documents' JSON.
const KEPT_BYTES: u64 = 4 << 20;

/// What a shadow has folded and not stored yet: it is stored when there is much of it, or after a while, or at the end.
pub(super) struct Held<V> {
    /// The checkpoint that it rests on.
    pub(super) from: Checkpoint,
    /// Up to where it is folded.
    pub(super) to: Position,
    /// None for one that is removed.
    pub(super) documents: HashMap<String, Option<V>, RandomState>,
    pub(super) counts: [i64; 4],
    pub(super) since: Instant,
    /// Bytes of a document's JSON, about.
    pub(super) average: f64,
}

/// What is held at most, in bytes of the documents' JSON, and how long: so much is done again after a crash.
const HELD_BYTES: f64 = 24.0 * 1024.0 * 1024.0;
const HELD_FOR: Duration = Duration::from_secs(10);
impl<V> Held<V> {
    pub(super) fn is_full(&self) -> bool {
        // A key, a document in memory and its place in the table, beside its JSON.
        self.documents.len() as f64 * (self.average + 150.0) > HELD_BYTES || self.since.elapsed() > HELD_FOR
    }
}

/// Documents that were stored lately, as they are at the checkpoint `at`: what stands there need not be loaded.
pub(super) struct Kept<V> {
    pub(super) at: Option<Checkpoint>,
    pub(super) documents: Cache<String, (V, u64), Size>,
}

#[derive(Clone)]
pub(super) struct Size;

impl<V> Weighter<String, (V, u64)> for Size {
    fn weight(&self, key: &String, (_, bytes): &(V, u64)) -> u64 {
        bytes + key.len() as u64 + 100
    }
}

impl<V> Kept<V> {
    pub(super) fn nothing() -> Self {
        Self { at: None, documents: Cache::with_weighter(1_000, KEPT_BYTES, Size) }
    }
}

impl<V: View> Held<V> {
    pub(super) fn new(from: Checkpoint) -> Self {
        Self {
            from,
            to: from.position,
            documents: HashMap::default(),
            counts: [0; 4],
            since: Instant::now(),
            average: 100.0,
        }
    }

    /// Folds an event into the documents of its keys. If it fails for one of them, what is held is not good any more.
    pub(super) fn fold(
        &mut self,
        event: &Recorded<V::Event>,
        keys: &[Id],
        letters: &mut Letters<'_>,
    ) -> Result<(), FollowError> {
        for key in keys {
            if letters.discard(event.position, key, false) {
                continue;
            }
            let document = match self.documents.get_mut(&**key) {
                Some(document) => document,
                None => self.documents.entry((**key).to_owned()).or_default(),
            };
            if guarded(|| document.get_or_insert_default().apply(key, event))? == Change::Remove {
                *document = None;
            }
            letters.applied(1);
        }
        Ok(())
    }

    /// A batch up to `to` is folded, whose last key stands for the size of the others.
    pub(super) fn grow(&mut self, to: Position, counts: [i64; 4], last: Option<&Id>, limits: &PayloadLimits) {
        self.to = to;
        self.counts.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        if let Some(key) = last
            && let Some(Some(document)) = self.documents.get(&**key)
            && let Ok(text) = to_json(&**key, document, limits)
        {
            self.average = self.average * 0.75 + text.len() as f64 * 0.25;
        }
    }
}
