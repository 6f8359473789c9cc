//! The work, the same for all, and what a package has to be able to do for it.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use annals::BoxError;
use sqlx::{AssertSqlSafe, SqlSafeStr};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval, sleep},
};
use uuid::Uuid;

use crate::{
    database,
    measure::Figures,
    packages::Outcome,
    server::Server,
    visible::{self, Acknowledged, Probe},
};

/// Appends or commands to a stream.
pub(crate) const PER_STREAM: usize = 10;
/// Events that stand in the log before anything is loaded or caught up.
pub(crate) const FILLED: usize = 100_000;
/// A read model that has not caught up by then is cut off, and counted by what it did.
const CUT_OFF: Duration = Duration::from_secs(10);

/// Between two appends that a read model is to show.
const SHOWN_EVERY: Duration = Duration::from_millis(5);
/// Who appends them: enough that a slow append does not hold up the next.
const SHOWN_CALLERS: u32 = 10;

/// One case.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    /// Appends of `events` events, as the package's store call.
    Append { events: usize, callers: usize },
    /// Commands: load, decide, append one event.
    Command { callers: usize },
    /// Aggregates of `length` events.
    Load { length: usize },
    /// A read model that counts the events of each of 10,000 streams.
    CatchUp,
    /// How soon the same read model shows what was appended.
    Visible,
}

/// A payload of 250 bytes, where a package stores JSON.
pub(crate) fn note() -> String {
    "x".repeat(239)
}

/// Where a read model stands, and what it calls its key and its count.
#[derive(Clone, Copy)]
pub(crate) struct Model {
    pub(crate) table: &'static str,
    pub(crate) stream: &'static str,
    pub(crate) counted: &'static str,
}

impl Model {
    /// The table that [`database::fresh`] makes.
    pub(crate) const TABLE: Model = Model { table: "read_model", stream: "stream", counted: "counted" };
}

/// The upsert of every package that leaves it to the user: one an event.
pub(crate) const UPSERT: &str = "insert into read_model as m (stream, counted) values ($1, 1) \
                                 on conflict (stream) do update set counted = m.counted + 1";

/// How many connections a package's pool may have.
pub(crate) const POOL: u32 = 40;

/// A package, in one database. Its aggregate counts its events, and its read model the events of each stream.
pub(crate) trait Store: Send + Sync + Sized + 'static {
    /// What a caller keeps between two appends to one stream.
    type Stream: Send;

    /// Opens it; makes its tables in a new database.
    fn open(url: &str) -> impl Future<Output = Result<Self, BoxError>> + Send;

    /// The statement that makes events of the rows of `seed`.
    fn fill() -> String;

    /// Begins a stream, of which nothing is stored yet, and its name in the read model.
    fn stream(&self) -> Result<(String, Self::Stream), BoxError>;

    /// Appends `events` events to a stream, at the version that the caller last saw.
    fn append(&self, stream: &mut Self::Stream, events: usize) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Loads an aggregate, decides and appends an event.
    fn command(&self, id: Uuid) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Loads an aggregate from its events; how many it counted.
    fn load(&self, id: Uuid) -> impl Future<Output = Result<usize, BoxError>> + Send;

    /// Where its read model stands.
    const MODEL: Model = Model::TABLE;

    /// Why its read model cannot be late: it has no asynchronous subscription.
    const INLINE: Option<&'static str> = None;

    /// Builds the read model from the log's start until it is aborted; it may end when there is no more to do.
    fn follow(&self) -> impl Future<Output = Result<JoinHandle<Result<(), BoxError>>, BoxError>> + Send;

    /// Closes its connections, so that nothing of it is left when the next measurement begins.
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// Does `work` with `S` in a new database.
pub(crate) async fn run<S: Store>(server: &Server, work: Work, seconds: u64) -> Result<Outcome, BoxError> {
    if let (Work::Visible, Some(why)) = (work, S::INLINE) {
        return Ok(Outcome::Absent(why.into()));
    }
    let url = database::fresh(server).await?;
    let store = Arc::new(S::open(&url).await?);
    let outcome = measured(server, &url, &store, work, seconds).await;
    store.close().await;
    outcome
}

async fn measured<S: Store>(
    server: &Server,
    url: &str,
    store: &Arc<S>,
    work: Work,
    seconds: u64,
) -> Result<Outcome, BoxError> {
    let filled = match work {
        Work::Load { length } => database::fill(url, FILLED, length, &S::fill()).await?,
        Work::CatchUp => database::fill(url, FILLED, PER_STREAM, &S::fill()).await?,
        _ => vec![],
    };
    server.settle().await?;
    let figures = match work {
        Work::Append { events, callers } => appends(store, events, callers, seconds).await?,
        Work::Command { callers } => commands(store, callers, seconds).await?,
        Work::Load { length } => loads(&**store, &filled, length, seconds).await?,
        Work::CatchUp => {
            let start = Instant::now();
            let follower = store.follow().await?;
            let figures = caught_up(url, S::MODEL, start, || follower.is_finished()).await;
            ended(follower).await?;
            figures?
        }
        Work::Visible => {
            let follower = store.follow().await?;
            let outcome = shown(store, Probe::start(url, S::MODEL).await?, seconds).await;
            ended(follower).await?;
            return outcome;
        }
    };
    Ok(Outcome::Measured(figures))
}

/// Stops a follower. Had it failed before, this would be the place where it is heard of.
async fn ended(follower: JoinHandle<Result<(), BoxError>>) -> Result<(), BoxError> {
    if !follower.is_finished() {
        follower.abort();
    }
    match follower.await {
        Err(error) if error.is_cancelled() => Ok(()),
        other => other?,
    }
}

/// As many appends as `callers` get through in `seconds`.
async fn appends<S: Store>(store: &Arc<S>, events: usize, callers: usize, seconds: u64) -> Result<Figures, BoxError> {
    let start = Instant::now();
    let until = start + Duration::from_secs(seconds);
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let store = Arc::clone(store);
        tasks.spawn(async move {
            let mut latencies = vec![];
            while Instant::now() < until {
                let (_, mut stream) = store.stream()?;
                for _ in 0..PER_STREAM {
                    let start = Instant::now();
                    store.append(&mut stream, events).await?;
                    latencies.push(start.elapsed().as_micros() as u64);
                }
            }
            Ok(latencies)
        });
    }
    Ok(Figures::of(joined(tasks).await?, events, start.elapsed()))
}

/// The same as commands of one event.
async fn commands<S: Store>(store: &Arc<S>, callers: usize, seconds: u64) -> Result<Figures, BoxError> {
    let start = Instant::now();
    let until = start + Duration::from_secs(seconds);
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let store = Arc::clone(store);
        tasks.spawn(async move {
            let mut latencies = vec![];
            while Instant::now() < until {
                let id = Uuid::now_v7();
                for _ in 0..PER_STREAM {
                    let start = Instant::now();
                    store.command(id).await?;
                    latencies.push(start.elapsed().as_micros() as u64);
                }
            }
            Ok(latencies)
        });
    }
    Ok(Figures::of(joined(tasks).await?, 1, start.elapsed()))
}

async fn joined(mut tasks: JoinSet<Result<Vec<u64>, BoxError>>) -> Result<Vec<u64>, BoxError> {
    let mut all = vec![];
    while let Some(latencies) = tasks.join_next().await {
        all.extend(latencies??);
    }
    Ok(all)
}

/// Loads as many aggregates as `seconds` allow, each once.
async fn loads<S: Store>(store: &S, filled: &[Uuid], length: usize, seconds: u64) -> Result<Figures, BoxError> {
    let start = Instant::now();
    let mut latencies = vec![];
    for id in filled {
        let begun = Instant::now();
        let counted = store.load(*id).await?;
        latencies.push(begun.elapsed().as_micros() as u64);
        if counted != length {
            return Err(format!("{id} has {counted} events instead of {length}").into());
        }
        if start.elapsed().as_secs() >= seconds {
            break;
        }
    }
    Ok(Figures::of(latencies, length, start.elapsed()))
}

/// Waits until a read model holds every event, or for [`CUT_OFF`], or until its follower has `ended`.
pub(crate) async fn caught_up(
    url: &str,
    model: Model,
    start: Instant,
    mut ended: impl FnMut() -> bool,
) -> Result<Figures, BoxError> {
    let sum = format!("select coalesce(sum({}), 0)::bigint from {}", model.counted, model.table);
    let sum = AssertSqlSafe(sum).into_sql_str();
    let mut connection = database::connect(url).await?;
    loop {
        // Asked before the count: what it did last is in it then.
        let last = ended() || start.elapsed() >= CUT_OFF;
        let elapsed = start.elapsed();
        let counted: i64 = sqlx::query_scalar(sum.clone()).fetch_one(&mut connection).await?;
        let counted = counted as usize;
        if counted > FILLED {
            return Err(format!("the read model counted {counted} events of {FILLED}").into());
        }
        if last || counted == FILLED {
            return Ok(Figures::rate(counted, elapsed));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// 200 appends a second by [`SHOWN_CALLERS`] in turn; how long after each the read model shows it.
async fn shown<S: Store>(store: &Arc<S>, probe: Probe, seconds: u64) -> Result<Outcome, BoxError> {
    // Whatever it does to get going is no part of how soon it shows an event.
    sleep(Duration::from_secs(1)).await;
    let mut callers = JoinSet::new();
    for nth in 0..SHOWN_CALLERS {
        let (store, probe) = (Arc::clone(store), probe.sender());
        callers.spawn(async move {
            sleep(SHOWN_EVERY * nth).await;
            let mut ticks = interval(SHOWN_EVERY * SHOWN_CALLERS);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for _ in 0..seconds * 2 {
                let (name, mut stream) = store.stream()?;
                for counted in 1..=PER_STREAM as i64 {
                    ticks.tick().await;
                    store.append(&mut stream, 1).await?;
                    probe.send(Acknowledged { stream: name.clone(), counted, at_us: visible::now_us() })?;
                }
            }
            Ok::<_, BoxError>(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    probe.finish().await
}
