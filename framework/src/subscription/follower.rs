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
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{checkpoint::Checkpoint, recent::Recent, tail::Frontier, tail::Tail};
use crate::{
    BoxError, Payload, Position, Recorded,
    error::{StoreError, Undecodable},
    store::{ReadLog, Store},
};

/// Events of one batch at most.
const BATCH: usize = 2_000;
/// How long one batch may take before its connection is given up.
const BATCH_DEADLINE: Duration = Duration::from_secs(120);
/// A checkpoint that only passes over events of others is saved this often.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// What a follower is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowerState {
    /// It has not begun yet, or waits for the tail's connection.
    Starting,
    /// It follows the log.
    Running,
    /// An event fails, or the database does: it waits and tries again.
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

/// Why a batch failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    #[error(transparent)]
    Undecodable(#[from] Box<Undecodable>),
    #[error("{0}")]
    Handler(BoxError),
    #[error("the handler panicked: {0}")]
    Panicked(String),
    #[error("the handler did not end within {0:?}")]
    Hung(Duration),
    #[error(transparent)]
    Store(StoreError),
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
    pub(crate) task: JoinHandle<()>,
}

impl Handle {
    pub(crate) fn start<F: Follower>(follower: F, store: Store, tail: &Tail, stop: CancellationToken) -> Self {
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
            status: status.clone(),
            position,
            stop,
        };
        Self { status, position: seen, frontier: tail.frontier.clone(), task: tokio::spawn(runner.run()) }
    }

    pub(crate) fn status(&self) -> FollowerStatus {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.position = *self.position.borrow();
        status.behind = (self.frontier.borrow().safe.get() - status.position.get()).max(0);
        status
    }
}

struct Runner<F> {
    follower: F,
    store: Store,
    frontier: watch::Receiver<Frontier>,
    recent: Arc<Recent>,
    status: Arc<Mutex<FollowerStatus>>,
    position: watch::Sender<Position>,
    stop: CancellationToken,
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
            let result = self.step(&mut place, &mut limit).await;
            match result {
                Ok(()) => {
                    if attempts > 0 {
                        attempts = 0;
                        self.show(|status| {
                            (status.attempts, status.last_error, status.failed_position) = (0, None, None);
                            status.next_attempt_at = None;
                        });
                    }
                    self.show(|status| status.state = FollowerState::Running);
                }
                Err(failure) if failure.events > 1 => {
                    // Which event it is, halving finds out; what comes before it takes effect on the way.
                    limit = failure.events / 2;
                    self.forget(&mut place);
                }
                Err(failure) => {
                    attempts += 1;
                    self.forget(&mut place);
                    self.wait_after(failure, attempts).await;
                }
            }
        }
        if let Some(place) = place {
            self.save(&place).await;
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
                    tokio::select! {
                        _ = self.frontier.changed() => {}
                        () = self.stop.cancelled() => {}
                    }
                    return Ok(());
                }
                let committed = Checkpoint::read(&self.store, self.follower.name()).await?;
                self.position.send_replace(committed.position);
                let (epoch, read) = (frontier.epoch, committed.position);
                place.insert(Place { epoch, committed, read, saved_at: Instant::now() })
            }
        };
        if frontier.last <= at.read {
            // Up to the safe position there are gaps only, in which nothing can take effect any more.
            self.position.send_replace(at.read.max(frontier.safe));
            if at.read > at.committed.position && at.saved_at.elapsed() >= SAVE_EVERY && self.save(at).await {
                at.committed.position = at.read;
                at.saved_at = Instant::now();
            }
            tokio::select! {
                _ = self.frontier.changed() => {}
                () = self.stop.cancelled() => {}
                () = sleep(SAVE_EVERY) => {}
            }
            return Ok(());
        }
        let (events, to) = self.next_events(at.read, frontier.last, *limit).await?;
        if events.is_empty() {
            at.read = to;
            self.position.send_replace(to);
            return Ok(());
        }
        match self.apply(&events, at.committed, to).await? {
            Applied::Committed => {
                at.committed.position = to;
                (at.read, at.saved_at) = (to, Instant::now());
                self.position.send_replace(to);
                *limit = (*limit * 2).min(BATCH);
            }
            Applied::Fenced => {
                tracing::debug!(follower = self.follower.name(), "another process moved the checkpoint");
                self.forget(place);
            }
        }
        Ok(())
    }

    /// Goes back to what is committed; what was shown beyond it may not last.
    fn forget(&self, place: &mut Option<Place>) {
        if let Some(place) = place.take() {
            self.position.send_replace(place.committed.position);
        }
    }

    /// Up to `limit` wanted events behind `after`, and the position up to which the log was looked through for them.
    async fn next_events(
        &self,
        after: Position,
        last: Position,
        limit: usize,
    ) -> Result<(Vec<Arc<Recorded<Payload>>>, Position), StoreError> {
        let categories = self.follower.categories();
        if let Some(mut events) = self.recent.after(after, limit) {
            // The window may have grown past `last` meanwhile: what it holds is final.
            let to = if events.len() == limit { events.last().map(|event| event.position) } else { None };
            let to = to.unwrap_or_else(|| events.last().map_or(last, |event| event.position.max(last)));
            events.retain(|event| categories.iter().any(|category| category == event.stream.category()));
            return Ok((events, to));
        }
        let read = ReadLog { after, categories: categories.to_vec(), ..ReadLog::default() };
        let page = self.store.read_final(&read, last, limit).await?;
        Ok((page.events.into_iter().map(Arc::new).collect(), page.next.unwrap_or(last)))
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
        let passing = matches!(&error, FollowError::Store(StoreError::Unavailable { .. } | StoreError::Timeout { .. }));
        let position = events.first().filter(|_| events.len() == 1 && !passing).map(|event| event.position);
        Err(Failure { events: if passing { 0 } else { events.len() }, position, error: error.into() })
    }

    /// Saves a checkpoint that only passed over events of others.
    async fn save(&self, place: &Place) -> bool {
        if place.read <= place.committed.position {
            return false;
        }
        let moving = sqlx::query(self.store.inner.sql.move_checkpoint.clone())
            .bind(self.follower.name())
            .bind(place.committed.generation)
            .bind(place.committed.position.get())
            .bind(place.read.get())
            .execute(&self.store.inner.followers)
            .await;
        moving.is_ok_and(|done| done.rows_affected() == 1)
    }

    async fn wait_after(&self, failure: Failure, attempts: u32) {
        let pause = Duration::from_millis(100 << attempts.min(9)).min(Duration::from_secs(30));
        let error = describe(&*failure.error);
        let name = self.follower.name();
        tracing::error!(follower = name, attempts, %error, position = ?failure.position, "a follower failed and waits");
        self.show(|status| {
            status.state = FollowerState::Retrying;
            status.attempts = attempts;
            status.last_error = Some(error.clone());
            status.failed_position = failure.position;
            status.next_attempt_at = Some(Utc::now() + pause);
        });
        if let Ok(checkpoint) = Checkpoint::read(&self.store, name).await {
            let recording = sqlx::query(self.store.inner.sql.record_failure.clone())
                .bind(name)
                .bind(checkpoint.generation)
                .bind(attempts as i32)
                .bind(error)
                .bind(failure.position.map(Position::get))
                .bind(pause.as_secs_f64())
                .execute(&self.store.inner.followers)
                .await;
            if let Err(error) = recording {
                tracing::debug!(%error, "a follower's failure could not be recorded");
            }
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = self.stop.cancelled() => {}
        }
    }

    fn show(&self, change: impl FnOnce(&mut FollowerStatus)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A failed step: of how many events, and at which, if that is known.
struct Failure {
    events: usize,
    position: Option<Position>,
    error: BoxError,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self { events: 0, position: None, error: error.into() }
    }
}

/// An error with all its causes, in one line.
fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.replace('\0', "\\0")
}

fn message(panic: Box<dyn std::any::Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast::<&str>().map_or_else(|_| "no message".into(), |text| (*text).into()),
    }
}
