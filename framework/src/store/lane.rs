//! What a lane does with a batch: sends it, and takes it apart, looks it up or sends it again until every append has its end.

use std::{sync::atomic::Ordering, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, Row, SqlSafeStr, postgres::PgRow};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::{
    error::StoreError,
    store::{
        Inner,
        appender::{Request, SENT, WAITING},
        batch::{Answer, Batch, Fault},
        connect_pooled,
        outcome::{Settled, settle},
        own_session,
        session::begin_with,
        within,
    },
};

/// How long the rest of a batch waits for locks, one by one, after one of it turned out to be held.
const SHORT_LOCK_DEADLINE: Duration = Duration::from_millis(5);
/// How long an append to a held stream waits for the lock before the next one has its turn.
const TURN: Duration = Duration::from_millis(500);
/// Postgres stops waiting this much before the caller does, who then hears that nothing was written.
const MARGIN: Duration = Duration::from_millis(250);

/// Which server process runs an append: what has to be gone before "not written" is certain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backend {
    pub(crate) pid: i32,
    pub(crate) started: DateTime<Utc>,
    /// Behind a pooler in transaction mode, the transaction that it runs: the next one is somebody else's.
    pub(crate) transaction: Option<DateTime<Utc>>,
}

impl Backend {
    fn of(row: &PgRow) -> Result<Self, StoreError> {
        let started: Option<DateTime<Utc>> = row.try_get(1).map_err(StoreError::on(PREPARE))?;
        let Some(started) = started else {
            return Err(own_session());
        };
        Ok(Self { pid: row.get(0), started, transaction: row.get(2) })
    }
}

const PREPARE: &str = "prepare a connection for appends";

/// How long a statement may run that may wait `lock_deadline` for a lock: of the two, the lock's own limit ends it.
fn statement_deadline(inner: &Inner, lock_deadline: Duration) -> Duration {
    inner.config.statement_deadline.max(lock_deadline + Duration::from_secs(1))
}

/// A connection of the appender, and the backend behind it.
struct Line {
    conn: PgConnection,
    backend: Backend,
    lock_deadline: Duration,
    /// Whether the transaction has begun that its next batch takes.
    begun: bool,
}

impl Line {
    /// Connects, and settles everything that appends need of a session.
    async fn open(inner: &Inner, lock_deadline: impl Fn() -> Duration) -> Result<Self, StoreError> {
        let mut conn = connect_pooled(inner).await?;
        let lock_deadline = lock_deadline();
        let backend = Self::prepare(&mut conn, inner, lock_deadline).await?;
        Ok(Self { conn, backend, lock_deadline, begun: inner.is_pooled() })
    }

    /// Behind a pooler in transaction mode a turn begins with this: a transaction, and what appends need of it.
    async fn prepare(conn: &mut PgConnection, inner: &Inner, lock_deadline: Duration) -> Result<Backend, StoreError> {
        let settings = include_str!("../sql/prepare_lane.sql")
            .replace("$lock", &lock_deadline.as_millis().to_string())
            .replace("$statement", &statement_deadline(inner, lock_deadline).as_millis().to_string())
            .replace("$local", &inner.is_pooled().to_string());
        let text = match inner.is_pooled() {
            true => begin_with(&inner.sql, &settings),
            false => AssertSqlSafe(settings).into_sql_str(),
        };
        let preparing = sqlx::raw_sql(text).fetch_one(conn);
        let row = within(inner.config.connect_deadline, PREPARE, preparing).await?.map_err(StoreError::on(PREPARE))?;
        Backend::of(&row)
    }

    /// Waits for locks at most this long from now on.
    async fn set_lock_deadline(&mut self, inner: &Inner, lock_deadline: Duration) -> Result<(), StoreError> {
        let what = "set how long an append waits for locks";
        let setting = inner.sql.set_lock_deadline.query().bind(lock_deadline.as_millis().to_string());
        let setting = setting.execute(&mut self.conn);
        within(inner.config.connect_deadline, what, setting).await?.map_err(StoreError::on(what))?;
        self.lock_deadline = lock_deadline;
        Ok(())
    }

    /// Begins a transaction where a batch takes one of its own, unless opening the line has begun it.
    async fn begin_turn(&mut self, inner: &Inner, lock_deadline: Duration) -> Result<(), StoreError> {
        if inner.is_pooled() && !self.begun {
            self.backend = Self::prepare(&mut self.conn, inner, lock_deadline).await?;
            self.begun = true;
        }
        Ok(())
    }

    /// Ends that transaction.
    async fn end_turn(&mut self, inner: &Inner, keep: bool) -> Result<(), Fault> {
        if !inner.is_pooled() {
            return Ok(());
        }
        self.begun = false;
        let end = if keep { "commit" } else { "rollback" };
        sqlx::raw_sql(end).execute(&mut self.conn).await.map(drop).map_err(Fault::of)
    }

    /// Writes `batch`, and commits it.
    async fn send(&mut self, inner: &Inner, batch: &Batch<'_>) -> Result<Vec<Answer>, Fault> {
        let answers = batch.send(&mut self.conn, &inner.sql).await;
        if !matches!(answers, Err(Fault::Lost(_))) {
            self.end_turn(inner, answers.is_ok()).await?;
        }
        answers
    }
}

/// A connection that writes batches, one after the other. It connects when it has something to write.
#[derive(Default)]
pub(super) struct Lane {
    line: Option<Line>,
}

impl Lane {
    /// Writes `batch` and answers every caller, but those whose streams another transaction holds: these come back.
    pub(super) async fn write(
        mut self,
        inner: &Inner,
        batch: Vec<Request>,
        appended: &watch::Sender<()>,
    ) -> (Self, Vec<Request>) {
        let mut held = Vec::new();
        let mut lock_deadline = inner.config.lock_deadline;
        let mut parts = vec![(batch, false)];
        while let Some((part, raced)) = parts.pop() {
            match send(&mut self.line, inner, part, || lock_deadline).await {
                Sent::Answered => appended.send_replace(()),
                Sent::Again(part) => parts.push((part, raced)),
                // Whoever won has committed, so the same statement mostly gets through. If it does not, somebody writes
                // to the same streams all the time: the smaller the part, the fewer wait for that.
                Sent::Raced(mut part) if raced && part.len() > 1 => {
                    let half = part.split_off(part.len() / 2);
                    parts.extend([(half, true), (part, true)]);
                }
                Sent::Raced(part) => parts.push((part, true)),
                Sent::Held(mut part) if part.len() == 1 => {
                    held.append(&mut part);
                    // The rest of the batch has waited long enough.
                    lock_deadline = lock_deadline.min(SHORT_LOCK_DEADLINE);
                }
                // Which stream is held, the server does not say: one by one, the others get through at once.
                Sent::Held(part) | Sent::Refused(part) => {
                    parts.extend(part.into_iter().map(|request| (vec![request], false)));
                }
            }
        }
        (self, held)
    }
}

/// Gives an append whose stream another transaction holds one turn: waits for that transaction, beside the lanes.
///
/// Returns the append if that was not enough. It goes behind the others that wait so, or a few streams that are held for
/// long would keep out one that is soon free.
pub(super) async fn write_held(inner: &Inner, request: Request, appended: &watch::Sender<()>) -> Option<Request> {
    let end = request.deadline - MARGIN;
    let turn_end = end.min(Instant::now() + TURN);
    let left = || turn_end.saturating_duration_since(Instant::now()).max(Duration::from_millis(10));
    let mut part = vec![request];
    while Instant::now() < turn_end {
        // A connection of its own each time, for its wait for the lock is settled when it is opened.
        match send(&mut None, inner, part, left).await {
            Sent::Answered => {
                appended.send_replace(());
                return None;
            }
            Sent::Again(again) | Sent::Raced(again) | Sent::Refused(again) => part = again,
            Sent::Held(held) => {
                part = held;
                break;
            }
        }
    }
    let request = part.pop()?;
    if Instant::now() < end {
        return Some(request);
    }
    let after = request.limit;
    request.answer(Err(StoreError::Timeout { what: "wait for a stream that another transaction holds", after }));
    None
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
    match line {
        None => match Line::open(inner, &lock_deadline).await {
            Ok(opened) => *line = Some(opened),
            Err(error) => return wait_for_server(part, error).await,
        },
        Some(open) if !inner.is_pooled() && open.lock_deadline != lock_deadline() => {
            if let Err(error) = open.set_lock_deadline(inner, lock_deadline()).await {
                tracing::warn!(%error, "an append connects again");
                *line = None;
                return Sent::Again(part);
            }
        }
        Some(_) => {}
    }
    let Some(open) = line else { return again(part) };
    if let Err(error) = open.begin_turn(inner, lock_deadline()).await {
        *line = None;
        return wait_for_server(part, error).await;
    }
    // Whoever gave up while this was waiting has been told that nothing was written: so nothing is.
    let part: Vec<Request> = part
        .into_iter()
        .filter(|request| !request.is_given_up())
        .filter(|request| request.state.compare_exchange(WAITING, SENT, Ordering::AcqRel, Ordering::Acquire).is_ok())
        .collect();
    if part.is_empty() {
        // A transaction that may have begun ends with its connection.
        if inner.is_pooled() {
            *line = None;
        }
        return Sent::Answered;
    }
    let batch = Batch::new(part.iter().map(|request| &request.work));
    let silence = statement_deadline(inner, lock_deadline()) + Duration::from_secs(1);
    let result = match timeout(silence, open.send(inner, &batch)).await {
        Ok(result) => result,
        Err(_) => Err(Fault::Lost(sqlx::Error::Protocol("the server is silent".into()))),
    };
    match result {
        Ok(answers) => {
            let outcomes = batch.outcomes(&answers);
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
    let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
    let text = format!("{error}{source}");
    let mut error = Some(error);
    let mut rest = Vec::with_capacity(part.len());
    for request in part {
        if !hopeless && request.deadline > Instant::now() + PAUSE * 2 {
            rest.push(request);
        } else if let Some(error) = error.take() {
            request.answer(Err(error));
        } else if hopeless {
            request.answer(Err(StoreError::Unfit(text.clone())));
        } else {
            let source = sqlx::Error::Protocol(text.clone());
            request.answer(Err(StoreError::Unavailable { what: "connect", source }));
        }
    }
    if rest.is_empty() {
        return Sent::Answered;
    }
    sleep(PAUSE).await;
    Sent::Again(rest)
}
