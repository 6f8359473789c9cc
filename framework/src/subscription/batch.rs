//! A piece of work for a follower: events, where the checkpoint stands, and what of them cannot be applied.

use std::{
    collections::{HashMap, HashSet},
    hash::BuildHasher,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
};

use foldhash::fast::RandomState;
use futures::future::BoxFuture;
use sqlx::{Connection, PgConnection, Postgres, Row, Transaction, postgres::PgArguments, query::Query};
use uuid::Uuid;

use super::{
    failure::{FollowError, Told, message},
    partition::partition_of,
    policy::{FailurePolicy, OnFailure},
};
use crate::{
    Payload, Position, Recorded,
    error::StoreError,
    sql::{Sql, Statement, StoreName},
};

/// What a process can own: one partition of one generation of a follower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    pub(crate) name: &'static str,
    pub(crate) generation: i64,
    pub(crate) partition: i32,
    pub(crate) partitions: i32,
    /// Whether it is being built beside the live one.
    pub(crate) shadow: bool,
    pub(crate) schema: StoreName,
}

impl Unit {
    /// Whether `key` is this partition's.
    pub(crate) fn has(&self, key: &str) -> bool {
        partition_of(key, self.partitions) == self.partition
    }
}

/// How far a partition has come, as committed. A piece of work commits only if the checkpoint is still this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) position: Position,
    pub(crate) fence: i64,
}

/// What a follower does with events. Work and checkpoint commit together.
pub(crate) trait Follower: Send + Sync {
    /// Applies a batch on `conn`, which is outside any transaction, before and after; behind a pooler in transaction mode it
    /// is in one, which the caller commits.
    fn apply<'a>(&'a self, batch: &'a Batch, conn: &'a mut PgConnection)
    -> BoxFuture<'a, Result<Applied, FollowError>>;

    /// How many events it is given at once, at most.
    fn most(&self) -> usize {
        usize::MAX
    }

    /// Whether it can hold in memory what it will commit later.
    fn holds(&self) -> bool {
        false
    }

    /// How many parked keys it can work on at once, ahead of their retries.
    fn keys_at_once(&self) -> usize {
        1
    }

    /// Does, of several keys at once, what can be done before [`Follower::apply`] is given the retry of each.
    fn work_ahead<'a>(
        &'a self,
        _keys: Vec<Vec<Arc<Recorded<Payload>>>>,
        _policy: &'a FailurePolicy,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }

    /// Whether it is known what became of an event ahead of its retry.
    fn is_settled(&self, _position: Position) -> bool {
        false
    }
}

/// Whether a piece of work was committed.
pub(crate) enum Applied {
    /// It was, together with the checkpoint. These of its events were parked.
    Committed(Vec<Letter>),
    /// It is in the follower's memory, behind what it held before, and commits with a later batch.
    Held,
    /// Some of it failed that was to be held, for this reason: the same events are to be given again, without holding.
    Unheld(String),
    /// The checkpoint is another: somebody else does this work, or has changed what it rests on. Nothing was changed.
    Fenced,
}

/// Why events are given to a follower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Work {
    /// They are the next ones of the log.
    Follow,
    /// They are parked for this key, in order, and are tried again.
    Retry { key: String, by_stream: bool },
}

/// Events to apply, and how the checkpoint moves with them.
pub(crate) struct Batch {
    pub(crate) unit: Arc<Unit>,
    pub(crate) owner: Uuid,
    pub(crate) events: Vec<Arc<Recorded<Payload>>>,
    pub(crate) from: Checkpoint,
    pub(crate) to: Position,
    /// Where the events begin: at the checkpoint, or behind what the follower holds or what was none of its business.
    pub(crate) after: Position,
    /// Whether the follower holds something already.
    pub(crate) held: bool,
    /// Whether it may hold this, too, and commit later.
    pub(crate) hold: bool,
    pub(crate) work: Work,
    pub(crate) policy: FailurePolicy,
    /// Keys that may be parked.
    pub(crate) parked: Arc<Parked>,
    /// What somebody discarded: (position, key, whether the key is the stream).
    pub(crate) discards: Arc<HashSet<(i64, String, bool)>>,
    /// What is known to fail, and is not tried again here.
    pub(crate) poison: Vec<Poison>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) storm: Arc<Mutex<Storm>>,
    pub(crate) sql: Arc<BatchSql>,
}

impl Batch {
    /// The checkpoint once this is committed. A retry moves no position: it moves the fence, so that none commits twice.
    pub(crate) fn committed(&self) -> Checkpoint {
        let moved = i64::from(self.to == self.from.position);
        Checkpoint { position: self.to, fence: self.from.fence + moved }
    }

    /// Whether nothing is stored of the partition yet, by nobody.
    pub(crate) fn begins_shadow(&self) -> bool {
        self.unit.shadow && self.from.position == Position::START
    }
}

/// The statements that all followers share.
pub(crate) struct BatchSql {
    level: Statement,
    begin: Statement,
    find_parked: Statement,
    park: Statement,
    unpark: Statement,
    forget: Statement,
}

impl BatchSql {
    pub(crate) fn new(sql: &Sql) -> Self {
        Self {
            level: sql.begin_read_committed.clone(),
            forget: sql.forget_statements.clone(),
            begin: sql.begin_batch.clone(),
            find_parked: sql.find_parked.clone(),
            park: sql.park_events.clone(),
            unpark: sql.unpark_events.clone(),
        }
    }
}

impl BatchSql {
    /// Begins a transaction on `conn`; a part of the one that it is in, where each use of a connection is one.
    pub(crate) async fn transaction<'c>(
        &self,
        conn: &'c mut PgConnection,
    ) -> Result<Transaction<'c, Postgres>, sqlx::Error> {
        if conn.is_in_transaction() { conn.begin().await } else { conn.begin_with(self.level.text()).await }
    }

    /// Around code that is not the framework's.
    pub(crate) async fn forget_statements(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(self.forget.text()).execute(conn).await.map(drop)
    }
}

/// An event that is known to fail: for one of its keys, or for all of them.
#[derive(Debug, Clone)]
pub(crate) struct Poison {
    pub(crate) position: Position,
    pub(crate) key: Option<String>,
    /// Not even its keys can be asked for.
    pub(crate) by_stream: bool,
    pub(crate) told: Told,
}

/// Where a handler is, for whoever waits for it in vain.
#[derive(Default)]
pub(crate) struct Progress {
    position: AtomicI64,
    /// 1-based, of the keys of the event; 0 before there are any.
    nth_key: AtomicUsize,
    keys: Mutex<Option<Arc<Vec<Vec<crate::Id>>>>>,
    nth_event: AtomicUsize,
}

impl Progress {
    pub(crate) fn decoding(&self, position: Position) {
        self.position.store(position.get(), Ordering::Relaxed);
    }

    pub(crate) fn folding(&self, keys: &Arc<Vec<Vec<crate::Id>>>) {
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = Some(keys.clone());
    }

    pub(crate) fn pair(&self, nth_event: usize, nth_key: usize, position: Position) {
        self.position.store(position.get(), Ordering::Relaxed);
        self.nth_event.store(nth_event, Ordering::Relaxed);
        self.nth_key.store(nth_key + 1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) {
        self.position.store(0, Ordering::Relaxed);
    }

    /// The event that the handler is busy with, and for which key; none outside of it.
    pub(super) fn stuck_at(&self) -> Option<(Position, Option<String>)> {
        let position = self.position.load(Ordering::Relaxed);
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let nth_key = self.nth_key.load(Ordering::Relaxed).checked_sub(1);
        let key = nth_key.and_then(|nth| keys.as_ref()?.get(self.nth_event.load(Ordering::Relaxed))?.get(nth));
        (position > 0).then(|| (Position::new(position), key.map(|key| (**key).to_owned())))
    }
}

/// Which keys of a partition may be parked: never one too few. What it finds is asked of the database.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parked {
    hashes: HashSet<u64, RandomState>,
    /// Some are streams that stand for unknown keys.
    streams: bool,
    /// There are more than are kept in memory.
    many: bool,
}

impl Parked {
    /// What is kept at most: 16 MB.
    pub(super) const MOST: usize = 500_000;

    pub(super) fn add(&mut self, key: &str, by_stream: bool) {
        self.hashes.insert(self.hashes.hasher().hash_one(key));
        self.streams |= by_stream;
        self.many |= self.hashes.len() >= Self::MOST;
    }

    /// There are more than were added.
    pub(super) fn cut(&mut self) {
        self.many = true;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.hashes.is_empty() && !self.many
    }

    pub(crate) fn may_have(&self, key: &str) -> bool {
        self.many || (!self.hashes.is_empty() && self.hashes.contains(&self.hashes.hasher().hash_one(key)))
    }

    pub(crate) fn may_have_streams(&self) -> bool {
        self.many || self.streams
    }
}

/// Failures that look alike, among the events of late.
#[derive(Default)]
pub(crate) struct Storm {
    events: f64,
    failures: HashMap<String, f64>,
}

impl Storm {
    /// How many events are looked at together, about.
    const WINDOW: f64 = 1_000.0;

    /// The failure that most events of late share, with these, if they are so many that it is a storm.
    fn judge(&self, policy: &FailurePolicy, events: usize, letters: &[Letter]) -> Option<Told> {
        let events = self.events + events as f64;
        let mut more: HashMap<&str, f64> = HashMap::new();
        letters
            .iter()
            .filter_map(|letter| letter.told.as_ref())
            .find(|told| {
                let failures = more.entry(&told.fingerprint).or_default();
                *failures += 1.0;
                let failures = *failures + self.failures.get(&told.fingerprint).copied().unwrap_or_default();
                failures >= f64::from(policy.storm_events) && failures >= policy.storm_share * events
            })
            .cloned()
    }

    /// Counts what was committed: what is tried again and again counts once.
    fn count(&mut self, events: usize, letters: &[Letter]) {
        self.events += events as f64;
        for told in letters.iter().filter_map(|letter| letter.told.as_ref()) {
            *self.failures.entry(told.fingerprint.clone()).or_default() += 1.0;
        }
        if self.events > Self::WINDOW {
            let keep = Self::WINDOW / 2.0 / self.events;
            self.events *= keep;
            self.failures.values_mut().for_each(|failures| *failures *= keep);
            self.failures.retain(|_, failures| *failures >= 0.5);
        }
    }
}

/// An event that is parked for a key: it failed, or it waits behind one that did.
#[derive(Debug, Clone)]
pub(crate) struct Letter {
    pub(crate) position: Position,
    pub(crate) key: String,
    pub(crate) by_stream: bool,
    /// None if it only waits.
    pub(crate) told: Option<Told>,
}

/// By how much a partition's counts of (event, key) pairs grow.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pairs: i64,
    applied: i64,
    parked: i64,
    discarded: i64,
}

/// What becomes of the pairs of one batch.
pub(crate) struct Letters<'b> {
    batch: &'b Batch,
    /// Parked keys; behind them, streams that stand for unknown keys.
    blocked: [HashSet<String>; 2],
    rows: Vec<Letter>,
    counts: Counts,
    /// The last event of a retried key that took effect.
    retried: Option<Position>,
    /// An event of the retried key failed: those behind it wait on.
    ended: bool,
}

impl<'b> Letters<'b> {
    pub(crate) fn new(batch: &'b Batch) -> Self {
        Self {
            batch,
            blocked: Default::default(),
            rows: vec![],
            counts: Counts::default(),
            retried: None,
            ended: false,
        }
    }

    /// Asks which of `keys`, each with whether it is a stream that stands for unknown keys, are parked.
    pub(crate) async fn find(&mut self, keys: Vec<&str>, conn: &mut PgConnection) -> Result<(), FollowError> {
        let mut keys: Vec<&str> = keys.into_iter().filter(|key| self.batch.parked.may_have(key)).collect();
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() {
            return Ok(());
        }
        let unit = &self.batch.unit;
        let rows = self
            .batch
            .sql
            .find_parked
            .query()
            .bind(unit.name)
            .bind(unit.generation)
            .bind(unit.partition)
            .bind(keys)
            .fetch_all(conn)
            .await
            .map_err(|error| FollowError::Store(StoreError::on("look for parked keys")(error)))?;
        for row in rows {
            self.blocked[usize::from(row.get::<bool, _>(1))].insert(row.get(0));
        }
        // What is tried again is not blocked by itself.
        if let Work::Retry { key, by_stream } = &self.batch.work {
            self.blocked[usize::from(*by_stream)].remove(key);
        }
        Ok(())
    }

    /// Whether `key` is parked, before or in this batch.
    pub(crate) fn is_blocked(&self, key: &str, by_stream: bool) -> bool {
        self.blocked[usize::from(by_stream)].contains(key)
    }

    /// Whether any of the keys that were asked for is parked.
    pub(crate) fn finds_any(&self) -> bool {
        self.blocked.iter().any(|blocked| !blocked.is_empty())
    }

    fn is_retried(&self, key: &str, by_stream: bool) -> bool {
        matches!(&self.batch.work, Work::Retry { key: own, by_stream: stream } if own == key && *stream == by_stream)
    }

    /// Whether an event of the key that is tried again has failed, so that the rest waits on.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Leaves an event out for a key, if somebody discarded it; returns whether that is so.
    pub(crate) fn discard(&mut self, position: Position, key: &str, by_stream: bool) -> bool {
        let discards = &self.batch.discards;
        let is_so = !discards.is_empty() && discards.contains(&(position.get(), key.to_owned(), by_stream));
        if is_so {
            (self.counts.pairs, self.counts.discarded) = (self.counts.pairs + 1, self.counts.discarded + 1);
        }
        is_so
    }

    /// Parks an event behind others of its key.
    pub(crate) fn queue(&mut self, position: Position, key: &str, by_stream: bool) {
        self.rows.push(Letter { position, key: key.to_owned(), by_stream, told: None });
        (self.counts.pairs, self.counts.parked) = (self.counts.pairs + 1, self.counts.parked + 1);
    }

    /// Parks an event that failed for a key, or fails the batch if this follower halts at such events.
    pub(crate) fn fail(
        &mut self,
        position: Position,
        key: &str,
        by_stream: bool,
        error: impl Into<FollowError>,
    ) -> Result<(), FollowError> {
        let error = error.into();
        if self.batch.policy.on_failure == OnFailure::Halt && self.batch.work == Work::Follow {
            return Err(FollowError::At { position, source: Box::new(error) });
        }
        self.blocked[usize::from(by_stream)].insert(key.to_owned());
        if self.is_retried(key, by_stream) {
            self.ended = true;
        } else {
            (self.counts.pairs, self.counts.parked) = (self.counts.pairs + 1, self.counts.parked + 1);
        }
        self.rows.push(Letter { position, key: key.to_owned(), by_stream, told: Some(error.told()) });
        Ok(())
    }

    /// What is known to fail at `position` for `key`.
    pub(crate) fn poison(&self, position: Position, key: &str, by_stream: bool) -> Option<&'b Poison> {
        self.batch.poison.iter().find(|poison| {
            poison.position == position
                && poison.by_stream == by_stream
                && poison.key.as_deref().is_none_or(|poisoned| poisoned == key)
        })
    }

    /// An event was left out by the follower itself.
    pub(crate) fn skipped(&mut self) {
        (self.counts.pairs, self.counts.discarded) = (self.counts.pairs + 1, self.counts.discarded + 1);
    }

    /// `pairs` pairs of the event at `position` took effect.
    pub(crate) fn applied(&mut self, pairs: usize) {
        let pairs = pairs as i64;
        (self.counts.pairs, self.counts.applied) = (self.counts.pairs + pairs, self.counts.applied + pairs);
    }

    /// The event at `position` of the key that is tried again is done with.
    pub(crate) fn retried(&mut self, position: Position) {
        self.retried = Some(position);
        // It was counted when it was parked.
        (self.counts.pairs, self.counts.parked) = (self.counts.pairs - 1, self.counts.parked - 1);
    }

    /// By how much pairs, applied, parked and discarded grow.
    pub(crate) fn counts(&self) -> [i64; 4] {
        [self.counts.pairs, self.counts.applied, self.counts.parked, self.counts.discarded]
    }

    /// Whether there is nothing to store but the model and the checkpoint.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.retried.is_none()
    }

    /// Refuses to park one more of too many failures that look alike.
    pub(crate) fn judge(&self) -> Result<(), FollowError> {
        if self.batch.work != Work::Follow {
            return Ok(());
        }
        let mut storm = self.batch.storm.lock().unwrap_or_else(PoisonError::into_inner);
        match storm.judge(&self.batch.policy, self.batch.events.len(), &self.rows) {
            None => Ok(()),
            Some(told) => {
                *storm = Storm::default();
                Err(FollowError::Halt(format!("too many events fail alike to park them all: {}", told.text)))
            }
        }
    }

    /// Lets whoever takes over end this transaction, should this process be stopped in it.
    pub(crate) async fn begin(&self, conn: &mut PgConnection) -> Result<(), FollowError> {
        let what = |error| FollowError::Store(StoreError::on("begin a batch")(error));
        self.batch.sql.begin.query().bind(self.batch.owner).execute(conn).await.map(drop).map_err(what)
    }

    /// Stores the dead letters of the batch, in its transaction, behind the statement that moved the checkpoint.
    pub(crate) async fn store(&self, conn: &mut PgConnection) -> Result<(), FollowError> {
        let what = |error| FollowError::Store(StoreError::on("park events")(error));
        let (unit, sql) = (&self.batch.unit, &self.batch.sql);
        if let (Work::Retry { key, by_stream }, Some(position)) = (&self.batch.work, self.retried) {
            sql.unpark
                .query()
                .bind(unit.name)
                .bind(unit.generation)
                .bind(unit.partition)
                .bind(key)
                .bind(by_stream)
                .bind(position.get())
                .execute(&mut *conn)
                .await
                .map_err(what)?;
        }
        if self.rows.is_empty() {
            return Ok(());
        }
        let parking = sql.park.query().bind(unit.name).bind(unit.generation).bind(unit.partition);
        self.bind(parking).execute(conn).await.map(drop).map_err(what)
    }

    /// Binds what is parked: positions, keys, whether each key is a stream, fingerprints, errors; and the policy's delays.
    pub(crate) fn bind<'q>(&'q self, parking: Query<'q, Postgres, PgArguments>) -> Query<'q, Postgres, PgArguments> {
        let column = |value: fn(&Letter) -> Option<&str>| self.rows.iter().map(value).collect::<Vec<_>>();
        let delays: Vec<f64> =
            (1..).map_while(|attempts| self.batch.policy.delay(attempts)).map(|delay| delay.as_secs_f64()).collect();
        parking
            .bind(self.rows.iter().map(|letter| letter.position.get()).collect::<Vec<_>>())
            .bind(self.rows.iter().map(|letter| letter.key.as_str()).collect::<Vec<_>>())
            .bind(self.rows.iter().map(|letter| letter.by_stream).collect::<Vec<_>>())
            .bind(column(|letter| letter.told.as_ref().map(|told| told.fingerprint.as_str())))
            .bind(column(|letter| letter.told.as_ref().map(|told| told.text.as_str())))
            .bind(delays)
    }

    /// What was parked, now that it is committed.
    pub(crate) fn take_rows(&mut self) -> Vec<Letter> {
        if self.batch.work == Work::Follow {
            let mut storm = self.batch.storm.lock().unwrap_or_else(PoisonError::into_inner);
            storm.count(self.batch.events.len(), &self.rows);
        }
        std::mem::take(&mut self.rows)
    }
}

/// Runs a handler's own code: a panic is its failure, and nobody else's.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, FollowError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| FollowError::Panicked(message(panic)))
}
