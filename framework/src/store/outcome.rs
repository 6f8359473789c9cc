//! What became of a batch whose answer was lost.
//!
//! The events have ids, so a new connection can look for them. Finding them settles the matter. Not finding them settles
//! nothing while the old backend lives, for it may be about to commit, behind a network that carries nothing back. So the
//! old backend is ended, and only once it is gone does "not there" mean "not written".

use std::time::Duration;

use sqlx::{Connection, PgConnection, Row};
use tokio::time::{Instant, sleep};

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
        let mut outcomes = Vec::with_capacity(works.len());
        for work in works {
            outcomes.push(find(&mut conn, inner, work).await?);
        }
        conn.end().await?;
        Ok(Some(outcomes).filter(|outcomes| gone || outcomes.iter().all(Option::is_some)))
    };
    // A look at a large batch is many statements: it has the time that its callers have.
    let limit = deadline.saturating_duration_since(Instant::now()).max(inner.config.statement_deadline);
    let result: Result<_, sqlx::Error> = within(limit, "look for an append", looking).await?;
    let _ = tokio::time::timeout(Duration::from_secs(1), conn.close()).await;
    result.map_err(StoreError::on("look for an append"))
}

async fn is_gone(conn: &mut PgConnection, inner: &Inner, backend: Backend) -> Result<bool, sqlx::Error> {
    let ending = inner.sql.end_backend.query().bind(backend.pid).bind(backend.started).bind(backend.transaction);
    ending.fetch_one(conn).await?.try_get(0)
}

/// The receipts of `work` if it is stored. An append is all or nothing, so its first event stands for all of it.
async fn find(conn: &mut PgConnection, inner: &Inner, work: &Work) -> Result<Option<Appended>, sqlx::Error> {
    // An append without events leaves nothing to find, and is harmless to repeat.
    if work.events() == 0 {
        return Ok(None);
    }
    let mut receipts = vec![Receipt::default(); work.appends.len()];
    let mut first = i64::MAX;
    let parts = || work.appends.iter().enumerate();
    for (nth, append) in parts().filter(|(_, append)| !append.events.is_empty()) {
        let ids: Vec<_> = append.events.iter().map(|event| event.event_id).collect();
        let rows = inner.sql.find_append.query().bind(append.stream.as_str()).bind(&ids).fetch_all(&mut *conn).await?;
        if rows.len() < ids.len() {
            return Ok(None);
        }
        let column = |name: &str| rows.iter().map(|row| row.get::<i64, _>(name)).collect::<Vec<_>>();
        let (versions, positions) = (column("version"), column("position"));
        let last = |column: &[i64]| column.iter().copied().max().unwrap_or(0);
        first = positions.iter().copied().fold(first, i64::min);
        let (version, position) = (Version::new(last(&versions)), Position::new(last(&positions)));
        receipts[nth] = Receipt { version, position, appended: ids.len() };
    }
    // What was only checked stood where it was expected, before the first of these events.
    for (nth, append) in parts().filter(|(_, append)| append.events.is_empty()) {
        let expected = match expected(append) {
            any if any < 0 => i64::MAX,
            version => version,
        };
        let row = inner
            .sql
            .read_standing
            .query()
            .bind(append.stream.as_str())
            .bind(expected)
            .bind(first - 1)
            .fetch_optional(&mut *conn)
            .await?;
        if let Some(row) = row {
            let (version, position) = (Version::new(row.get("version")), Position::new(row.get("position")));
            receipts[nth] = Receipt { version, position, appended: 0 };
        }
    }
    Ok(Some(Appended::Written(receipts)))
}
