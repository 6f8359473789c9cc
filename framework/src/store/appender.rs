//! Group commit: the appends that wait are written together, in one statement and one flush, each to its own end.
//!
//! ```text
//! append() ─► queue ─► dispatcher ─► a free lane ─► one statement ─► each caller its answer
//!                          │            └─ another transaction holds a stream ─► a lane of its own for that append
//!                          └─ a stream in flight: its next append waits for it
//! ```
//!
//! Two appends to one stream are never in flight together, so that a process never races with itself.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout},
};

use crate::{
    Config, StreamId,
    error::StoreError,
    store::{Inner, append::Work, batch::Appended, dispatcher::Dispatcher},
};

/// Where a request is: decides what a caller that gives up may say.
pub(super) const WAITING: u8 = 0;
pub(super) const SENT: u8 = 1;
pub(super) const GIVEN_UP: u8 = 2;

/// One append on its way, and its caller.
pub(super) struct Request {
    pub(super) work: Work,
    pub(super) state: Arc<AtomicU8>,
    pub(super) deadline: Instant,
    pub(super) limit: Duration,
    reply: oneshot::Sender<Result<Appended, StoreError>>,
    _place: OwnedSemaphorePermit,
}

impl Request {
    pub(super) fn streams(&self) -> impl Iterator<Item = &StreamId> {
        self.work.appends.iter().map(|append| &append.stream)
    }

    pub(super) fn answer(self, result: Result<Appended, StoreError>) {
        // A caller that is gone needs no answer.
        let _ = self.reply.send(result);
    }
}

/// The way into group commit.
pub(crate) struct Appender {
    queue: mpsc::UnboundedSender<Request>,
    places: Arc<Semaphore>,
    size: usize,
    closing: watch::Sender<bool>,
    /// Closed when the dispatcher has ended.
    ended: watch::Receiver<()>,
    /// Rings after every commit, for the tail.
    pub(crate) appended: watch::Sender<()>,
}

impl Appender {
    pub(crate) fn start(config: &Config, inner: Weak<Inner>) -> Self {
        let (queue, requests) = mpsc::unbounded_channel();
        let size = config.append_queue.clamp(1, Semaphore::MAX_PERMITS);
        let closing = watch::Sender::new(false);
        let appended = watch::Sender::new(());
        let (ends, ended) = watch::channel(());
        let dispatcher = Dispatcher::new(config, inner, appended.clone(), ends);
        tokio::spawn(dispatcher.run(requests, closing.subscribe()));
        Self { queue, places: Arc::new(Semaphore::new(size)), size, closing, ended, appended }
    }

    /// Hands `work` to the dispatcher and waits for its end, at most for `limit`.
    pub(crate) async fn append(&self, work: Work, limit: Duration) -> Result<Appended, StoreError> {
        if *self.closing.borrow() {
            return Err(StoreError::Closed);
        }
        let place = Arc::clone(&self.places).try_acquire_owned();
        let _place = place.map_err(|_| StoreError::Overloaded { waiting: self.size })?;
        let state = Arc::new(AtomicU8::new(WAITING));
        let (reply, answer) = oneshot::channel();
        let (event_ids, stream) = (work.event_ids(), work.appends[0].stream.clone());
        let deadline = Instant::now() + limit;
        let request = Request { work, state: state.clone(), deadline, limit, reply, _place };
        self.queue.send(request).map_err(|_| StoreError::Closed)?;
        match timeout(limit, answer).await {
            Ok(Ok(result)) => result,
            // The dispatcher is gone, with this request still in its hands.
            Ok(Err(_)) => Err(StoreError::UnknownOutcome { stream, event_ids }),
            Err(_) => match state.compare_exchange(WAITING, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => Err(StoreError::Timeout { what: "append", after: limit }),
                Err(_) => Err(StoreError::UnknownOutcome { stream, event_ids }),
            },
        }
    }

    /// Takes no more, and returns when what waits is written.
    pub(crate) async fn close(&self) {
        self.closing.send_replace(true);
        // Nothing is ever sent: what comes is the sender's end.
        let _ = self.ended.clone().changed().await;
    }
}
