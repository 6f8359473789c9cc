//! The state of one aggregate: how it is read, and how it moves on.

use futures::TryStreamExt;
use sqlx::{PgConnection, Row};

use crate::{
    Aggregate, Position, Receipt, StreamId, Version,
    error::StoreError,
    event::contract::Contracts,
    store::{Annals, Names, content, recorded},
};

const PAGE: i64 = 10_000;

/// An aggregate as it was after `version` events, the last of them at `position`.
pub(crate) struct State<A> {
    pub(crate) aggregate: A,
    pub(crate) version: Version,
    pub(crate) position: Position,
}

impl<A: Aggregate> Default for State<A> {
    fn default() -> Self {
        Self { aggregate: A::default(), version: Version::NONE, position: Position::START }
    }
}

impl<A: Aggregate> State<A> {
    /// The answer to a command that adds nothing.
    pub(crate) fn standing(&self) -> Receipt {
        Receipt { version: self.version, position: self.position, appended: 0 }
    }

    /// Applies what was appended to `self` since it was read. From nothing, it starts at the latest snapshot.
    pub(crate) async fn catch_up(
        self,
        store: &Annals,
        conn: &mut PgConnection,
        contracts: &Contracts,
        stream: &StreamId,
    ) -> Result<Self, StoreError> {
        let snapshots =
            if self.version == Version::NONE && A::SNAPSHOT_EVERY > 0 { A::SNAPSHOT_VERSION as i32 } else { -1 };
        match self.read(store, conn, contracts, stream, snapshots).await? {
            Read::State(state) => Ok(state),
            Read::BadSnapshot => match Self::default().read(store, conn, contracts, stream, -1).await? {
                Read::State(state) => Ok(state),
                Read::BadSnapshot => Err(StoreError::Unfit(format!("{stream}: a snapshot was read unasked"))),
            },
        }
    }

    async fn read(
        mut self,
        store: &Annals,
        conn: &mut PgConnection,
        contracts: &Contracts,
        stream: &StreamId,
        snapshots: i32,
    ) -> Result<Read<A>, StoreError> {
        let what = "load an aggregate";
        let mut whole = contracts.has_upcasts(stream.category());
        'page: loop {
            let mut count = 0;
            // One row at a time: a page of large payloads never sits in memory.
            let mut rows = store
                .inner
                .sql
                .load_aggregate
                .query()
                .bind(stream.as_str())
                .bind(snapshots)
                .bind(self.version.get())
                .bind(PAGE)
                .bind(whole)
                .fetch(&mut *conn);
            while let Some(row) = rows.try_next().await.map_err(StoreError::on(what))? {
                count += 1;
                let snapshot: Option<&str> = row.try_get(13).map_err(StoreError::on(what))?;
                if let Some(json) = snapshot {
                    match serde_json::from_str(json) {
                        Ok(aggregate) => self.aggregate = aggregate,
                        Err(error) => {
                            tracing::warn!(%stream, %error, "a snapshot does not decode and is ignored");
                            return Ok(Read::BadSnapshot);
                        }
                    }
                } else {
                    let content = content(&row).map_err(StoreError::on(what))?;
                    let event = match contracts.decode_current(stream.category(), content) {
                        Some(event) => event,
                        // Not as it should be: the envelope says of which event that is true.
                        None if !whole => {
                            whole = true;
                            continue 'page;
                        }
                        None => {
                            let raw = recorded(&row, &mut Names::default()).map_err(StoreError::on(what))?;
                            contracts.decode::<A::Event>(&raw).map_err(Box::new)?.event
                        }
                    };
                    self.aggregate.apply(&event);
                }
                self.position = Position::new(row.try_get(0).map_err(StoreError::on(what))?);
                self.version = Version::new(row.try_get(1).map_err(StoreError::on(what))?);
            }
            if count < PAGE {
                return Ok(Read::State(self));
            }
        }
    }
}

enum Read<A> {
    State(State<A>),
    BadSnapshot,
}
