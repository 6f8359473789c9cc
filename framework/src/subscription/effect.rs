//! Followers whose work is not in the store's hands: sagas that begin, reactors that call. It takes place before the checkpoint
//! moves, so it may take place again, and whoever does it must know the same thing by the same key.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream};
use sqlx::{PgConnection, Row};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{
    batch::{Applied, Batch, Follower, Letters, Work},
    failure::{FollowError, message},
    policy::FailurePolicy,
};
use crate::{
    Payload, Position, Recorded, StreamId, Version,
    error::StoreError,
    store::{Annals, BATCH_DEADLINE},
};

/// What became of an event.
#[derive(Debug, Clone)]
pub(crate) enum Done {
    Handled,
    /// It was left out, for this reason.
    Skipped(String),
}

/// What is done about an event.
pub(crate) trait Handle: Send + Sync + 'static {
    /// Whether it wants to know how far each event's stream is.
    const WANTS_HEADS: bool = false;

    fn handle(
        self: Arc<Self>,
        event: Arc<Recorded<Payload>>,
        head: Option<Version>,
        time: Time,
    ) -> BoxFuture<'static, Result<Done, FollowError>>;
}

/// How much time there is for the events of a batch. Together they end before the batch's deadline, so what is slow is not cut off.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Time {
    /// For what may never end; to wait for one's turn does not count.
    pub(crate) limit: Duration,
    /// Nothing begins later: whoever still waits for its turn is [`FollowError::Unfinished`].
    pub(crate) begins_until: Instant,
}

impl Time {
    /// From now on, for the events of a batch.
    fn of(policy: &FailurePolicy) -> Self {
        let deadline = policy.deadline.min(BATCH_DEADLINE);
        Self { limit: (policy.deadline / 4).min(deadline * 3 / 8), begins_until: Instant::now() + deadline / 2 }
    }

    /// Whether nothing more begins.
    pub(crate) fn is_over(self) -> bool {
        Instant::now() >= self.begins_until
    }
}

/// How many streams are handled at once.
const AT_ONCE: usize = 64;

/// How many events there are to a batch. What is done of one whose process dies is gone through again by the next: a process that lives
/// for a few seconds has to get to the end of one.
const BATCH: usize = 256;

/// For how long it is remembered what was done ahead of a retry that does not come: the event was discarded, say.
const KEPT: Duration = Duration::from_secs(600);

/// Gives each event to `handler`: those of a stream in order, those of several streams at once.
pub(crate) struct EffectFollower<H> {
    store: Annals,
    handler: Arc<H>,
    /// What is done behind the checkpoint, or ahead of a retry: what is given again is not done twice.
    done: Mutex<BTreeMap<Position, (Instant, Done)>>,
    /// What failed so, and when: it is told when it is given again.
    failed: Mutex<BTreeMap<Position, (Instant, FollowError)>>,
}

type Event = Arc<Recorded<Payload>>;
/// A stream, what of it is done, what failed, and what is behind that.
type Handled = (StreamId, Vec<(Position, Done)>, Option<(Position, FollowError)>, Vec<Position>);

impl<H: Handle> EffectFollower<H> {
    pub(crate) fn new(store: Annals, handler: Arc<H>) -> Self {
        Self { store, handler, done: Mutex::default(), failed: Mutex::default() }
    }

    fn done(&self) -> MutexGuard<'_, BTreeMap<Position, (Instant, Done)>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> MutexGuard<'_, BTreeMap<Position, (Instant, FollowError)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the streams of `events` are, asked on `conn` or on another connection.
    async fn heads(
        &self,
        events: impl Iterator<Item = &Event>,
        conn: Option<&mut PgConnection>,
    ) -> Result<HashMap<String, Version>, FollowError> {
        if !H::WANTS_HEADS {
            return Ok(HashMap::new());
        }
        const WHAT: &str = "read how far streams are";
        let streams: BTreeSet<&str> = events.map(|event| event.stream.as_str()).collect();
        let reading = self.store.inner.sql.read_heads.query().bind(streams.into_iter().collect::<Vec<_>>());
        let rows = match conn {
            Some(conn) => reading.fetch_all(conn).await.map_err(StoreError::on(WHAT)),
            None => self.store.inner.followers.all(WHAT, reading).await,
        };
        let rows = rows.map_err(FollowError::Store)?;
        Ok(rows.iter().map(|row| (row.get(0), Version::new(row.get(1)))).collect())
    }

    async fn work(&self, batch: &Batch, conn: &mut PgConnection) -> Result<Applied, FollowError> {
        let mut letters = Letters::new(batch);
        letters.find(batch.events.iter().map(|raw| raw.stream.as_str()).collect(), conn).await?;
        let mut streams: Vec<(StreamId, Vec<Event>)> = vec![];
        for raw in &batch.events {
            let (position, stream) = (raw.position, raw.stream.as_str());
            if letters.discard(position, stream, false) {
                continue;
            }
            if letters.is_blocked(stream, false) {
                letters.queue(position, stream, false);
                continue;
            }
            match streams.iter_mut().find(|(name, _)| *name == raw.stream) {
                Some((_, events)) => events.push(raw.clone()),
                None => streams.push((raw.stream.clone(), vec![raw.clone()])),
            }
        }
        let heads = self.heads(batch.events.iter(), Some(&mut *conn)).await?;
        let time = Time::of(&batch.policy);
        let known = |position: Position, stream: &str| {
            let poison = letters.poison(position, stream, false).or_else(|| letters.poison(position, stream, true));
            poison.map(|poison| FollowError::Known(poison.told.text.clone()))
        };
        let poisoned: Vec<(Position, FollowError)> = batch
            .events
            .iter()
            .filter_map(|raw| Some((raw.position, known(raw.position, raw.stream.as_str())?)))
            .collect();
        let poisoned = Arc::new(poisoned);
        let handling = streams.into_iter().map(|(stream, events)| {
            let head = heads.get(stream.as_str()).copied();
            self.handle_all((stream, head), events, poisoned.clone(), time)
        });
        let mut handled: Vec<Handled> = stream::iter(handling).buffer_unordered(AT_ONCE).collect().await;
        if let Some(error) = self.put_off(&mut handled) {
            return Err(error);
        }
        let mut skipped = vec![];
        for (stream, done, failed, behind) in handled {
            for (position, done) in done {
                match done {
                    Done::Handled => letters.applied(1),
                    Done::Skipped(reason) => {
                        letters.skipped();
                        skipped.push((position, stream.to_string(), reason));
                    }
                }
                if batch.work != Work::Follow {
                    letters.retried(position);
                }
            }
            if let Some((position, error)) = failed {
                letters.fail(position, stream.as_str(), false, error)?;
            }
            // Of a key that is tried again, the rest waits where it is.
            if batch.work == Work::Follow {
                behind.into_iter().for_each(|position| letters.queue(position, stream.as_str(), false));
            }
        }
        letters.judge()?;
        self.commit(batch, letters, skipped, conn).await
    }

    /// If the batch is to be given again, says why, and keeps what failed of it, so that this counts.
    fn put_off(&self, handled: &mut [Handled]) -> Option<FollowError> {
        let because = |handled: &mut Handled| {
            let is_so = handled.2.as_ref().is_some_and(|(_, error)| is_put_off(error));
            is_so.then(|| handled.2.take()).flatten().map(|(_, error)| error)
        };
        let error = handled.iter_mut().find_map(because)?;
        let failed = handled.iter_mut().filter_map(|(_, _, failed, _)| failed.take());
        failed.for_each(|(position, error)| self.keep(position, error));
        Some(error)
    }

    /// Keeps a failure for when its event is given again.
    fn keep(&self, position: Position, error: FollowError) {
        if !is_put_off(&error) {
            self.failed().insert(position, (Instant::now(), error));
        }
    }

    /// The events of one stream, in order, up to the first that fails.
    fn handle_all(
        &self,
        (stream, head): (StreamId, Option<Version>),
        events: Vec<Event>,
        poisoned: Arc<Vec<(Position, FollowError)>>,
        time: Time,
    ) -> BoxFuture<'_, Handled> {
        Box::pin(async move {
            let (mut done, mut failed) = (vec![], None);
            let mut events = events.into_iter();
            for event in events.by_ref() {
                let position = event.position;
                let known = poisoned.iter().find(|(at, _)| *at == position);
                let known = known.map(|(_, error)| FollowError::Known(error.to_string()));
                let failed_before = self.failed().remove(&position).map(|(_, error)| error);
                let done_before = self.done().get(&position).map(|(_, done)| done.clone());
                let result = match (known.or(failed_before), done_before) {
                    (Some(error), _) => Err(error),
                    (None, Some(outcome)) => Ok(outcome),
                    (None, None) if time.is_over() => Err(FollowError::Unfinished),
                    (None, None) => self.handle(event, head, time).await,
                };
                match result {
                    Ok(outcome) => {
                        self.done().insert(position, (Instant::now(), outcome.clone()));
                        done.push((position, outcome));
                    }
                    Err(error) => {
                        failed = Some((position, error));
                        break;
                    }
                }
            }
            (stream, done, failed, events.map(|event| event.position).collect())
        })
    }

    async fn handle(&self, event: Event, head: Option<Version>, time: Time) -> Result<Done, FollowError> {
        let task = AbortOnDropHandle::new(tokio::spawn(self.handler.clone().handle(event, head, time)));
        match task.await {
            Ok(result) => result,
            Err(error) if error.is_panic() => Err(FollowError::Panicked(message(error.into_panic()))),
            Err(_) => Err(FollowError::Store(StoreError::Closed)),
        }
    }

    async fn commit(
        &self,
        batch: &Batch,
        mut letters: Letters<'_>,
        skipped: Vec<(Position, String, String)>,
        conn: &mut PgConnection,
    ) -> Result<Applied, FollowError> {
        let what = |error| FollowError::Store(StoreError::on("move a checkpoint")(error));
        let mut tx = batch.sql.transaction(conn).await.map_err(what)?;
        letters.begin(&mut tx).await?;
        let moving = self.store.inner.sql.move_follower.query();
        let moving = moving
            .bind(batch.unit.name)
            .bind(batch.unit.generation)
            .bind(batch.unit.partition)
            .bind(batch.from.fence)
            .bind(batch.from.position.get())
            .bind(batch.to.get())
            .bind(letters.counts());
        if moving.execute(&mut *tx).await.map_err(what)?.rows_affected() == 0 {
            tx.rollback().await.map_err(what)?;
            return Ok(Applied::Fenced);
        }
        letters.store(&mut tx).await?;
        if !skipped.is_empty() {
            let skipping = self.store.inner.sql.skip_events.query();
            let skipping = skipping
                .bind(batch.unit.name)
                .bind(batch.unit.generation)
                .bind(batch.unit.partition)
                .bind(skipped.iter().map(|(position, ..)| position.get()).collect::<Vec<_>>())
                .bind(skipped.iter().map(|(_, key, _)| &**key).collect::<Vec<_>>())
                .bind(skipped.iter().map(|(.., reason)| &**reason).collect::<Vec<_>>());
            skipping.execute(&mut *tx).await.map_err(what)?;
        }
        tx.commit().await.map_err(what)?;
        // What was done further on, in a batch that failed, is not done again, nor what was done ahead of a retry.
        let is_kept = |position: Position, at: Instant| {
            position > batch.to || (position <= batch.from.position && at.elapsed() < KEPT)
        };
        match batch.work {
            Work::Follow => self.done().retain(|position, (at, _)| is_kept(*position, *at)),
            Work::Retry { .. } => {
                let mut done = self.done();
                batch.events.iter().for_each(|event| _ = done.remove(&event.position));
            }
        }
        Ok(Applied::Committed(letters.take_rows()))
    }
}

/// Whether it says nothing about the event.
fn is_put_off(error: &FollowError) -> bool {
    error.is_passing() || matches!(error, FollowError::Unfinished)
}

impl<H: Handle> Follower for EffectFollower<H> {
    fn most(&self) -> usize {
        BATCH
    }

    fn apply<'a>(
        &'a self,
        batch: &'a Batch,
        conn: &'a mut PgConnection,
    ) -> BoxFuture<'a, Result<Applied, FollowError>> {
        Box::pin(self.work(batch, conn))
    }

    fn keys_at_once(&self) -> usize {
        AT_ONCE
    }

    fn work_ahead<'a>(&'a self, keys: Vec<Vec<Event>>, policy: &'a FailurePolicy) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            // Nobody asked for these again: they were discarded, or are another process's now.
            self.failed().retain(|_, (at, _)| at.elapsed() < policy.deadline);
            // Whoever gives them one by one then hears of it, too.
            let Ok(heads) = self.heads(keys.iter().flatten(), None).await else { return };
            let (time, nothing) = (Time::of(policy), Arc::new(vec![]));
            let handling = keys.into_iter().filter_map(|events| {
                let stream = events.first()?.stream.clone();
                let head = heads.get(stream.as_str()).copied();
                let handling = self.handle_all((stream, head), events, nothing.clone(), time);
                Some(async move {
                    if let (_, _, Some((position, error)), _) = handling.await {
                        self.keep(position, error);
                    }
                })
            });
            stream::iter(handling).buffer_unordered(AT_ONCE).collect::<()>().await;
        })
    }

    fn is_settled(&self, position: Position) -> bool {
        self.done().contains_key(&position) || self.failed().contains_key(&position)
    }
}
