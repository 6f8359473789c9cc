//! How Postgres carries out the store's statements on a log of a certain length.

use annals::BoxError;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Row};

use crate::{read::connect, server::Server};

/// What an append's connection is set to, as `sql/prepare_lane.sql` does.
const LANE: &str = "set plan_cache_mode = force_generic_plan; set enable_nestloop = off; set enable_mergejoin = off; \
                    set jit = off";
/// What a reading connection is set to.
const READ: &str = "set plan_cache_mode = force_generic_plan; set jit = off";

/// Prints a table of the statements on `store`, a log of `events` events: plan, pages and time, of the third run of each.
pub(crate) async fn plans(server: &Server, store: &str, events: usize) -> Result<(), BoxError> {
    let annals = connect(server, store).await?;
    let statements = annals.statements();
    annals.close().await;
    let mut conn = server.connect().await?;
    let middle = events / 2;
    let id: String = sqlx::query_scalar(AssertSqlSafe(format!(
        "select event_id::text from {store}.events where position > {middle} order by position limit 1"
    )))
    .fetch_one(&mut conn)
    .await?;
    println!("| {events} events: statement | nodes | rows | pages in memory | pages read | ms |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for (name, what, settings, arguments) in cases(events, &id) {
        let arguments = if arguments.is_empty() { arguments } else { format!("({arguments})") };
        let (_, text) = statements.iter().find(|(of, _)| *of == name).ok_or(format!("there is no statement {name}"))?;
        let mut plan = Value::Null;
        for _ in 0..3 {
            // Analyze carries an append out: nothing of it may stay.
            let mut transaction = conn.begin().await?;
            sqlx::raw_sql(AssertSqlSafe(format!("{settings}; prepare statement as {text}")))
                .execute(&mut *transaction)
                .await?;
            let explain = format!("explain (analyze, buffers, format json) execute statement{arguments}");
            let row = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_one(&mut *transaction).await?;
            plan = serde_json::from_str(row.try_get_unchecked(0)?)?;
            sqlx::raw_sql("deallocate statement").execute(&mut *transaction).await?;
            transaction.rollback().await?;
        }
        let top = &plan[0]["Plan"];
        let mut nodes = vec![];
        collect(top, &mut nodes);
        println!(
            "| {name}{what} | {} | {} | {} | {} | {:.2} |",
            nodes.join(", "),
            top["Actual Rows"],
            top["Shared Hit Blocks"],
            top["Shared Read Blocks"],
            plan[0]["Execution Time"].as_f64().unwrap_or_default()
        );
    }
    Ok(())
}

/// A statement, what of it, the settings of its connection, and its arguments.
fn cases(events: usize, id: &str) -> Vec<(&'static str, &'static str, &'static str, String)> {
    let uuid = "gen_random_uuid()";
    let array = |count: usize, of: &dyn Fn(usize) -> String| {
        format!("array[{}]", (0..count).map(of).collect::<Vec<_>>().join(","))
    };
    let payload = format!("'{{\"note\":\"{}\"}}'", "x".repeat(239));
    let streams = |count: usize| array(count, &|nth| format!("'sale-{}'", 1_000_000_000 + nth));
    let same = |count: usize, value: &str, of: &str| format!("{}::{of}[]", array(count, &|_| value.into()));
    let each = format!(
        "{}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}",
        streams(32),
        same(32, "0", "bigint"),
        same(32, uuid, "uuid"),
        same(32, "null", "uuid"),
        same(32, "null", "uuid"),
        same(32, "null", "text"),
        same(32, "null", "text"),
        same(32, uuid, "uuid"),
        same(32, "'Sold'", "text"),
        same(32, "1", "smallint"),
        same(32, &payload, "text"),
    );
    let batch = format!(
        "{}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}",
        streams(32),
        same(32, "0", "bigint"),
        format_args!("{}::integer[]", array(32, &|nth| nth.to_string())),
        same(32, "10", "integer"),
        same(32, uuid, "uuid"),
        same(32, "null", "uuid"),
        same(32, uuid, "uuid"),
        same(32, "null", "text"),
        same(32, "null", "text"),
        same(32, "true", "boolean"),
        same(32, "'\\x00'", "bytea"),
        format_args!("{}::integer[]", array(320, &|nth| (nth / 10 + 1).to_string())),
        format_args!("{}::integer[]", array(320, &|nth| (nth % 10 + 1).to_string())),
        same(320, uuid, "uuid"),
        same(320, "'Sold'", "text"),
        same(320, "1", "smallint"),
        same(320, &payload, "text"),
    );
    let (middle, stream) = (events / 2, events / 20);
    let one = format!(
        "'sale-1000000000', 0, {uuid}, null, null, null, null, {}, {}, {}, {}",
        same(1, uuid, "uuid"),
        same(1, "'Sold'", "text"),
        same(1, "1", "smallint"),
        same(1, &payload, "text"),
    );
    vec![
        ("append_one", "", LANE, one),
        ("append_each", ", 32 streams", LANE, each),
        ("append_events", ", 32 appends of 10, with command ids", LANE, batch),
        (
            "find_appends",
            "",
            "reset all",
            format!("array['sale-{stream}'], array[0::bigint], array['{id}'::uuid], array['{id}'::uuid]"),
        ),
        ("load_aggregate", "", READ, format!("'sale-{stream}', 1, 0, 10000, false")),
        ("read_stream_forwards", "", READ, format!("'sale-{stream}', 0, {}, null, 1000", i64::MAX)),
        ("read_stream_backwards", "", READ, format!("'sale-{stream}', 0, {}, null, 1", i64::MAX)),
        ("read_log", ", 2,000 events", READ, format!("{middle}, {events}, null, null, 2000")),
        (
            "read_log",
            ", a type that is not there",
            READ,
            format!("{middle}, {}, array['Bought'], null, 2000", middle + 100_000),
        ),
        ("read_last_position", "", READ, events.to_string()),
        ("read_safe_position", "", READ, String::new()),
        ("find_events", ", 1 id", READ, format!("array['{id}'::uuid]")),
        ("find_command", "", READ, format!("'{id}'")),
    ]
}

/// The nodes that fetch or join, with their indexes.
fn collect(node: &Value, nodes: &mut Vec<String>) {
    let kind = node["Node Type"].as_str().unwrap_or_default();
    if node["Actual Loops"].as_f64().unwrap_or_default() > 0.0
        && (kind.contains("Index") || kind.contains("Seq") || kind.contains("Join") || kind.contains("Sort"))
    {
        let index = node["Index Name"].as_str().map(|index| format!(" on {index}")).unwrap_or_default();
        let node = format!("{kind}{index}");
        if !nodes.contains(&node) {
            nodes.push(node);
        }
    }
    for child in node["Plans"].as_array().into_iter().flatten() {
        collect(child, nodes);
    }
}
