//! What can be appended, and the two ways to do it: in the appender's transaction or in the caller's own.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::{
    Event, ExpectedVersion, InvalidInput, Metadata, Payload, PayloadLimits, Receipt, StreamId,
    config::Limits,
    error::StoreError,
    event::{encode::encode, json::check_json},
    store::{
        Annals,
        batch::{Appended, Batch, Fault},
        within,
    },
};

/// An event that is to be appended.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// Its id. Made before it is sent, so that a lost answer can be looked up.
    pub event_id: Uuid,
    /// Its stored type.
    pub event_type: Cow<'static, str>,
    /// The schema version of its payload, from 1.
    pub schema_version: u16,
    /// Its content, stored byte for byte.
    pub payload: Payload,
}

impl NewEvent {
    /// An event of schema version 1 with an id of its own. `payload` is JSON; it is checked when it is appended.
    pub fn new(event_type: impl Into<Cow<'static, str>>, payload: impl Into<Box<str>>) -> Self {
        Self {
            event_id: Uuid::now_v7(),
            event_type: event_type.into(),
            schema_version: 1,
            payload: Payload::stored(payload),
        }
    }

    /// `event` as an aggregate's command would store it, for an append without one.
    ///
    /// # Errors
    /// [`InvalidInput`] if it cannot be stored: a union, NaN, `\u0000`, too deep or too long.
    pub fn of<E: Event>(event: &E) -> Result<Self, InvalidInput> {
        if E::UNION {
            return Err(InvalidInput::Other("a union is only read; append the event of one of its aggregates".into()));
        }
        let encoded = encode(event, &PayloadLimits::default())?;
        let schema_version = E::schema_version(encoded.event_type);
        Ok(Self { schema_version, ..Self::new(encoded.event_type, encoded.payload) })
    }
}

/// Events for the end of one stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Append {
    /// The stream.
    pub stream: StreamId,
    /// What the writer believes about it.
    pub expected: ExpectedVersion,
    /// The events, oldest first. None at all only checks `expected`.
    pub events: Vec<NewEvent>,
}

/// A command id that is recorded in the append's own statement.
#[derive(Debug, Clone)]
pub(crate) struct CommandRecord {
    pub(crate) command_id: Uuid,
    /// SHA-256 of the command; none for an id that the framework derived.
    pub(crate) body: Option<Vec<u8>>,
}

/// What is to be found of an instance of a saga, in the append's own statement.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SagaRow {
    pub(crate) saga: &'static str,
    pub(crate) definition: u32,
    pub(crate) state: &'static str,
    pub(crate) step: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) due_at: Option<DateTime<Utc>>,
    /// Who runs it from now on.
    pub(crate) owner: Option<Uuid>,
    /// Who does this, and may have run it till now.
    pub(crate) writer: Option<Uuid>,
}

/// One append as the appender handles it: all of it is written, or none.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) appends: Vec<Append>,
    pub(crate) metadata: Metadata,
    pub(crate) record: Option<CommandRecord>,
    /// Of the stream of the last append.
    pub(crate) saga: Option<Box<SagaRow>>,
}

impl Work {
    /// Checks everything that can be checked without the database.
    pub(crate) fn new(
        appends: Vec<Append>,
        mut metadata: Metadata,
        record: Option<CommandRecord>,
        limits: &Limits,
    ) -> Result<Self, InvalidInput> {
        let Some(first) = appends.first() else {
            return Err(InvalidInput::Other("an append names at least one stream".into()));
        };
        let events = appends.iter().map(|append| append.events.len()).sum();
        if events > limits.events {
            return Err(InvalidInput::TooManyEvents { stream: first.stream.clone(), events, limit: limits.events });
        }
        let bytes = appends.iter().flat_map(|append| &append.events).map(|event| event.payload.as_str().len()).sum();
        if bytes > limits.bytes {
            return Err(InvalidInput::AppendTooLarge { stream: first.stream.clone(), bytes, limit: limits.bytes });
        }
        for (nth, append) in appends.iter().enumerate() {
            if appends[..nth].iter().any(|other| other.stream == append.stream) {
                let stream = &append.stream;
                return Err(InvalidInput::Other(format!("an append names stream {stream} twice: join the two")));
            }
        }
        if let Some(actor) = &metadata.actor
            && (actor.len() > 255 || actor.chars().any(char::is_control))
        {
            let rule = "an actor is at most 255 bytes and holds no control character";
            return Err(InvalidInput::Other(rule.into()));
        }
        if let Some(traceparent) = &metadata.traceparent
            && (traceparent.len() > 128 || !traceparent.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(InvalidInput::Other("a traceparent is at most 128 printable ASCII characters".into()));
        }
        let first_event = appends.iter().flat_map(|append| &append.events).next();
        metadata.correlation_id =
            Some(metadata.correlation_id.or(first_event.map(|event| event.event_id)).unwrap_or_else(Uuid::now_v7));
        Ok(Self { appends, metadata, record, saga: None })
    }

    /// The same, with a row of the index of sagas for the last stream.
    pub(crate) fn of_saga(self, row: Option<SagaRow>) -> Self {
        Self { saga: row.map(Box::new), ..self }
    }

    /// How many events there are, over all streams.
    pub(crate) fn events(&self) -> usize {
        self.appends.iter().map(|append| append.events.len()).sum()
    }

    /// The ids of the events, to look for when the outcome is unknown.
    pub(crate) fn event_ids(&self) -> Vec<Uuid> {
        self.appends.iter().flat_map(|append| &append.events).map(|event| event.event_id).collect()
    }

    /// Payload bytes, for bounding a batch and the queue.
    pub(crate) fn bytes(&self) -> usize {
        self.appends.iter().flat_map(|append| &append.events).map(|event| event.payload.as_str().len() + 128).sum()
    }
}

/// Checks events that did not come through the checking serializer.
fn check_events(appends: &[Append], limits: &Limits) -> Result<(), InvalidInput> {
    appends.iter().flat_map(|append| &append.events).try_for_each(|event| check_event(event, limits))
}

fn check_event(event: &NewEvent, limits: &Limits) -> Result<(), InvalidInput> {
    let name = &event.event_type;
    if name.is_empty() || name.len() > 255 || name.chars().any(char::is_control) {
        let name: String = name.chars().take(80).collect();
        return Err(InvalidInput::Other(format!(
            "event type {name:?} is refused: it takes 1 to 255 bytes without control characters"
        )));
    }
    if !(1..=i16::MAX as u16).contains(&event.schema_version) {
        return Err(InvalidInput::Other(format!("event type {name}: a schema version is 1 to 32767")));
    }
    check_json(name, event.payload.as_str(), &limits.payload)
}

const APPEND_IN: &str = "append inside the caller's transaction";

impl Annals {
    /// Appends `events` to the end of `stream`, all of them or none.
    ///
    /// Returns once they are committed and flushed. Many callers share one commit.
    ///
    /// # Errors
    /// - [`StoreError::Conflict`] if the stream is not as `expected`: nothing was written.
    /// - [`StoreError::Invalid`] if a limit is broken: nothing was sent.
    /// - [`StoreError::Overloaded`], [`StoreError::Timeout`], [`StoreError::Unavailable`]: nothing was written.
    /// - [`StoreError::UnknownOutcome`]: it may have been written; the error names the ids to look for with
    ///   [`Annals::find_events`].
    ///
    /// # Source
    /// Expected version: message-db, `write_message`.
    pub async fn append(
        &self,
        stream: &StreamId,
        expected: impl Into<ExpectedVersion>,
        events: Vec<NewEvent>,
    ) -> Result<Receipt, StoreError> {
        let append = Append { stream: stream.clone(), expected: expected.into(), events };
        let receipts = self.append_all(vec![append], Metadata::default()).await?;
        receipts.first().copied().ok_or(StoreError::Closed)
    }

    /// Appends to several streams at once, to all of them or to none. Returns one receipt a stream, in order.
    ///
    /// # Errors
    /// As [`Annals::append`]; a conflict names the first stream that is not as expected.
    pub async fn append_all(&self, appends: Vec<Append>, metadata: Metadata) -> Result<Vec<Receipt>, StoreError> {
        check_events(&appends, &self.inner.config.limits)?;
        let work = Work::new(appends, metadata, None, &self.inner.config.limits)?;
        match self.inner.appender.append(work, self.inner.config.append_deadline).await? {
            Appended::Written(receipts) => Ok(receipts),
            Appended::Repeated => Err(StoreError::Unfit("an append without a command id met one".into())),
        }
    }

    /// Appends inside the caller's transaction: the events commit with whatever else it writes, or not at all.
    ///
    /// `conn` must be inside a transaction at READ COMMITTED. Until that transaction ends, **every reader waits** at the
    /// position where it began to append: end it soon. It is given [`Config::transaction_deadline`] of idle time, after
    /// which Postgres ends it, or what `idle_in_transaction_session_timeout` was if that is shorter; a stream that another
    /// transaction holds is waited for as long, and then `lock_timeout` is again what it was. On an error the transaction
    /// stands as it was before the call; after [`StoreError::Timeout`] and [`StoreError::Unavailable`], roll it back.
    ///
    /// [`Config::transaction_deadline`]: crate::Config::transaction_deadline
    ///
    /// # Errors
    /// As [`Annals::append`], and [`StoreError::Invalid`] if `conn` is not in such a transaction.
    pub async fn append_in(
        &self,
        conn: &mut PgConnection,
        appends: Vec<Append>,
        metadata: Metadata,
    ) -> Result<Vec<Receipt>, StoreError> {
        check_events(&appends, &self.inner.config.limits)?;
        let work = Work::new(appends, metadata, None, &self.inner.config.limits)?;
        match self.write_in(conn, work).await? {
            Appended::Written(receipts) => Ok(receipts),
            Appended::Repeated => Err(StoreError::Unfit("an append without a command id met one".into())),
        }
    }

    /// Refuses a transaction that may see the past: what is decided in it may be wrong.
    pub(crate) async fn check_snapshot(&self, conn: &mut PgConnection) -> Result<(), StoreError> {
        let what = "check the caller's transaction";
        let asking = self.inner.sql.check_snapshot.scalar().fetch_one(conn);
        let isolation: Result<String, _> = within(self.inner.config.read_deadline, what, asking).await?;
        check_isolation(&isolation.map_err(StoreError::on(what))?)
    }

    pub(crate) async fn write_in(&self, conn: &mut PgConnection, work: Work) -> Result<Appended, StoreError> {
        let limit = self.inner.config.transaction_deadline;
        let begun = Instant::now();
        let writing = async {
            while begun.elapsed() < limit {
                if let Some(appended) = self.write_under_savepoint(conn, &work).await? {
                    return Ok(appended);
                }
            }
            Err(Fault::Raced.into_error(APPEND_IN))
        };
        within(limit + Duration::from_secs(1), APPEND_IN, writing).await?
    }

    /// Sends `work` under a savepoint, so that an error leaves nothing behind, neither rows nor settings nor the marker.
    ///
    /// Returns none if another transaction was faster: it has committed, so the next statement sees where the stream is.
    async fn write_under_savepoint(
        &self,
        conn: &mut PgConnection,
        work: &Work,
    ) -> Result<Option<Appended>, StoreError> {
        let sql = &self.inner.sql;
        let savepoint = sqlx::raw_sql(sql.savepoint_append_in.text()).execute(&mut *conn).await;
        savepoint.map_err(|error| match error.as_database_error().and_then(|error| error.code()).as_deref() {
            Some("25P01") => {
                InvalidInput::Other("append_in needs a transaction: call it between BEGIN and COMMIT".into()).into()
            }
            _ => StoreError::on(APPEND_IN)(error),
        })?;
        let result = match self.prepare_append_in(conn).await {
            Err(error) => Err(error),
            Ok(()) => {
                let batch = Batch::new([work]);
                match batch.send(conn, sql).await {
                    Ok(answers) => batch.outcomes(&answers).remove(0).map(Some),
                    Err(Fault::Raced) => Ok(None),
                    Err(fault @ Fault::Lost(_)) => return Err(fault.into_error(APPEND_IN)),
                    Err(fault) => Err(fault.into_error(APPEND_IN)),
                }
            }
        };
        let written = matches!(result, Ok(Some(Appended::Written(_))));
        let end = if written { &sql.release_append_in } else { &sql.rollback_append_in };
        sqlx::raw_sql(end.text()).execute(conn).await.map_err(StoreError::on(APPEND_IN))?;
        result
    }

    /// Settles what an append needs of the caller's transaction, or says why it does not fit.
    async fn prepare_append_in(&self, conn: &mut PgConnection) -> Result<(), StoreError> {
        let isolation: String = self
            .inner
            .sql
            .prepare_append_in
            .query()
            .bind(self.inner.config.transaction_deadline.as_millis().to_string())
            .fetch_one(conn)
            .await
            .and_then(|row| row.try_get(0))
            .map_err(StoreError::on(APPEND_IN))?;
        check_isolation(&isolation)
    }
}

fn check_isolation(isolation: &str) -> Result<(), StoreError> {
    if isolation == "read committed" {
        return Ok(());
    }
    Err(InvalidInput::Other(format!(
        "append_in needs a transaction at READ COMMITTED, this one is {isolation}: its snapshot may be older than the \
         stream"
    ))
    .into())
}
