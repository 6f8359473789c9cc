//! Who is written when: the appends that wait, the streams that are under way, the lanes that are free.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Weak, atomic::Ordering},
};

use tokio::{
    sync::{mpsc, watch},
    task::{self, JoinSet},
};

use crate::{
    Config, StreamId,
    store::{
        Inner,
        appender::{GIVEN_UP, Request},
        lane::{Lane, write_held},
    },
};

/// What one statement takes at most.
const BATCH_APPENDS: usize = 512;
const BATCH_EVENTS: usize = 5_000;
const BATCH_BYTES: usize = 8 << 20;

pub(super) struct Dispatcher {
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
            waiting: VecDeque::new(),
            busy: HashSet::new(),
            held: HashSet::new(),
            lanes: (0..config.append_lanes).map(|_| Lane::default()).collect(),
            held_lanes: config.held_lanes,
            running: JoinSet::new(),
            tasks: HashMap::new(),
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
            Some(Finished::Held(request)) => (None, Vec::from_iter(request)),
            None => (task.in_lane.then_some(Lane::default()), vec![]),
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
        let running = self.running.spawn(async move { Finished::Held(write_held(&inner, request, &appended).await) });
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
