//! The fold: events into documents, in memory, with no database.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;

use crate::{
    Change, Id, Recorded, View,
    subscription::{Batch, FollowError, Letters, Work, guarded},
};

/// An event of a batch, or why it changes nothing.
pub(super) type Decoded<E> = Result<Recorded<E>, FollowError>;

/// The documents of a batch, each with its place in `list`.
pub(super) struct Documents<'k, V> {
    pub(super) places: HashMap<&'k str, usize, RandomState>,
    pub(super) list: Vec<(&'k str, Result<Option<V>, FollowError>)>,
}

impl<V> Documents<'_, V> {
    pub(super) fn put(&mut self, key: &str, document: Option<V>) {
        if let Some(&place) = self.places.get(key) {
            self.list[place].1 = Ok(document);
        }
    }
}

/// Folds the events into their documents, in order. Returns the keys that failed after others of their events, each with the
/// event it failed at: from there on, nothing of the key took effect. One that failed at its first stays as it is stored.
pub(super) fn fold<V: View>(
    batch: &Batch,
    events: &mut [Decoded<V::Event>],
    keys: &Arc<Vec<Vec<Id>>>,
    documents: &mut Documents<'_, V>,
    letters: &mut Letters<'_>,
) -> Result<Vec<(Id, usize)>, FollowError> {
    let mut bad: Vec<(Id, usize)> = vec![];
    let mut changed = vec![false; documents.list.len()];
    for (nth, (raw, event)) in batch.events.iter().zip(events).enumerate() {
        let (position, stream) = (raw.position, raw.stream.as_str());
        if letters.has_ended() {
            break;
        }
        // What is parked for a key stands before whatever its stream is parked for: it is tried for that key alone.
        let own = match &batch.work {
            Work::Retry { key, by_stream: false } => Some(key.as_str()),
            _ => None,
        };
        if own.is_none() && letters.discard(position, stream, true) {
            *event = Err(FollowError::Known(String::new()));
            continue;
        }
        if own.is_none() && letters.is_blocked(stream, true) {
            letters.queue(position, stream, true);
            *event = Err(FollowError::Known(String::new()));
            continue;
        }
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                let known = std::mem::replace(error, FollowError::Known(String::new()));
                let (key, by_stream) = own.map_or((stream, true), |key| (key, false));
                letters.fail(position, key, by_stream, known)?;
                continue;
            }
        };
        for (nth_key, key) in keys[nth].iter().enumerate() {
            match &batch.work {
                Work::Retry { key: own, by_stream: false } if **own != **key => continue,
                _ => {}
            }
            if letters.discard(position, key, false) {
                continue;
            }
            if letters.is_blocked(key, false) {
                letters.queue(position, key, false);
                continue;
            }
            let Some(&place) = documents.places.get(&**key) else { continue };
            batch.progress.pair(nth, nth_key, position);
            let failure = match (letters.poison(position, key, false), &mut documents.list[place].1) {
                (Some(poison), _) => Some(FollowError::Known(poison.told.text.clone())),
                (None, Err(error)) => Some(std::mem::replace(error, FollowError::Known(String::new()))),
                (None, Ok(document)) => match guarded(|| document.get_or_insert_default().apply(key, event)) {
                    Ok(Change::Keep) => None,
                    Ok(Change::Remove) => {
                        *document = None;
                        None
                    }
                    Err(error) => Some(error),
                },
            };
            match failure {
                None => {
                    letters.applied(1);
                    changed[place] = true;
                }
                Some(error) => {
                    letters.fail(position, key, false, error)?;
                    documents.list[place].1 = Err(FollowError::Known(String::new()));
                    if changed[place] {
                        bad.push((key.clone(), nth));
                    }
                }
            }
        }
        if batch.work != Work::Follow && !letters.has_ended() {
            letters.retried(position);
        }
    }
    Ok(bad)
}
