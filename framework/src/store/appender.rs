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
const GIVEN_UP: u8 = 2;
/// How much longer than its deadline a caller waits for the answer to what was sent.
const GRACE: Duration = Duration::from_secs(1);

/// One append on its way, and its caller.
pub(super) struct Request {
    pub(super) work: Work,
    pub(super) state: Arc<AtomicU8>,
    pub(super) deadline: Instant,
    pub(super) limit: Duration,
    reply: oneshot::Sender<Result<Appended, StoreError>>,
    places: [OwnedSemaphorePermit; 2],
}

impl Request {
    /// Whether its caller no longer waits: it was told that nothing is written, or it is gone.
    pub(super) fn is_given_up(&self) -> bool {
        self.state.load(Ordering::Acquire) == GIVEN_UP || self.reply.is_closed()
    }

    pub(super) fn streams(&self) -> impl Iterator<Item = &StreamId> {
        self.work.appends.iter().map(|append| &append.stream)
    }

    pub(super) fn answer(self, result: Result<Appended, StoreError>) {
        // Before the caller hears of it: its next append may need the room.
        drop(self.places);
        // A caller that is gone needs no answer.
        let _ = self.reply.send(result);
    }
}

/// How much may wait.
struct Bound {
    /// The field of [`Config`] that sets it.
    name: &'static str,
    limit: usize,
    free: Arc<Semaphore>,
}

impl Bound {
    fn new(name: &'static str, limit: usize) -> Self {
        let limit = limit.min(u32::MAX as usize).min(Semaphore::MAX_PERMITS);
        Self { name, limit, free: Arc::new(Semaphore::new(limit)) }
    }

    /// Room for `amount`, or for as much as there ever is.
    fn take(&self, amount: usize) -> Result<OwnedSemaphorePermit, StoreError> {
        let taken = Arc::clone(&self.free).try_acquire_many_owned(amount.min(self.limit) as u32);
        taken.map_err(|_| StoreError::Overloaded { bound: self.name, limit: self.limit })
    }
}

/// The way into group commit.
pub(crate) struct Appender {
    queue: mpsc::UnboundedSender<Request>,
    appends: Bound,
    bytes: Bound,
    closing: watch::Sender<bool>,
    /// Closed when the dispatcher has ended.
    ended: watch::Receiver<()>,
    /// Rings after every commit, for the tail.
    pub(crate) appended: watch::Sender<()>,
}

impl Appender {
    pub(crate) fn start(config: &Config, inner: Weak<Inner>) -> Self {
        let (queue, requests) = mpsc::unbounded_channel();
        let closing = watch::Sender::new(false);
        let appended = watch::Sender::new(());
        let (ends, ended) = watch::channel(());
        let dispatcher = Dispatcher::new(config, inner, appended.clone(), ends);
        tokio::spawn(dispatcher.run(requests, closing.subscribe()));
        let appends = Bound::new("append_queue", config.append_queue);
        let bytes = Bound::new("append_queue_bytes", config.append_queue_bytes);
        Self { queue, appends, bytes, closing, ended, appended }
    }

    /// Hands `work` to the dispatcher and waits for its end, at most for `limit`.
    pub(crate) async fn append(&self, work: Work, limit: Duration) -> Result<Appended, StoreError> {
        if *self.closing.borrow() {
            return Err(StoreError::Closed);
        }
        let places = [self.appends.take(1)?, self.bytes.take(work.bytes())?];
        let state = Arc::new(AtomicU8::new(WAITING));
        let (reply, mut answer) = oneshot::channel();
        let (event_ids, stream) = (work.event_ids(), work.appends[0].stream.clone());
        let deadline = Instant::now() + limit;
        let request = Request { work, state: state.clone(), deadline, limit, reply, places };
        self.queue.send(request).map_err(|_| StoreError::Closed)?;
        let answered = match timeout(limit, &mut answer).await {
            Ok(answered) => answered.ok(),
            Err(_) if state.compare_exchange(WAITING, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire).is_ok() => {
                return Err(StoreError::Timeout { what: "append", after: limit });
            }
            // It was sent. The answer is mostly on its way, and better than none.
            Err(_) => timeout(GRACE, answer).await.ok().and_then(Result::ok),
        };
        // Without one, the dispatcher may be gone with this request in its hands.
        answered.unwrap_or(Err(StoreError::UnknownOutcome { stream, event_ids }))
    }

    /// Takes no more, and returns when what waits is written.
    pub(crate) async fn close(&self) {
        self.closing.send_replace(true);
        // Nothing is ever sent: what comes is the sender's end.
        let _ = self.ended.clone().changed().await;
    }
}
