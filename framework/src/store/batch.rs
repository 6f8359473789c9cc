//! One statement for many appends, and what its answer says to each.

use serde::Serialize;
use sqlx::{
    PgConnection,
    postgres::{PgDatabaseError, PgSeverity},
};
use uuid::Uuid;

use crate::{
    ExpectedVersion, Metadata, Position, Receipt, Version,
    error::StoreError,
    sql::Sql,
    store::append::{Append, NewEvent, SagaRow, Work},
};

/// What became of an append that was not refused.
#[derive(Debug, Clone)]
pub(crate) enum Appended {
    /// It is stored: one receipt a stream.
    Written(Vec<Receipt>),
    /// Its command id is known. Nothing was written.
    Repeated,
}

/// What a statement says of one entry: the stream's version before, the position of its last event, and whether the command
/// id is known.
pub(crate) type Answer = (i64, Option<i64>, bool);

/// Why a batch was not written, or may not have been.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Another transaction won a stream or a command id: the same batch sees it when it is sent again.
    Raced,
    /// Another transaction waited for this one, and this one for it. Only the end of this one undoes that.
    Deadlocked,
    /// Another open transaction holds a stream of the batch.
    Held,
    /// Postgres refused the batch: nothing was written.
    Refused(sqlx::Error),
    /// The connection is lost, or silent: the batch may have been written.
    Lost(sqlx::Error),
}

impl Fault {
    pub(crate) fn of(error: sqlx::Error) -> Self {
        let Some(refusal) = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        else {
            return Self::Lost(error);
        };
        // The server ends the session, or all of them: it does not say on which side of the commit.
        if matches!(refusal.severity(), PgSeverity::Fatal | PgSeverity::Panic) {
            return Self::Lost(error);
        }
        match (refusal.code(), refusal.constraint()) {
            ("23505", Some("events_stream_version_key" | "commands_command_id_key")) | ("40001", _) => Self::Raced,
            ("40P01", _) => Self::Deadlocked,
            ("55P03", _) => Self::Held,
            _ => Self::Refused(error),
        }
    }

    pub(crate) fn into_error(self, what: &'static str) -> StoreError {
        let passing = |source| StoreError::Unavailable { what, source };
        match self {
            Self::Raced | Self::Deadlocked | Self::Held => passing(sqlx::Error::Protocol("another transaction holds the stream".into())),
            Self::Refused(error) if is_position_taken(&error) => StoreError::Unfit(
                "the sequence of positions stands below positions that are in use: stop the writers and open the store \
                 again, which names the setval that cures it"
                    .into(),
            ),
            Self::Refused(error) => StoreError::on(what)(error),
            Self::Lost(error) => passing(error),
        }
    }
}

fn is_position_taken(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.constraint() == Some("events_position_key"))
}

/// Appends as one set of arrays, sorted by stream so that two batches never wait for each other in a circle.
pub(crate) struct Batch<'w> {
    works: Vec<&'w Work>,
    /// (which work, which of its appends), in the order that is sent.
    entries: Vec<(usize, usize)>,
    appends: Vec<(&'w Work, &'w Append)>,
}

impl<'w> Batch<'w> {
    pub(crate) fn new(works: impl IntoIterator<Item = &'w Work>) -> Self {
        let works: Vec<_> = works.into_iter().collect();
        let mut all: Vec<_> = works
            .iter()
            .copied()
            .enumerate()
            .flat_map(|(nth, work)| {
                work.appends.iter().enumerate().map(move |(part, append)| (nth, part, work, append))
            })
            .collect();
        all.sort_by(|a, b| a.3.stream.cmp(&b.3.stream));
        Self {
            works,
            entries: all.iter().map(|&(nth, part, ..)| (nth, part)).collect(),
            appends: all.into_iter().map(|(_, _, work, append)| (work, append)).collect(),
        }
    }

    /// Sends the batch. Returns an answer an entry.
    pub(crate) async fn send(&self, conn: &mut PgConnection, sql: &Sql) -> Result<Vec<Answer>, Fault> {
        let appends = &self.appends;
        if let [(work, append)] = appends[..]
            && work.record.is_none()
            && work.saga.is_none()
            && !append.events.is_empty()
            && let Some(answer) = send_one(work, append, conn, sql).await?
        {
            return Ok(vec![answer]);
        }
        // Of one whose stream's version is not as expected, the statements for several say which it is.
        if let Some(each) = self.each() {
            return send_each(&each, conn, sql).await;
        }
        let column = |of: fn(&'w Work, &'w Append, bool) -> Option<&'w str>| -> Vec<Option<&'w str>> {
            appends.iter().zip(&self.entries).map(|((work, append), entry)| of(work, append, entry.1 == 0)).collect()
        };
        let ids =
            |of: fn(&Work) -> Option<Uuid>| -> Vec<Option<Uuid>> { appends.iter().map(|(work, _)| of(work)).collect() };
        let first = |nth: usize| self.entries[nth].1 == 0;
        let records: Vec<bool> = (0..appends.len()).map(|nth| first(nth) && appends[nth].0.record.is_some()).collect();
        let bodies: Vec<Option<&[u8]>> = (0..appends.len())
            .map(|nth| appends[nth].0.record.as_ref().filter(|_| first(nth)).and_then(|record| record.body.as_deref()))
            .collect();
        let events = || {
            appends.iter().enumerate().flat_map(|(entry, (_, append))| {
                append.events.iter().enumerate().map(move |(nth, event)| (entry as i32 + 1, nth as i32 + 1, event))
            })
        };
        sql.append_events
            .typed()
            .bind(column(|_, append, _| Some(append.stream.as_str())))
            .bind(appends.iter().map(|(_, append)| expected(append)).collect::<Vec<i64>>())
            .bind(self.entries.iter().map(|&(work, _)| work as i32).collect::<Vec<i32>>())
            .bind(appends.iter().map(|(_, append)| append.events.len() as i32).collect::<Vec<i32>>())
            .bind(ids(|work| work.metadata.correlation_id))
            .bind(ids(|work| work.metadata.causation_id))
            .bind(ids(|work| work.record.as_ref().map(|record| record.command_id).or(work.metadata.command_id)))
            .bind(column(|work, _, _| work.metadata.actor.as_deref()))
            .bind(column(|work, _, _| work.metadata.traceparent.as_deref()))
            .bind(records)
            .bind(bodies)
            .bind(events().map(|(entry, ..)| entry).collect::<Vec<i32>>())
            .bind(events().map(|(_, ordinal, _)| ordinal).collect::<Vec<i32>>())
            .bind(events().map(|(.., event)| event.event_id).collect::<Vec<Uuid>>())
            .bind(events().map(|(.., event)| &*event.event_type).collect::<Vec<&str>>())
            .bind(events().map(|(.., event)| event.schema_version as i16).collect::<Vec<i16>>())
            .bind(events().map(|(.., event)| event.payload.as_str()).collect::<Vec<&str>>())
            .bind(self.sagas()?)
            .fetch_all(conn)
            .await
            .map_err(Fault::of)
    }

    /// The rows of the index of sagas, as JSON.
    fn sagas(&self) -> Result<String, Fault> {
        #[derive(Serialize)]
        struct Row<'w> {
            entry: usize,
            #[serde(flatten)]
            row: &'w SagaRow,
        }
        let row = |(nth, (work, _)): (usize, &(&'w Work, &'w Append))| {
            let row = work.saga.as_deref().filter(|_| self.entries[nth].1 + 1 == work.appends.len())?;
            Some(Row { entry: nth + 1, row })
        };
        let rows: Vec<Row<'_>> = self.appends.iter().enumerate().filter_map(row).collect();
        serde_json::to_string(&rows).map_err(|error| Fault::Refused(sqlx::Error::Encode(error.into())))
    }

    /// Each append with its event, if all have one alone: what most commands lead to.
    fn each(&self) -> Option<Vec<(&'w Work, &'w Append, &'w NewEvent)>> {
        let alone =
            |&(work, append): &(&'w Work, &'w Append)| match (&work.record, &work.appends[..], &append.events[..]) {
                (None, [_], [event]) if work.saga.is_none() => Some((work, append, event)),
                _ => None,
            };
        self.appends.iter().map(alone).collect()
    }

    /// What each work led to, from the answers of [`Batch::send`].
    pub(crate) fn outcomes(&self, answers: &[Answer]) -> Vec<Result<Appended, StoreError>> {
        let receipts = |work: &&Work| Ok(Appended::Written(vec![Receipt::default(); work.appends.len()]));
        let mut outcomes: Vec<Result<Appended, StoreError>> = self.works.iter().map(receipts).collect();
        // As the callers named their streams: the first that is not as expected decides.
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        order.sort_unstable_by_key(|&nth| self.entries[nth]);
        for nth in order {
            let ((work, part), (_, append)) = (self.entries[nth], self.appends[nth]);
            let (head, position, known) = answers[nth];
            let Ok(Appended::Written(receipts)) = &mut outcomes[work] else { continue };
            if known {
                outcomes[work] = Ok(Appended::Repeated);
            } else if expected(append) >= 0 && expected(append) != head {
                let (stream, actual) = (append.stream.clone(), Version::new(head));
                outcomes[work] = Err(StoreError::Conflict { stream, expected: append.expected, actual });
            } else {
                receipts[part] = Receipt {
                    version: Version::new(head).plus(append.events.len()),
                    position: Position::new(position.unwrap_or(0)),
                    appended: append.events.len(),
                };
            }
        }
        outcomes
    }
}

/// A caller alone pays for no batch: for its sets and joins. None if the stream's version is not as expected.
async fn send_one(work: &Work, append: &Append, conn: &mut PgConnection, sql: &Sql) -> Result<Option<Answer>, Fault> {
    let (metadata, events) = (&work.metadata, &append.events);
    let rows: Vec<(i64, i64)> = sql
        .append_one
        .typed()
        .bind(append.stream.as_str())
        .bind(expected(append))
        .bind(metadata.correlation_id)
        .bind(metadata.causation_id)
        .bind(metadata.command_id)
        .bind(metadata.actor.as_deref())
        .bind(metadata.traceparent.as_deref())
        .bind(events.iter().map(|event| event.event_id).collect::<Vec<Uuid>>())
        .bind(events.iter().map(|event| &*event.event_type).collect::<Vec<&str>>())
        .bind(events.iter().map(|event| event.schema_version as i16).collect::<Vec<i16>>())
        .bind(events.iter().map(|event| event.payload.as_str()).collect::<Vec<&str>>())
        .fetch_all(conn)
        .await
        .map_err(Fault::of)?;
    let (first, last) = (rows.first(), rows.last());
    Ok(first.zip(last).map(|((version, _), (_, position))| (version - 1, Some(*position), false)))
}

/// Appends of one event need one set of arrays, and neither joins nor a look at each other.
async fn send_each(
    each: &[(&Work, &Append, &NewEvent)],
    conn: &mut PgConnection,
    sql: &Sql,
) -> Result<Vec<Answer>, Fault> {
    let ids = |of: fn(&Metadata) -> Option<Uuid>| each.iter().map(|(work, ..)| of(&work.metadata)).collect::<Vec<_>>();
    let texts =
        |of: fn(&Metadata) -> Option<&str>| each.iter().map(|(work, ..)| of(&work.metadata)).collect::<Vec<_>>();
    sql.append_each
        .typed()
        .bind(each.iter().map(|(_, append, _)| append.stream.as_str()).collect::<Vec<_>>())
        .bind(each.iter().map(|(_, append, _)| expected(append)).collect::<Vec<_>>())
        .bind(ids(|metadata| metadata.correlation_id))
        .bind(ids(|metadata| metadata.causation_id))
        .bind(ids(|metadata| metadata.command_id))
        .bind(texts(|metadata| metadata.actor.as_deref()))
        .bind(texts(|metadata| metadata.traceparent.as_deref()))
        .bind(each.iter().map(|(.., event)| event.event_id).collect::<Vec<_>>())
        .bind(each.iter().map(|(.., event)| &*event.event_type).collect::<Vec<&str>>())
        .bind(each.iter().map(|(.., event)| event.schema_version as i16).collect::<Vec<_>>())
        .bind(each.iter().map(|(.., event)| event.payload.as_str()).collect::<Vec<_>>())
        .fetch_all(conn)
        .await
        .map_err(Fault::of)
}

/// The expected version as the statement takes it: negative for any.
pub(super) fn expected(append: &Append) -> i64 {
    match append.expected {
        ExpectedVersion::Exact(version) => version.get(),
        ExpectedVersion::NoStream => 0,
        ExpectedVersion::Any => -1,
    }
}
