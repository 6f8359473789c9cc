//! Followers whose work is not in the store's hands: sagas that begin, reactors that call. It takes place before the checkpoint
//! moves, so it may take place again, and whoever does it must know the same thing by the same key.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, future::BoxFuture, stream};
use sqlx::PgConnection;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{
    batch::{Applied, Batch, Follower, Letters, Work},
    failure::{FollowError, message},
};
use crate::{Payload, Position, Recorded, StreamId, error::StoreError, store::Annals};

/// What is done about an event.
pub(crate) trait Handle: Send + Sync + 'static {
    fn handle(self: Arc<Self>, event: Arc<Recorded<Payload>>) -> BoxFuture<'static, Result<(), FollowError>>;
}

/// How many streams are handled at once.
const AT_ONCE: usize = 64;

/// Gives each event to `handler`: those of a stream in order, those of several streams at once.
pub(crate) struct EffectFollower<H> {
    pub(crate) store: Annals,
    pub(crate) handler: Arc<H>,
}

type Event = Arc<Recorded<Payload>>;
/// A stream, what of it is done, what failed, and what is behind that.
type Handled = (StreamId, Vec<Position>, Option<(Position, FollowError)>, Vec<Position>);

impl<H: Handle> EffectFollower<H> {
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
        // One event may not keep the whole batch from its deadline.
        let limit = batch.policy.deadline / 4;
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
        let handling =
            streams.into_iter().map(|(stream, events)| self.handle_all(stream, events, poisoned.clone(), limit));
        let handled: Vec<Handled> = stream::iter(handling).buffer_unordered(AT_ONCE).collect().await;
        for (stream, done, failed, behind) in handled {
            for position in done {
                letters.applied(1);
                if batch.work != Work::Follow {
                    letters.retried(position);
                }
            }
            if let Some((position, error)) = failed {
                if error.is_passing() {
                    return Err(error);
                }
                letters.fail(position, stream.as_str(), false, error)?;
            }
            // Of a key that is tried again, the rest waits where it is.
            if batch.work == Work::Follow {
                behind.into_iter().for_each(|position| letters.queue(position, stream.as_str(), false));
            }
        }
        letters.judge()?;
        self.commit(batch, letters, conn).await
    }

    /// The events of one stream, in order, up to the first that fails.
    fn handle_all(
        &self,
        stream: StreamId,
        events: Vec<Event>,
        poisoned: Arc<Vec<(Position, FollowError)>>,
        limit: Duration,
    ) -> BoxFuture<'_, Handled> {
        Box::pin(async move {
            let (mut done, mut failed) = (vec![], None);
            let mut events = events.into_iter();
            for event in events.by_ref() {
                let position = event.position;
                let known = poisoned.iter().find(|(at, _)| *at == position);
                let result = match known {
                    Some((_, error)) => Err(FollowError::Known(error.to_string())),
                    None => self.handle(event, limit).await,
                };
                match result {
                    Ok(()) => done.push(position),
                    Err(error) => {
                        failed = Some((position, error));
                        break;
                    }
                }
            }
            (stream, done, failed, events.map(|event| event.position).collect())
        })
    }

    async fn handle(&self, event: Event, limit: Duration) -> Result<(), FollowError> {
        let mut task = AbortOnDropHandle::new(tokio::spawn(self.handler.clone().handle(event)));
        match timeout(limit, &mut task).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) if error.is_panic() => Err(FollowError::Panicked(message(error.into_panic()))),
            Ok(Err(_)) => Err(FollowError::Store(StoreError::Closed)),
            Err(_) => Err(FollowError::Hung(limit)),
        }
    }

    async fn commit(
        &self,
        batch: &Batch,
        mut letters: Letters<'_>,
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
        tx.commit().await.map_err(what)?;
        Ok(Applied::Committed(letters.take_rows()))
    }
}

impl<H: Handle> Follower for EffectFollower<H> {
    fn apply<'a>(
        &'a self,
        batch: &'a Batch,
        conn: &'a mut PgConnection,
    ) -> BoxFuture<'a, Result<Applied, FollowError>> {
        Box::pin(self.work(batch, conn))
    }
}
