//! One aggregate type: its recent states, and the loop of load, decide, append.

use std::{sync::Arc, time::Duration};

use quick_cache::sync::Cache;
use sqlx::{PgConnection, Row};
use tokio::{
    sync::{Mutex, Semaphore},
    time::{Instant, sleep},
};
use uuid::Uuid;

use super::{Answer, CommandCounts, Counters, Options, record, state::State};
use crate::{
    Aggregate, Context, Event, ExpectedVersion, InvalidInput, Metadata, PayloadLimits, Position, Receipt, StreamId,
    Version,
    error::{ExecuteError, StoreError},
    event::{
        contract::Contracts,
        encode::{encode, to_json},
    },
    store::{Annals, Append, Appended, CommandRecord, NewEvent, SagaRow, Work, within},
};

/// No command waits longer, whatever its caller says.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// The state of one aggregate in memory. Commands of this process to the same aggregate queue here, and never race.
type Slot<A> = Arc<Mutex<State<A>>>;

/// Everything this process keeps of one aggregate type.
pub(crate) struct Repository<A: Aggregate> {
    pub(super) store: Annals,
    pub(super) contracts: Arc<Contracts>,
    cache: Cache<StreamId, Slot<A>>,
    pub(super) counters: Counters,
    snapshots: Arc<Semaphore>,
}

/// One command on its way.
pub(super) struct Order {
    pub(super) context: Context,
    pub(super) metadata: Metadata,
    pub(super) deadline: Instant,
    limit: Duration,
}

impl Order {
    pub(super) fn new(options: Options, store: &Annals) -> Self {
        let limit = options.deadline.unwrap_or(store.config().command_deadline).min(LONGEST);
        let (context, metadata) = options.settle();
        Self { context, metadata, deadline: Instant::now() + limit, limit }
    }

    /// Waits for the other commands of this process on the same aggregate.
    pub(super) async fn lock<'s, A: Aggregate>(
        &self,
        slot: &'s Slot<A>,
    ) -> Result<tokio::sync::MutexGuard<'s, State<A>>, StoreError> {
        within(self.left()?, "wait for other commands on the aggregate", slot.lock()).await
    }

    /// Lets the other writer go first, a little longer each time, before the next decision.
    pub(super) async fn pause(&self, attempt: u32) -> Result<(), StoreError> {
        // The first conflict is mostly a state that was old, not a race.
        if attempt > 0 {
            let random = Uuid::now_v7().as_u128() as u64 % 1_000;
            let longest = Duration::from_millis(1 << attempt.min(7));
            sleep((longest * random as u32 / 1_000).min(self.left()?)).await;
        }
        self.left().map(drop)
    }

    /// The time that is left, or the error that says there is none.
    pub(super) fn left(&self) -> Result<Duration, StoreError> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(StoreError::Timeout { what: "execute a command", after: self.limit }),
            left => Ok(left),
        }
    }
}

/// What commits with a command: events of an instance of a saga, and its row in the index.
#[derive(Debug, Clone)]
pub(crate) struct Along {
    pub(crate) append: Append,
    pub(crate) row: SagaRow,
}

/// What an aggregate decided.
pub(super) enum Decision<A: Aggregate> {
    Events(Vec<A::Event>),
    Empty,
    Rejected(A::Error),
}

impl<A: Aggregate> Decision<A> {
    /// Whether the append itself will prove the state it was decided on.
    pub(super) fn appends(&self) -> bool {
        matches!(self, Self::Events(_))
    }

    pub(super) fn into_events(self) -> Vec<A::Event> {
        if let Self::Events(events) = self { events } else { vec![] }
    }

    pub(super) fn of(state: &State<A>, command: &A::Command, context: &Context) -> Self {
        match state.aggregate.handle(command, context) {
            Ok(events) if events.is_empty() => Self::Empty,
            Ok(events) => Self::Events(events),
            Err(rejection) => Self::Rejected(rejection),
        }
    }
}

impl<A: Aggregate> Repository<A> {
    pub(crate) fn new(store: Annals, contracts: Arc<Contracts>) -> Self {
        let cache = Cache::new(store.config().cached_aggregates.max(1));
        Self { store, contracts, cache, counters: Counters::default(), snapshots: Arc::new(Semaphore::new(4)) }
    }

    pub(crate) fn counts(&self) -> CommandCounts {
        self.counters.read(A::TYPE)
    }

    /// The state that is kept for `stream`; one of version 0 if there is none.
    pub(super) fn slot(&self, stream: &StreamId) -> Slot<A> {
        let fresh = || Ok::<_, std::convert::Infallible>(Slot::<A>::default());
        self.cache.get_or_insert_with(stream, fresh).unwrap_or_default()
    }

    /// Handles `command`, appends what it decides, and answers with where its events stand.
    pub(crate) async fn execute(
        &self,
        stream: StreamId,
        command: &A::Command,
        options: Options,
    ) -> Result<Receipt, ExecuteError<A::Error>> {
        self.execute_along(stream, command, options, None).await
    }

    /// The same; `along` commits with what it decides. A conflict of that stream is the caller's.
    pub(crate) async fn execute_along(
        &self,
        stream: StreamId,
        command: &A::Command,
        options: Options,
        along: Option<Along>,
    ) -> Result<Receipt, ExecuteError<A::Error>> {
        let order = Order::new(options, &self.store);
        let result = self.execute_order(&stream, command, &order, along.as_ref()).await;
        self.count(&stream, &order, &result);
        result.map(Answer::into_inner)
    }

    async fn execute_order(
        &self,
        stream: &StreamId,
        command: &A::Command,
        order: &Order,
        along: Option<&Along>,
    ) -> Result<Answer<Receipt>, ExecuteError<A::Error>> {
        let record = record(&order.metadata, &self.store, &[(stream, command)])?;
        let slot = self.slot(stream);
        let mut state = order.lock(&slot).await?;
        let mut proved = false;
        for attempt in 0.. {
            let events = match Decision::of(&state, command, &order.context) {
                Decision::Events(events) => events,
                _ if !proved => {
                    self.refresh(&mut state, stream, order).await?;
                    proved = true;
                    continue;
                }
                Decision::Rejected(rejection) => match find_repeated(&self.store, &record, order).await? {
                    Some(receipt) => return Ok(Answer::Repeated(receipt)),
                    None => return Err(ExecuteError::Rejected(rejection)),
                },
                Decision::Empty if record.is_none() && along.is_none() => return Ok(Answer::Empty(state.standing())),
                Decision::Empty => vec![],
            };
            let work = self.encode(stream, state.version, &events).and_then(|append| {
                let appends = [append].into_iter().chain(along.map(|along| along.append.clone())).collect();
                let work = Work::new(appends, order.metadata.clone(), record.clone(), &self.store.config().limits)?;
                Ok(work.of_saga(along.map(|along| along.row.clone())))
            });
            let work = match work {
                // What an old state led to says nothing about the command.
                Err(_) if !proved => {
                    self.refresh(&mut state, stream, order).await?;
                    proved = true;
                    continue;
                }
                work => work?,
            };
            match self.store.inner.appender.append(work, order.left()?).await {
                Ok(Appended::Written(_)) if events.is_empty() => return Ok(Answer::Empty(state.standing())),
                Ok(Appended::Written(receipts)) => {
                    let receipt = receipts.first().copied().unwrap_or_default();
                    self.advance(&mut state, stream, &events, receipt);
                    return Ok(Answer::Events(receipt));
                }
                Ok(Appended::Repeated) => match find_repeated(&self.store, &record, order).await? {
                    Some(receipt) => return Ok(Answer::Repeated(receipt)),
                    None => continue,
                },
                Err(StoreError::Conflict { stream: at, .. }) if at == *stream => {
                    Counters::add(&self.counters.conflicts);
                    order.pause(attempt).await?;
                    self.refresh(&mut state, stream, order).await?;
                    proved = true;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Closed.into())
    }

    /// The same inside the caller's transaction, on state that the transaction itself sees.
    pub(crate) async fn execute_in(
        &self,
        conn: &mut PgConnection,
        stream: StreamId,
        command: &A::Command,
        options: Options,
    ) -> Result<Receipt, ExecuteError<A::Error>> {
        let order = Order::new(options, &self.store);
        let result = self.execute_order_in(conn, &stream, command, &order).await;
        self.count(&stream, &order, &result);
        result.map(Answer::into_inner)
    }

    async fn execute_order_in(
        &self,
        conn: &mut PgConnection,
        stream: &StreamId,
        command: &A::Command,
        order: &Order,
    ) -> Result<Answer<Receipt>, ExecuteError<A::Error>> {
        let record = record(&order.metadata, &self.store, &[(stream, command)])?;
        // Before the first look: a rejection is as good as the snapshot that it was decided on.
        self.store.check_snapshot(conn).await?;
        let mut state = State::<A>::default();
        for attempt in 0.. {
            let loading = state.catch_up(&self.store, conn, &self.contracts, stream);
            state = within(order.left()?, "load an aggregate", loading).await??;
            let events = match Decision::of(&state, command, &order.context) {
                Decision::Events(events) => events,
                Decision::Rejected(rejection) => match find_repeated_in(conn, &self.store, &record).await? {
                    Some(receipt) => return Ok(Answer::Repeated(receipt)),
                    None => return Err(ExecuteError::Rejected(rejection)),
                },
                Decision::Empty if record.is_none() => return Ok(Answer::Empty(state.standing())),
                Decision::Empty => vec![],
            };
            let append = self.encode(stream, state.version, &events)?;
            let work = Work::new(vec![append], order.metadata.clone(), record.clone(), &self.store.config().limits)?;
            match self.store.write_in(conn, work).await {
                Ok(Appended::Written(_)) if events.is_empty() => return Ok(Answer::Empty(state.standing())),
                Ok(Appended::Written(receipts)) => {
                    return Ok(Answer::Events(receipts.first().copied().unwrap_or_default()));
                }
                Ok(Appended::Repeated) => match find_repeated_in(conn, &self.store, &record).await? {
                    Some(receipt) => return Ok(Answer::Repeated(receipt)),
                    None => continue,
                },
                Err(StoreError::Conflict { .. }) => {
                    Counters::add(&self.counters.conflicts);
                    order.pause(attempt).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Closed.into())
    }

    /// The events of a decision, checked and ready to be sent.
    pub(super) fn encode(
        &self,
        stream: &StreamId,
        version: Version,
        events: &[A::Event],
    ) -> Result<Append, InvalidInput> {
        let limits = &self.store.config().limits.payload;
        let new_event = |event| {
            let encoded = encode(event, limits)?;
            let schema_version = A::Event::schema_version(encoded.event_type);
            Ok(NewEvent { schema_version, ..NewEvent::new(encoded.event_type, encoded.payload) })
        };
        let events = events.iter().map(new_event).collect::<Result<_, InvalidInput>>()?;
        Ok(Append { stream: stream.clone(), expected: ExpectedVersion::Exact(version), events })
    }

    /// Brings `state` up to what is committed now.
    pub(super) async fn refresh(
        &self,
        state: &mut State<A>,
        stream: &StreamId,
        order: &Order,
    ) -> Result<(), StoreError> {
        let what = "load an aggregate";
        // Taken out: what fails on the way leaves a state of version 0, which is never wrong, only old.
        let mut known = std::mem::take(state);
        let loading = async {
            let first = async {
                let mut conn = self.store.inner.reads.acquire().await.map_err(StoreError::on(what))?;
                known.catch_up(&self.store, &mut conn, &self.contracts, stream).await
            };
            match first.await {
                Err(StoreError::Unavailable { .. }) => {
                    // A connection that died in the pool. Once more, on another.
                    let mut conn = self.store.inner.reads.acquire().await.map_err(StoreError::on(what))?;
                    known = State::default();
                    known.catch_up(&self.store, &mut conn, &self.contracts, stream).await
                }
                result => result,
            }
        };
        *state = within(order.left()?.min(self.store.config().read_deadline), what, loading).await??;
        Ok(())
    }

    /// Lets the events that were just appended happen to the kept state, and saves a snapshot when it is time.
    pub(super) fn advance(&self, state: &mut State<A>, stream: &StreamId, events: &[A::Event], receipt: Receipt) {
        let mut next = std::mem::take(state);
        events.iter().for_each(|event| next.aggregate.apply(event));
        let every = i64::from(A::SNAPSHOT_EVERY);
        let due = every > 0 && receipt.version.get() / every > next.version.get() / every;
        (next.version, next.position) = (receipt.version, receipt.position);
        *state = next;
        if due {
            self.save_snapshot(state, stream);
        }
    }

    /// In the background, and only as far as there is room: a snapshot that is not saved costs a longer load.
    fn save_snapshot(&self, state: &State<A>, stream: &StreamId) {
        let Ok(place) = Arc::clone(&self.snapshots).try_acquire_owned() else { return };
        // Checked like an event: what does not read back as it was, NaN for one, is no snapshot.
        let limits = PayloadLimits { bytes: 256 << 20, ..PayloadLimits::default() };
        let json = match to_json("the state", &state.aggregate, &limits) {
            Ok(json) => json,
            Err(error) => return tracing::warn!(%stream, %error, "the state of an aggregate cannot be a snapshot"),
        };
        let (store, stream, version) = (self.store.clone(), stream.clone(), state.version);
        tokio::spawn(async move {
            let saving = store
                .inner
                .sql
                .save_snapshot
                .query()
                .bind(stream.as_str())
                .bind(version.get())
                .bind(A::SNAPSHOT_VERSION as i32)
                .bind(json);
            if let Err(error) = store.inner.reads.execute("save a snapshot", saving).await {
                tracing::warn!(%stream, %error, "a snapshot could not be saved");
            }
            drop(place);
        });
    }

    /// Counts a command by what it came to.
    pub(super) fn count<T, E: std::error::Error>(
        &self,
        stream: &StreamId,
        order: &Order,
        result: &Result<Answer<T>, ExecuteError<E>>,
    ) {
        let correlation_id = order.context.correlation_id;
        match result {
            Ok(Answer::Events(_)) => Counters::add(&self.counters.accepted),
            Ok(Answer::Empty(_)) => Counters::add(&self.counters.empty),
            Ok(Answer::Repeated(_)) => Counters::add(&self.counters.repeated),
            Err(ExecuteError::Rejected(rejection)) => {
                Counters::add(&self.counters.rejected);
                tracing::info!(%stream, %correlation_id, %rejection, "a command was rejected");
            }
            Err(ExecuteError::Store(error)) => {
                Counters::add(&self.counters.failed);
                tracing::warn!(%stream, %correlation_id, %error, "a command failed");
            }
        }
    }
}

/// The first receipt of a command whose id is known; none if it is not.
pub(super) async fn find_repeated(
    store: &Annals,
    record: &Option<CommandRecord>,
    order: &Order,
) -> Result<Option<Receipt>, StoreError> {
    if record.is_none() {
        return Ok(None);
    }
    let what = "look up a command";
    let looking = async {
        let mut conn = store.inner.reads.acquire().await.map_err(StoreError::on(what))?;
        find_repeated_in(&mut conn, store, record).await
    };
    within(order.left()?.min(store.config().read_deadline), what, looking).await?
}

async fn find_repeated_in(
    conn: &mut PgConnection,
    store: &Annals,
    record: &Option<CommandRecord>,
) -> Result<Option<Receipt>, StoreError> {
    let Some(CommandRecord { command_id, body }) = record else { return Ok(None) };
    let row = store
        .inner
        .sql
        .find_command
        .query()
        .bind(command_id)
        .fetch_optional(conn)
        .await
        .map_err(StoreError::on("look up a command"))?;
    let Some(row) = row else { return Ok(None) };
    let (stream, known): (String, Option<Vec<u8>>) = (row.get(0), row.get(3));
    if *body != known {
        return Err(StoreError::CommandReused { command_id: *command_id, stream: StreamId::stored(&stream) });
    }
    let (version, position) = (Version::new(row.get(1)), Position::new(row.get(2)));
    Ok(Some(Receipt { version, position, appended: 0 }))
}
