//! The app: aggregates that take commands, and read models that follow, in one process.

mod builder;
mod replay;

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures::future::join_all;
use sqlx::PgConnection;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    builder::{Builder, Follow, StartError},
    replay::{ReplayFailure, ReplayProgress, Replayed},
};
use crate::{
    Aggregate, By, CommandCounts, Either, Event, Holder, Horizon, Id, Options, Payload, Position, Receipt, Recorded,
    StreamId, Undecodable, View,
    error::{ExecuteError, StoreError},
    event::contract::Contracts,
    execute::{self, Along, Repository},
    saga::{Runtime, Sagas},
    store::Annals,
    subscription::{FollowerState, FollowerStatus, Registered, Seat, Started, Verified, verify},
    view::{KeyRebuilt, ViewSql, rebuild_key},
};

/// How far an app's read models are behind the log, and what keeps them.
#[derive(Debug, Clone, PartialEq)]
pub struct Lag {
    /// How far the log is final, and how far it has been drawn.
    pub horizon: Horizon,
    /// The open transactions that hold the safe position back, lowest first: pid, application, age.
    pub holders: Vec<Holder>,
    /// Every read model of this app.
    pub followers: Vec<FollowerStatus>,
}

/// Why a wait for a read model ended without it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The read model has not come that far in time.
    ///
    /// Caller: show what there is, or wait again; `App::followers` says whether it fails.
    #[error("{name} stands at position {at}, {behind} before {position}, after {waited:?}{}", because(.last_error))]
    Behind {
        /// The read model.
        name: &'static str,
        /// Where it is.
        at: Position,
        /// What was waited for.
        position: Position,
        /// How many positions are missing.
        behind: i64,
        /// How long the wait was.
        waited: Duration,
        /// The failure that keeps it, if there is one.
        last_error: Option<String>,
    },
    /// The app was shut down: nothing follows any more.
    #[error("the app was shut down; its read models no longer move")]
    Stopped,
    /// No read model of that name runs in this app.
    #[error("no view or projector {name:?} is registered in this app")]
    Unknown {
        /// The name.
        name: String,
    },
}

fn because(error: &Option<String>) -> String {
    error.as_ref().map(|error| format!(": {error}")).unwrap_or_default()
}

/// A repository without its type.
trait Kept: Any + Send + Sync {
    fn counts(&self) -> CommandCounts;
    fn as_any(&self) -> &(dyn Any + Send + Sync);
}

impl<A: Aggregate> Kept for Repository<A> {
    fn counts(&self) -> CommandCounts {
        Repository::counts(self)
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }
}

struct Inner {
    store: Annals,
    repositories: HashMap<TypeId, Box<dyn Kept>>,
    views: HashMap<TypeId, ViewSql>,
    contracts: Arc<Contracts>,
    followers: Arc<Vec<Registered>>,
    /// None where nothing follows.
    coordinator: Mutex<Option<Started>>,
    sagas: Arc<Runtime>,
    commands: TaskTracker,
    stop: CancellationToken,
}

/// An app that somebody else keeps.
#[derive(Clone)]
pub(crate) struct WeakApp(Weak<Inner>);

impl WeakApp {
    pub(crate) fn upgrade(&self) -> Option<App> {
        self.0.upgrade().map(|inner| App { inner })
    }
}

/// A running app. Cheap to clone; all clones are the same app.
///
/// Its followers run until [`App::shutdown`], or until the process ends: both are safe at any moment, the first loses no
/// time at the next start.
#[derive(Clone)]
pub struct App {
    inner: Arc<Inner>,
}

impl App {
    /// The store that the app works on.
    pub fn store(&self) -> &Annals {
        &self.inner.store
    }

    /// Lets the aggregate `id` handle `command`, and appends what it decides.
    ///
    /// Returns once the events are committed. A conflict with another writer is decided again, until
    /// [`Config::command_deadline`](crate::Config::command_deadline).
    ///
    /// # Errors
    /// - [`ExecuteError::Rejected`] if the aggregate refuses, on state that was proved current.
    /// - [`ExecuteError::Store`] otherwise; see [`StoreError`] for what each kind asks of the caller.
    pub async fn execute<A: Aggregate>(
        &self,
        id: impl Into<Id>,
        command: A::Command,
    ) -> Result<Receipt, ExecuteError<A::Error>> {
        self.execute_with::<A>(id, command, Options::default()).await
    }

    /// [`App::execute`], with a command id, an actor, a correlation or a deadline.
    ///
    /// With a command id, the command takes effect once however often it is sent: a repeat returns the first receipt,
    /// with [`Receipt::appended`] 0.
    ///
    /// # Errors
    /// As [`App::execute`], and [`StoreError::CommandReused`] if the id was used for another command.
    pub async fn execute_with<A: Aggregate>(
        &self,
        id: impl Into<Id>,
        command: A::Command,
        options: Options,
    ) -> Result<Receipt, ExecuteError<A::Error>> {
        let _running = self.begin()?;
        let stream = StreamId::of(A::TYPE, id)?;
        self.repository::<A>()?.execute(stream, &command, options).await
    }

    /// [`App::execute_with`], with what commits along with it.
    pub(crate) async fn execute_along<A: Aggregate>(
        &self,
        stream: StreamId,
        command: &A::Command,
        options: Options,
        along: Along,
    ) -> Result<Receipt, ExecuteError<A::Error>> {
        let _running = self.begin()?;
        self.repository::<A>()?.execute_along(stream, command, options, Some(along)).await
    }

    /// Lets two aggregates each handle a command, and appends what both decide, or nothing if one refuses.
    ///
    /// # Errors
    /// As [`App::execute_with`]; the rejection says which of the two refused.
    #[allow(clippy::type_complexity, reason = "the two receipts and the two rejections are the result")]
    pub async fn execute_both<A: Aggregate, B: Aggregate>(
        &self,
        first: (impl Into<Id>, A::Command),
        second: (impl Into<Id>, B::Command),
        options: Options,
    ) -> Result<(Receipt, Receipt), ExecuteError<Either<A::Error, B::Error>>> {
        let _running = self.begin()?;
        let (stream_a, stream_b) = (StreamId::of(A::TYPE, first.0)?, StreamId::of(B::TYPE, second.0)?);
        let (a, b) = (self.repository::<A>()?, self.repository::<B>()?);
        execute::execute_both((a, stream_a, &first.1), (b, stream_b, &second.1), options).await
    }

    /// [`App::execute_with`] inside the caller's transaction: the events commit with its other work, or not at all.
    ///
    /// Read [`Annals::append_in`] first: until the transaction ends, every reader waits.
    ///
    /// # Errors
    /// As [`App::execute_with`] and [`Annals::append_in`].
    pub async fn execute_in<A: Aggregate>(
        &self,
        conn: &mut PgConnection,
        id: impl Into<Id>,
        command: A::Command,
        options: Options,
    ) -> Result<Receipt, ExecuteError<A::Error>> {
        let _running = self.begin()?;
        let stream = StreamId::of(A::TYPE, id)?;
        self.repository::<A>()?.execute_in(conn, stream, &command, options).await
    }

    /// Reads an event that a stream or the log brought as the aggregate's own type, through its upcasts.
    ///
    /// ```
    /// # use annals::{App, BoxError, Event, ReadStream, StreamId};
    /// # use futures::TryStreamExt;
    /// # async fn history<E: Event + std::fmt::Debug>(app: &App, stream: &StreamId) -> Result<(), BoxError> {
    /// let mut events = std::pin::pin!(app.store().read_stream(stream, ReadStream::default()));
    /// while let Some(stored) = events.try_next().await? {
    ///     let recorded = app.decode::<E>(&stored)?;
    ///     println!("{} {:?}", recorded.recorded_at, recorded.event);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Undecodable`] says which event this build cannot read, and why.
    pub fn decode<E: Event>(&self, recorded: &Recorded<Payload>) -> Result<Recorded<E>, Undecodable> {
        self.inner.contracts.decode(recorded)
    }

    /// Reads the document `key` of the view `V`, as far as the view has come.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Timeout`]; [`StoreError::Unfit`] if the stored document does not decode,
    /// or if `V` is not registered in this app.
    pub async fn get<V: View>(&self, key: impl Into<Id>) -> Result<Option<V>, StoreError> {
        let sql = self.view::<V>()?.get.clone();
        let key = key.into();
        // Postgres takes no such text, so there is no such document.
        if key.contains('\0') {
            return Ok(None);
        }
        let text: Option<String> = self
            .inner
            .store
            .inner
            .read("read a document", |mut conn| {
                let (sql, key) = (sql.clone(), key.clone());
                async move { sql.scalar().bind(&*key).fetch_optional(&mut *conn).await }
            })
            .await?;
        text.map(|text| decode_document::<V>(&key, &text)).transpose()
    }

    /// Reads up to `limit` documents of `V` in key order, behind the key `after`.
    ///
    /// # Errors
    /// As [`App::get`].
    pub async fn list<V: View>(&self, after: Option<&Id>, limit: usize) -> Result<Vec<(Id, V)>, StoreError> {
        let sql = self.view::<V>()?.list.clone();
        let rows: Vec<(String, String)> = self
            .inner
            .store
            .inner
            .read("list documents", |mut conn| {
                let (sql, after) = (sql.clone(), after.map(|after| after.to_string()));
                async move {
                    sql.typed().bind(after).bind(i64::try_from(limit).unwrap_or(i64::MAX)).fetch_all(&mut *conn).await
                }
            })
            .await?;
        let decode = |(key, text): (String, String)| {
            let key = Id::from(key);
            decode_document::<V>(&key, &text).map(|document| (key, document))
        };
        rows.into_iter().map(decode).collect()
    }

    /// Counts the documents of `V`.
    ///
    /// # Errors
    /// As [`App::get`].
    pub async fn count<V: View>(&self) -> Result<u64, StoreError> {
        let sql = self.view::<V>()?.count.clone();
        let count: i64 = self
            .inner
            .store
            .inner
            .read("count documents", |mut conn| {
                let sql = sql.clone();
                async move { sql.scalar().fetch_one(&mut *conn).await }
            })
            .await?;
        Ok(count.unsigned_abs())
    }

    /// Waits until the view or projector `name` shows everything up to `position`: read your own writes.
    ///
    /// # Errors
    /// [`WaitError::Behind`] says how far behind it is after `longest`, and why if it fails.
    pub async fn wait_for(&self, name: &str, position: Position, longest: Duration) -> Result<(), WaitError> {
        if self.inner.stop.is_cancelled() {
            return Err(WaitError::Stopped);
        }
        let Some(seat) = self.seats().find(|seat| seat.name == name) else {
            return Err(WaitError::Unknown { name: name.into() });
        };
        let (begun, mut seen) = (Instant::now(), seat.position());
        let _waiting = seat.wait();
        let waited = async {
            tokio::select! {
                Ok(_) = seen.wait_for(|at| *at >= position) => true,
                () = self.inner.stop.cancelled() => false,
            }
        };
        if let Ok(true) = timeout(longest, waited).await {
            return Ok(());
        }
        let status = self.followers().into_iter().find(|status| status.name == name);
        let at = *seen.borrow();
        Err(WaitError::Behind {
            name: seat.name,
            at,
            position,
            behind: position.get() - at.get(),
            waited: begun.elapsed(),
            last_error: status.and_then(|status| status.last_error),
        })
    }

    /// [`App::wait_for`] every read model of the app; its sagas and reactors are waited for by name.
    ///
    /// # Errors
    /// As [`App::wait_for`], of the first that is behind.
    pub async fn wait_for_all(&self, position: Position, longest: Duration) -> Result<(), WaitError> {
        if self.inner.stop.is_cancelled() {
            return Err(WaitError::Stopped);
        }
        let models = self.inner.followers.iter().filter(|follower| follower.model.is_read_model());
        let waits = join_all(models.map(|follower| self.wait_for(follower.seat.name, position, longest))).await;
        waits.into_iter().collect()
    }

    /// How far every read model of this app has come, and what keeps it.
    pub fn followers(&self) -> Vec<FollowerStatus> {
        let (safe, trouble) = match &*self.lock_coordinator() {
            Some(started) => (started.tail.frontier.borrow().safe, started.tail.trouble.borrow().clone()),
            None => (Position::START, None),
        };
        let status = |seat: &Arc<Seat>| {
            let mut status = seat.status(safe);
            if let (Some(trouble), true) = (&trouble, status.state != FollowerState::Stopped) {
                status.state = FollowerState::Retrying;
                status.last_error.get_or_insert_with(|| trouble.clone());
            }
            status
        };
        self.seats().map(status).collect()
    }

    /// How far everything is: the log, its read models, and who holds them back.
    ///
    /// # Errors
    /// As any read: [`StoreError::Unavailable`], [`StoreError::Timeout`].
    pub async fn lag(&self) -> Result<Lag, StoreError> {
        let horizon = self.inner.store.horizon().await?;
        let holders = if horizon.safe < horizon.drawn { self.inner.store.holders().await? } else { vec![] };
        Ok(Lag { horizon, holders, followers: self.followers() })
    }

    /// Builds the read model `name` anew beside the live one, up to where that stands, and compares the two row by row. What is
    /// parked or discarded is left out of both. The live model goes on meanwhile; nothing of it is changed.
    ///
    /// Columns whose values no copy can repeat, generated numbers, ids and times, are not compared.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] if `name` is not registered here, if its code cannot apply an event that the live model has
    /// applied, or if the model kept changing (a rebuild, dead letters that are tried again); as any read otherwise.
    pub async fn verify(&self, name: &str) -> Result<Verified, StoreError> {
        let follower = self.inner.followers.iter().find(|follower| follower.model.name == name);
        let Some(follower) = follower else {
            return Err(StoreError::Unfit(format!("no view or projector {name:?} is registered in this app")));
        };
        if !follower.model.is_read_model() {
            let kind = follower.model.kind;
            return Err(StoreError::Unfit(format!("{name} is a {kind}, and builds nothing that could be compared")));
        }
        let (tail, process) = match &*self.lock_coordinator() {
            Some(started) => (started.tail.clone(), started.process),
            None => return Err(StoreError::Closed),
        };
        verify(self.store(), &follower.model, &tail, process).await
    }

    /// Folds the document `key` of `V` anew from the log, and puts it in place, while the view and everything else of it goes on:
    /// for a document that was changed or lost by other means than events. What was discarded is left out. `by` is recorded.
    ///
    /// It reads all the events that the view reads, up to where the view stands.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] while the key has events parked, the view is being rebuilt or another version of it is live; if the
    /// view's code cannot apply what the live view has applied; or if `V` is not registered. As any read otherwise.
    pub async fn rebuild_key<V: View>(&self, key: impl Into<Id>, by: &By) -> Result<KeyRebuilt, StoreError> {
        self.view::<V>()?;
        rebuild_key::<V>(self.store(), &self.inner.contracts, &key.into(), by).await
    }

    /// What became of the commands of each aggregate type in this process.
    pub fn command_counts(&self) -> Vec<CommandCounts> {
        let mut counts: Vec<_> = self.inner.repositories.values().map(|kept| kept.counts()).collect();
        counts.sort_by_key(|counts| counts.aggregate);
        counts
    }

    /// The sagas of the store: what there is of them, and what can be done about them. Those that this app registers, it can act
    /// on, whichever process runs them.
    pub fn sagas(&self) -> Sagas {
        Sagas { runtime: self.inner.sagas.clone() }
    }

    fn downgrade(&self) -> WeakApp {
        WeakApp(Arc::downgrade(&self.inner))
    }

    /// Begins no more steps of sagas and lets those under way end, takes no more commands, lets those under way end, lets followers save their checkpoints, and closes the store:
    /// within [`Config::drain_deadline`](crate::Config::drain_deadline), after which the rest is left as a crash would.
    pub async fn shutdown(&self) {
        let deadline = Instant::now() + self.inner.store.config().drain_deadline;
        self.inner.sagas.drain(deadline).await;
        self.inner.commands.close();
        if timeout_at(deadline, self.inner.commands.wait()).await.is_err() {
            tracing::warn!(commands = self.inner.commands.len(), "commands did not end within the drain deadline");
        }
        self.inner.stop.cancel();
        let coordinator = self.lock_coordinator().take();
        if let Some(mut started) = coordinator
            && timeout_at(deadline, &mut started.task).await.is_err()
        {
            tracing::warn!("the followers did not end within the drain deadline");
            started.task.abort();
        }
        if timeout_at(deadline, self.inner.store.close()).await.is_err() {
            tracing::warn!("the store did not close within the drain deadline");
        }
    }

    /// Enters a command; refused once the app is shutting down.
    fn begin(&self) -> Result<tokio_util::task::task_tracker::TaskTrackerToken, StoreError> {
        let token = self.inner.commands.token();
        if self.inner.commands.is_closed() { Err(StoreError::Closed) } else { Ok(token) }
    }

    fn repository<A: Aggregate>(&self) -> Result<&Repository<A>, StoreError> {
        let kept = self.inner.repositories.get(&TypeId::of::<A>());
        kept.and_then(|kept| kept.as_any().downcast_ref()).ok_or_else(|| {
            StoreError::Unfit(format!("aggregate {:?} is not registered: add .aggregate::<…>() to the app", A::TYPE))
        })
    }

    fn view<V: View>(&self) -> Result<&ViewSql, StoreError> {
        self.inner.views.get(&TypeId::of::<V>()).ok_or_else(|| {
            StoreError::Unfit(format!("view {:?} is not registered: add .view::<…>() to the app", V::NAME))
        })
    }

    fn seats(&self) -> impl Iterator<Item = &Arc<Seat>> {
        self.inner.followers.iter().map(|follower| &follower.seat)
    }

    fn lock_coordinator(&self) -> std::sync::MutexGuard<'_, Option<Started>> {
        self.inner.coordinator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("App").field(self.store()).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn decode_document<V: View>(key: &Id, text: &str) -> Result<V, StoreError> {
    serde_json::from_str(text).map_err(|error| {
        StoreError::Unfit(format!("the document {key:?} of view {} does not decode: {error}", V::NAME))
    })
}
