//! The newest events, in memory, for every follower of the process.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{Payload, Position, Recorded};

/// What is kept at most, in payload bytes and in events.
const BYTES: usize = 16 << 20;
const EVENTS: usize = 20_000;

/// Every event behind `after`, up to where the tail has read.
#[derive(Default)]
struct Window {
    after: Position,
    events: VecDeque<Arc<Recorded<Payload>>>,
    bytes: usize,
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

    /// Up to `limit` events behind `after`; none if the window no longer reaches back that far.
    pub(super) fn after(&self, after: Position, limit: usize) -> Option<Vec<Arc<Recorded<Payload>>>> {
        let window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if after < window.after {
            return None;
        }
        let start = window.events.partition_point(|event| event.position <= after);
        Some(window.events.range(start..).take(limit).cloned().collect())
    }
}

fn size(event: &Recorded<Payload>) -> usize {
    event.event.as_str().len() + event.stream.as_str().len() + 256
}
