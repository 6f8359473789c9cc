//! Reading: aggregates from long streams, read models that catch up, and how soon one shows what was appended. Their limit
//! is a bare read of the same rows.

use std::time::{Duration, Instant};

use annals::{
    Aggregate, Annals, App, BoxError, By, Change, Config, Context, Event, Id, Position, Projector, Recorded, View,
};
use futures::TryStreamExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgConnection, Row, SqlSafeStr};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    append::Counter,
    measure::Figures,
    models::{Everything, Poisoned, Rare, RareType},
    server::{self, Server},
};

pub(crate) const LONG: Duration = Duration::from_secs(600);

#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) enum SaleEvent {
    Sold {
        customer: i64,
        cents: i64,
        note: String,
    },
    /// One in 1,000, where it is there.
    Returned {
        customer: i64,
        cents: i64,
    },
}
impl Event for SaleEvent {}

impl SaleEvent {
    pub(crate) fn customer(&self) -> i64 {
        let (Self::Sold { customer, .. } | Self::Returned { customer, .. }) = self;
        *customer
    }

    fn cents(&self) -> i64 {
        let (Self::Sold { cents, .. } | Self::Returned { cents, .. }) = self;
        *cents
    }
}

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Sale {
    cents: i64,
}

#[derive(Serialize)]
pub(crate) enum SaleCommand {
    Sell {
        customer: i64,
        cents: i64,
    },
    /// Decides nothing: what it costs is the load that proves it.
    Look,
}

impl Aggregate for Sale {
    const TYPE: &'static str = "sale";
    /// Loads are measured, not snapshots.
    const SNAPSHOT_EVERY: u32 = 0;
    type Command = SaleCommand;
    type Event = SaleEvent;
    type Error = std::fmt::Error;

    fn handle(&self, command: &SaleCommand, _: &Context) -> Result<Vec<SaleEvent>, std::fmt::Error> {
        Ok(match *command {
            SaleCommand::Sell { customer, cents } => {
                vec![SaleEvent::Sold { customer, cents, note: "x".repeat(190) }]
            }
            SaleCommand::Look => vec![],
        })
    }

    fn apply(&mut self, event: &SaleEvent) {
        self.cents += event.cents();
    }
}

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Spend {
    cents: i64,
}

impl View for Spend {
    const NAME: &'static str = "spend";
    type Event = SaleEvent;

    fn keys(recorded: &Recorded<SaleEvent>) -> Vec<Id> {
        vec![recorded.event.customer().into()]
    }

    fn apply(&mut self, _: &Id, recorded: &Recorded<SaleEvent>) -> Change {
        self.cents += recorded.event.cents();
        Change::Keep
    }
}

impl Spend {
    /// Takes an event for one of 100 cents.
    pub(crate) fn count(&mut self) -> Change {
        self.cents += 100;
        Change::Keep
    }
}

/// The same sums in a table.
struct SpendTable;

impl Projector for SpendTable {
    const NAME: &'static str = "spend_table";
    const TABLES: &'static str =
        "create table spend (customer bigint primary key, cents bigint not null) with (fillfactor = 70)";
    type Event = SaleEvent;

    async fn apply(&self, events: &[Recorded<SaleEvent>], conn: &mut PgConnection) -> Result<(), BoxError> {
        let (mut customers, mut amounts) = (vec![], vec![]);
        for recorded in events {
            customers.push(recorded.event.customer());
            amounts.push(recorded.event.cents());
        }
        let upsert = "insert into spend as s (customer, cents) select customer, sum(cents) \
                      from unnest($1::bigint[], $2::bigint[]) as n(customer, cents) group by customer \
                      on conflict (customer) do update set cents = s.cents + excluded.cents";
        sqlx::query(upsert).bind(&customers).bind(&amounts).execute(conn).await?;
        Ok(())
    }
}

/// In which order the streams' events stand in the log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// As 32 callers leave them that each add ten events to one stream, then ten to the next.
    Written,
    /// Anywhere: hardly two events of a stream meet in one batch.
    Scattered,
    /// As written, and one event in 1,000 is of another category, and one of another type.
    Mixed,
}

/// One event in so many is a rare one.
const RARE: usize = 1_000;

/// A store with `events` events, equally many to each of `streams`; the stream's number is the customer.
///
/// It stays for all rounds: only read models are built anew.
pub(crate) async fn fill(
    server: &Server,
    store: &str,
    events: usize,
    streams: usize,
    order: Order,
) -> Result<(), BoxError> {
    let mut conn = server.connect().await?;
    let there = format!("select to_regclass('{store}.events') is not null");
    if sqlx::query_scalar(AssertSqlSafe(there)).fetch_one(&mut conn).await? {
        let count = format!("select count(*) from {store}.events");
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut conn).await?;
        if count as usize == events {
            return Ok(());
        }
        server.drop_store(store).await?;
    }
    let annals = connect(server, store).await?;
    let length = events / streams;
    let stream = match order {
        Order::Written | Order::Mixed => {
            // Each writes as many streams as the others.
            let writers = (1..=32).rev().find(|writers| streams.is_multiple_of(*writers)).unwrap_or(1);
            format!("n % {writers} + {writers} * (n / {})", writers * length)
        }
        // A permutation of 0..events that is neither sorted nor grouped: multiply by a number that has no common factor.
        Order::Scattered => format!("(n::numeric * 7368787 % {events})::bigint % {streams}"),
    };
    let (category, event_type) = match order {
        Order::Mixed => (
            format!("case when n % {RARE} = 998 then 'counter' else 'sale' end"),
            format!("case n % {RARE} when 998 then 'Counted' when 999 then 'Returned' else 'Sold' end"),
        ),
        _ => ("'sale'".into(), "'Sold'".into()),
    };
    // They grow with time, as those of the store do.
    let id = "overlay(md5(n::text) placing lpad(to_hex(1700000000000 + n / 100), 12, '0') || '7' from 1)::uuid";
    let insert = format!(
        r#"insert into {store}.events (version, event_id, correlation_id, stream, event_type, payload)
           select row_number() over (partition by category, stream order by n), {id}, {id}, category || '-' || stream,
             event_type, format('{{"customer":%s,"cents":100,"note":"%s"}}', stream, repeat('x', 190))::json
           from (select n, {stream} as stream, {category} as category, {event_type} as event_type
                 from generate_series(0, {events} - 1) n) s
           order by n"#
    );
    sqlx::query(AssertSqlSafe(insert)).execute(&mut conn).await?;
    server.run(format!("vacuum analyze {store}.events")).await?;
    server.settle().await?;
    annals.close().await;
    Ok(())
}

pub(crate) async fn connect(server: &Server, store: &str) -> Result<Annals, BoxError> {
    Ok(Annals::connect(Config { store: store.into(), ..server::config(server.url()) }).await?)
}

/// Aggregates of `length` events each, loaded anew; the limit reads the rows of the same streams, in turn with it.
pub(crate) async fn load(server: &Server, length: usize) -> Result<(Figures, Figures), BoxError> {
    let (store, streams) = (format!("bench_load_{length}"), (200_000 / length).min(1_000));
    fill(server, &store, length * streams, streams, Order::Scattered).await?;
    let read =
        format!("select version, position, payload::text from {store}.events where stream = $1 order by version");
    let (read, mut conn) = (AssertSqlSafe(read).into_sql_str(), server.connect().await?);
    let mut bare = async |nth: usize| -> Result<u64, BoxError> {
        let (begun, mut bytes) = (Instant::now(), 0);
        let mut rows = sqlx::query(read.clone()).bind(format!("sale-{nth}")).fetch(&mut conn);
        while let Some(row) = rows.try_next().await? {
            bytes += row.try_get::<&str, _>(2)?.len();
        }
        if bytes == 0 { Err("the bare read found nothing".into()) } else { Ok(micros(begun)) }
    };
    // Whoever came first would find a cold cache.
    for nth in 0..streams {
        bare(nth).await?;
    }
    let app = connect(server, &store).await?.app().aggregate::<Sale>().start().await?;
    let (mut ours, mut limit) = (vec![], vec![]);
    for nth in 0..streams {
        if nth % 2 == 0 {
            limit.push(bare(nth).await?);
        }
        ours.push(load_one(&app, nth, length).await?);
        if nth % 2 == 1 {
            limit.push(bare(nth).await?);
        }
    }
    app.shutdown().await;
    Ok((Figures::in_turn(ours, length), Figures::in_turn(limit, length)))
}

/// Loads the first `streams` aggregates, each of which has `length` events.
pub(crate) async fn load_some(
    server: &Server,
    store: &str,
    streams: usize,
    length: usize,
) -> Result<Figures, BoxError> {
    let app = connect(server, store).await?.app().aggregate::<Sale>().start().await?;
    let mut latencies = vec![];
    for nth in 0..streams {
        latencies.push(load_one(&app, nth, length).await?);
    }
    app.shutdown().await;
    Ok(Figures::in_turn(latencies, length))
}

/// Loads an aggregate that this process has not loaded yet.
async fn load_one(app: &App, nth: usize, length: usize) -> Result<u64, BoxError> {
    let begun = Instant::now();
    let receipt = app.execute::<Sale>(nth, SaleCommand::Look).await?;
    if receipt.version.get() as usize != length {
        return Err(format!("sale-{nth} has {} events instead of {length}", receipt.version).into());
    }
    Ok(micros(begun))
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}

/// What catches up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Model {
    View,
    Projector,
    /// A view that one key in 100 is poison for.
    Poisoned,
    /// A view that wants every event.
    Everything,
    /// Views that want one event in 1,000, by its category or by its type.
    Rare,
    RareType,
}

/// How a read model is built: by an app that finds none, or beside the one that serves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    CatchUp,
    Rebuild,
}

/// A read model that is built from the log's start; the limit reads the same rows in order.
pub(crate) async fn catch_up(
    server: &Server,
    (model, way): (Model, Way),
    order: Order,
    events: usize,
) -> Result<(Figures, Figures), BoxError> {
    let store = if order == Order::Written { "bench_view" } else { "bench_scattered" };
    fill(server, store, events, events / 10, order).await?;
    forget_models(server, store).await?;
    server.settle().await?;
    let mut conn = server.connect().await?;
    let start = Instant::now();
    let mut bytes = 0;
    let read = format!("select position, stream, version, payload::text from {store}.events order by position");
    let mut rows = sqlx::query(AssertSqlSafe(read)).fetch(&mut conn);
    while let Some(row) = rows.try_next().await? {
        bytes += row.try_get::<&str, _>(3)?.len();
    }
    drop(rows);
    let limit = Figures::rate(events, start.elapsed());

    if bytes == 0 {
        return Err("the bare read found nothing".into());
    }
    Ok((build(server, store, (model, way), events).await?, limit))
}

/// A read model that is built from the log's start; the limit is another over the same log.
pub(crate) async fn compare(
    server: &Server,
    (ours, limit): (Model, Model),
    order: Order,
    events: usize,
) -> Result<(Figures, Figures), BoxError> {
    let store = if order == Order::Written { "bench_view" } else { "bench_mixed" };
    fill(server, store, events, events / 10, order).await?;
    server.settle().await?;
    let limit = build(server, store, (limit, Way::CatchUp), events).await?;
    server.settle().await?;
    Ok((build(server, store, (ours, Way::CatchUp), events).await?, limit))
}

/// Builds a read model over all `events` events of `store`, and forgets it.
pub(crate) async fn build(
    server: &Server,
    store: &str,
    (model, way): (Model, Way),
    events: usize,
) -> Result<Figures, BoxError> {
    forget_models(server, store).await?;
    server::forget_peak();
    let annals = connect(server, store).await?;
    let end = annals.horizon().await?.safe;
    let app = annals.app().aggregate::<Sale>().aggregate::<Counter>();
    let (name, app) = match model {
        Model::View => (Spend::NAME, app.view::<Spend>()),
        Model::Projector => (SpendTable::NAME, app.projector(SpendTable)),
        Model::Poisoned => (Poisoned::NAME, app.view::<Poisoned>()),
        Model::Everything => (Everything::NAME, app.view::<Everything>()),
        Model::Rare => (Rare::NAME, app.view::<Rare>()),
        Model::RareType => (RareType::NAME, app.view::<RareType>()),
    };
    let applied = match model {
        // Ten events to a customer.
        Model::Poisoned => events - (events / 10).div_ceil(Poisoned::EVERY) * 10,
        Model::Rare | Model::RareType => events / RARE,
        _ => events,
    };
    // Of a sparse one the positions count that it has passed, of a poisoned one what is well.
    let counted = if model == Model::Poisoned { applied } else { events };
    let start = Instant::now();
    let app = app.start().await?;
    app.wait_for(name, end, LONG).await?;
    let mut figures = Figures::rate(counted, start.elapsed());
    if way == Way::Rebuild {
        server.settle().await?;
        let start = Instant::now();
        rebuild(&annals, name).await?;
        figures = Figures::rate(events, start.elapsed());
    }
    figures.resident_mb = server::own_peak();
    let (sum, table) = match model {
        Model::Projector => ("sum(cents)::bigint", "spend"),
        _ => ("sum((document->>'cents')::bigint)::bigint", "documents"),
    };
    let sum = format!("select {sum} from {store}_{name}.{table}");
    let sum: i64 = sqlx::query_scalar(AssertSqlSafe(sum)).fetch_one(&mut server.connect().await?).await?;
    if sum as usize != applied * 100 {
        return Err(format!("the read model sums up to {sum} instead of {}", applied * 100).into());
    }
    if model == Model::Poisoned {
        let lag = annals.followers().lag().await?;
        let parked: i64 = lag.iter().map(|lag| lag.parked).sum();
        figures.note = Some(format!("{parked} of {events} events are parked"));
    }
    app.shutdown().await;
    forget_models(server, store).await?;
    Ok(figures)
}

/// Asks for a rebuild, and waits until it serves.
async fn rebuild(annals: &Annals, name: &str) -> Result<(), BoxError> {
    let followers = annals.followers();
    let live = async || -> Result<Option<i64>, BoxError> {
        let lag = followers.lag().await?;
        Ok(lag.iter().find(|lag| lag.follower == name && lag.purpose == "live").map(|lag| lag.generation))
    };
    let old = live().await?;
    followers.rebuild(name, None, &By::new("bench", "to measure it")).await?;
    while live().await? == old {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

pub(crate) async fn forget_models(server: &Server, store: &str) -> Result<(), BoxError> {
    let names = [Spend::NAME, SpendTable::NAME, Poisoned::NAME, Everything::NAME, Rare::NAME, RareType::NAME];
    let mut drops: Vec<String> = names.map(|name| format!("drop schema if exists {store}_{name} cascade")).into();
    let tables = ["checkpoints", "generations", "followers", "dead_letters"];
    drops.extend(tables.map(|table| format!("delete from {store}.{table}")));
    server.run(drops.join("; ")).await
}

/// From the caller's receipt to the view's visibility, at 200 commands a second.
pub(crate) async fn visible(server: &Server, seconds: u64) -> Result<Figures, BoxError> {
    let store = "bench_visible";
    server.run(format!("drop schema if exists {store} cascade; drop schema if exists {store}_spend cascade")).await?;
    let app = connect(server, store).await?.app().aggregate::<Sale>().view::<Spend>().start().await?;
    app.wait_for_all(Position::START, LONG).await?;
    // Connections are made and statements are prepared before the clock runs, as pgbench does.
    for order in 0..100 {
        let receipt = app.execute::<Sale>(-1 - order, SaleCommand::Sell { customer: order % 50, cents: 100 }).await?;
        app.wait_for(Spend::NAME, receipt.position, LONG).await?;
    }
    server.settle().await?;
    let mut ticks = interval(Duration::from_millis(5));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let start = Instant::now();
    let mut calls = vec![];
    for nth in 0..seconds as i64 * 200 {
        ticks.tick().await;
        let app = app.clone();
        calls.push(tokio::spawn(async move {
            let (order, customer) = (nth / 10, nth % 50);
            let receipt = app.execute::<Sale>(order, SaleCommand::Sell { customer, cents: 100 }).await?;
            let acknowledged = Instant::now();

            app.wait_for(Spend::NAME, receipt.position, LONG).await?;
            Ok::<_, BoxError>(micros(acknowledged))
        }));
    }
    let mut latencies = vec![];
    for call in calls {
        latencies.push(call.await??);
    }
    let figures = Figures::of(latencies, 1, start.elapsed());
    app.shutdown().await;
    Ok(figures)
}
