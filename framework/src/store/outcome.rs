//! What became of a batch whose answer was lost.
//!
//! The events have ids, so a new connection can look for them. Finding them settles the matter. Not finding them settles
//! nothing while the old backend lives, for it may be about to commit, behind a network that carries nothing back. So the
//! old backend is ended, and only once it is gone does "not there" mean "not written".

use std::{collections::HashMap, time::Duration};

use sqlx::{Connection, PgConnection, Row};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::{
    Position, Receipt, Version,
    error::StoreError,
    store::{
        Inner,
        append::Work,
        batch::{Appended, expected},
        connect_pooled,
        lane::Backend,
        on, within,
    },
};

/// What a look on another connection found.
pub(crate) enum Settled {
    /// One outcome a work; none where it is certain that nothing was written.
    Known(Vec<Option<Appended>>),
    /// Nothing could be learned in time.
    Unknown,
}

/// Finds out what became of `works`, which were sent to `backend`, until `deadline`. It looks at least once, if only to
/// end that backend.
pub(crate) async fn settle(inner: &Inner, backend: Backend, works: &[&Work], deadline: Instant) -> Settled {
    let mut pause = Duration::from_millis(5);
    loop {
        match look(inner, backend, works, deadline).await {
            Ok(Some(outcomes)) => return Settled::Known(outcomes),
            Ok(None) => pause = Duration::from_millis(20),
            Err(error) => {
                tracing::warn!(%error, "the outcome of an append is not known yet");
                pause = (pause * 2).min(Duration::from_millis(500));
            }
        }
        if Instant::now() + pause >= deadline {
            return Settled::Unknown;
        }
        sleep(pause).await;
    }
}

/// One look: nothing if the old backend still lives, and has not committed all of it.
async fn look(
    inner: &Inner,
    backend: Backend,
    works: &[&Work],
    deadline: Instant,
) -> Result<Option<Vec<Option<Appended>>>, StoreError> {
    let mut conn = connect_pooled(inner).await?;
    let looking = async {
        let mut conn = on(inner, &mut conn).await?;
        // First whether it is gone: what it committed before that, the statements that follow see.
        let gone = is_gone(&mut conn, inner, backend).await?;
        let outcomes = find(&mut conn, inner, works).await?;
        conn.end().await?;
        Ok(Some(outcomes).filter(|outcomes| gone || outcomes.iter().all(Option::is_some)))
    };
    // A look at a large batch may take long: it has the time that its callers have.
    let limit = deadline.saturating_duration_since(Instant::now()).max(inner.config.statement_deadline);
    let result: Result<_, sqlx::Error> = within(limit, "look for an append", looking).await?;
    let _ = tokio::time::timeout(Duration::from_secs(1), conn.close()).await;
    result.map_err(StoreError::on("look for an append"))
}

async fn is_gone(conn: &mut PgConnection, inner: &Inner, backend: Backend) -> Result<bool, sqlx::Error> {
    let ending = inner.sql.end_backend.query().bind(backend.pid).bind(backend.started).bind(backend.transaction);
    ending.fetch_one(conn).await?.try_get(0)
}

/// The receipts of those of `works` that are stored. An append is all or nothing: its first event and its last stand for it.
async fn find(conn: &mut PgConnection, inner: &Inner, works: &[&Work]) -> Result<Vec<Option<Appended>>, sqlx::Error> {
    // An append without events leaves nothing to find, and is harmless to repeat.
    let mut found: Vec<Option<Vec<Receipt>>> =
        works.iter().map(|work| (work.events() > 0).then(|| vec![Receipt::default(); work.appends.len()])).collect();
    let (mut sought, mut checked) = (vec![], vec![]);
    for (of, work) in works.iter().enumerate() {
        for (nth, append) in work.appends.iter().enumerate() {
            match (append.events.first(), append.events.last()) {
                (Some(first), Some(last)) => sought.push((of, nth, append, first.event_id, last.event_id)),
                _ => checked.push((of, nth, append)),
            }
        }
    }
    let rows = inner
        .sql
        .find_appends
        .query()
        .bind(sought.iter().map(|(_, _, append, ..)| append.stream.as_str()).collect::<Vec<_>>())
        .bind(sought.iter().map(|(_, _, append, ..)| expected(append).max(0)).collect::<Vec<_>>())
        .bind(sought.iter().map(|(_, _, _, first, _)| *first).collect::<Vec<_>>())
        .bind(sought.iter().map(|(.., last)| *last).collect::<Vec<_>>())
        .fetch_all(&mut *conn)
        .await?;
    let rows: HashMap<(i64, Uuid), (i64, i64)> =
        rows.iter().map(|row| ((row.get(0), row.get(1)), (row.get(2), row.get(3)))).collect();
    let mut begins = vec![i64::MAX; works.len()];
    for (sought, (of, nth, append, first, last)) in (1..).zip(sought) {
        match (rows.get(&(sought, first)), rows.get(&(sought, last))) {
            // What came in between is between them.
            (Some((from, begin)), Some((version, position))) if version - from + 1 == append.events.len() as i64 => {
                begins[of] = begins[of].min(*begin);
                if let Some(receipts) = &mut found[of] {
                    let (version, position) = (Version::new(*version), Position::new(*position));
                    receipts[nth] = Receipt { version, position, appended: append.events.len() };
                }
            }
            _ => found[of] = None,
        }
    }
    // What was only checked stood where it was expected, before the first of these events.
    for (of, nth, append) in checked {
        let Some(receipts) = &mut found[of] else { continue };
        let expected = match expected(append) {
            any if any < 0 => i64::MAX,
            version => version,
        };
        let standing = inner.sql.read_standing.query().bind(append.stream.as_str()).bind(expected).bind(begins[of] - 1);
        if let Some(row) = standing.fetch_optional(&mut *conn).await? {
            let (version, position) = (Version::new(row.get("version")), Position::new(row.get("position")));
            receipts[nth] = Receipt { version, position, appended: 0 };
        }
    }
    Ok(found.into_iter().map(|receipts| receipts.map(Appended::Written)).collect())
}
