//! How soon a read model shows what was acknowledged: seen from outside, on a connection of its own, the same for all.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use annals::BoxError;
use serde::Deserialize;
use sqlx::{AssertSqlSafe, Row, SqlSafeStr};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, error::TryRecvError, unbounded_channel},
    task::JoinHandle,
    time::sleep,
};

use crate::{database, measure::Figures, packages::Outcome, work::Model};

/// How often the read model is looked at: what it adds to every latency, at most.
const EVERY: Duration = Duration::from_millis(1);
/// What is not shown this long after the last append counts as lost.
const LOST: Duration = Duration::from_secs(10);

/// An append whose call has returned.
#[derive(Deserialize)]
pub(crate) struct Acknowledged {
    pub(crate) stream: String,
    /// How many events of the stream the read model has counted once it shows this one.
    pub(crate) counted: i64,
    /// When the call returned, by [`now_us`].
    pub(crate) at_us: u64,
}

/// Microseconds since 1970: the clock that all processes of a measurement share.
pub(crate) fn now_us() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// Looks at a read model until it has shown every append.
pub(crate) struct Probe {
    sender: UnboundedSender<Acknowledged>,
    task: JoinHandle<Result<Outcome, BoxError>>,
}

impl Probe {
    pub(crate) async fn start(url: &str, model: Model) -> Result<Self, BoxError> {
        let (sender, receiver) = unbounded_channel();
        let connection = database::connect(url).await?;
        Ok(Self { sender, task: tokio::spawn(look(connection, model, receiver)) })
    }

    /// Takes what was acknowledged, from whoever appends.
    pub(crate) fn sender(&self) -> UnboundedSender<Acknowledged> {
        self.sender.clone()
    }

    /// Waits until the last append is shown.
    pub(crate) async fn finish(self) -> Result<Outcome, BoxError> {
        drop(self.sender);
        self.task.await?
    }
}

async fn look(
    mut connection: sqlx::PgConnection,
    model: Model,
    mut receiver: UnboundedReceiver<Acknowledged>,
) -> Result<Outcome, BoxError> {
    let Model { table, stream, counted } = model;
    let query = format!("select {stream}, {counted} from {table} where {stream} = any($1)");
    let query = AssertSqlSafe(query).into_sql_str();
    let (mut latencies, mut outstanding) = (vec![], Vec::<Acknowledged>::new());
    let (mut first_us, mut last_us, mut closed) = (u64::MAX, 0, None);
    loop {
        match receiver.try_recv() {
            Ok(append) => {
                (first_us, last_us) = (first_us.min(append.at_us), last_us.max(append.at_us));
                outstanding.push(append);
                continue;
            }
            Err(TryRecvError::Disconnected) => closed = closed.or(Some(Instant::now())),
            Err(TryRecvError::Empty) => {}
        }
        let lost = closed.is_some_and(|closed: Instant| closed.elapsed() > LOST);
        if closed.is_some() && (outstanding.is_empty() || lost) {
            break;
        }
        let mut streams: Vec<&str> = outstanding.iter().map(|append| append.stream.as_str()).collect();
        streams.dedup();
        if !streams.is_empty() {
            let rows = sqlx::query(query.clone()).bind(streams).fetch_all(&mut connection).await?;
            let seen = now_us();
            let mut shown = HashMap::new();
            for row in rows {
                shown.insert(row.try_get::<String, _>(0)?, row.try_get::<i64, _>(1)?);
            }
            outstanding.retain(|append| {
                let is_shown = shown.get(&append.stream).is_some_and(|counted| *counted >= append.counted);
                if is_shown {
                    latencies.push(seen.saturating_sub(append.at_us));
                }
                !is_shown
            });
        }
        sleep(EVERY).await;
    }
    let all = outstanding.len() + latencies.len();
    let figures = Figures::of(latencies, 1, Duration::from_micros(last_us.saturating_sub(first_us)));
    if outstanding.is_empty() {
        return Ok(Outcome::Measured(figures));
    }
    let (lost, seconds) = (outstanding.len(), LOST.as_secs());
    Ok(Outcome::Flawed(figures, format!("{lost} of {all} appends not visible {seconds} s after the last one")))
}
