//! Verify: a clean fold of the log beside the live model, up to the same position, and the two compared row by row.

use std::{cmp::Ordering, sync::Arc, time::Duration};

use futures::{Stream, TryStreamExt};
use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqlSafeStr, postgres::PgRow};
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::{
    batch::{BatchSql, Unit},
    model::{Generation, Model},
    policy::{FailurePolicy, OnFailure},
    runner::{Runner, Setting},
    status::Seat,
    tail::Tail,
};
use crate::{
    Position,
    error::StoreError,
    sql::StoreName,
    store::{Annals, connect},
};

/// How often it begins again when the live model's dead letters changed meanwhile.
const TRIES: usize = 3;
/// How long the fold may stand still.
const STANDSTILL: Duration = Duration::from_secs(60);

/// What a comparison of a read model with a clean fold of the log found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verified {
    /// The read model.
    pub name: String,
    /// Whether every row is as it must be.
    pub equal: bool,
    /// How many rows were compared.
    pub rows: u64,
    /// Up to where: the least position of its partitions.
    pub position: Position,
    /// The first row that differs, by table and key.
    pub first_difference: Option<Difference>,
}

/// A row that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The table in the read model's schema.
    pub table: String,
    /// The row's primary key, as JSON; the row itself where there is none.
    pub key: String,
    /// What is there, as JSON; none if the row is missing.
    pub live: Option<String>,
    /// What must be there; none if the row must not be.
    pub clean: Option<String>,
}

/// What the live model is, in one snapshot.
#[derive(PartialEq)]
struct Live {
    generation: i64,
    /// Position, pairs and dead letters of each partition.
    partitions: Vec<(i64, i64, String)>,
    counted_after: i64,
}

/// Compares the live model with a clean fold.
pub(crate) async fn verify(store: &Annals, model: &Model, tail: &Tail, process: Uuid) -> Result<Verified, StoreError> {
    for _ in 0..TRIES {
        let shadow = Shadow::create(store, model, process).await?;
        let compared = shadow.compare(tail).await;
        let dropped = shadow.retire().await;
        if let Some(verified) = compared? {
            dropped?;
            return Ok(verified);
        }
    }
    Err(StoreError::Unfit(format!(
        "{} kept changing while it was compared, by a rebuild or by dead letters that are tried again: try again later",
        model.name
    )))
}

/// The fold that the live model is compared with.
struct Shadow<'v> {
    store: &'v Annals,
    model: &'v Model,
    process: Uuid,
    live: Live,
    generation: i64,
    schema: StoreName,
}

impl<'v> Shadow<'v> {
    async fn create(store: &'v Annals, model: &'v Model, process: Uuid) -> Result<Self, StoreError> {
        let what = StoreError::on("begin a comparison");
        let sql = &store.inner.sql;
        let mut conn = connect(&store.inner.options, store.config().connect_deadline).await?;
        let mut tx = conn.begin_with(sql.begin_read_committed.text()).await.map_err(&what)?;
        let locking = sql.lock_follower.query().bind(model.live.as_str());
        let row = locking.fetch_one(&mut *tx).await.map_err(&what)?;
        let (may_create, generation): (bool, i64) = (row.get(1), row.get(2));
        if !may_create {
            let name = model.name;
            let refusal =
                format!("to verify {name} takes a schema beside it: connect as a role with CREATE on the database");
            return Err(StoreError::Unfit(refusal));
        }
        let known = sql.read_follower.query().bind(model.name).fetch_one(&mut *tx).await.map_err(&what)?;
        let version: i32 = known.get(2);
        if version != model.version as i32 {
            return Err(StoreError::Unfit(format!(
                "{} is live in version {version}, and this build has version {}: verify it with a build of its version",
                model.name, model.version
            )));
        }
        let live = read_live(store, model, &mut tx).await?;
        let schema = model.live.shadow(generation);
        let entered = Generation {
            follower: model.name,
            number: generation,
            schema: schema.clone(),
            purpose: "verify",
            partitions: live.partitions.len() as i32,
            pace: None,
            requested_by: None,
        };
        model.create(store, &entered, false, &mut tx).await?;
        sql.copy_discards
            .query()
            .bind(model.name)
            .bind(live.generation)
            .bind(generation)
            .bind(["discarded", "failed", "queued"].as_slice())
            .execute(&mut *tx)
            .await
            .map_err(&what)?;
        tx.commit().await.map_err(&what)?;
        let _ = conn.close().await;
        Ok(Self { store, model, process, live, generation, schema })
    }

    /// Folds, and compares; none if the live model is another by now, or has other dead letters up to where it stood.
    async fn compare(&self, tail: &Tail) -> Result<Option<Verified>, StoreError> {
        let what = StoreError::on("compare a read model");
        // Nearly all of it, before the snapshot: that keeps the server from cleaning up.
        self.fold(tail, self.live.partitions.iter().map(|(position, ..)| *position).collect()).await?;
        let mut conn = connect(&self.store.inner.options, self.store.config().connect_deadline).await?;
        let begin = AssertSqlSafe("begin isolation level repeatable read read only").into_sql_str();
        let mut snapshot = conn.begin_with(begin).await.map_err(&what)?;
        let live = read_live(self.store, self.model, &mut snapshot).await?;
        let letters = |live: &Live| live.partitions.iter().map(|(_, _, letters)| letters.clone()).collect::<Vec<_>>();
        if live.generation != self.live.generation || letters(&live) != letters(&self.live) {
            return Ok(None);
        }
        let positions: Vec<i64> = live.partitions.iter().map(|(position, ..)| *position).collect();
        let pairs = self.fold(tail, positions.clone()).await?;
        let mut verified = Verified {
            name: self.model.name.into(),
            equal: true,
            rows: 0,
            position: Position::new(positions.into_iter().min().unwrap_or_default()),
            first_difference: None,
        };
        let mut clean = connect(&self.store.inner.options, self.store.config().connect_deadline).await?;
        let (live_tables, clean_tables) = (
            self.tables(self.model.live.as_str(), &mut clean).await?,
            self.tables(self.schema.as_str(), &mut clean).await?,
        );
        for (table, statement) in clean_tables {
            let own = live_tables.iter().find(|(name, _)| *name == table);
            let Some((_, own)) = own else {
                verified.differ(&table, "the table".into(), None, Some("exists".into()));
                break;
            };
            let (rows, difference) = compare_rows(own, &statement, &mut snapshot, &mut clean).await?;
            verified.rows += rows;
            if let Some((key, live, clean)) = difference {
                verified.differ(&table, key, live, clean);
                break;
            }
        }
        let counted: i64 = live.partitions.iter().map(|(_, pairs, _)| pairs).sum();
        if verified.equal && live.counted_after == 0 && counted != pairs {
            verified.differ("checkpoints", "pairs".into(), Some(counted.to_string()), Some(pairs.to_string()));
        }
        // A swap changes what the names in the statements mean.
        let now = read_live(self.store, self.model, &mut clean).await?;
        Ok((now.generation == live.generation).then_some(verified))
    }

    async fn tables(&self, schema: &str, conn: &mut PgConnection) -> Result<Vec<(String, String)>, StoreError> {
        let listing = self.store.inner.sql.list_tables.typed().bind(schema);
        listing.fetch_all(conn).await.map_err(StoreError::on("list the tables of a read model"))
    }

    /// Takes each partition of the shadow to its position. Returns how many pairs there were.
    async fn fold(&self, tail: &Tail, positions: Vec<i64>) -> Result<i64, StoreError> {
        let (sql, reads) = (&self.store.inner.sql, &self.store.inner.reads);
        let stop = CancellationToken::new();
        let _stop: DropGuard = stop.clone().drop_guard();
        let partitions = positions.len() as i32;
        for (partition, position) in (1..).zip(&positions) {
            let draining = sql
                .set_drain
                .query()
                .bind(self.model.name)
                .bind(self.generation)
                .bind(partition)
                .bind(self.process)
                .bind(position);
            reads.execute("begin a comparison", draining).await?;
            let unit = Unit {
                name: self.model.name,
                generation: self.generation,
                partition,
                partitions,
                shadow: true,
                schema: self.schema.clone(),
            };
            tokio::spawn(Runner::new(self.setting(&unit, stop.clone()), unit, tail).run());
        }
        let (mut moved, mut last) = (Instant::now(), -1);
        loop {
            let reading = sql.read_places.query().bind(self.model.name).bind(self.generation);
            let rows = reads.all("fold a read model", reading).await?;
            if rows.len() != positions.len() {
                return Err(StoreError::Unfit(format!(
                    "the comparison of {} was ended: its lease lapsed, or the model was renamed or forgotten; try again",
                    self.model.name
                )));
            }
            if let Some(halted) = rows.iter().find(|row| row.get::<&str, _>(4) == "halted") {
                return Err(StoreError::Unfit(format!(
                    "the code of {} cannot apply what the live model has applied: {}",
                    self.model.name,
                    halted.get::<Option<&str>, _>(5).unwrap_or("it halted")
                )));
            }
            if rows.iter().all(|row| row.get::<i64, _>(1) >= row.get::<Option<i64>, _>(2).unwrap_or_default()) {
                return Ok(rows.iter().map(|row| row.get::<i64, _>(3)).sum());
            }
            let at: i64 = rows.iter().map(|row| row.get::<i64, _>(1)).sum();
            if at != last {
                (moved, last) = (Instant::now(), at);
            } else if moved.elapsed() > STANDSTILL {
                let what = "fold a read model to compare it with";
                return Err(StoreError::Timeout { what, after: STANDSTILL });
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn setting(&self, unit: &Unit, stop: CancellationToken) -> Setting {
        Setting {
            store: self.store.clone(),
            owner: self.process,
            seat: Arc::new(Seat::new(self.model.name)),
            follower: (self.model.follower)(unit),
            filter: self.model.filter(unit),
            // Nothing may be parked: what the live model has applied, this one applies.
            policy: FailurePolicy { on_failure: OnFailure::Halt, attempts: 3, ..self.model.policy },
            sql: Arc::new(BatchSql::new(&self.store.inner.sql)),
            due: Arc::default(),
            hung: Arc::default(),
            changed: Arc::default(),
            stop,
        }
    }

    async fn retire(&self) -> Result<(), StoreError> {
        let retiring = self.store.inner.sql.retire_generation.query().bind(self.model.name).bind(self.generation);
        self.store.inner.reads.execute("end a comparison", retiring).await.map(drop)
    }
}

impl Verified {
    fn differ(&mut self, table: &str, key: String, live: Option<String>, clean: Option<String>) {
        self.equal = false;
        self.first_difference = Some(Difference { table: table.into(), key, live, clean });
    }
}

async fn read_live(store: &Annals, model: &Model, conn: &mut PgConnection) -> Result<Live, StoreError> {
    let text = model.live.instantiate_model(&store.inner.name, include_str!("../sql/read_live.sql"));
    let rows = text.query().bind(model.name).fetch_all(conn).await;
    let rows = rows.map_err(StoreError::on("read what is live"))?;
    let partition = |row: &PgRow| (row.get("position"), row.get("pairs"), row.get("letters"));
    Ok(Live {
        generation: rows.first().map(|row| row.get("generation")).unwrap_or_default(),
        counted_after: rows.iter().map(|row| row.get("counted_after")).max().unwrap_or_default(),
        partitions: rows.iter().map(partition).collect(),
    })
}

type Found = Option<(String, Option<String>, Option<String>)>;

/// Compares two tables, a row of each at a time. Returns how many rows there were, and the first key that differs.
async fn compare_rows(
    live: &str,
    clean: &str,
    live_conn: &mut PgConnection,
    clean_conn: &mut PgConnection,
) -> Result<(u64, Found), StoreError> {
    let (mut live, mut clean) = (std::pin::pin!(rows(live, live_conn)), std::pin::pin!(rows(clean, clean_conn)));
    let (mut left, mut right) = (live.try_next().await?, clean.try_next().await?);
    let mut compared = 0;
    loop {
        let order = match (&left, &right) {
            (None, None) => return Ok((compared, None)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => left.0.as_bytes().cmp(right.0.as_bytes()),
        };
        compared += 1;
        match (order, left, right) {
            (Ordering::Equal, Some(own), Some(other)) if own == other => {
                (left, right) = (live.try_next().await?, clean.try_next().await?);
            }
            (Ordering::Less, Some((key, row)), _) => return Ok((compared, Some((key, Some(row), None)))),
            (Ordering::Greater, _, Some((key, row))) => return Ok((compared, Some((key, None, Some(row))))),
            (_, Some((key, own)), Some((_, other))) => return Ok((compared, Some((key, Some(own), Some(other))))),
            _ => return Ok((compared, None)),
        }
    }
}

fn rows<'c>(
    statement: &str,
    conn: &'c mut PgConnection,
) -> impl Stream<Item = Result<(String, String), StoreError>> + 'c {
    let statement = AssertSqlSafe(statement.to_owned()).into_sql_str();
    sqlx::query_as(statement).persistent(false).fetch(conn).map_err(StoreError::on("compare rows"))
}
