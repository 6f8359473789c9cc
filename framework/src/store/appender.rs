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
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    task::{self, JoinSet},
    time::{Instant, sleep, timeout},
};

use crate::{
    Config, StreamId,
    error::StoreError,
    store::{
        Inner,
        append::Work,
        lane::{Appended, Backend, Batch, Fault, Line, statement_deadline},
        outcome::{Settled, settle},
    },
};

/// What one statement takes at most.
const BATCH_APPENDS: usize = 512;
const BATCH_EVENTS: usize = 5_000;
const BATCH_BYTES: usize = 8 << 20;

/// Where a request is: decides what a caller that gives up may say.
const WAITING: u8 = 0;
const SENT: u8 = 1;
const GIVEN_UP: u8 = 2;

struct Request {
    work: Work,
    state: Arc<AtomicU8>,
    deadline: Instant,
    limit: Duration,
    reply: oneshot::Sender<Result<Appended, StoreError>>,
    _place: OwnedSemaphorePermit,
}

impl Request {
    fn streams(&self) -> impl Iterator<Item = &StreamId> {
        self.work.appends.iter().map(|append| &append.stream)
    }

    fn answer(self, result: Result<Appended, StoreError>) {
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
        let dispatcher = Dispatcher {
            inner,
            waiting: VecDeque::new(),
            busy: HashSet::new(),
            held: HashSet::new(),
            lanes: (0..config.append_lanes.max(1)).map(|_| Lane { line: None }).collect(),
            held_lanes: config.held_lanes.max(1),
            running: JoinSet::new(),
            tasks: HashMap::new(),
            appended: appended.clone(),
            _ends: ends,
        };
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

struct Dispatcher {
    inner: Weak<Inner>,
    waiting: VecDeque<Request>,
    /// Streams of appends that are under way.
    busy: HashSet<StreamId>,
    /// Those of them that another transaction holds.
    held: HashSet<StreamId>,
    lanes: Vec<Lane>,
    held_lanes: usize,
    running: JoinSet<Finished>,
    tasks: HashMap<task::Id, Task>,
    appended: watch::Sender<()>,
    /// Dropped with the dispatcher.
    _ends: watch::Sender<()>,
}

/// What a running task must give back, even if it panics.
struct Task {
    streams: Vec<StreamId>,
    in_lane: bool,
}

/// What a task of the dispatcher gives back.
enum Finished {
    /// A batch is through; `held` are the appends whose streams another transaction holds.
    Batch { lane: Lane, held: Vec<Request> },
    /// An append that had a lane of its own is through.
    Held,
}

impl Dispatcher {
    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>, mut closing: watch::Receiver<bool>) {
        let mut open = true;
        let mut held: VecDeque<Request> = VecDeque::new();
        loop {
            self.dispatch();
            while self.held_lanes > 0
                && let Some(request) = held.pop_front()
            {
                self.dispatch_held(request);
            }
            if !open && self.waiting.is_empty() && held.is_empty() && self.running.is_empty() {
                return;
            }
            tokio::select! {
                biased;
                Some(finished) = self.running.join_next_with_id() => held.extend(self.finish(finished)),
                request = requests.recv(), if open => match request {
                    Some(request) => {
                        self.waiting.push_back(request);
                        while let Ok(request) = requests.try_recv() {
                            self.waiting.push_back(request);
                        }
                    }
                    None => open = false,
                },
                _ = closing.wait_for(|closing| *closing), if open => {
                    open = false;
                    requests.close();
                    while let Ok(request) = requests.try_recv() {
                        self.waiting.push_back(request);
                    }
                }
            }
        }
    }

    /// Takes back what a task had, and returns the appends whose streams another transaction holds.
    fn finish(&mut self, finished: Result<(task::Id, Finished), task::JoinError>) -> Vec<Request> {
        let (id, finished) = match finished {
            Ok((id, finished)) => (id, Some(finished)),
            // A task does not panic; if it did, its callers learn it from their dropped answers.
            Err(error) => {
                tracing::error!(%error, "a lane of the appender died; a new one takes its place");
                (error.id(), None)
            }
        };
        let Some(task) = self.tasks.remove(&id) else { return vec![] };
        for stream in &task.streams {
            self.busy.remove(stream);
            self.held.remove(stream);
        }
        let (lane, held) = match finished {
            Some(Finished::Batch { lane, held }) => (Some(lane), held),
            Some(Finished::Held) => (None, vec![]),
            None => (task.in_lane.then_some(Lane { line: None }), vec![]),
        };
        match lane {
            Some(lane) => self.lanes.push(lane),
            None => self.held_lanes += 1,
        }
        for stream in held.iter().flat_map(Request::streams) {
            self.busy.insert(stream.clone());
            self.held.insert(stream.clone());
        }
        held
    }

    /// Gives every free lane a batch, as long as there is something to write.
    fn dispatch(&mut self) {
        let Some(inner) = self.inner.upgrade() else {
            // The store is gone, and with it whoever could hear an answer.
            return self.waiting.clear();
        };
        while !self.waiting.is_empty()
            && let Some(lane) = self.lanes.pop()
        {
            let batch = self.next_batch();
            if batch.is_empty() {
                return self.lanes.push(lane);
            }
            let streams = batch.iter().flat_map(Request::streams).cloned().collect();
            let (inner, appended) = (inner.clone(), self.appended.clone());
            let running = self.running.spawn(async move {
                let (lane, held) = lane.write(&inner, batch, &appended).await;
                Finished::Batch { lane, held }
            });
            self.tasks.insert(running.id(), Task { streams, in_lane: true });
        }
    }

    fn dispatch_held(&mut self, request: Request) {
        let Some(inner) = self.inner.upgrade() else { return };
        self.held_lanes -= 1;
        let (streams, appended) = (request.streams().cloned().collect(), self.appended.clone());
        let running = self.running.spawn(async move {
            write_held(&inner, request, &appended).await;
            Finished::Held
        });
        self.tasks.insert(running.id(), Task { streams, in_lane: false });
    }

    /// Takes from the queue, in order, what one statement may carry: no stream twice, none that is under way.
    ///
    /// Appends to one stream keep their order: an append to several streams that has to wait for one of them lets nobody
    /// overtake it in the others, or among busy streams its turn would never come. Only behind a stream that another
    /// transaction holds does nobody queue who wants none of it.
    fn next_batch(&mut self) -> Vec<Request> {
        let (mut batch, mut later, mut reserved) = (Vec::new(), VecDeque::new(), HashSet::new());
        let (mut events, mut bytes) = (0, 0);
        while let Some(request) = self.waiting.pop_front() {
            if request.state.load(Ordering::Acquire) == GIVEN_UP {
                continue;
            }
            if request.streams().any(|stream| self.busy.contains(stream) || reserved.contains(stream)) {
                if !request.streams().any(|stream| self.held.contains(stream)) {
                    reserved.extend(request.streams().cloned());
                }
                later.push_back(request);
                continue;
            }
            events += request.work.events();
            bytes += request.work.bytes();
            if !batch.is_empty() && (batch.len() >= BATCH_APPENDS || events > BATCH_EVENTS || bytes > BATCH_BYTES) {
                self.waiting.push_front(request);
                break;
            }
            self.busy.extend(request.streams().cloned());
            batch.push(request);
        }
        later.append(&mut self.waiting);
        self.waiting = later;
        batch
    }
}

/// A connection that writes batches, one after the other. It connects when it has something to write.
struct Lane {
    line: Option<Line>,
}

impl Lane {
    /// Writes `batch` and answers every caller, but those whose streams another transaction holds: these come back.
    async fn write(mut self, inner: &Inner, batch: Vec<Request>, appended: &watch::Sender<()>) -> (Self, Vec<Request>) {
        let mut held = Vec::new();
        let mut parts = vec![(batch, false)];
        while let Some((part, raced)) = parts.pop() {
            match send(&mut self.line, inner, part, || inner.config.lock_deadline).await {
                Sent::Answered => appended.send_replace(()),
                Sent::Again(part) => parts.push((part, raced)),
                // Whoever won has committed, so the same statement mostly gets through. If it does not, somebody writes
                // to the same streams all the time: the smaller the part, the fewer wait for that.
                Sent::Raced(mut part) if raced && part.len() > 1 => {
                    let half = part.split_off(part.len() / 2);
                    parts.extend([(half, true), (part, true)]);
                }
                Sent::Raced(part) => parts.push((part, true)),
                Sent::Held(mut part) if part.len() == 1 => held.append(&mut part),
                // Which stream is held, the server does not say: one by one, the others get through at once.
                Sent::Held(part) | Sent::Refused(part) => {
                    parts.extend(part.into_iter().map(|request| (vec![request], false)));
                }
            }
        }
        (self, held)
    }
}

/// Writes an append whose stream another transaction holds: waits for that transaction, beside the lanes.
async fn write_held(inner: &Inner, request: Request, appended: &watch::Sender<()>) {
    /// Postgres stops waiting this much before the caller does, who then hears that nothing was written.
    const MARGIN: Duration = Duration::from_millis(250);
    let mut part = vec![request];
    loop {
        let end = part[0].deadline - MARGIN;
        let left = || end.saturating_duration_since(Instant::now()).max(Duration::from_millis(10));
        if Instant::now() >= end {
            break;
        }
        // A connection of its own each time, for its wait for the lock is settled when it is opened.
        match send(&mut None, inner, part, left).await {
            Sent::Answered => return appended.send_replace(()),
            Sent::Again(again) | Sent::Raced(again) | Sent::Refused(again) => part = again,
            Sent::Held(held) => {
                part = held;
                break;
            }
        }
    }
    for request in part {
        let after = request.limit;
        request.answer(Err(StoreError::Timeout { what: "wait for a stream that another transaction holds", after }));
    }
}

/// What one round trip led to.
enum Sent {
    /// Every caller has its answer.
    Answered,
    /// To be sent again as it is: nothing of it was written.
    Again(Vec<Request>),
    /// Another transaction was faster on one of the streams: nothing was written.
    Raced(Vec<Request>),
    /// Another transaction holds one of the streams: nothing was written.
    Held(Vec<Request>),
    /// Postgres refused the statement for one of several appends: nothing was written.
    Refused(Vec<Request>),
}

/// Sends `part` on `line`, which is opened if it is not: with a wait for locks of at most `lock_deadline`.
async fn send(
    line: &mut Option<Line>,
    inner: &Inner,
    part: Vec<Request>,
    lock_deadline: impl Fn() -> Duration,
) -> Sent {
    if line.is_none() {
        match Line::open(inner, &lock_deadline).await {
            Ok(opened) => *line = Some(opened),
            Err(error) => return wait_for_server(part, error).await,
        }
    }
    let Some(open) = line else { return again(part) };
    // Whoever gave up while this was waiting has been told that nothing was written: so nothing is.
    let part: Vec<Request> = part
        .into_iter()
        .filter(|request| request.state.compare_exchange(WAITING, SENT, Ordering::AcqRel, Ordering::Acquire).is_ok())
        .collect();
    if part.is_empty() {
        return Sent::Answered;
    }
    let batch = Batch::new(part.iter().map(|request| &request.work));
    let silence = statement_deadline(inner, lock_deadline()) + Duration::from_secs(1);
    let result = match timeout(silence, batch.send(&mut open.conn, &inner.sql)).await {
        Ok(result) => result,
        Err(_) => Err(Fault::Lost(sqlx::Error::Protocol("the server is silent".into()))),
    };
    match result {
        Ok(rows) => {
            let outcomes = batch.outcomes(&rows);
            part.into_iter().zip(outcomes).for_each(|(request, outcome)| request.answer(outcome));
            Sent::Answered
        }
        Err(Fault::Raced | Fault::Deadlocked) => again_as(Sent::Raced, part),
        Err(Fault::Held) => again_as(Sent::Held, part),
        Err(Fault::Refused(_)) if part.len() > 1 => again_as(Sent::Refused, part),
        Err(Fault::Refused(error)) => {
            let mut error = Some(error);
            for request in part {
                if let Some(error) = error.take() {
                    request.answer(Err(Fault::Refused(error).into_error("append")));
                }
            }
            Sent::Answered
        }
        Err(Fault::Lost(error)) => {
            tracing::warn!(%error, appends = part.len(), "lost the answer to an append; looking for it");
            let backend = open.backend;
            *line = None;
            settle_all(inner, backend, part).await
        }
    }
}

/// Answers what turned out to be written; the rest is certainly not, and is sent again.
async fn settle_all(inner: &Inner, backend: Backend, part: Vec<Request>) -> Sent {
    let deadline = part.iter().map(|request| request.deadline).max().unwrap_or_else(Instant::now);
    let works: Vec<_> = part.iter().map(|request| &request.work).collect();
    match settle(inner, backend, &works, deadline).await {
        Settled::Known(outcomes) => {
            let mut rest = Vec::new();
            for (request, outcome) in part.into_iter().zip(outcomes) {
                match outcome {
                    Some(appended) => request.answer(Ok(appended)),
                    None => rest.push(request),
                }
            }
            again(rest)
        }
        Settled::Unknown => {
            for request in part {
                let (stream, event_ids) = (request.work.appends[0].stream.clone(), request.work.event_ids());
                request.answer(Err(StoreError::UnknownOutcome { stream, event_ids }));
            }
            Sent::Answered
        }
    }
}

/// Makes `part`, of which nothing was written, ready to be sent again; whoever is out of time is told so.
fn again(part: Vec<Request>) -> Sent {
    again_as(Sent::Again, part)
}

fn again_as(sent: fn(Vec<Request>) -> Sent, part: Vec<Request>) -> Sent {
    let mut rest = Vec::with_capacity(part.len());
    for request in part {
        if request.deadline <= Instant::now() {
            let after = request.limit;
            request.answer(Err(StoreError::Timeout { what: "append", after }));
        } else {
            request.state.store(WAITING, Ordering::Release);
            rest.push(request);
        }
    }
    if rest.is_empty() { Sent::Answered } else { sent(rest) }
}

/// The server cannot be reached: a moment's pause, unless waiting cannot help or there is no time left for it.
async fn wait_for_server(part: Vec<Request>, error: StoreError) -> Sent {
    const PAUSE: Duration = Duration::from_millis(100);
    let hopeless = !error.is_retryable();
    let mut error = Some(error);
    let mut rest = Vec::with_capacity(part.len());
    for request in part {
        if !hopeless && request.deadline > Instant::now() + PAUSE * 2 {
            rest.push(request);
        } else if let Some(error) = error.take() {
            request.answer(Err(error));
        } else {
            let source = sqlx::Error::Protocol("the server cannot be reached".into());
            request.answer(Err(StoreError::Unavailable { what: "connect", source }));
        }
    }
    if rest.is_empty() {
        return Sent::Answered;
    }
    sleep(PAUSE).await;
    Sent::Again(rest)
}
