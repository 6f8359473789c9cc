//! Reading streams and the log: a page at a time, or as a `Stream` in bounded memory.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use chrono::{DateTime, Utc};
use futures::{Stream, TryStreamExt, stream};
use sqlx::{Executor, PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use crate::{
    InvalidInput, Metadata, Payload, Position, Recorded, StreamId, Version,
    error::StoreError,
    store::{Annals, Inner, Session},
};

/// How many positions a page looks through: so many for each event that it wants, and no fewer and no more than these.
const SCAN_PER_EVENT: i64 = 48;
const LEAST_SCAN: i64 = 4_096;
const MOST_SCAN: i64 = 100_000;
/// What one page takes at most, in events and in payload bytes.
const PAGE_EVENTS: usize = 1_000;
const PAGE_BYTES: usize = 2 << 20;
/// How many events are looked for at once.
const FIND_EVENTS: usize = 100;
/// What a page asks for first, or less if the events of the last full pages were long ([`Inner::event_bytes`]). How long
/// these events are says how many more it has room for: Postgres sends everything that was asked for, read or not.
const FIRST_CHUNK: usize = 64;

/// Which events of a stream to read. The default is all of them, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadStream {
    /// Only events above this version.
    pub after: Version,
    /// Only events up to this version.
    pub up_to: Option<Version>,
    /// Only events recorded at or before this time.
    pub until: Option<DateTime<Utc>>,
    /// Newest first.
    pub backwards: bool,
}

impl ReadStream {
    /// The same read, from behind the event `last` on.
    fn behind(self, last: Version) -> Self {
        match self.backwards {
            true => Self { up_to: Some(Version::new(last.get() - 1)), ..self },
            false => Self { after: last, ..self },
        }
    }
}

impl Default for ReadStream {
    fn default() -> Self {
        Self { after: Version::NONE, up_to: None, until: None, backwards: false }
    }
}

/// Which events of the log to read, in position order. The default is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadLog {
    /// Only events behind this position.
    pub after: Position,
    /// Only events up to this position. The log is never read above the safe position.
    pub up_to: Option<Position>,
    /// Only these event types; empty for all.
    pub event_types: Vec<String>,
    /// Only streams of these categories; empty for all.
    pub categories: Vec<String>,
    /// Not these event types.
    pub skipped_types: Vec<String>,
}

/// Some events, and where the next page begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<C> {
    /// The events.
    pub events: Vec<Recorded<Payload>>,
    /// What to read next; none when this page is the last. A filter can leave a page empty that is not the last.
    pub next: Option<C>,
}

impl Annals {
    /// Reads one page of `stream`: up to `limit` events, fewer if their payloads are long.
    ///
    /// A stream that does not exist has no events; that is no error.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Timeout`].
    pub async fn read_stream_page(
        &self,
        stream: &StreamId,
        read: ReadStream,
        limit: usize,
    ) -> Result<Page<ReadStream>, StoreError> {
        let sql = &self.inner.sql;
        let sql = if read.backwards { &sql.read_stream_backwards } else { &sql.read_stream_forwards };
        let limit = limit.clamp(1, PAGE_EVENTS);
        let inner = &self.inner;
        let rows = inner
            .read("read a stream", |mut conn| {
                let (sql, stream) = (sql.clone(), stream.clone());
                async move {
                    fetch_page(&mut conn, &inner.event_bytes, limit, |last, limit| {
                        let read = last.map_or(read, |last| read.behind(last.version));
                        sql.query()
                            .bind(stream.as_str().to_owned())
                            .bind(read.after.get())
                            .bind(read.up_to.map_or(i64::MAX, Version::get))
                            .bind(read.until)
                            .bind(limit as i64)
                    })
                    .await
                }
            })
            .await?;
        let last = rows.events.last().filter(|_| rows.cut);
        let next = last.map(|last| read.behind(last.version)).filter(|next| next.up_to != Some(Version::NONE));
        Ok(Page { next, events: rows.events })
    }

    /// Reads `stream` as a [`Stream`], page after page, in bounded memory.
    pub fn read_stream(
        &self,
        stream: &StreamId,
        read: ReadStream,
    ) -> impl Stream<Item = Result<Recorded<Payload>, StoreError>> + Send + 'static {
        let (store, stream) = (self.clone(), stream.clone());
        pages(read, move |read| {
            let (store, stream) = (store.clone(), stream.clone());
            async move { store.read_stream_page(&stream, read, PAGE_EVENTS).await }
        })
    }

    /// Reads one page of the log: up to `limit` events, fewer if their payloads are long.
    ///
    /// Positions grow from event to event, and no event will ever appear before one that was read.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Timeout`]; [`StoreError::Unfit`] on a standby.
    pub async fn read_log_page(&self, read: ReadLog, limit: usize) -> Result<Page<ReadLog>, StoreError> {
        let safe = self.horizon().await?.safe;
        let up_to = read.up_to.map_or(safe, |up_to| up_to.min(safe));
        let page = self.read_final(&read, up_to, limit).await?;
        Ok(Page { next: page.next.map(|after| ReadLog { after, ..read }), events: page.events })
    }

    /// Finds events by their ids, in position order: up to 100 at once, and those above the safe position too.
    ///
    /// For a [`StoreError::UnknownOutcome`], of whose events all are stored or none: one of its ids answers for all. What is
    /// there is there; what is not may still come, for as long as that append's connection lives on the server. To settle
    /// it, append again at an exact version, or send the command again with the same command id: of the two, one loses.
    ///
    /// There is no index of single ids. Each costs a look at the summary of every 16 pages of the log, which is quick for a
    /// few ids and a log of any size, and no way to read many events.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Timeout`]; [`StoreError::Invalid`] for more than 100 ids.
    pub async fn find_events(&self, event_ids: &[Uuid]) -> Result<Vec<Recorded<Payload>>, StoreError> {
        if event_ids.len() > FIND_EVENTS {
            let refusal = format!(
                "find_events takes at most {FIND_EVENTS} ids, not {}: of one append all events are stored or none, so one \
                 of its ids answers for all",
                event_ids.len()
            );
            return Err(InvalidInput::Other(refusal).into());
        }
        let sql = &self.inner.sql.find_events;
        let finding = |mut conn: Session<'static>| {
            let (sql, event_ids) = (sql.clone(), event_ids.to_vec());
            async move {
                let rows = sql.query().bind(event_ids).fetch_all(&mut *conn).await?;
                let mut names = Names::default();
                rows.iter().map(|row| recorded(row, &mut names)).collect()
            }
        };
        self.inner.read("find events by id", finding).await
    }

    /// One page of the log up to `up_to`, which the caller knows to be final.
    pub(crate) async fn read_final(
        &self,
        read: &ReadLog,
        up_to: Position,
        limit: usize,
    ) -> Result<Page<Position>, StoreError> {
        let inner = &self.inner;
        let reading =
            |mut conn: Session<'static>| async move { inner.read_final_on(&mut conn, read, up_to, limit).await };
        inner.read("read the log", reading).await
    }

    /// One page of the events of all streams of `category` up to the position `up_to`, which the caller knows to be final:
    /// stream by stream, behind the event `after` of one of them.
    pub(crate) async fn read_category(
        &self,
        category: &str,
        after: Option<(StreamId, Version)>,
        up_to: Position,
    ) -> Result<Page<(StreamId, Version)>, StoreError> {
        let inner = &self.inner;
        // Behind the hyphen that every stream of it has comes the full stop.
        let (first, end) = (format!("{category}-"), format!("{category}."));
        let after = after.map_or((first, 0), |(stream, version)| (stream.as_str().to_owned(), version.get()));
        let rows = inner
            .read("read the streams of a category", |mut conn| {
                let (after, end) = (after.clone(), end.clone());
                async move {
                    fetch_page(&mut conn, &inner.event_bytes, PAGE_EVENTS, |last, limit| {
                        let after =
                            last.map_or((after.0.as_str(), after.1), |last| (last.stream.as_str(), last.version.get()));
                        let (stream, end) = (after.0.to_owned(), end.clone());
                        let sql = inner.sql.read_category.query();
                        sql.bind(stream).bind(after.1).bind(end).bind(up_to.get()).bind(limit as i64)
                    })
                    .await
                }
            })
            .await?;
        let next = rows.events.last().filter(|_| rows.cut).map(|last| (last.stream.clone(), last.version));
        Ok(Page { next, events: rows.events })
    }

    /// Reads the log as a [`Stream`], page after page, in bounded memory. It ends at the safe position, or at
    /// [`ReadLog::up_to`].
    pub fn read_log(
        &self,
        read: ReadLog,
    ) -> impl Stream<Item = Result<Recorded<Payload>, StoreError>> + Send + 'static {
        let store = self.clone();
        pages(read, move |read| {
            let store = store.clone();
            async move { store.read_log_page(read, PAGE_EVENTS).await }
        })
    }
}

impl Inner {
    /// One page of the log up to `up_to`, which the caller knows to be final, on `conn`.
    pub(crate) async fn read_final_on(
        &self,
        conn: &mut PgConnection,
        read: &ReadLog,
        up_to: Position,
        limit: usize,
    ) -> Result<Page<Position>, sqlx::Error> {
        let limit = limit.clamp(1, PAGE_EVENTS * 10);
        // Rare events: what is looked through at once stays bounded, whatever is found in it. And so it does where Postgres knows
        // nothing of the table yet: then it reads and sorts all of it, for each page.
        let looked_through = (limit as i64).saturating_mul(SCAN_PER_EVENT).clamp(LEAST_SCAN, MOST_SCAN);
        let mut end = up_to.min(Position::new(read.after.get().saturating_add(looked_through)));
        let some = |list: &[String]| if list.is_empty() { None } else { Some(list.to_vec()) };
        let filtered = !read.event_types.is_empty() || !read.categories.is_empty() || !read.skipped_types.is_empty();
        let page = loop {
            let page = fetch_page(conn, &self.event_bytes, limit, |last, limit| {
                self.sql
                    .read_log
                    .query()
                    .bind(last.map_or(read.after, |last| last.position).get())
                    .bind(end.get())
                    .bind(some(&read.event_types))
                    .bind(some(&read.categories))
                    .bind(limit as i64)
                    .bind(some(&read.skipped_types))
            })
            .await?;
            // Only a filter leaves a page empty: this is a gap, and what is behind it is looked for.
            if filtered || end == up_to || !page.events.is_empty() {
                break page;
            }
            end = up_to;
        };
        let next = page.events.last().filter(|_| page.cut).map(|last| last.position);
        Ok(Page { next: next.or((end < up_to).then_some(end)), events: page.events })
    }
}

/// Joins pages to one stream of events.
fn pages<C, F, R>(first: C, page: F) -> impl Stream<Item = Result<Recorded<Payload>, StoreError>> + Send + 'static
where
    C: Send + 'static,
    F: Fn(C) -> R + Send + 'static,
    R: Future<Output = Result<Page<C>, StoreError>> + Send + 'static,
{
    stream::try_unfold((VecDeque::new(), Some(first), page), |(mut events, mut next, page)| async move {
        while events.is_empty()
            && let Some(read) = next.take()
        {
            let found = page(read).await?;
            events.extend(found.events);
            next = found.next;
        }
        Ok(events.pop_front().map(|event| (event, (events, next, page))))
    })
}

/// Rows of one page; `cut` if it is full, so that there may be more.
struct Rows {
    events: Vec<Recorded<Payload>>,
    cut: bool,
}

type Query = sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// Fetches up to `limit` events, chunk by chunk until the page is full. `query` asks for the events behind the last one.
async fn fetch_page(
    conn: &mut PgConnection,
    event_bytes: &AtomicUsize,
    limit: usize,
    query: impl Fn(Option<&Recorded<Payload>>, usize) -> Query,
) -> Result<Rows, sqlx::Error> {
    let before = event_bytes.load(Ordering::Relaxed);
    let first_chunk = FIRST_CHUNK.min(PAGE_BYTES / before.max(1) + 1);
    let (mut events, mut bytes) = (Vec::new(), 0);
    let mut names = Names::default();
    while events.len() < limit && bytes < PAGE_BYTES {
        let room =
            if events.is_empty() { first_chunk } else { (PAGE_BYTES - bytes) / (bytes / events.len()).max(1) + 1 };
        let (chunk, known) = (room.min(limit - events.len()), events.len());
        let mut rows = conn.fetch(query(events.last(), chunk));
        while let Some(row) = rows.try_next().await? {
            let event = recorded(&row, &mut names)?;
            bytes += event.event.as_str().len();
            events.push(event);
            if bytes >= PAGE_BYTES {
                break;
            }
        }
        drop(rows);
        if bytes < PAGE_BYTES && events.len() - known < chunk {
            return Ok(Rows { events, cut: false });
        }
    }
    // Only a full page says something. Reads of short events in between do not let it be forgotten at once.
    event_bytes.store((bytes / events.len().max(1)).max(before / 2), Ordering::Relaxed);
    Ok(Rows { events, cut: true })
}

/// The names in the row before, which the next one mostly repeats.
#[derive(Default)]
pub(crate) struct Names {
    stream: Option<StreamId>,
    event_type: Option<Arc<str>>,
}

/// Event type, schema version and payload of a row that [`recorded`] reads whole.
pub(crate) fn content(row: &PgRow) -> Result<(&str, u16, &str), sqlx::Error> {
    // Unchecked: the columns are the framework's own. The payload's is `json`, whose binary form is its text: the exact
    // bytes, with no parsing.
    Ok((row.try_get_unchecked(9)?, row.try_get_unchecked::<i16, _>(7)?.unsigned_abs(), row.try_get_unchecked(12)?))
}

/// An envelope, from the columns that every reading statement lists in the same order.
pub(crate) fn recorded(row: &PgRow, names: &mut Names) -> Result<Recorded<Payload>, sqlx::Error> {
    let (stream, (event_type, schema_version, payload)) = (row.try_get_unchecked(8)?, content(row)?);
    let stream = match &names.stream {
        Some(last) if last.as_str() == stream => last.clone(),
        _ => names.stream.insert(StreamId::stored(stream)).clone(),
    };
    let event_type = match &names.event_type {
        Some(last) if **last == *event_type => last.clone(),
        _ => names.event_type.insert(event_type.into()).clone(),
    };
    Ok(Recorded {
        position: Position::new(row.try_get_unchecked(0)?),
        version: Version::new(row.try_get_unchecked(1)?),
        event_id: row.try_get_unchecked(2)?,
        recorded_at: row.try_get_unchecked(6)?,
        schema_version,
        stream,
        event_type,
        metadata: Metadata {
            correlation_id: row.try_get_unchecked(3)?,
            causation_id: row.try_get_unchecked(4)?,
            command_id: row.try_get_unchecked(5)?,
            actor: row.try_get_unchecked(10)?,
            traceparent: row.try_get_unchecked(11)?,
        },
        event: Payload::stored(payload),
    })
}
