//! The followers' part of a replay check: every read model of this build in shadows that only one transaction ever sees, which
//! is rolled back.
//!
//! Nothing in it is in anybody's way. The shadows are entered under a name that no other process can know, so no row and no
//! lock of a live follower is touched; and the transaction cannot commit, not even by a handler's own `COMMIT`
//! (`sql/guard_replay.sql`). A batch is a savepoint: one that fails is taken back, and looked for by halves.

use std::{
    collections::HashSet,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use futures::FutureExt;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, Row, SqlSafeStr, SqlStr, Transaction};
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::{
    batch::{Applied, Batch, BatchSql, Checkpoint, Follower, Letter, Progress, Storm, Unit, Work},
    failure::{FollowError, message},
    model::{Generation, Model},
    policy::{FailurePolicy, OnFailure},
    recent::Filter,
};
use crate::{
    Payload, Position, Recorded,
    error::StoreError,
    sql::{Statement, StoreName},
    store::{Annals, BATCH_DEADLINE, Bounds, begin_apart, within},
};

/// Events of one batch at most.
pub(crate) const REPLAY_BATCH: usize = 2_000;
/// How long after a handler's deadline a thread may still need to end.
const GRACE: Duration = Duration::from_secs(2);
/// How often the server hears of the check at least.
const ASK_EVERY: Duration = Duration::from_secs(30);

type Event = Arc<Recorded<Payload>>;

/// Runs `work` on a thread of its own. None if it does not end in time: code that never waits cannot be ended, and its thread is
/// left to itself.
///
/// # Errors
/// There is no thread to be had.
pub(crate) async fn aside<T: Send + 'static>(
    deadline: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>, StoreError> {
    let (done, ending) = oneshot::channel();
    // Not one of the runtime's: the end of the process would wait for it.
    let spawned = thread::Builder::new().name("annals-replay".into()).spawn(move || done.send(work()).is_ok());
    spawned.map_err(|error| StoreError::Unfit(format!("a thread for the replay check cannot be started: {error}")))?;
    match timeout(deadline, ending).await {
        Ok(Ok(ended)) => Ok(Some(ended)),
        Ok(Err(_)) => Err(StoreError::Unfit("a thread of the replay check ended before its work did".into())),
        Err(_) => Ok(None),
    }
}

/// All read models of a build, in shadows at the log's start.
pub(crate) struct FollowerReplay {
    /// None once it is lost.
    transaction: Option<Transaction<'static, Postgres>>,
    shadows: Vec<Shadow>,
    sql: Arc<BatchSql>,
    bounding: Statement,
    /// One for all batches: each marks the transaction with it, and one mark is enough.
    owner: Uuid,
    /// When the server was last asked for something, if only to stay awake.
    asked: Instant,
}

/// One read model.
struct Shadow {
    /// `view spend`
    title: String,
    unit: Arc<Unit>,
    follower: Arc<dyn Follower>,
    filter: Filter,
    policy: FailurePolicy,
    discards: Arc<HashSet<(i64, String, bool)>>,
    /// What follows a batch of a projector's.
    settle: Option<SqlStr>,
    at: Checkpoint,
}

/// What became of a batch.
enum Given {
    Applied,
    /// It was taken back. Where it failed, if that is known.
    Failed(Option<Position>, String),
    /// The same, and the transaction is lost.
    Lost(Option<Position>, String),
}

impl FollowerReplay {
    /// Makes the shadows, which leave out what was discarded of the live models.
    ///
    /// # Errors
    /// The role may not create schemas, a model's tables or indexes are refused, or Postgres cannot be asked.
    pub(crate) async fn begin(store: &Annals, models: &[Model]) -> Result<Self, StoreError> {
        let mut transaction = begin_apart(store, Bounds::new(BATCH_DEADLINE)).await?;
        let making = make_shadows(store, models, &mut transaction);
        let shadows = within(store.config().connect_deadline * 6, "make what is replayed into", making).await??;
        Ok(Self {
            transaction: Some(transaction),
            shadows,
            sql: Arc::new(BatchSql::new(&store.inner.sql)),
            bounding: store.inner.sql.set_statement_deadline.clone(),
            owner: Uuid::now_v7(),
            asked: Instant::now(),
        })
    }

    /// Gives the next events of the log to every read model that wants them. Returns the first event that failed, with the read
    /// model and the error; nothing is to be given after it.
    ///
    /// # Errors
    /// Postgres cannot be asked.
    pub(crate) async fn apply(&mut self, events: &[Event]) -> Result<Option<(String, Event, String)>, StoreError> {
        // The server ends a transaction that is idle for long: one whose read models want none of many events.
        if self.asked.elapsed() > ASK_EVERY
            && let Some(transaction) = &mut self.transaction
        {
            let asking = self.bounding.query().bind(BATCH_DEADLINE.as_millis().to_string());
            asking.execute(&mut **transaction).await.map_err(StoreError::on("keep the replay check going"))?;
            self.asked = Instant::now();
        }
        let mut first: Option<(String, Event, String)> = None;
        for nth in 0..self.shadows.len() {
            let before = first.as_ref().map(|(_, event, _)| event.position);
            let is_before = |event: &Event| before.is_none_or(|before| event.position < before);
            let shadow = &self.shadows[nth];
            let wanted = events.iter().filter(|event| is_before(event) && shadow.filter.wants(event));
            let wanted: Vec<Event> = wanted.cloned().collect();
            if let Some((event, error)) = self.apply_one(nth, &wanted).await? {
                first = Some((self.shadows[nth].title.clone(), event, error));
            }
            if self.transaction.is_none() {
                break;
            }
        }
        Ok(first)
    }

    /// Gives `events` to one read model, and finds the first that fails.
    async fn apply_one(&mut self, nth: usize, events: &[Event]) -> Result<Option<(Event, String)>, StoreError> {
        let (mut rest, mut limit) = (events, events.len());
        while let Some(first) = rest.first() {
            let some = &rest[..limit.min(rest.len())];
            let at = |position: Option<Position>| {
                position.and_then(|position| some.iter().find(|event| event.position == position)).cloned()
            };
            match self.give(nth, some.to_vec()).await? {
                Given::Applied => rest = &rest[some.len()..],
                Given::Failed(position, error) => match at(position) {
                    Some(event) => return Ok(Some((event, error))),
                    None if some.len() == 1 => return Ok(Some((first.clone(), error))),
                    None => limit = some.len() / 2,
                },
                Given::Lost(position, error) => {
                    return Ok(Some(match at(position) {
                        Some(event) => (event, error),
                        None if some.len() == 1 => (first.clone(), error),
                        None => {
                            (first.clone(), format!("{error}; it is one of the {} events from this one on", some.len()))
                        }
                    }));
                }
            }
        }
        Ok(None)
    }

    /// Gives one batch to a read model, on a thread that may be left behind.
    async fn give(&mut self, nth: usize, events: Vec<Event>) -> Result<Given, StoreError> {
        let Some(transaction) = self.transaction.take() else { return Err(lost()) };
        let shadow = &self.shadows[nth];
        let deadline = shadow.policy.deadline.min(BATCH_DEADLINE);
        let progress = Arc::new(Progress::default());
        let batch = Batch {
            unit: shadow.unit.clone(),
            owner: self.owner,
            from: shadow.at,
            to: events.last().map_or(shadow.at.position, |event| event.position),
            after: shadow.at.position,
            events,
            held: false,
            hold: false,
            work: Work::Follow,
            // What fails is told with its key, however the model goes on behind it.
            policy: FailurePolicy { on_failure: OnFailure::Park, storm_events: u32::MAX, ..shadow.policy },
            parked: Arc::default(),
            discards: shadow.discards.clone(),
            poison: vec![],
            progress: progress.clone(),
            storm: Arc::new(Mutex::new(Storm::default())),
            sql: self.sql.clone(),
        };
        let committed = batch.committed();
        let ended = Arc::new(AtomicBool::new(false));
        let bounding = self.bounding.clone();
        let giving = {
            let (follower, settle, ended) = (shadow.follower.clone(), shadow.settle.clone(), ended.clone());
            let work = Giving { transaction, batch, follower, settle, bounding, deadline, ended };
            let runtime = Handle::current();
            // The handler's own time, what the server still does for it after that, and taking it back.
            aside(deadline * 2 + GRACE * 2, move || runtime.block_on(work.run())).await?
        };
        let Some((transaction, given)) = giving else {
            if ended.load(Ordering::Relaxed) {
                return Err(StoreError::Timeout { what: "take a batch of the replay check back", after: deadline });
            }
            let stuck = progress.stuck_at().map(|(position, _)| position);
            return Ok(Given::Lost(stuck, FollowError::Hung(deadline).text()));
        };
        self.transaction = transaction;
        let given = given?;
        if matches!(given, Given::Applied) {
            self.shadows[nth].at = committed;
        }
        Ok(given)
    }

    /// Takes everything back. So does dropping it, a little later.
    pub(crate) async fn end(self) {
        if let Some(transaction) = self.transaction {
            let _ = timeout(GRACE, transaction.rollback()).await;
        }
    }
}

/// Whether the server ended a statement that took longer than the read model's deadline.
fn is_cancelled(error: &FollowError) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = match error {
        FollowError::Handler(error) => Some(&**error),
        FollowError::Store(error) => Some(error),
        FollowError::At { source, .. } => return is_cancelled(source),
        _ => None,
    };
    while let Some(error) = next {
        if let Some(sqlx::Error::Database(refusal)) = error.downcast_ref() {
            return refusal.code().as_deref() == Some("57014");
        }
        next = error.source();
    }
    false
}

fn lost() -> StoreError {
    StoreError::Unfit("the transaction of the replay check is gone".into())
}

/// One batch on its way.
struct Giving {
    transaction: Transaction<'static, Postgres>,
    batch: Batch,
    follower: Arc<dyn Follower>,
    settle: Option<SqlStr>,
    /// Sets the time that a statement may take, whatever the handler before has set.
    bounding: Statement,
    deadline: Duration,
    /// Set once the handler has ended, or was dropped.
    ended: Arc<AtomicBool>,
}

type Ended = (Option<Transaction<'static, Postgres>>, Result<Given, StoreError>);

impl Giving {
    async fn run(mut self) -> Ended {
        let what = StoreError::on("replay a batch");
        let bounding = self.bounding.query().bind(self.deadline.as_millis().to_string());
        if let Err(error) = bounding.execute(&mut *self.transaction).await {
            return (None, Err(what(error)));
        }
        let mut savepoint = match self.transaction.begin().await {
            Ok(savepoint) => savepoint,
            Err(error) => return (None, Err(what(error))),
        };
        // The server ends a statement at the deadline: what it says is worth more than that time is over.
        let applying = timeout(self.deadline + GRACE, apply(&self.follower, &self.batch, &self.settle, &mut savepoint));
        let applied = applying.await.unwrap_or_else(|_| Err(FollowError::Hung(self.deadline)));
        self.ended.store(true, Ordering::Relaxed);
        let (position, error) = match applied {
            Ok(letters) => match first_failure(&letters) {
                None => {
                    return match savepoint.commit().await {
                        Ok(()) => (Some(self.transaction), Ok(Given::Applied)),
                        Err(error) => (None, Ok(Given::Lost(None, FollowError::Store(what(error)).text()))),
                    };
                }
                Some((position, error)) => (Some(position), error),
            },
            // Nobody's event is to blame for a server that went away, or has no room left.
            Err(error) if error.is_passing() && !is_cancelled(&error) => {
                let text = error.text();
                drop(savepoint);
                return (
                    None,
                    Err(StoreError::Unfit(format!("the replay check was ended by the database: {text}; try again"))),
                );
            }
            Err(FollowError::At { position, source }) => (Some(position), source.text()),
            Err(error) => (None, error.text()),
        };
        match savepoint.rollback().await {
            Ok(()) => (Some(self.transaction), Ok(Given::Failed(position, error))),
            // Whoever ends the transaction that he was given is found out here.
            Err(sqlx::Error::Database(refusal)) if refusal.code().as_deref() != Some("57P01") => {
                let error = format!("{error}; it ended the transaction that it was given");
                (None, Ok(Given::Lost(position, error)))
            }
            Err(error) => (None, Err(what(error))),
        }
    }
}

async fn apply(
    follower: &Arc<dyn Follower>,
    batch: &Batch,
    settle: &Option<SqlStr>,
    conn: &mut PgConnection,
) -> Result<Vec<Letter>, FollowError> {
    let applied = AssertUnwindSafe(follower.apply(batch, conn)).catch_unwind().await;
    let letters = match applied.unwrap_or_else(|panic| Err(FollowError::Panicked(message(panic))))? {
        Applied::Committed(letters) => letters,
        _ => return Err(FollowError::Known("its checkpoint is not where the replay check left it".into())),
    };
    if let Some(settle) = settle {
        let settling = sqlx::raw_sql(settle.clone()).execute(conn).await;
        settling.map_err(|error| FollowError::Handler(error.into()))?;
    }
    Ok(letters)
}

/// The first event that was parked because it failed.
fn first_failure(letters: &[Letter]) -> Option<(Position, String)> {
    let failed = letters.iter().filter_map(|letter| letter.told.as_ref().map(|told| (letter.position, told)));
    failed.min_by_key(|(position, _)| *position).map(|(position, told)| (position, told.text.clone()))
}

async fn make_shadows(store: &Annals, models: &[Model], conn: &mut PgConnection) -> Result<Vec<Shadow>, StoreError> {
    let what = StoreError::on("make what is replayed into");
    let sql = &store.inner.sql;
    // Units know their follower's name for ever: a few bytes a check.
    let name: &'static str = Box::leak(format!("replay check {}", Uuid::now_v7()).into_boxed_str());
    let row = sql.lock_follower.typed::<(bool, bool, i64)>().bind(name).fetch_one(&mut *conn).await.map_err(&what)?;
    let (_, may_create, number) = row;
    if !may_create {
        return Err(StoreError::Unfit(
            "a replay check makes schemas of its own, which it takes back: connect as a role with CREATE on the database"
                .into(),
        ));
    }
    let guard = store.inner.name.read_model("replay_check")?.shadow(number);
    let guard = guard.instantiate_model(&store.inner.name, include_str!("../sql/guard_replay.sql"));
    sqlx::raw_sql(guard.text()).execute(&mut *conn).await.map_err(&what)?;
    let mut shadows = vec![];
    for (model, generation) in models.iter().zip(number..) {
        let discards = discards(store, model, conn).await?;
        let schema: StoreName = model.live.shadow(generation);
        let entered = Generation {
            follower: name,
            number: generation,
            schema: schema.clone(),
            purpose: "verify",
            partitions: 1,
            pace: None,
            requested_by: None,
        };
        model.create(store, &entered, true, &mut *conn).await?;
        let settling = sql.settle_batch.scalar::<String>().bind(schema.as_str().to_owned());
        let settle = match model.kind {
            "projector" => {
                let settle = settling.fetch_one(&mut *conn).await.map_err(&what)?;
                Some(AssertSqlSafe(settle).into_sql_str())
            }
            _ => None,
        };
        let unit = Unit { name, generation, partition: 1, partitions: 1, shadow: true, schema };
        shadows.push(Shadow {
            title: format!("{} {}", model.kind, model.name),
            follower: (model.follower)(&unit),
            filter: model.filter(&unit),
            policy: model.policy,
            discards: Arc::new(discards),
            settle,
            unit: Arc::new(unit),
            at: Checkpoint { position: Position::START, fence: 1 },
        });
    }
    Ok(shadows)
}

/// What somebody discarded of the live model, if there is one: (position, key, whether the key is the stream).
async fn discards(
    store: &Annals,
    model: &Model,
    conn: &mut PgConnection,
) -> Result<HashSet<(i64, String, bool)>, StoreError> {
    let what = StoreError::on("list discards");
    let sql = &store.inner.sql;
    let live = sql.read_follower.query().bind(model.name).fetch_optional(&mut *conn).await.map_err(&what)?;
    let mut discards = HashSet::new();
    if let Some(live) = live {
        let (generation, partitions): (i64, i32) = (live.get(1), live.get(5));
        for partition in 1..=partitions {
            let listing = sql.list_discards.typed().bind(model.name).bind(generation).bind(partition).bind(0_i64);
            let rows: Vec<(i64, String, bool)> = listing.fetch_all(&mut *conn).await.map_err(&what)?;
            discards.extend(rows);
        }
    }
    Ok(discards)
}
