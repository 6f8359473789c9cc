//! The newest events, in memory, for every follower of the process.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use super::partition::partition_of;
use crate::{Payload, Position, Recorded};

/// What is kept at most, in payload bytes and in events.
const BYTES: usize = 8 << 20;
const EVENTS: usize = 20_000;
/// Payload bytes that one follower takes at once.
const BATCH_BYTES: usize = 2 << 20;

/// Every event behind `after`, up to where the tail has read.
#[derive(Default)]
struct Window {
    after: Position,
    events: VecDeque<Arc<Recorded<Payload>>>,
    bytes: usize,
}

/// Which events a follower wants.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    pub(crate) categories: Vec<String>,
    /// Event types that are none of its business.
    pub(crate) skips: &'static [&'static str],
    /// Only the streams of this partition, of so many.
    pub(crate) streams: Option<(i32, i32)>,
}

impl Filter {
    pub(crate) fn wants(&self, event: &Recorded<Payload>) -> bool {
        self.is_meant(event) && self.has(event)
    }

    /// Whether its category and type are wanted.
    pub(super) fn is_meant(&self, event: &Recorded<Payload>) -> bool {
        self.categories.iter().any(|category| category == event.stream.category())
            && !self.skips.contains(&&*event.event_type)
    }

    /// Whether it is of the partition.
    pub(super) fn has(&self, event: &Recorded<Payload>) -> bool {
        self.streams.is_none_or(|(own, partitions)| partition_of(event.stream.as_str(), partitions) == own)
    }
}

/// Events that a follower wants, in position order.
pub(super) struct Found {
    pub(super) events: Vec<Arc<Recorded<Payload>>>,
    /// The last event that was looked at, wanted or not.
    pub(super) last: Option<Position>,
    /// Whether everything that was there was looked at.
    pub(super) all: bool,
}

/// The window that the tail fills and the followers read.
#[derive(Default)]
pub(crate) struct Recent(Mutex<Window>);

impl Recent {
    /// Starts again, empty, behind `after`.
    pub(super) fn restart(&self, after: Position) {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *window = Window { after, ..Window::default() };
    }

    pub(super) fn push(&self, events: Vec<Recorded<Payload>>) {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            window.bytes += size(&event);
            window.events.push_back(Arc::new(event));
        }
        while window.bytes > BYTES || window.events.len() > EVENTS {
            let Some(oldest) = window.events.pop_front() else { return };
            window.bytes -= size(&oldest);
            window.after = oldest.position;
        }
    }

    /// Up to `limit` events that `filter` wants behind `after`; none if the window no longer reaches back that far.
    pub(super) fn after(&self, after: Position, limit: usize, filter: &Filter) -> Option<Found> {
        let window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if after < window.after {
            return None;
        }
        let start = window.events.partition_point(|event| event.position <= after);
        let mut found = Found { events: vec![], last: None, all: true };
        let mut bytes = 0;
        for event in window.events.range(start..) {
            if found.events.len() == limit || bytes >= BATCH_BYTES {
                found.all = false;
                break;
            }
            found.last = Some(event.position);
            if filter.wants(event) {
                bytes += size(event);
                found.events.push(event.clone());
            }
        }
        Some(found)
    }
}

fn size(event: &Recorded<Payload>) -> usize {
    event.event.as_str().len() + event.stream.as_str().len() + 256
}
