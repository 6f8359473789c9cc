//! Who is written when: the appends that wait, the streams that are under way, the lanes that are free.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    panic::AssertUnwindSafe,
    sync::Weak,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Config, StreamId,
    store::{
        Inner,
        appender::Request,
        lane::{Lane, write_held},
    },
};

/// What one statement takes at most.
const BATCH_APPENDS: usize = 512;
const BATCH_EVENTS: usize = 5_000;
const BATCH_BYTES: usize = 8 << 20;

pub(super) struct Dispatcher {
    inner: Weak<Inner>,
    /// How many appends have arrived: the number of the last one.
    arrived: u64,
    /// What may be sent or has to be looked at again, in order of arrival.
    waiting: BTreeMap<u64, Request>,
    /// Appends to one stream alone that have to wait for it, by stream and in order of arrival. Of these the first comes back
    /// to `waiting` when the stream is free, so that a stream for which thousands wait costs the others nothing.
    behind: HashMap<StreamId, BTreeMap<u64, Request>>,
    /// Streams of appends that are under way.
    busy: HashSet<StreamId>,
    /// Those of them that another transaction holds.
    held: HashSet<StreamId>,
    lanes: Vec<Lane>,
    held_lanes: usize,
    /// What is under way.
    running: FuturesUnordered<BoxFuture<'static, Ended>>,
    appended: watch::Sender<()>,
    /// Dropped with the dispatcher.
    _ends: watch::Sender<()>,
}

/// A batch is through, or an append that had a lane of its own.
struct Ended {
    streams: Vec<StreamId>,
    in_lane: bool,
    /// None if it panicked, or the runtime ends.
    finished: Option<Finished>,
}

enum Finished {
    /// A batch is through; `held` are the appends whose streams another transaction holds.
    Batch { lane: Lane, held: Vec<Request> },
    /// An append that had a lane of its own is through, or has had its turn.
    Held(Option<Request>),
}

impl Dispatcher {
    pub(super) fn new(
        config: &Config,
        inner: Weak<Inner>,
        appended: watch::Sender<()>,
        ends: watch::Sender<()>,
    ) -> Self {
        Self {
            inner,
            arrived: 0,
            waiting: BTreeMap::new(),
            behind: HashMap::new(),
            busy: HashSet::new(),
            held: HashSet::new(),
            lanes: (0..config.append_lanes).map(|_| Lane::default()).collect(),
            held_lanes: config.held_lanes,
            running: FuturesUnordered::new(),
            appended,
            _ends: ends,
        }
    }

    /// Runs until `requests` ends or `closing` says so, and what waits by then is written.
    pub(super) async fn run(
        mut self,
        mut requests: mpsc::UnboundedReceiver<Request>,
        mut closing: watch::Receiver<bool>,
    ) {
        let mut open = true;
        let mut held: VecDeque<Request> = VecDeque::new();
        loop {
            self.dispatch();
            while self.held_lanes > 0
                && let Some(request) = held.pop_front()
            {
                self.dispatch_held(request);
            }
            if !open && self.is_idle() && held.is_empty() {
                return;
            }
            tokio::select! {
                biased;
                Some(ended) = self.running.next() => held.extend(self.finish(ended)),
                request = requests.recv(), if open => match request {
                    Some(request) => {
                        self.arrive(request);
                        while let Ok(request) = requests.try_recv() {
                            self.arrive(request);
                        }
                    }
                    None => open = false,
                },
                () = async { drop(closing.wait_for(|closing| *closing).await) }, if open => {
                    open = false;
                    requests.close();
                    // Also what is being sent at this moment.
                    while let Some(request) = requests.recv().await {
                        self.arrive(request);
                    }
                }
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.behind.is_empty() && self.running.is_empty()
    }

    fn arrive(&mut self, request: Request) {
        self.arrived += 1;
        let queue = only_stream(&request).and_then(|stream| self.behind.get_mut(stream));
        queue.unwrap_or(&mut self.waiting).insert(self.arrived, request);
    }

    /// Lets the first append that waits behind `stream` have another try.
    fn call_next(&mut self, stream: &StreamId) {
        let Some(queue) = self.behind.get_mut(stream) else { return };
        self.waiting.extend(queue.pop_first());
        if queue.is_empty() {
            self.behind.remove(stream);
        }
    }

    /// Takes back what ended, and returns the appends whose streams another transaction holds.
    fn finish(&mut self, Ended { streams, in_lane, finished }: Ended) -> Vec<Request> {
        for stream in &streams {
            self.busy.remove(stream);
            self.held.remove(stream);
            self.call_next(stream);
        }
        let (lane, held) = match finished {
            Some(Finished::Batch { lane, held }) => (Some(lane), held),
            Some(Finished::Held(request)) => (None, Vec::from_iter(request)),
            // A lane does not panic; if it did, its callers learn it from their dropped answers.
            None => {
                tracing::error!("a lane of the appender died; a new one takes its place");
                (in_lane.then(Lane::default), vec![])
            }
        };
        match lane {
            Some(lane) => self.lanes.push(lane),
            None => self.held_lanes += 1,
        }
        for stream in held.iter().flat_map(Request::streams) {
            self.busy.insert(stream.clone());
            self.held.insert(stream.clone());
        }
        if !held.is_empty() {
            // Who waits for these keeps nobody waiting in other streams any more.
            let streams: Vec<StreamId> = self.behind.keys().cloned().collect();
            streams.iter().for_each(|stream| self.call_next(stream));
        }
        held
    }

    /// Gives every free lane a batch, as long as there is something to write.
    fn dispatch(&mut self) {
        let Some(inner) = self.inner.upgrade() else {
            // The store is gone, and with it whoever could hear an answer.
            self.behind.clear();
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
            let alone = batch.len() == 1 && self.running.is_empty();
            self.start((streams, true), alone, async move {
                let (lane, held) = lane.write(&inner, batch, &appended).await;
                Finished::Batch { lane, held }
            });
        }
    }

    fn dispatch_held(&mut self, request: Request) {
        let Some(inner) = self.inner.upgrade() else { return };
        self.held_lanes -= 1;
        let (streams, appended) = (request.streams().cloned().collect(), self.appended.clone());
        self.start(
            (streams, false),
            false,
            async move { Finished::Held(write_held(&inner, request, &appended).await) },
        );
    }

    /// Runs `work` as a task of its own, or within the dispatcher's: that saves an append that is `alone` the way to another
    /// thread and back, which takes it longer than all else that the client does.
    fn start(
        &mut self,
        (streams, in_lane): (Vec<StreamId>, bool),
        alone: bool,
        work: impl Future<Output = Finished> + Send + 'static,
    ) {
        let running = async move {
            let finished = match alone {
                true => AssertUnwindSafe(work).catch_unwind().await.ok(),
                false => AbortOnDropHandle::new(tokio::spawn(work)).await.ok(),
            };
            Ended { streams, in_lane, finished }
        };
        self.running.push(running.boxed());
    }

    /// Takes from the queue, in order, what one statement may carry: no stream twice, none that is under way.
    ///
    /// Appends to one stream keep their order: an append to several streams that has to wait for one of them lets nobody
    /// overtake it in the others, or among busy streams its turn would never come. Only behind a stream that another
    /// transaction holds does nobody queue who wants none of it.
    fn next_batch(&mut self) -> Vec<Request> {
        let (mut batch, mut later, mut reserved) = (Vec::new(), BTreeMap::new(), HashSet::new());
        let (mut events, mut bytes) = (0, 0);
        while let Some((nth, request)) = self.waiting.pop_first() {
            if request.is_given_up() {
                request.streams().for_each(|stream| self.call_next(stream));
                continue;
            }
            if request.streams().any(|stream| self.busy.contains(stream) || reserved.contains(stream)) {
                if let Some(stream) = only_stream(&request) {
                    self.behind.entry(stream.clone()).or_default().insert(nth, request);
                    continue;
                }
                if !request.streams().any(|stream| self.held.contains(stream)) {
                    reserved.extend(request.streams().cloned());
                }
                later.insert(nth, request);
                continue;
            }
            events += request.work.events();
            bytes += request.work.bytes();
            if !batch.is_empty() && (batch.len() >= BATCH_APPENDS || events > BATCH_EVENTS || bytes > BATCH_BYTES) {
                self.waiting.insert(nth, request);
                break;
            }
            self.busy.extend(request.streams().cloned());
            batch.push(request);
        }
        self.waiting.append(&mut later);
        batch
    }
}

/// The stream of an append that goes to one alone.
fn only_stream(request: &Request) -> Option<&StreamId> {
    match &request.work.appends[..] {
        [append] => Some(&append.stream),
        _ => None,
    }
}
