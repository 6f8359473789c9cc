//! P3, P9: a follower sees every event once, in position order; only a transaction that has appended holds it up, and is
//! named.
//!
//! `ANNALS_MARKER_SECONDS=600 cargo test -p annals-tests marker` runs the two loads for that long, over millions of
//! events, and tells on standard error what they saw.

mod by_hand;
mod crash;
mod draws;
mod horizon;
mod hot_streams;
mod in_flight;
mod seen;
mod statements;
mod without;

use std::{
    env,
    future::Future,
    io::{Write, stderr},
    time::{Duration, Instant},
};

use annals::{Annals, NewEvent, Position, StreamId, testing::TestDatabase};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

/// How long a test waits for what must come.
const LONG: Duration = Duration::from_secs(60);

/// How long a load runs.
fn load_time(usual: Duration) -> Duration {
    env::var("ANNALS_MARKER_SECONDS").ok().map_or(usual, |text| Duration::from_secs(text.parse().unwrap()))
}

/// Prints what a load saw; in a long run past the test harness, which would keep it.
fn tell(text: &str) {
    match env::var_os("ANNALS_MARKER_SECONDS") {
        Some(_) => stderr().write_all(format!("{text}\n").as_bytes()).unwrap(),
        None => println!("{text}"),
    }
}

async fn open(database: &TestDatabase) -> Annals {
    Annals::connect(crate::kit::config(database.url())).await.unwrap()
}

/// Where writers beside the store reach its database themselves.
fn direct(store: &Annals) -> &str {
    store.config().direct_url.as_ref().unwrap_or(&store.config().url)
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn run(conn: &mut PgConnection, sql: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(conn).await.unwrap();
}

fn stream(name: &str) -> StreamId {
    StreamId::new(name).unwrap()
}

/// An event that the shop's read models can read.
fn placed() -> NewEvent {
    NewEvent::new("Placed", r#"{"customer":"ada","cents":1}"#)
}

/// Inserts `count` such events behind version `after` of `stream` as anybody with a database client may, without a
/// position. Returns the first and the last that they got.
async fn insert(conn: &mut PgConnection, stream: &str, after: i64, count: i64) -> (i64, i64) {
    insert_into(conn, "annals", stream, after, count).await
}

async fn insert_into(conn: &mut PgConnection, store: &str, stream: &str, after: i64, count: i64) -> (i64, i64) {
    let sql = format!(
        r#"with inserted as (
             insert into {store}.events (version, event_id, correlation_id, stream, event_type, payload)
             select $2 + nth, gen_random_uuid(), gen_random_uuid(), $1, 'Placed', '{{"customer":"ada","cents":1}}'
             from generate_series(1, $3) nth
             returning position)
           select min(position), max(position) from inserted"#
    );
    let insert = sqlx::query_as(AssertSqlSafe(sql)).bind(stream).bind(after).bind(count);
    insert.fetch_one(conn).await.unwrap()
}

/// The low 32 bits of the markers that the transaction of `conn` holds, in all stores.
async fn markers(conn: &mut PgConnection) -> Vec<i64> {
    let sql = "select objid::bigint from pg_locks
       where pid = pg_backend_pid() and locktype = 'advisory' and objsubid = 2 and granted order by 1";
    sqlx::query_scalar(sql).fetch_all(conn).await.unwrap()
}

async fn pid(conn: &mut PgConnection) -> i32 {
    sqlx::query("select pg_backend_pid()").fetch_one(conn).await.unwrap().get(0)
}

/// Asks again until `holds`, for a minute at most.
async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let deadline = Instant::now() + LONG;
    while !holds().await {
        assert!(Instant::now() < deadline, "in {LONG:?} it never came true that {what}");
        pause(5).await;
    }
}

/// Part of a workload, or the time between two questions; never a wait for a result.
async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

fn positions(list: &[Position]) -> Vec<i64> {
    list.iter().map(|position| position.get()).collect()
}

/// Chance for one task: quick, seeded, and of no other quality.
struct Dice(u64);

impl Dice {
    fn new(seed: usize) -> Self {
        Self((seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number from `low` to `high`, both included.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        low + (self.0 >> 11) % (high - low + 1)
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.between(1, 100) <= chance
    }
}
