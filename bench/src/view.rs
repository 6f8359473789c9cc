//! A view that catches up from the log's start, beside a bare read of the same rows.

use std::{
    str::FromStr,
    time::{Duration, Instant},
};

use annals::{Aggregate, Annals, BoxError, Change, Config, Context, Event, Id, Recorded, View};
use futures::TryStreamExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection, Row, postgres::PgConnectOptions};

use crate::measure::Figures;

#[derive(Serialize, Deserialize, JsonSchema)]
enum SaleEvent {
    Sold { customer: i64, cents: i64, note: String },
}
impl Event for SaleEvent {}

#[derive(Default, Serialize, Deserialize)]
struct Sale;

impl Aggregate for Sale {
    const TYPE: &'static str = "sale";
    type Command = ();
    type Event = SaleEvent;
    type Error = std::fmt::Error;

    fn handle(&self, (): &(), _: &Context) -> Result<Vec<SaleEvent>, std::fmt::Error> {
        Ok(vec![])
    }

    fn apply(&mut self, _: &SaleEvent) {}
}

#[derive(Default, Serialize, Deserialize)]
struct Spend {
    cents: i64,
}

impl View for Spend {
    const NAME: &'static str = "spend";
    type Event = SaleEvent;

    fn keys(recorded: &Recorded<SaleEvent>) -> Vec<Id> {
        let SaleEvent::Sold { customer, .. } = &recorded.event;
        vec![customer.into()]
    }

    fn apply(&mut self, _: &Id, recorded: &Recorded<SaleEvent>) -> Change {
        let SaleEvent::Sold { cents, .. } = &recorded.event;
        self.cents += cents;
        Change::Keep
    }
}

/// Ten events to a stream; a customer, which is the view's key, has as many.
const FILL: &str = r#"
insert into bench_view.events (version, event_id, correlation_id, stream, event_type, payload)
select 1 + n / ($1 / 10), gen_random_uuid(), gen_random_uuid(), 'sale-' || n % ($1 / 10), 'Sold',
  format('{"customer":%s,"cents":100,"note":"%s"}', n % ($1 / 10), repeat('x', 190))::json
from generate_series(0, $1 - 1) n"#;

const READ: &str = "select position, stream, version, payload::text from bench_view.events order by position";

pub(crate) async fn view(url: &str, events: usize) -> Result<(Figures, Figures), BoxError> {
    let mut conn = PgConnection::connect_with(&PgConnectOptions::from_str(url)?).await?;
    let clear = "drop schema if exists bench_view cascade; drop schema if exists bench_view_spend cascade";
    sqlx::raw_sql(clear).execute(&mut conn).await?;
    let annals = Annals::connect(Config { store: "bench_view".into(), ..Config::new(url) }).await?;
    sqlx::query(FILL).bind(events as i64).execute(&mut conn).await?;
    sqlx::raw_sql("vacuum analyze bench_view.events").execute(&mut conn).await?;

    let start = Instant::now();
    let mut bytes = 0;
    let mut rows = sqlx::query(READ).fetch(&mut conn);
    while let Some(row) = rows.try_next().await? {
        bytes += row.try_get::<&str, _>(3)?.len();
    }
    drop(rows);
    let limit = Figures::rate(events, start.elapsed());

    let end = annals.horizon().await?.safe;
    let start = Instant::now();
    let app = annals.app().aggregate::<Sale>().view::<Spend>().start().await?;
    app.wait_for(Spend::NAME, end, Duration::from_secs(600)).await?;
    let ours = Figures::rate(events, start.elapsed());
    let count = app.count::<Spend>().await?;
    if count as usize != events / 10 || bytes == 0 {
        return Err(format!("the view holds {count} documents of {}", events / 10).into());
    }
    app.shutdown().await;
    sqlx::raw_sql(clear).execute(&mut conn).await?;
    Ok((ours, limit))
}
