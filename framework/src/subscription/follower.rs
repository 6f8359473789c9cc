//! The loop of one follower: wait, take a batch, do the work, move on; on a failure find the event, wait, try again.
//!
//! Nothing is skipped: a follower whose event fails stays before it, says so, and goes on trying.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures::FutureExt;
use sqlx::PgConnection;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    checkpoint::Checkpoint,
    failure::{Failure, FollowError, message},
    recent::{Found, Recent},
    tail::{Frontier, Tail},
};
use crate::{
    Payload, Position, Recorded,
    error::StoreError,
    store::{Annals, BATCH_DEADLINE, ReadLog, within},
};

/// Events of one batch at most.
const BATCH: usize = 2_000;
/// A checkpoint that only passes over events of others is saved this often.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// The longest pause before a failing event is tried again, and before a failing database is.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE_OF_DATABASE: Duration = Duration::from_secs(2);

/// What a follower is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowerState {
    /// It has not begun yet.
    Starting,
    /// It follows the log.
    Running,
    /// An event fails, or the database does, for it or for the tail: it waits and tries again.
    Retrying,
    /// It was stopped by a shutdown.
    Stopped,
}

/// How far a follower has come, and what keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct FollowerStatus {
    /// The read model's name.
    pub name: &'static str,
    /// What it is doing.
    pub state: FollowerState,
    /// Every event up to here has taken effect.
    pub position: Position,
    /// How many positions the safe end of the log is ahead.
    pub behind: i64,
    /// Failures in a row.
    pub attempts: u32,
    /// The last failure, while it is retrying.
    pub last_error: Option<String>,
    /// The event that fails, once it is known.
    pub failed_position: Option<Position>,
    /// When it tries again.
    pub next_attempt_at: Option<DateTime<Utc>>,
}

/// Whether a piece of work was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    /// It was, together with the checkpoint.
    Committed,
    /// The checkpoint stood elsewhere: another process does this work. Nothing was changed.
    Fenced,
}

/// Events to apply, and how the checkpoint moves with them.
pub(crate) struct Batch<'b> {
    pub(crate) events: &'b [Arc<Recorded<Payload>>],
    pub(crate) from: Checkpoint,
    pub(crate) to: Position,
}

/// What a follower does with events. Work and checkpoint commit together.
pub(crate) trait Follower: Send + Sync + 'static {
    /// Its name, that of the checkpoint.
    fn name(&self) -> &'static str;

    /// The stream categories whose events it wants.
    fn categories(&self) -> &[String];

    /// Applies a batch on `conn`, which is outside any transaction, before and after.
    fn apply(
        &self,
        batch: Batch<'_>,
        conn: &mut PgConnection,
    ) -> impl Future<Output = Result<Applied, FollowError>> + Send;
}

/// A running follower, seen from the app.
pub(crate) struct Handle {
    status: Arc<Mutex<FollowerStatus>>,
    pub(crate) position: watch::Receiver<Position>,
    frontier: watch::Receiver<Frontier>,
    trouble: watch::Receiver<Option<String>>,
    pub(crate) task: JoinHandle<()>,
}

impl Handle {
    pub(crate) fn start<F: Follower>(follower: F, store: Annals, tail: &Tail, stop: CancellationToken) -> Self {
        let status = Arc::new(Mutex::new(FollowerStatus {
            name: follower.name(),
            state: FollowerState::Starting,
            position: Position::START,
            behind: 0,
            attempts: 0,
            last_error: None,
            failed_position: None,
            next_attempt_at: None,
        }));
        let (position, seen) = watch::channel(Position::START);
        let runner = Runner {
            follower,
            store,
            frontier: tail.frontier.clone(),
            recent: tail.recent.clone(),
            turns: tail.turns.clone(),
            status: status.clone(),
            position,
            ahead: None,
            stop,
        };
        let (frontier, trouble) = (tail.frontier.clone(), tail.trouble.clone());
        Self { status, position: seen, frontier, trouble, task: tokio::spawn(runner.run()) }
    }

    pub(crate) fn status(&self) -> FollowerStatus {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.position = *self.position.borrow();
        status.behind = (self.frontier.borrow().safe.get() - status.position.get()).max(0);
        if let Some(trouble) = &*self.trouble.borrow() {
            status.state = FollowerState::Retrying;
            status.last_error.get_or_insert_with(|| trouble.clone());
        }
        if self.task.is_finished() {
            status.state = FollowerState::Stopped;
        }
        status
    }
}

struct Runner<F> {
    follower: F,
    store: Annals,
    frontier: watch::Receiver<Frontier>,
    recent: Arc<Recent>,
    turns: Arc<Semaphore>,
    status: Arc<Mutex<FollowerStatus>>,
    position: watch::Sender<Position>,
    ahead: Option<Ahead>,
    stop: CancellationToken,
}

/// A page of the log that is read while the one before it is applied.
struct Ahead {
    epoch: u64,
    after: Position,
    limit: usize,
    page: AbortOnDropHandle<Result<Found, StoreError>>,
}

/// Where a follower is: `committed` stands in the database, `read` may be ahead of it over events of others, and never
/// over a gap at the log's end.
struct Place {
    epoch: u64,
    committed: Checkpoint,
    read: Position,
    saved_at: Instant,
}

impl<F: Follower> Runner<F> {
    async fn run(mut self) {
        let mut attempts = 0;
        let mut limit = BATCH;
        let mut place = None;
        while !self.stop.is_cancelled() {
            match self.step(&mut place, &mut limit).await {
                Ok(()) if place.is_none() => {}
                Ok(()) if attempts > 0 => {
                    attempts = 0;
                    self.show_recovered(place.as_ref()).await;
                }
                Ok(()) => self.show(|status| status.state = FollowerState::Running),
                Err(failure) => {
                    self.forget(&mut place);
                    // Which event it is, halving finds out; what comes before it takes effect on the way.
                    limit = match failure.events {
                        0 => (limit / 2).max(1),
                        events => (events / 2).max(1),
                    };
                    if failure.events <= 1 {
                        attempts += 1;
                        self.wait_after(failure, attempts).await;
                    } else {
                        self.show_searching(failure);
                    }
                }
            }
        }
        if let Some(place) = place.filter(|place| place.read > place.committed.position) {
            self.move_checkpoint(place.committed, place.read).await;
        }
        self.show(|status| status.state = FollowerState::Stopped);
    }

    /// Takes one batch through, or waits for one.
    async fn step(&mut self, place: &mut Option<Place>, limit: &mut usize) -> Result<(), Failure> {
        let frontier = *self.frontier.borrow_and_update();
        let at = match place {
            Some(at) if frontier.connected && at.epoch == frontier.epoch => at,
            _ => {
                self.forget(place);
                if !frontier.connected {
                    self.wait_for_tail().await;
                    return Ok(());
                }
                let committed = Checkpoint::read(&self.store, self.follower.name()).await?;
                self.position.send_replace(committed.position);
                self.show(|status| {
                    if status.state == FollowerState::Starting {
                        status.state = FollowerState::Running;
                    }
                });
                let (epoch, read) = (frontier.epoch, committed.position);
                place.insert(Place { epoch, committed, read, saved_at: Instant::now() })
            }
        };
        if at.read > at.committed.position && at.saved_at.elapsed() >= SAVE_EVERY {
            if !self.move_checkpoint(at.committed, at.read).await {
                self.forget(place);
                return Ok(());
            }
            (at.committed.position, at.saved_at) = (at.read, Instant::now());
        }
        if frontier.last <= at.read {
            // Up to the safe position there are gaps only, in which nothing can take effect any more.
            self.position.send_replace(at.read.max(frontier.safe));
            self.wait_for_tail().await;
            return Ok(());
        }
        let turns = self.turns.clone();
        let _turn = turns.acquire().await;
        // That may have taken long: what was known of the log before holds no more if the tail has lost its connection.
        let frontier = *self.frontier.borrow();
        if !frontier.connected || frontier.epoch != at.epoch {
            self.forget(place);
            return Ok(());
        }
        let Found { events, last, .. } = self.find(at.epoch, at.read, frontier.last, *limit).await?;
        // The window may have grown past the frontier meanwhile: what it holds is final.
        let to = last.unwrap_or(at.read);
        if !events.is_empty() {
            match self.apply(&events, at.committed, to).await? {
                Applied::Committed => (at.committed.position, at.saved_at) = (to, Instant::now()),
                Applied::Fenced => {
                    tracing::debug!(follower = self.follower.name(), "another process moved the checkpoint");
                    self.forget(place);
                    return Ok(());
                }
            }
            *limit = (*limit * 2).min(BATCH);
        }
        at.read = to;
        self.position.send_replace(to);
        Ok(())
    }

    async fn wait_for_tail(&mut self) {
        tokio::select! {
            Ok(()) = self.frontier.changed() => {}
            () = self.stop.cancelled() => {}
            () = sleep(SAVE_EVERY) => {}
        }
    }

    /// Goes back to what is committed; what was shown beyond it may not last.
    fn forget(&self, place: &mut Option<Place>) {
        if let Some(place) = place.take() {
            self.position.send_replace(place.committed.position);
        }
    }

    /// Up to `limit` wanted events behind `after`, from memory, or else from the database up to `last`.
    async fn find(&mut self, epoch: u64, after: Position, last: Position, limit: usize) -> Result<Found, StoreError> {
        let ahead = self.ahead.take();
        if let Some(found) = self.recent.after(after, limit, self.follower.categories()) {
            return Ok(found);
        }
        let ahead = ahead.filter(|ahead| (ahead.epoch, ahead.after, ahead.limit) == (epoch, after, limit));
        // One that failed was asked for some time ago: it says nothing about now.
        let read = match ahead {
            Some(ahead) => ahead.page.await.ok().and_then(Result::ok),
            None => None,
        };
        let found = match read {
            Some(found) => found,
            None => self.read(after, last, limit).await?,
        };
        if let (false, Some(after)) = (found.all, found.last) {
            let page = AbortOnDropHandle::new(tokio::spawn(self.read(after, last, limit)));
            self.ahead = Some(Ahead { epoch, after, limit, page });
        }
        Ok(found)
    }

    /// Reads a page from the database.
    fn read(
        &self,
        after: Position,
        last: Position,
        limit: usize,
    ) -> impl Future<Output = Result<Found, StoreError>> + Send + 'static {
        let (store, categories) = (self.store.clone(), self.follower.categories().to_vec());
        async move {
            let read = ReadLog { after, categories, ..ReadLog::default() };
            let page = store.read_final(&read, last, limit).await?;
            let events = page.events.into_iter().map(Arc::new).collect();
            // A page that is the last one looked through everything up to the position that was `last` when it was asked for.
            Ok(Found { events, last: Some(page.next.unwrap_or(last)), all: page.next.is_none() })
        }
    }

    async fn apply(
        &self,
        events: &[Arc<Recorded<Payload>>],
        from: Checkpoint,
        to: Position,
    ) -> Result<Applied, Failure> {
        let what = "take a connection for a follower";
        let mut conn = self.store.inner.followers.acquire().await.map_err(StoreError::on(what))?;
        let work = AssertUnwindSafe(self.follower.apply(Batch { events, from, to }, &mut conn)).catch_unwind();
        let error = match timeout(BATCH_DEADLINE, work).await {
            Ok(Ok(Ok(applied))) => return Ok(applied),
            Ok(Ok(Err(error))) => error,
            Ok(Err(panic)) => FollowError::Panicked(message(panic)),
            Err(_) => FollowError::Hung(BATCH_DEADLINE),
        };
        // Whatever it left on the connection goes with it.
        drop(conn.detach());
        Err(Failure::of(error, events.len(), events.first().map(|event| event.position)))
    }

    /// Moves the checkpoint over events of others, or only takes a failure's traces off it.
    async fn move_checkpoint(&self, from: Checkpoint, to: Position) -> bool {
        let moving = sqlx::query(self.store.inner.sql.move_checkpoint.clone())
            .bind(self.follower.name())
            .bind(from.generation)
            .bind(from.position.get())
            .bind(to.get())
            .execute(&self.store.inner.followers);
        let moved = within(self.store.config().read_deadline, "move a checkpoint", moving).await;
        matches!(moved, Ok(Ok(done)) if done.rows_affected() == 1)
    }

    /// Shows a failure of several events at once, while it is found out which of them it is.
    fn show_searching(&self, failure: Failure) {
        let (name, events, error) = (self.follower.name(), failure.events, failure.text());
        tracing::warn!(follower = name, events, %error, "a batch failed; looking for the event");
        self.show(|status| {
            status.state = FollowerState::Retrying;
            status.last_error = Some(error);
        });
    }

    async fn wait_after(&self, failure: Failure, attempts: u32) {
        let longest = if failure.events == 0 { LONGEST_PAUSE_OF_DATABASE } else { LONGEST_PAUSE };
        let pause = Duration::from_millis(100 << attempts.min(9)).min(longest);
        let (name, error) = (self.follower.name(), failure.text());
        tracing::error!(follower = name, attempts, %error, position = ?failure.position, "a follower failed and waits");
        self.show(|status| {
            status.state = FollowerState::Retrying;
            status.attempts = attempts;
            status.last_error = Some(error.clone());
            status.failed_position = failure.position;
            status.next_attempt_at = Some(Utc::now() + pause);
        });
        let pausing = sleep(pause);
        let recording = self.record(&failure, &error, attempts, pause);
        tokio::select! {
            _ = async { tokio::join!(pausing, recording) } => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Lets the store show a failure to whoever is not in this process.
    async fn record(&self, failure: &Failure, error: &str, attempts: u32, pause: Duration) {
        let Ok(checkpoint) = Checkpoint::read(&self.store, self.follower.name()).await else { return };
        let recording = sqlx::query(self.store.inner.sql.record_failure.clone())
            .bind(self.follower.name())
            .bind(checkpoint.generation)
            .bind(attempts as i32)
            .bind(error)
            .bind(failure.position.map(Position::get))
            .bind(pause.as_secs_f64())
            .execute(&self.store.inner.followers);
        let recorded = within(self.store.config().read_deadline, "record a failure", recording).await;
        if !matches!(recorded, Ok(Ok(_))) {
            tracing::debug!(?recorded, "a follower's failure could not be recorded");
        }
    }

    async fn show_recovered(&self, place: Option<&Place>) {
        self.show(|status| {
            (status.attempts, status.last_error, status.failed_position) = (0, None, None);
            (status.state, status.next_attempt_at) = (FollowerState::Running, None);
        });
        if let Some(place) = place {
            self.move_checkpoint(place.committed, place.committed.position).await;
        }
    }

    fn show(&self, change: impl FnOnce(&mut FollowerStatus)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
