//! The loop of one partition: wait, take a batch, do the work, move on; on a failure find the event and park it, or wait.
//!
//! Nothing is skipped: an event that fails is in the dead letters, with the later ones of its key behind it, or the
//! follower stays before it and says so.

mod pages;
mod report;
mod retry;

use std::{
    collections::HashSet,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, TryStreamExt};
use sqlx::Row;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use uuid::Uuid;

use self::pages::Pages;
use super::{
    batch::{Applied, Batch, BatchSql, Checkpoint, Follower, Letters, Parked, Poison, Progress, Storm, Unit, Work},
    failure::{Failure, FollowError, message},
    policy::{FailurePolicy, OnFailure},
    recent::{Filter, Found, Recent},
    status::{FollowerState, Seat, Shown},
    tail::{Follows, Frontier, Tail},
};
use crate::{
    Payload, Position, Recorded,
    error::StoreError,
    store::{Annals, BATCH_DEADLINE, Session},
};

/// Events of one batch at most.
const BATCH: usize = 2_000;
/// The same of what is built beside the live model: nobody waits for its single events.
const SHADOW_BATCH: usize = 10_000;
/// How far behind an event that fails a shadow holds nothing, in positions.
const UNHELD: i64 = 100_000;
/// While the log is being written, a rebuild works for a quarter of the time, unless it was told its pace.
const STEPS_BACK: u32 = 3;
/// The longest it steps back at once.
const LONGEST_STEP_BACK: Duration = Duration::from_secs(2);
/// While there is something new, it has 39 times the time that a turn of retries took, up to the longest below: other keys do not wait
/// for what is parked, but where a call takes long, both have about as much.
const RETRIES_STEP_BACK: u32 = 39;
/// And the longest that they wait for that.
const LONGEST_RETRIES_STEP_BACK: Duration = Duration::from_millis(800);
/// A checkpoint that only passes over events of others is saved this often.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How long a handler that was told to end may take for that.
const GRACE: Duration = Duration::from_secs(1);

/// What a runner needs beside its unit.
pub(super) struct Setting {
    pub(super) store: Annals,
    pub(super) owner: Uuid,
    pub(super) seat: Arc<Seat>,
    pub(super) follower: Arc<dyn Follower>,
    pub(super) filter: Filter,
    pub(super) policy: FailurePolicy,
    pub(super) sql: Arc<BatchSql>,
    /// Rung when something parked is to be tried again.
    pub(super) due: Arc<Notify>,
    /// How many handlers of this process never ended.
    pub(super) hung: Arc<AtomicUsize>,
    /// Rung when the partition is lost: the coordinator is to look.
    pub(super) changed: Arc<Notify>,
    pub(super) stop: CancellationToken,
}

pub(super) struct Runner {
    setting: Setting,
    unit: Arc<Unit>,
    frontier: watch::Receiver<Frontier>,
    recent: Arc<Recent>,
    turns: Arc<Semaphore>,
    spare_turn: Arc<Semaphore>,
    pages: Option<Pages>,
    parked: Arc<Parked>,
    discards: Arc<HashSet<(i64, String, bool)>>,
    storm: Arc<Mutex<Storm>>,
    /// What stands up to here failed while it was held: it is given without.
    unheld: Position,
    /// How far the log was when a shadow last looked, and when it was seen to be longer than before.
    written: (Option<Position>, Option<Instant>),
    /// When the first parked event that is to be tried again is due, as far as this runner knows.
    next_due: Option<Instant>,
    /// When parked events may have a turn again though there is something new.
    retry_from: Instant,
    _follows: Follows,
}

/// Where a partition is: `committed` stands in the database, `read` may be ahead of it over events of others, and never
/// over a gap at the log's end.
struct Place {
    epoch: u64,
    committed: Checkpoint,
    read: Position,
    saved_at: Instant,
    /// Where it stops, for the number of partitions changes there.
    drain_to: Option<Position>,
    /// Whether the follower holds events between `committed` and `read` in memory.
    held: bool,
    /// Events a second at most.
    pace: Option<f64>,
}

/// A connection that only goes back to the pool if the work on it ended well: else whatever was left on it goes with it.
struct Taken(Option<Session<'static>>);

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(Session::Taken(conn)) = self.0.take() {
            drop(conn.detach());
        }
    }
}

/// How a step ended.
enum Step {
    Done,
    /// This process is not to run the partition any more.
    Lost,
}

impl Runner {
    pub(super) fn new(setting: Setting, unit: Unit, tail: &Tail) -> Self {
        Self {
            setting,
            unit: Arc::new(unit),
            frontier: tail.frontier.clone(),
            recent: tail.recent.clone(),
            turns: tail.turns.clone(),
            spare_turn: tail.spare_turn.clone(),
            pages: None,
            parked: Arc::default(),
            discards: Arc::default(),
            storm: Arc::default(),
            unheld: Position::START,
            written: (None, None),
            next_due: None,
            retry_from: Instant::now(),
            _follows: tail.follow(),
        }
    }

    /// Runs until it is stopped, or its partition is no longer its own.
    pub(super) async fn run(mut self) {
        let (mut attempts, mut limit, mut place, mut poison) = (0, self.batch_size(), None, vec![]);
        let mut looked_again = false;
        while !self.setting.stop.is_cancelled() {
            match self.step(&mut place, &mut limit, &mut poison).await {
                Ok(Step::Lost) => {
                    self.setting.changed.notify_one();
                    return;
                }
                Ok(Step::Done) if place.is_none() => {}
                Ok(Step::Done) if attempts > 0 => {
                    attempts = 0;
                    self.show_recovered(place.as_ref()).await;
                }
                Ok(Step::Done) => {}
                Err(failure) => {
                    // What was held failed as a whole: which of it, is found out without holding.
                    let held = place.as_ref().filter(|place: &&Place| place.held).map(|place| place.read);
                    self.forget(&mut place);
                    match failure {
                        Failure::Events { .. } if held.is_some() => self.unheld = held.unwrap_or_default(),
                        Failure::Halt(text) => {
                            self.halt(&text).await;
                            return;
                        }
                        // Which event it is, halving finds out; what comes before it takes effect on the way.
                        Failure::Events { count, at: None, ref told, .. } if count > 1 => {
                            limit = (limit.min(count) / 2).max(1);
                            self.show_searching(count, &told.text);
                        }
                        Failure::Events { count, at: Some(at), first, .. } if count > 1 && first != Some(at) => {
                            limit = (limit.min(count) / 2).max(1);
                        }
                        Failure::Events { first, at, told, .. }
                            if self.setting.policy.on_failure == OnFailure::Park =>
                        {
                            let Some(position) = at.or(first) else { continue };
                            poison.push(Poison { position, key: None, by_stream: false, told });
                        }
                        Failure::Unfinished(count) => {
                            limit = (limit.min(count) / 4).max(1);
                            self.show_slow(count);
                        }
                        Failure::Hung(found) if self.setting.policy.on_failure == OnFailure::Park => poison.push(found),
                        // A swap may have given its schema another name: if so, its place is gone, too.
                        Failure::Model(_) if !looked_again => looked_again = true,
                        failure => {
                            looked_again = false;
                            attempts += 1;
                            limit = 1;
                            let passing = matches!(failure, Failure::Passing(_));
                            if !passing && self.setting.policy.delay(attempts).is_none() {
                                self.halt(failure.text()).await;
                                return;
                            }
                            self.wait_after(&failure, attempts).await;
                        }
                    }
                }
            }
        }
        if let Some(place) = place.filter(|place| !place.held && place.read > place.committed.position) {
            self.move_checkpoint(place.committed, place.read).await;
        }
    }

    /// Takes one batch through, or waits for one.
    async fn step(
        &mut self,
        place: &mut Option<Place>,
        limit: &mut usize,
        poison: &mut Vec<Poison>,
    ) -> Result<Step, Failure> {
        let frontier = *self.frontier.borrow_and_update();
        if self.setting.due.notified().now_or_never().is_some() {
            self.next_due = Some(Instant::now());
        }
        let at = match place {
            Some(at) if frontier.connected && at.epoch == frontier.epoch => at,
            _ => {
                self.forget(place);
                if !frontier.connected {
                    self.wait_for_tail().await;
                    return Ok(Step::Done);
                }
                let Some(found) = self.find_place(frontier.epoch).await? else { return Ok(Step::Lost) };
                self.show(|shown| {
                    if shown.state == FollowerState::Starting {
                        shown.state = FollowerState::Running;
                    }
                });
                self.move_to(found.read);
                place.insert(found)
            }
        };
        let drained = at.drain_to == Some(at.read);
        if !at.held && at.read > at.committed.position && (drained || at.saved_at.elapsed() >= SAVE_EVERY) {
            if !self.move_checkpoint(at.committed, at.read).await {
                self.forget(place);
                return Ok(Step::Done);
            }
            (at.committed.position, at.saved_at) = (at.read, Instant::now());
        }
        let end = at.drain_to.map_or(frontier.last, |drain_to| frontier.last.min(drain_to));
        let now = Instant::now();
        let may_retry = self.retry_from <= now || end <= at.read;
        if !at.held && may_retry && self.next_due.is_some_and(|due| due <= now) {
            let retried = self.retry_due(at).await;
            self.retry_from = Instant::now() + (now.elapsed() * RETRIES_STEP_BACK).min(LONGEST_RETRIES_STEP_BACK);
            if !retried? {
                self.forget(place);
            }
            return Ok(Step::Done);
        }
        if end <= at.read && at.held {
            let (committed, read) = (at.committed, at.read);
            let flushed = self.apply(vec![], (committed, read, read), (true, false), Work::Follow, vec![]).await?;
            match flushed {
                Applied::Committed(_) => {
                    (at.committed.position, at.held, at.saved_at) = (read, false, Instant::now());
                }
                Applied::Unheld(why) => {
                    self.hold_no_more(read, &why);
                    self.forget(place);
                }
                _ => self.forget(place),
            }
            return Ok(Step::Done);
        }
        if end <= at.read {
            // Up to the safe position there are gaps only, in which nothing can take effect any more.
            let shown = if at.drain_to.is_some() { at.read } else { at.read.max(frontier.safe) };
            self.move_to(shown);
            self.wait_for_tail().await;
            return Ok(Step::Done);
        }
        let (turns, spare) = (self.turns.clone(), self.spare_turn.clone());
        let _turn = tokio::select! {
            turn = turns.acquire() => turn,
            turn = spare.acquire(), if self.unit.shadow => turn,
        };
        // That may have taken long: what was known of the log before holds no more if the tail has lost its connection.
        let frontier = *self.frontier.borrow();
        if !frontier.connected || frontier.epoch != at.epoch {
            self.forget(place);
            return Ok(Step::Done);
        }
        let last = at.drain_to.map_or(frontier.last, |drain_to| frontier.last.min(drain_to));
        // No more than the pace allows in a second, stored at once.
        let within_pace = at.pace.map_or(*limit, |pace| (*limit).min(pace.max(1.0) as usize));
        let started = Instant::now();
        let (found, took) = self.find(at.epoch, at.read, last, within_pace).await?;
        let (Found { mut events, last: to, all }, begun) = (found, Instant::now());
        // The window may have grown past the frontier meanwhile: what it holds is final.
        let mut to = to.unwrap_or(at.read);
        if let Some(drain_to) = at.drain_to.filter(|drain_to| *drain_to < to) {
            events.retain(|event| event.position <= drain_to);
            to = drain_to;
        }
        let count = events.len();
        // What is held has to come as far as what was read.
        if !events.is_empty() || at.held {
            let hold = self.setting.follower.holds()
                && self.unit.shadow
                && !all
                && at.pace.is_none()
                && poison.is_empty()
                && at.read >= self.unheld;
            let places = (at.committed, at.read, to);
            match self.apply(events, places, (at.held, hold), Work::Follow, poison.clone()).await? {
                Applied::Committed(letters) => {
                    poison.clear();
                    (at.committed.position, at.saved_at, at.held) = (to, Instant::now(), false);
                    self.remember(&letters);
                }
                Applied::Held => at.held = true,
                Applied::Unheld(why) => {
                    self.hold_no_more(to, &why);
                    self.forget(place);
                    return Ok(Step::Done);
                }
                Applied::Fenced => {
                    tracing::debug!(follower = self.unit.name, "the checkpoint is another");
                    self.forget(place);
                    return Ok(Step::Done);
                }
            }
            *limit = (*limit * 2).min(self.batch_size());
        }
        at.read = to;
        let pace = at.pace;
        self.move_to(to);
        drop(_turn);
        if self.unit.shadow {
            self.step_back((started.elapsed(), took + begun.elapsed()), count, pace, frontier.safe).await;
        }
        Ok(Step::Done)
    }

    /// Holds nothing up to `to` and for a while behind it: where one fails the next ones may fail, too.
    fn hold_no_more(&mut self, to: Position, why: &str) {
        tracing::warn!(
            follower = self.unit.name,
            why,
            "a part of a rebuild failed in memory: it is done again step by step"
        );
        self.unheld = Position::new(to.get().saturating_add(UNHELD));
    }

    fn batch_size(&self) -> usize {
        if self.unit.shadow { SHADOW_BATCH } else { BATCH.min(self.setting.follower.most()) }
    }

    /// Leaves the machine to those who write the log, after `count` events that took `passed`, and `worked` with what was read
    /// ahead.
    async fn step_back(
        &mut self,
        (passed, worked): (Duration, Duration),
        count: usize,
        pace: Option<f64>,
        safe: Position,
    ) {
        if self.written.0.replace(safe).is_some_and(|before| before != safe) {
            self.written.1 = Some(Instant::now());
        }
        let is_written = self.written.1.is_some_and(|at| at.elapsed() < SAVE_EVERY);
        let pause = match pace {
            Some(pace) => Duration::from_secs_f64((count as f64 / pace.max(0.1)).min(3_600.0)).saturating_sub(passed),
            None if is_written => (worked * STEPS_BACK).min(LONGEST_STEP_BACK),
            None => return,
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = self.setting.stop.cancelled() => {}
        }
    }

    /// Where the partition stands, and what is parked in it; none if it is not this process's to run.
    async fn find_place(&mut self, epoch: u64) -> Result<Option<Place>, Failure> {
        let what = StoreError::on("read a checkpoint");
        let (sql, unit) = (&self.setting.store.inner.sql, &self.unit);
        let reading = sql
            .read_checkpoint
            .query()
            .bind(unit.name)
            .bind(unit.generation)
            .bind(unit.partition)
            .bind(self.setting.owner)
            .bind(unit.schema.as_str())
            .bind(unit.partitions);
        let connections = &self.setting.store.inner.followers;
        let Some(row) = connections.optional("read a checkpoint", reading).await? else { return Ok(None) };
        let (parked, drain_to): (i64, Option<i64>) = (row.get(2), row.get(3));
        let committed = Checkpoint { position: Position::new(row.get(0)), fence: row.get(1) };
        self.parked = Arc::default();
        self.next_due = None;
        if parked > 0 {
            let mut conn = connections.acquire().await.map_err(&what)?;
            let mut keys = sql
                .list_parked_keys
                .query()
                .bind(unit.name)
                .bind(unit.generation)
                .bind(unit.partition)
                .bind(Parked::MOST as i64)
                .fetch(&mut *conn);
            let (mut parked, mut count) = (Parked::default(), 0);
            while let Some(row) = keys.try_next().await.map_err(&what)? {
                parked.add(row.get(0), row.get(1));
                count += 1;
            }
            if count >= Parked::MOST {
                parked.cut();
            }
            self.parked = Arc::new(parked);
            self.next_due = Some(Instant::now());
        }
        if unit.shadow {
            let reading = sql
                .list_discards
                .query()
                .bind(unit.name)
                .bind(unit.generation)
                .bind(unit.partition)
                .bind(committed.position.get());
            let discards = connections.all("list discards", reading).await?;
            self.discards = Arc::new(discards.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect());
        }
        let (drain_to, pace) = (drain_to.map(Position::new), row.get(4));
        let (read, saved_at) = (committed.position, Instant::now());
        Ok(Some(Place { epoch, committed, read, saved_at, drain_to, held: false, pace }))
    }

    async fn wait_for_tail(&mut self) {
        // Without the log nothing is tried again.
        let next_due = self.next_due.filter(|_| self.frontier.borrow().connected);
        let due = next_due.map_or(SAVE_EVERY, |due| due.saturating_duration_since(Instant::now()).min(SAVE_EVERY));
        tokio::select! {
            Ok(()) = self.frontier.changed() => {}
            () = self.setting.stop.cancelled() => {}
            () = self.setting.due.notified() => self.next_due = Some(Instant::now()),
            () = sleep(due) => {}
        }
    }

    /// Goes back to what is committed; what was shown beyond it may not last.
    fn forget(&mut self, place: &mut Option<Place>) {
        self.pages = None;
        if let Some(place) = place.take() {
            self.move_to(place.committed.position);
        }
    }

    /// Up to `limit` wanted events behind `after`, from memory, or else from the database up to `last`; and how long it took
    /// to read them, while something else was applied or not.
    async fn find(
        &mut self,
        epoch: u64,
        after: Position,
        last: Position,
        limit: usize,
    ) -> Result<(Found, Duration), StoreError> {
        let known = self.pages.take().filter(|pages| pages.is_at(epoch, after, limit));
        if let Some(found) = self.recent.after(after, limit, &self.setting.filter) {
            return Ok((found, Duration::ZERO));
        }
        let begin = || Pages::begin(&self.setting.store, &self.setting.filter, epoch, (after, last), limit);
        let mut pages = known.unwrap_or_else(begin);
        let page = match pages.next().await {
            Some(Ok(page)) => page,
            // It failed some time ago, perhaps: that says nothing about now.
            _ => {
                pages = begin();
                match pages.next().await {
                    Some(page) => page?,
                    None => return Err(StoreError::on("read the log")(sqlx::Error::WorkerCrashed)),
                }
            }
        };
        self.pages = Some(pages).filter(|_| !page.0.all);
        Ok(page)
    }

    /// Lets the follower do a piece of work, in a task of its own: whatever becomes of that, this one goes on.
    async fn apply(
        &mut self,
        events: Vec<Arc<Recorded<Payload>>>,
        (from, after, to): (Checkpoint, Position, Position),
        (held, hold): (bool, bool),
        work: Work,
        poison: Vec<Poison>,
    ) -> Result<Applied, Failure> {
        let what = "take a connection for a follower";
        let mut conn = Taken(Some(self.setting.store.inner.followers.acquire().await.map_err(StoreError::on(what))?));
        let (count, first) = (events.len(), events.first().map(|event| event.position));
        let progress = Arc::new(Progress::default());
        let deadline = self.setting.policy.deadline.min(BATCH_DEADLINE);
        let batch = Batch {
            unit: self.unit.clone(),
            owner: self.setting.owner,
            events,
            from,
            to,
            after,
            held,
            hold,
            work,
            policy: self.setting.policy,
            parked: self.parked.clone(),
            discards: self.discards.clone(),
            poison,
            progress: progress.clone(),
            storm: self.storm.clone(),
            sql: self.setting.sql.clone(),
        };
        let follower = self.setting.follower.clone();
        let working = tokio::spawn(async move {
            let Some(own) = conn.0.as_mut() else { return Ok(Applied::Fenced) };
            if own.is_lent() {
                Letters::new(&batch).begin(own).await?;
            }
            let applied = AssertUnwindSafe(follower.apply(&batch, own)).catch_unwind().await;
            let applied = applied.unwrap_or_else(|panic| Err(FollowError::Panicked(message(panic))));
            if let Ok(applied) = &applied
                && let Some(session) = conn.0.take()
                && matches!(applied, Applied::Committed(_))
            {
                session.end().await.map_err(|error| FollowError::Store(StoreError::on("commit a batch")(error)))?;
            }
            applied
        });
        let mut working = AbortOnDropHandle::new(working);
        let error = match timeout(deadline, &mut working).await {
            Ok(Ok(Ok(applied))) => return Ok(applied),
            Ok(Ok(Err(error))) => error,
            Ok(Err(_)) => FollowError::Panicked("its task was cancelled".into()),
            Err(_) => {
                let hung = FollowError::Hung(deadline);
                let stuck = progress.stuck_at();
                working.abort();
                // Only code that never waits cannot be ended: it keeps a thread and a connection.
                let goes_on = timeout(GRACE, &mut working).await.is_err();
                let kept = self.setting.hung.fetch_add(usize::from(goes_on), Ordering::Relaxed) + usize::from(goes_on);
                let most = self.setting.store.config().follower_connections.saturating_sub(1).max(1) as usize;
                if goes_on && kept >= most {
                    FollowError::Halt(format!(
                        "{hung}, and {kept} handlers of this process cannot be ended: restart the process to be rid of them"
                    ))
                } else if held || hold {
                    // Which event it is, is found out without holding.
                    return Ok(Applied::Unheld(hung.to_string()));
                } else if let Some((position, key)) = stuck {
                    return Err(Failure::Hung(Poison { position, by_stream: key.is_none(), key, told: hung.told() }));
                } else {
                    hung
                }
            }
        };
        Err(Failure::of(error, count, first))
    }

    /// Moves the checkpoint over events of others, or only takes a failure's traces off it.
    async fn move_checkpoint(&self, from: Checkpoint, to: Position) -> bool {
        let store = &self.setting.store;
        let moving = store
            .inner
            .sql
            .move_checkpoint
            .query()
            .bind(self.unit.name)
            .bind(self.unit.generation)
            .bind(self.unit.partition)
            .bind(from.fence)
            .bind(from.position.get())
            .bind(to.get());
        matches!(store.inner.followers.execute("move a checkpoint", moving).await, Ok(1))
    }

    fn show(&self, change: impl FnOnce(&mut Shown)) {
        self.setting.seat.show(self.unit.generation, self.unit.partition, change);
    }

    fn move_to(&self, position: Position) {
        self.setting.seat.move_to(self.unit.generation, self.unit.partition, position);
    }
}
